"""Training data: images held as uint8, and rows of (image, noise) that depend on the seed and the row number alone."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .checkpoints.atomic import atomic_file
from .seeds import derive, generators, normal

logger = logging.getLogger(__name__)

IMAGE_FILES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


@dataclass(frozen=True)
class Images:
    """A data set in memory.

    Attributes:
        pixels: uint8 images or float32 latents, shape (N, C, H, W).
        labels: class of each, shape (N,) int64, or None.
    """

    pixels: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.pixels.shape[1:])

    def x0(self, index: int) -> Tensor:
        """Sample `index` as float32, images in [−1, 1], latents as they are."""
        pixels = self.pixels[index]
        return pixels.float() / 127.5 - 1 if pixels.dtype == torch.uint8 else pixels


def to_uint8(x: Tensor) -> Tensor:
    """Samples in [−1, 1] rounded to uint8, as an image file would hold them."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def load_images(source: str | Path, *, channels: int, size: int) -> Images:
    """Reads images of `channels` (1 or 3) at `size`×`size` pixels; larger and oblong ones are cropped and resized.

    Args:
        source: an .npz with `images` uint8 (N, H, W), (N, H, W, C) or (N, C, H, W), or `latents` float (N, C, H, W),
            and optionally `labels`; a folder or zip of images, one folder a class; a .parquet file; or the name of a
            hub data set.
        channels, size: what the model takes.

    Raises:
        ValueError: nothing there, nothing readable, or a shape that the model does not take.
    """
    path = Path(source)
    if path.suffix == ".npz":
        images = _read_npz(path)
        if images.shape != (channels, size, size):
            have, want = "x".join(map(str, images.shape)), f"{channels}x{size}x{size}"
            raise ValueError(f"{path} holds samples of {have}, the model takes {want}; resize the data or use another")
        return images
    return _read_with_datasets(source, channels, size)


def save_images(images: Images, path: Path) -> None:
    """Writes an .npz that `load_images` reads, atomically."""
    name = "images" if images.pixels.dtype == torch.uint8 else "latents"
    arrays = {name: images.pixels.numpy()} | ({} if images.labels is None else {"labels": images.labels.numpy()})
    with atomic_file(path) as file:
        np.savez_compressed(file, **arrays)


def _read_npz(path: Path) -> Images:
    if not path.exists():
        raise ValueError(f"there is no file {path}; check the path given as data")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: torch.from_numpy(archive[name]) for name in archive.files}
    except (ValueError, OSError, EOFError) as error:
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


def _read_with_datasets(source: str | Path, channels: int, size: int) -> Images:
    from datasets import ClassLabel, Image, load_dataset  # seconds to import

    path = Path(source)
    if path.is_dir():
        if not any(file.suffix.lower() in IMAGE_FILES for file in path.rglob("*")):
            raise ValueError(f"there are no images in the folder {path}")
        table = load_dataset("imagefolder", data_dir=str(path), split="train")
    elif path.suffix == ".zip" and path.exists():
        table = load_dataset("imagefolder", data_files=str(path), split="train")
    elif path.suffix == ".parquet" and path.exists():
        table = load_dataset("parquet", data_files=str(path), split="train")
    elif path.suffix or path.is_absolute() or str(source).startswith("."):
        raise ValueError(f"there is no image folder, .zip, .npz or .parquet at {path}; check the path given as data")
    else:
        try:
            table = load_dataset(str(source), split="train")
        except Exception as error:  # the hub's own errors have no common base
            raise ValueError(f"{source} is neither a path nor a hub data set that can be loaded: {error}") from error

    column = next((c for c, kind in table.features.items() if isinstance(kind, Image)), None)
    if column is None:
        raise ValueError(f"{source} has no image column, only {sorted(table.features)}")
    label = next((c for c, kind in table.features.items() if isinstance(kind, ClassLabel)), None)
    if label is None and "label" in table.features:
        label = "label"

    pixels, labels, corrupt = [], [], []
    for row in table.cast_column(column, Image(decode=False)):
        try:
            pixels.append(_decode(row[column], channels, size))
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on a broken file
            corrupt.append(f"{row[column]['path'] or 'an image without a name'} ({error})")
            continue
        labels.append(row[label] if label else 0)
    if corrupt:
        logger.warning("skipped %d unreadable of %d images: %s", len(corrupt), len(table), "; ".join(corrupt[:10]))
    if not pixels:
        raise ValueError(f"none of the {len(table)} images in {source} could be read")
    return Images(torch.stack(pixels), torch.tensor(labels) if label else None)


def _decode(image: dict[str, Any], channels: int, size: int) -> Tensor:
    """One file as uint8 (C, size, size): centre square, antialiased bicubic."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(image["bytes"]) if image["bytes"] else image["path"]) as file:
        picture = file.convert("L" if channels == 1 else "RGB")
    if picture.size != (size, size):
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).view(size, size, channels).permute(2, 0, 1).contiguous()


class Batch(NamedTuple):
    """What one training step sees: x0 and eps (B, C, H, W), z (B,) standard normal for the noise level, labels (B,)."""

    x0: Tensor
    eps: Tensor
    z: Tensor
    labels: Tensor | None

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        return Batch(*(None if part is None else part.to(device, non_blocking=True) for part in self))


class Rows(Dataset[int]):
    """Row k of training: sample k of an endless shuffled run over `images`, with its own noise.

    A row is a function of (seed, k) alone. So the order of the data, the noise and the mirroring are the same for any
    number of processes and loader workers, and a resumed run needs nothing but the number of its next row.
    """

    def __init__(self, images: Images, *, seed: int, mirror: bool = False) -> None:
        self.images = images
        self.seed = seed
        self.mirror = mirror
        self._epoch: tuple[int, Tensor] | None = None

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        epoch, place = divmod(row, len(self.images))
        if self._epoch is None or self._epoch[0] != epoch:
            (rng,) = generators([derive(self.seed, 0, epoch)])
            self._epoch = epoch, torch.randperm(len(self.images), generator=rng)
        index = int(self._epoch[1][place])
        rngs = generators([derive(self.seed, 1, row)])
        x0 = self.images.x0(index)
        z = normal(rngs, ())[0]
        eps = normal(rngs, x0.shape)[0]
        if self.mirror and torch.rand((), generator=rngs[0]) < 0.5:
            x0 = x0.flip(-1)
        label = self.images.labels[index] if self.images.labels is not None else torch.tensor(-1)
        return x0, eps, z, label

    def batches(self, start: int, stop: int, batch: int, *, rank: int = 0, world: int = 1, workers: int = 0) -> Iterator[Batch]:
        """Batches of `batch` rows from row `start` to `stop`, of which this process gets every `world`-th batch."""
        slices = [range(row, min(row + batch, stop)) for row in range(start + rank * batch, stop, world * batch)]
        loader = DataLoader(self, batch_sampler=slices, num_workers=workers, pin_memory=torch.cuda.is_available())
        for x0, eps, z, labels in loader:
            yield Batch(x0, eps, z, labels if self.images.labels is not None else None)
