"""The tensors in a checkpoint's folder: numbers and no code, and nothing that lies outside of the folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from .source import read_json


def inside(folder: Path, name: str) -> Path | None:
    """The file `name` in `folder`, None if there is none.

    A link may lead out of the folder in the hub's cache only, where a snapshot is made of links to its repository's blobs.

    Raises:
        ValueError: it is no regular file, or a link that leads out of the folder or nowhere.
    """
    path = folder / name
    if Path(name).name != name:
        raise ValueError(f"{folder} names a file {name!r}; a checkpoint's files lie in its own folder")
    if not path.exists():
        if path.is_symlink():
            raise ValueError(f"{path} is a link that leads nowhere; put the file itself there")
        return None
    homes = [folder.resolve(), *([folder.resolve().parent.parent] if folder.resolve().parent.name == "snapshots" else [])]
    if not any(path.resolve().is_relative_to(home) for home in homes):
        raise ValueError(f"{path} is a link that leads out of its folder; put the file itself there")
    if not path.is_file():  # a pipe would never end
        raise ValueError(f"{path} is not a file")
    return path


def read_weights(folder: Path, *, pickled: bool = False) -> dict[str, Tensor]:
    """The named tensors of a model's folder, in transformers' names of files; mapped from the disk, not yet in memory.

    Args:
        folder: holds model.safetensors, or an index and its shards.
        pickled: also take pytorch_model.bin, if it holds plain tensors only; its pickle is never executed.

    Raises:
        ValueError: there are none, or a file is broken, or holds anything but plain tensors.
    """
    names = ["model.safetensors", *(["pytorch_model.bin"] if pickled else [])]
    files = next(filter(None, (_shards(folder, name) for name in names)), None)
    if not files:
        raise ValueError(f"there are no weights in {folder}: no {' and no '.join(names)}, whole or in shards")
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= read_safetensors(file) if file.suffix == ".safetensors" else _unpickled(file)
    return weights


def _shards(folder: Path, name: str) -> list[Path]:
    """The file `name`, or those that its index names; none if there is neither."""
    whole = inside(folder, name)
    if whole:
        return [whole]
    index = inside(folder, f"{name}.index.json")
    if not index:
        return []
    places = read_json(index, "it says which shard holds which weights").get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise ValueError(f"{index} has no weight_map from names to files")
    found = {shard: inside(folder, shard) for shard in sorted(set(places.values()))}
    for shard, path in found.items():
        if path is None or path.suffix != Path(name).suffix:
            raise ValueError(f"{index} names {shard!r}, and there is no such file of weights beside it")
    return [path for path in found.values() if path]


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """The named tensors of a safetensors file.

    Raises:
        ValueError: it is cut short, or its tensors overlap or reach beyond its end.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{file} is no complete safetensors file: {in_short(error)}") from error


def _unpickled(file: Path) -> dict[str, Tensor]:
    """What a .bin holds, as torch reads it when nothing but tensors and containers is allowed."""
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # zip, pickle and torch errors alike; torch's own message advises to run the pickle
        raise ValueError(
            f"{file} holds more than plain tensors, or is broken or of a format before torch 1.6; "
            "save the model as safetensors, with the code that wrote it"
        ) from error
    plain = isinstance(found, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided
        for name, value in found.items()
    )
    if not plain:
        raise ValueError(f"{file} is no table of named tensors; save the model as safetensors, with the code that wrote it")
    weights: dict[str, Tensor] = found
    for name, value in weights.items():
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"{name} in {file} is larger than what is stored of it")
    return weights


def check_finite(weights: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Refuses weights that are not numbers.

    Raises:
        ValueError: names the first of them.
    """
    for name, value in weights:
        if not value.is_floating_point() or value.is_meta or value.sum(dtype=torch.float32).isfinite():
            continue
        if not value.isfinite().all():  # a sum can overflow where nothing is infinite
            raise ValueError(f"{name} in {folder} holds values that are not finite; its training went wrong")


def elements(tensors: Iterable[Tensor]) -> int:
    """How many numbers the tensors hold together."""
    return sum(tensor.numel() for tensor in tensors)


def in_short(error: BaseException) -> str:
    """What an error of a library says, on one line of at most 300 characters."""
    text = f"there is no {error}" if isinstance(error, KeyError) else " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:299] + "…"
