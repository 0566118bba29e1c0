"""Training data: images held as uint8, and rows of (image, noise) that depend on the seed and the row number alone."""

from __future__ import annotations

import io
import logging
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..core.files import atomic_file
from ..core.seeds import derive, generators, normal
from ..core.source import ASSETS

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

    def shuffled(self) -> Images:
        """The same samples in an order of chance, always the same: data sets are often sorted by class."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))
        return Images(self.pixels[order], None if self.labels is None else self.labels[order])

    def x0(self, index: int) -> Tensor:
        """Sample `index` as float32, images in [−1, 1], latents as they are."""
        pixels = self.pixels[index]
        return pixels.float() / 127.5 - 1 if pixels.dtype == torch.uint8 else pixels

    def point(self, index: int, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(x0, eps, t) of a training row: sample `index` with the noise that was drawn for it."""
        return self.x0(index), eps, t


@dataclass(frozen=True)
class Paths:
    """Whole sampling paths of a teacher, to regress each point of a path to its end.

    A row is (x0, eps, t) with x0 + t·eps on the path; x0 is the path's end. With several segments x0 is where the path's
    straight line through its point at the segment's lower edge ends, so that a DDIM step from x_t to that edge stays on
    the path. Plain denoising of such rows (r = lo) is path regression: the loss needs no case of its own.

    Attributes:
        states: the states at each level times 1/√(1 + σ²), float16, (N, K, C, H, W); the last is the clean sample.
        levels: noise levels, falling to 0, (K,) float32.
        edges: lower edges of the segments, a subset of `levels`, (S,).
        labels: class of each path, (N,) int64, or None.

    Reference: consistency mid-training, arXiv 2509.24526.
    """

    states: Tensor
    levels: Tensor
    edges: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.states)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.states.shape[2:])

    def state(self, index: int, level: int) -> Tensor:
        """x at a level of path `index`, float32."""
        return self.states[index, level].float() * (1 + self.levels[level] ** 2).sqrt()

    def point(self, index: int, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(x0, eps, t) at the level of path `index` nearest to t in its logarithm; the noise is the path's own."""
        level = int((self.levels[:-1].log() - t.log()).abs().argmin())
        sigma = self.levels[level]
        lo = self.edges[self.edges < sigma].max()
        x_t, x_lo = self.state(index, level), self.state(index, int((self.levels == lo).nonzero()))
        x0 = (x_lo - lo / sigma * x_t) / (1 - lo / sigma)
        return x0, (x_t - x0) / sigma, sigma


def to_uint8(x: Tensor) -> Tensor:
    """Samples in [−1, 1] rounded to uint8, as an image file would hold them."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def load_images(source: str | Path, *, channels: int, size: int) -> Images:
    """Reads images of `channels` (1 or 3) at `size`×`size` pixels; larger and oblong ones are cropped and resized.

    Args:
        source: an .npz with `images` uint8 (N, H, W), (N, H, W, C) or (N, C, H, W), or `latents` float (N, C, H, W),
            and optionally `labels`; a folder or zip of images, one folder a class; a .parquet file; or the name of a
            hub data set; "bundled" for the 10,000 images of Fashion-MNIST that come with the package.
        channels, size: what the model takes.

    Raises:
        ValueError: nothing there, nothing readable, or a shape that the model does not take.
    """
    path = ASSETS / "fashion_mnist" / "images.npz" if source == "bundled" else Path(source)
    if path.suffix == ".npz":
        images = _read_npz(path)
        if images.shape != (channels, size, size):
            have, want = "x".join(map(str, images.shape)), f"{channels}x{size}x{size}"
            raise ValueError(f"{path} holds samples of {have}, the model takes {want}; resize the data or use another")
        return images
    if channels not in (1, 3):
        raise ValueError(f"pictures have 1 or 3 channels, the model takes {channels}; give it latents in an .npz")
    return _read_files(source, channels, size)


def save_images(images: Images, path: Path) -> None:
    """Writes an .npz that `load_images` reads, atomically."""
    name = "images" if images.pixels.dtype == torch.uint8 else "latents"
    arrays: dict[str, Any] = {name: images.pixels.numpy()}
    if images.labels is not None:
        arrays["labels"] = images.labels.numpy()
    with atomic_file(path) as file:
        np.savez_compressed(file, **arrays)


def _read_npz(path: Path) -> Images:
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


class _File(NamedTuple):
    name: str
    content: bytes
    label: str | int | None


def _folder_files(path: Path) -> Iterator[_File]:
    for file in sorted(path.rglob("*")):
        if file.suffix.lower() in IMAGE_FILES:
            yield _File(str(file), file.read_bytes(), file.parent.name if file.parent != path else None)


def _zip_files(path: Path) -> Iterator[_File]:
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                inside = PurePosixPath(name)
                if inside.suffix.lower() in IMAGE_FILES:
                    yield _File(f"{path}/{name}", archive.read(name), inside.parent.name or None)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not a readable zip: {error}") from error


def _table(source: str, kind: str | None) -> Any:
    """The training split of a file, or of a hub data set: as it was fetched before if the hub does not answer."""
    import datasets  # seconds to import

    if kind:
        return datasets.load_dataset(kind, data_files=source, split="train")
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or not _hub_answers(source)  # else half a minute of retries
    try:
        return datasets.load_dataset(source, split="train")
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _hub_answers(name: str) -> bool:
    """Whether the hub is there to be asked; if it is and has no such data set, it says so by an error."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        HfApi().dataset_info(name, timeout=10)
    except (HfHubHTTPError, HFValidationError):
        raise
    except Exception:  # what a connection raises is the business of the hub's own libraries
        return False
    return True


def _datasets_files(source: str, kind: str | None) -> Iterator[_File]:
    from datasets import Image

    try:
        table = _table(source, kind)
    except Exception as error:  # the errors of datasets and of the hub have no common base
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{source} is neither a path nor a data set that can be loaded: {reason}") from error
    column = next((name for name, feature in table.features.items() if isinstance(feature, Image)), None)
    if column is None:
        raise ValueError(f"{source} has no image column, only {sorted(table.features)}")
    for number, row in enumerate(table.cast_column(column, Image(decode=False))):
        image = row[column]
        content = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        yield _File(f"row {number} of {source}", content, row.get("label"))


def _files(source: str | Path) -> Iterator[_File]:
    path = Path(source)
    if path.is_dir():
        return _folder_files(path)
    if path.suffix == ".zip" and path.exists():
        return _zip_files(path)
    if path.suffix == ".parquet" and path.exists():
        return _datasets_files(str(path), "parquet")
    if path.suffix or path.exists() or path.is_absolute() or str(source).startswith(".") or str(source).count("/") != 1:
        raise ValueError(
            f"there is no image folder, .zip, .npz or .parquet at {path}; check the path given as data, or name a data set "
            "on the hub as owner/name"
        )
    return _datasets_files(str(source), None)


def _read_files(source: str | Path, channels: int, size: int) -> Images:
    pixels: list[Tensor] = []
    labels: list[str | int | None] = []
    corrupt: list[str] = []
    for file in _files(source):
        try:
            pixels.append(_decode(file.content, channels, size))
            labels.append(file.label)
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on a broken file
            corrupt.append(f"{file.name} ({error})")
    if corrupt:
        found = len(corrupt) + len(pixels)
        logger.warning("skipped %d unreadable of %d images: %s", len(corrupt), found, "; ".join(corrupt[:10]))
    if not pixels:
        raise ValueError(f"there are no readable images in {source}" + (f": {corrupt[0]}" if corrupt else ""))
    classes = sorted(set(labels), key=str)
    if None in classes or len(classes) < 2:
        return Images(torch.stack(pixels))
    numbers = {label: label if isinstance(label, int) else number for number, label in enumerate(classes)}
    return Images(torch.stack(pixels), torch.tensor([numbers[label] for label in labels]))


def _decode(content: bytes, channels: int, size: int) -> Tensor:
    """One file as uint8 (C, size, size): centre square, antialiased bicubic."""
    from PIL import Image, ImageOps

    mode = "L" if channels == 1 else "RGB"
    with Image.open(io.BytesIO(content)) as file:
        if file.mode.startswith("I"):  # 16 bits; Pillow's own conversion cuts them off at 255
            grey = (np.asarray(file, dtype=np.float64) / 257).round().clip(0, 255)
            picture = Image.fromarray(grey.astype(np.uint8)).convert(mode)
        else:
            picture = file.convert(mode)
    if picture.size != (size, size):
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).view(size, size, channels).permute(2, 0, 1).contiguous()


