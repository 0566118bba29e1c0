"""load_images(): whatever holds images becomes `Images`."""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...core.source import ASSETS
from .images import Images
from .npz import read_npz

logger = logging.getLogger(__name__)

IMAGE_FILES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


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
        images = read_npz(path)
        if images.shape != (channels, size, size):
            have, want = "x".join(map(str, images.shape)), f"{channels}x{size}x{size}"
            raise ValueError(f"{path} holds samples of {have}, the model takes {want}; resize the data or use another")
        return images
    if channels not in (1, 3):
        raise ValueError(f"pictures have 1 or 3 channels, the model takes {channels}; give it latents in an .npz")
    return _read_files(source, channels, size)


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
