"""The tensors in a checkpoint's folder: numbers and no code, and nothing that lies outside of the folder."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .source import inside, read_json

CHECKED_AT_ONCE = 1 << 22  # numbers
SAMPLED = 256  # numbers of each weight in a network's fingerprint


def mark(weights: Mapping[str, Tensor]) -> str:
    """A network's fingerprint: a hash of the names and shapes of its weights and of some values of each, in bfloat16."""
    said = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        flat = weight.detach().flatten()
        some = flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED]
        said.update(f"{name} {tuple(weight.shape)} ".encode())
        said.update(some.to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return said.hexdigest()


def read_weights(folder: Path, names: Sequence[str] = ("model.safetensors",)) -> dict[str, Tensor]:
    """The named tensors in a folder, from safetensors or plain tensors in a .bin file, mapped from the disk.

    Whole weights are preferred to shards, and both to a variant such as fp16, which is taken where it is alone. No tensor
    is larger than the file it came from.

    Args:
        folder: of the weights.
        names: files that could hold them, the preferred first.

    Raises:
        ValueError: there are no weights or several variants, or a file is broken or holds more than plain tensors.
    """
    weights: dict[str, Tensor] = {}
    for file in weight_files(folder, names):
        tensors = read_safetensors(file) if file.suffix == ".safetensors" else _unpickled(file)
        twice = weights.keys() & tensors.keys()
        if twice:
            raise ValueError(f"{min(twice)} stands in two of the weight files in {folder}; save the model again")
        weights |= tensors
    return weights


def weight_files(folder: Path, names: Sequence[str]) -> list[Path]:
    """The files that together hold the weights in `folder`."""
    for name in names:
        if inside(folder, name).is_file():
            return [folder / name]
        if inside(folder, f"{name}.index.json").is_file():
            return _shards(folder / f"{name}.index.json")
    for name in names:  # STEM.VARIANT.KIND; for shards STEM.KIND.index.VARIANT.json or STEM.VARIANT.KIND.index.json
        stem, kind = name.rsplit(".", 1)
        whole = {path for path in folder.glob(f"{stem}.*.{kind}") if "-of-" not in path.name}
        variants = sorted(whole | set(folder.glob(f"{name}.*.json")) | set(folder.glob(f"{stem}.*.{kind}.index.json")))
        if len(variants) > 1:
            raise ValueError(
                f"{folder} holds {' and '.join(path.name for path in variants)}; rename the one you want to {name}"
            )
        for variant in variants:
            return _shards(variant) if variant.suffix == ".json" else [inside(folder, variant.name)]
    raise ValueError(f"there are no weights in {folder}; fewstep looks for {' or '.join(names)}")


def _shards(index: Path) -> list[Path]:
    """The files that an index names, which lie beside the index."""
    places = read_json(inside(index.parent, index.name), "it says which file holds which weight").get("weight_map")
    if not (isinstance(places, dict) and places and all(isinstance(name, str) for name in places.values())):
        raise ValueError(f"{index} has no weight_map, which says which file holds which weight")
    names = sorted(set(places.values()))
    for name in names:
        if Path(name).name != name or Path(name).suffix not in (".safetensors", ".bin"):
            raise ValueError(f"{index} names {name}, which is no weight file beside it")
    files = [inside(index.parent, name) for name in names]
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file.name} is missing in {index.parent} and holds a part of the weights; fetch it")
    return files


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """The named tensors of a safetensors file.

    Raises:
        ValueError: the file is cut off, or its tensors overlap or reach beyond its end.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{file} is cut off or no safetensors file ({in_short(error)}); fetch or save it again") from error


def read_torch(file: Path) -> Any:
    """The content of a file of torch.save, of which only tensors and plain containers are accepted.

    Raises:
        ValueError: the file is compressed or damaged, or holds anything else.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            ways = {entry.compress_type for entry in archive.infolist()}
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        ways = set()  # torch's older format, or no file of torch
    if ways - {zipfile.ZIP_STORED}:  # it could unpack to any size
        raise ValueError(f"{file} is a compressed archive, which torch.save does not write; save it as safetensors")
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=bool(ways))
    except Exception as error:  # zip, pickle and torch errors alike; torch's own message advises to run the code
        raise ValueError(
            f"{file} is damaged, or holds more than plain tensors, which only its code could read; save it as safetensors"
        ) from error


def _unpickled(file: Path) -> dict[str, Tensor]:
    """The tensors in a .bin file."""
    found = read_torch(file)
    if not isinstance(found, dict) or not all(isinstance(name, str) and _is_plain(value) for name, value in found.items()):
        raise ValueError(f"{file} does not hold tensors by their names, as state_dict() gives them; save it as safetensors")
    if sum(tensor.nbytes for tensor in found.values()) > 2 * file.stat().st_size:  # some weights may be shared
        raise ValueError(f"the tensors in {file} are larger than the file; save it as safetensors")
    return dict(found)


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized


def check_finite(weights: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Refuses weights with NaN or infinite values.

    Raises:
        ValueError: names the first such weight.
    """
    for name, value in weights:
        if not value.is_floating_point() or value.is_meta:
            continue
        # in parts, as a sum makes a copy in float32; a sum can overflow though all values are finite
        parts = value.detach().flatten().split(CHECKED_AT_ONCE)
        if not all(part.sum(dtype=torch.float32).isfinite() or part.isfinite().all() for part in parts):
            raise ValueError(
                f"{name} in {folder} holds values that are not finite: its training went wrong or the file is damaged; use "
                "an earlier checkpoint"
            )


class TooLargeError(Exception):
    """More parameters than there are weights."""


@contextmanager
def at_most(numbers: int, tensors: int) -> Iterator[None]:
    """Inside the block, modules fail with TooLargeError once they register more `numbers` or more `tensors` than that."""
    from torch.nn.modules.module import (
        register_module_buffer_registration_hook,
        register_module_parameter_registration_hook,
    )

    left = {"numbers": numbers, "tensors": tensors}

    def count(module: torch.nn.Module, name: str, value: Tensor | None) -> None:
        left["numbers"] -= 0 if value is None else value.numel()
        left["tensors"] -= 1
        if min(left.values()) < 0:
            raise TooLargeError

    hooks = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def elements(tensors: Iterable[Tensor]) -> int:
    """How many numbers the tensors hold together."""
    return sum(tensor.numel() for tensor in tensors)


def in_short(error: BaseException) -> str:
    """A library's error message on one line of at most 300 characters; of a longer one its beginning and its end."""
    text = f"there is no {error}" if isinstance(error, KeyError) else " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:149]} … {text[-148:]}"
