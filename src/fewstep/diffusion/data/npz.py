"""Arrays in an .npz: images or latents, and their classes."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...core.files import atomic_file
from .images import Images


def save_images(images: Images, path: Path) -> None:
    """Writes an .npz that `load_images` reads, atomically."""
    name = "images" if images.pixels.dtype == torch.uint8 else "latents"
    arrays: dict[str, Any] = {name: images.pixels.numpy()}
    if images.labels is not None:
        arrays["labels"] = images.labels.numpy()
    with atomic_file(path) as file:
        np.savez_compressed(file, **arrays)


def read_npz(path: Path) -> Images:
    """The samples in `path`; see `load_images`."""
    if not path.exists():
        raise ValueError(f"there is no file {path}; check the path given as data")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: torch.from_numpy(archive[name]) for name in archive.files}
    except (ValueError, OSError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a readable .npz of plain arrays: {error}") from error
    labels = arrays["labels"].long() if "labels" in arrays else None
    if "latents" in arrays:
        pixels = arrays["latents"].float()
    elif "images" in arrays:
        pixels = arrays["images"]
        if pixels.dtype != torch.uint8:
            raise ValueError(f"`images` in {path} must be uint8, not {pixels.dtype}; name float samples `latents`")
        if pixels.ndim == 3:
            pixels = pixels[:, None]
        elif pixels.shape[-1] in (1, 3) and pixels.shape[1] not in (1, 3):
            pixels = pixels.permute(0, 3, 1, 2)
    else:
        raise ValueError(f"{path} holds {sorted(arrays)}; it needs an array called `images` or `latents`")
    if not len(pixels):
        raise ValueError(f"{path} holds no samples")
    if labels is not None and len(labels) != len(pixels):
        raise ValueError(f"{path} holds {len(pixels)} samples but {len(labels)} labels")
    return Images(pixels, labels)