class Batch(NamedTuple):
    """What one training step sees: x0 and eps (B, C, H, W), noise levels t (B,), labels (B,)."""

    x0: Tensor
    eps: Tensor
    t: Tensor
    labels: Tensor | None

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        x0, eps, t = (part.to(device, non_blocking=True) for part in (self.x0, self.eps, self.t))
        return Batch(x0, eps, t, None if self.labels is None else self.labels.to(device, non_blocking=True))


class Rows(Dataset[tuple[Tensor, Tensor, Tensor, Tensor]]):
    """Row k of training: sample k of an endless shuffled run over `data`, with its own noise.

    A row is a function of (seed, k) alone. So the order of the data, the noise and the mirroring are the same for any
    number of processes and loader workers, and a resumed run needs nothing but the number of its next row.
    """

    def __init__(self, data: Images | Paths, noise: Callable[[Tensor], Tensor], *, seed: int, mirror: bool = False) -> None:
        """`noise` makes noise levels (B,) of standard normal z (B,)."""
        self.data = data
        self.noise = noise
        self.seed = seed
        self.mirror = mirror
        self._epoch: tuple[int, Tensor] | None = None

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        epoch, place = divmod(row, len(self.data))
        if self._epoch is None or self._epoch[0] != epoch:
            (rng,) = generators([derive(self.seed, 0, epoch)])
            self._epoch = epoch, torch.randperm(len(self.data), generator=rng)
        index = int(self._epoch[1][place])
        rngs = generators([derive(self.seed, 1, row)])
        t = self.noise(normal(rngs, ()))[0]
        x0, eps, t = self.data.point(index, t, normal(rngs, self.data.shape)[0])
        if self.mirror and torch.rand((), generator=rngs[0]) < 0.5:
            x0 = x0.flip(-1)
        label = self.data.labels[index] if self.data.labels is not None else torch.tensor(-1)
        return x0, eps, t, label

    def batches(
        self, start: int, stop: int, batch: int, *, rank: int = 0, world: int = 1, workers: int = 0
    ) -> Iterator[Batch]:
        """Batches of `batch` rows from row `start` to `stop`, of which this process gets every `world`-th batch."""
        firsts = range(start + rank * batch, stop, world * batch)
        slices = (list(range(row, min(row + batch, stop))) for row in firsts)  # lazy: a run has millions of rows
        loader = DataLoader(self, batch_sampler=slices, num_workers=workers, pin_memory=torch.cuda.is_available())
        for x0, eps, t, labels in loader:
            yield Batch(x0, eps, t, labels if self.data.labels is not None else None)
