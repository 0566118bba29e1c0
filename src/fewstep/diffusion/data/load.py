"""load_images(): whatever holds images becomes `Images`."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from ...core.progress import track
from ...core.source import ASSETS
from .files import Archive, FilePictures, Folder
from .images import Images
from .labels import read_labels
from .limits import check_memory
from .npz import read_npz
from .pictures import Pictures
from .pixels import decode
from .tables import hub_table, parquet_table

logger = logging.getLogger(__name__)


def load_images(source: str | Path, *, channels: int, size: int, labels: bool = True) -> Images:
    """Reads images of `channels` (1 or 3) at `size`×`size` pixels; larger and oblong ones are cropped and resized.

    Pictures are turned as their EXIF orientation says and laid on white where they are transparent. What cannot be read is
    skipped and said.

    Classes are what a metadata file beside the pictures says (`metadata.jsonl`, `.csv` or `.parquet` with `file_name` and
    `label`, or a `dataset.json`), else the folders that pictures stand in, or the column `label` of a table. Numbers are
    the classes themselves. Names are counted in sorted order and kept in `Images.classes`.

    Args:
        source: an .npz with `images` uint8 (N, H, W), (N, H, W, C) or (N, C, H, W), or `latents` float (N, C, H, W),
            and optionally `labels` and the names of their `classes`; a folder or zip of images; a .parquet file; or the
            name of a hub data set; "bundled" for the 10,000 images of Fashion-MNIST that come with the package.
        channels, size: what the model takes.
        labels: whether classes are needed. If not, data whose classes are not clear are taken without, with a warning.

    Raises:
        ValueError: nothing there, nothing readable, a shape that the model does not take, or classes that are not clear.
    """
    path = ASSETS / "fashion_mnist" / "images.npz" if source == "bundled" else Path(source)
    if path.suffix.lower() == ".npz":
        images = read_npz(path, labels=labels)
        if images.shape != (channels, size, size):
            have, want = "x".join(map(str, images.shape)), f"{channels}x{size}x{size}"
            raise ValueError(f"{path} holds samples of {have}, the model takes {want}; resize the data or use another")
        return images
    if channels not in (1, 3):
        raise ValueError(f"pictures have 1 or 3 channels, the model takes {channels}; give it latents in an .npz")
    return _decoded(_found(source), channels, size, labels=labels)


def _found(source: str | Path) -> Pictures:
    path = Path(source)
    kind = path.suffix.lower()
    if path.is_dir():
        return FilePictures(Folder(path), str(source))
    if kind == ".zip" and path.is_file():
        return FilePictures(Archive(path), str(source))
    if kind == ".parquet" and path.is_file():
        return parquet_table(path)
    named = str(source).count("/") == 1 and (not kind or kind[1:].isdigit())  # a version may end a data set's name
    if not named or path.exists() or path.is_absolute() or str(source).startswith("."):
        raise ValueError(
            f"there is no image folder, .zip, .npz or .parquet at {path}; check the path given as data, or name a data set "
            "on the hub as owner/name"
        )
    return hub_table(str(source))


def _decoded(pictures: Pictures, channels: int, size: int, *, labels: bool) -> Images:
    found = len(pictures)
    check_memory(pictures.source, found * channels * size**2, pictures.on_disk)
    values, names = read_labels(lambda: pictures.labels, pictures.source, needed=labels)
    pixels = torch.empty(found, channels, size, size, dtype=torch.uint8)
    kept: list[int] = []
    corrupt: list[str] = []
    for k in track(range(found), f"reading {pictures.source}"):
        try:
            pixels[len(kept)] = decode(pictures.read(k), channels, size)
            kept.append(k)
        except ValueError as error:
            corrupt.append(f"{pictures.name(k)} ({error})")
    if not kept:
        raise ValueError(f"there are no readable images in {pictures.source}" + (f": {corrupt[0]}" if corrupt else ""))
    if corrupt:
        logger.warning("skipped %d unreadable of %d images: %s", len(corrupt), found, "; ".join(corrupt[:10]))
    return Images(pixels[: len(kept)], None if values is None else values[kept], names)
