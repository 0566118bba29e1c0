"""Images or latents and their classes in .npz files."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...core.files import atomic_file
from .images import Images, channels_first
from .labels import Labels, labels_of, read_labels
from .limits import check_growth

ARRAYS = ("images", "latents", "labels", "classes")


def save_images(images: Images, path: Path) -> None:
    """Writes an .npz that `load_images` reads, atomically."""
    name = "images" if images.pixels.dtype == torch.uint8 else "latents"
    arrays: dict[str, Any] = {name: images.pixels.numpy()}
    if images.labels is not None:
        arrays["labels"] = images.labels.numpy()
    if images.classes:
        arrays["classes"] = np.array(images.classes)
    with atomic_file(path) as file:
        np.savez_compressed(file, **arrays)


def read_npz(path: Path, *, labels: bool) -> Images:
    """Reads the samples in `path`; see `load_images`."""
    arrays = _arrays(path)
    pixels = _latents(arrays["latents"], path) if "latents" in arrays else _images(arrays, path)
    if not len(pixels):
        raise ValueError(f"{path} holds no samples; give another file")
    said = read_labels(lambda: _labels(arrays, len(pixels), str(path)), str(path), needed=labels)
    return Images(pixels, *said)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Reads the arrays named in `ARRAYS`. Their sizes are checked before memory is taken.

    Raises:
        ValueError: the file does not exist, holds no plain arrays, or is too large.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}; check the path given as data")
    with _readable(path), zipfile.ZipFile(path) as archive:
        entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        known = {name: entries[name] for name in ARRAYS if name in entries}
        needed = sum(_size(archive, entry) for entry in known.values())
    check_growth(str(path), needed, path.stat().st_size)
    arrays = {}
    with _readable(path), zipfile.ZipFile(path) as archive:
        for name, entry in known.items():
            with archive.open(entry) as file:
                arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
    if not {"images", "latents"} & arrays.keys():
        raise ValueError(f"{path} holds {sorted(entries)}; it needs an array called `images` or `latents`")
    return arrays


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # zipfile and numpy raise anything for a broken file
        reason = str(error)[:200] or type(error).__name__
        raise ValueError(f"{path} is not a readable .npz of plain arrays: {reason}") from error


def _size(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> int:
    """The bytes of an array by its header; ValueError if it does not hold plain values or is incomplete."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # other methods have no bound on memory
        raise ValueError(f"{entry.filename} is neither stored nor deflated")
    with archive.open(entry) as file:
        if np.lib.format.read_magic(file) != (1, 0):  # other versions are for structured arrays
            raise ValueError("it holds tables")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or size > entry.file_size:
        raise ValueError(f"an array of {shape} is incomplete")
    return size


def _latents(array: NDArray[Any], path: Path) -> Tensor:
    if array.ndim != 4 or array.dtype.kind != "f":
        raise ValueError(f"`latents` in {path} must be floats (N, C, H, W), not {array.dtype} {array.shape}")
    with np.errstate(over="ignore"):
        latents = torch.from_numpy(array.astype(np.float32, copy=False))
    bad = [k for k, latent in enumerate(latents) if not latent.isfinite().all()]
    if bad:
        raise ValueError(
            f"{len(bad)} of {len(latents)} latents in {path} hold NaN or infinity, the first at place {bad[0]}"
        )
    return latents


def _images(arrays: dict[str, NDArray[Any]], path: Path) -> Tensor:
    array = arrays["images"]
    if array.dtype != np.uint8:
        raise ValueError(f"`images` in {path} must be uint8, not {array.dtype}; name float samples `latents`")
    if array.ndim not in (3, 4):
        raise ValueError(f"`images` in {path} must be (N, H, W), (N, H, W, C) or (N, C, H, W), not {array.shape}")
    return channels_first(torch.from_numpy(array))


def _labels(arrays: dict[str, NDArray[Any]], count: int, source: str) -> Labels:
    if "labels" not in arrays:
        return Labels()
    labels = labels_of(arrays["labels"], source, arrays["classes"].tolist() if "classes" in arrays else None)
    if len(arrays["labels"]) != count:
        raise ValueError(f"{source} holds {count} samples but {len(arrays['labels'])} labels")
    return labels
