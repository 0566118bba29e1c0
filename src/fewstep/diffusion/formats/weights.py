"""Weights on disk: which files hold them, and their tensors by name, without running code."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.source import read_json

STEM = "diffusion_pytorch_model"  # diffusers' name for the weights of a part
KINDS = (".safetensors", ".bin")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors in the weight files of a pipeline's part, from safetensors or plain tensors in a .bin file.

    Whole weights are preferred to shards, both to a variant such as fp16, which is taken where it is alone, and
    safetensors to .bin. No tensor is larger than the file it came from.

    Raises:
        ValueError: no weights, several variants, files cut off, or anything but tensors.
    """
    weights: dict[str, Tensor] = {}
    for file in weight_files(folder):
        tensors = _safetensors(file) if file.suffix == ".safetensors" else _plain_bin(file)
        twice = weights.keys() & tensors.keys()
        if twice:
            raise ValueError(f"{min(twice)} stands in two of the weight files in {folder}; save the model again")
        weights |= tensors
    return weights


def weight_files(folder: Path) -> list[Path]:
    """The files that together hold the weights of the part in `folder`."""
    for name in (STEM + kind for kind in KINDS):
        if (folder / name).is_file():
            return [folder / name]
        if (folder / f"{name}.index.json").is_file():
            return _shards(folder / f"{name}.index.json")
    for kind in KINDS:  # NAME.VARIANT.safetensors, and for shards NAME.safetensors.index.VARIANT.json, the dots either way
        whole = {path for path in folder.glob(f"{STEM}.*{kind}") if "-of-" not in path.name}
        variants = sorted(whole | set(folder.glob(f"{STEM}{kind}.*.json")) | set(folder.glob(f"{STEM}.*{kind}.index.json")))
        if len(variants) > 1:
            raise ValueError(
                f"{folder} holds {' and '.join(path.name for path in variants)}; "
                f"rename the one that is meant to {STEM}{kind}"
            )
        if variants:
            return _shards(variants[0]) if variants[0].suffix == ".json" else variants
    raise ValueError(f"there are no weights in {folder}; they would be {STEM}.safetensors")


def _shards(index: Path) -> list[Path]:
    """The files that an index names; they lie beside it."""
    places = read_json(index, "it says which file holds which weight").get("weight_map")
    if not (isinstance(places, dict) and places and all(isinstance(name, str) for name in places.values())):
        raise ValueError(f"{index} has no weight_map, which says which file holds which weight")
    files = [index.parent / name for name in sorted(set(places.values()))]
    for file in files:
        if file.parent != index.parent or file.suffix not in KINDS:
            raise ValueError(f"{index} names {file.name}, which is no weight file beside it")
        if not file.is_file():
            raise ValueError(f"{file.name} is missing in {index.parent}; fetch it, it holds a part of the weights")
    return files


def _safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{file} is cut off or no safetensors file ({error}); fetch or save it again") from error


def _plain_bin(file: Path) -> dict[str, Tensor]:
    """What torch.save wrote, if it is plain tensors."""
    _check_archive(file)
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch errors alike; torch's own words advise to run the code
        raise ValueError(
            f"{file} is damaged, or holds more than plain tensors, which only its code could read; save it as safetensors"
        ) from error
    if not _names_tensors(tensors):
        raise ValueError(f"{file} does not hold tensors by their names, as state_dict() gives them; save it as safetensors")
    if sum(tensor.nbytes for tensor in tensors.values()) > 2 * file.stat().st_size:  # some weights may be shared
        raise ValueError(f"the tensors in {file} are larger than the file; save it as safetensors")
    return dict(tensors)


def _names_tensors(content: Any) -> bool:
    if not isinstance(content, dict):
        return False
    return all(isinstance(name, str) and _is_plain(value) for name, value in content.items())


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized


def _check_archive(file: Path) -> None:
    """Torch's archives are stored; a compressed one could unpack to any size."""
    try:
        with zipfile.ZipFile(file) as archive:
            compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        return  # torch's older format, or nothing that it reads
    if compressed:
        raise ValueError(f"{file} is a compressed archive, which torch.save does not write; save it as safetensors")
