"""`load_images`: reads images from any source as `Samples`."""

from __future__ import annotations

import logging
import math
import shlex
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ...core.parts import MADE_OF
from ...core.progress import track
from ...core.source import ASSETS
from .clothes import Clothes
from .encoded import EncodedPictures, hub_pictures, parquet_pictures
from .examples import Samples
from .files import Archive, FilePictures, Folder, Tar
from .images import Images
from .labels import read_labels
from .limits import check_growth, check_memory
from .npz import read_npz
from .pictures import Pictures, shown
from .pixels import decode
from .table import Table, holds_arrays, is_table, open_folder

logger = logging.getLogger(__name__)


def load_images(source: str | Path, *, channels: int, size: int | tuple[int, int], labels: bool = True) -> Samples:
    """Reads images with `channels` (1 or 3) at `size` pixels. Pictures of another size are cropped and resized.

    Pictures are rotated by their EXIF orientation, and transparent ones get a white background. Unreadable ones are skipped
    with a warning. Up to 1 GiB of pictures is kept in memory; for more, `make_table` writes a table on the disk.

    Classes come from a metadata file beside the pictures: a `metadata.jsonl`, `.csv` or `.parquet` with `file_name` and
    `label`, or a `dataset.json`. Without one the folders of the pictures are their classes. A table has them in its column
    `label`. Numbers are the classes themselves. Names are numbered in sorted order and kept in `classes`.

    Args:
        source: a folder, a zip or a .tar of images, or a folder of .tar; a .parquet file; the name of a hub data set; a
            table, as `make_table` or `save_to_disk` of `datasets` writes it; "bundled" for the 10,000 images of
            Fashion-MNIST that come with the package. Or an .npz with `images`, uint8 of shape (N, H, W), (N, H, W, C) or
            (N, C, H, W), or with `latents`, float (N, C, H, W). It may hold `labels` and the names of their `classes`.
        channels, size: shape of the model's samples; the size is the side of a square, or height and width.
        labels: whether classes are needed. If not, ambiguous classes are left out with a warning.

    Raises:
        ValueError: the source does not exist, nothing in it is readable, its samples have another shape, needed classes are
            ambiguous, or the pictures take too much memory.
    """
    shape = shape_of(channels, size)
    if source == "bundled-text":
        clothes = Clothes(load_images("bundled", channels=1, size=28))
        if clothes.shape != shape:
            raise ValueError(f"the bundled clothes are 3x32x32, the model takes {'x'.join(map(str, shape))}")
        return clothes
    ready = arrays_in(source, shape, labels=labels)
    if ready is not None:
        return ready
    pictures = pictures_in(source, channels)
    needed = bytes_of(pictures, shape)
    sides = " ".join(map(str, dict.fromkeys(shape[1:])))
    table = f"fewstep table {shlex.quote(shown(source))} --channels {channels} --size {sides} --out TABLE"
    check_memory(pictures.source, needed, f"write it as a table once, `{table}`, and give TABLE as data")
    values, names = read_labels(lambda: pictures.labels, pictures.source, needed=labels)
    pixels = torch.empty(len(pictures), *shape, dtype=torch.uint8)
    kept: list[int] = []
    for k, picture in decoded(pictures, shape):
        pixels[len(kept)] = picture
        kept.append(k)
    return Images(pixels[: len(kept)], None if values is None else values[kept], names)


def arrays_in(source: str | Path, shape: tuple[int, ...], *, labels: bool) -> Samples | None:
    """Reads an .npz or a table of arrays; None for other sources. ValueError if the samples have another shape."""
    path = ASSETS / "fashion_mnist" / "images.npz" if source == "bundled" else Path(source)
    samples: Samples
    if path.suffix.lower() == ".npz":
        samples = read_npz(path, labels=labels)
    elif is_table(path) and holds_arrays(open_folder(path).features):
        table = Table(path)
        said = read_labels(lambda: table.kinds, str(source), needed=labels)
        samples = Table(path, labelled=said.values is not None)
    else:
        return None
    if samples.shape != shape:
        have, want = "x".join(map(str, samples.shape)), "x".join(map(str, shape))
        raise ValueError(f"{path} holds samples of {have}, the model takes {want}; resize the data or use another")
    return samples


def pictures_in(source: str | Path, channels: int) -> Pictures:
    """The encoded pictures of a source."""
    if channels not in (1, 3):
        raise ValueError(f"pictures have 1 or 3 channels, the model takes {channels}; give latents in an .npz or a table")
    path = Path(source)
    kind = path.suffix.lower()
    if is_table(path):
        return EncodedPictures(open_folder(path), str(source), sum(file.stat().st_size for file in path.iterdir()))
    if (path / "dataset_dict.json").is_file():
        raise ValueError(f"{path} holds several tables; give one of them, such as {path / 'train'}")
    if (path / MADE_OF).is_file():
        raise ValueError(f"the table in {path} is not complete; repeat the command that began it")
    if path.is_dir():
        folder = Folder(path)
        shards = [] if folder.has_pictures else [path / file for file in sorted(folder.files) if file.suffix == ".tar"]
        return FilePictures(Tar(shards) if shards else folder, str(source))
    if kind == ".tar" and path.is_file():
        return FilePictures(Tar([path]), str(source))
    if kind == ".zip" and path.is_file():
        return FilePictures(Archive(path), str(source))
    if kind == ".parquet" and path.is_file():
        return parquet_pictures(path)
    named = str(source).count("/") == 1 and (not kind or kind[1:].isdigit())  # a version may end a data set's name
    if not named or path.exists() or path.is_absolute() or str(source).startswith("."):
        raise ValueError(
            f"there is no image folder, .zip, .tar, .npz, .parquet or table at {path}; check the path given as data, or "
            "name a data set on the hub as owner/name"
        )
    return hub_pictures(str(source))


def shape_of(channels: int, size: int | tuple[int, int]) -> tuple[int, int, int]:
    """(C, H, W) of a size that is the side of a square, or height and width."""
    height, width = (size, size) if isinstance(size, int) else size
    return channels, height, width


def bytes_of(pictures: Pictures, shape: tuple[int, int, int]) -> int:
    """Bytes of the decoded pictures; ValueError if they expand too much."""
    needed = len(pictures) * math.prod(shape)
    check_growth(pictures.source, needed, pictures.on_disk)
    return needed


def decoded(pictures: Pictures, shape: tuple[int, int, int]) -> Iterator[tuple[int, Tensor]]:
    """Number and pixels of each readable picture. A warning at the end lists the others.

    Raises:
        ValueError: no picture is readable.
    """
    found, corrupt = len(pictures), 0
    named: list[str] = []
    for k in track(range(found), f"reading {pictures.source}"):
        try:
            picture = decode(pictures.read(k), *shape)
        except ValueError as error:
            corrupt += 1
            if len(named) < 10:
                named.append(f"{pictures.name(k)} ({error})")
            continue
        yield k, picture
    if corrupt == found:
        raise ValueError(f"there are no readable images in {pictures.source}" + (f": {named[0]}" if named else ""))
    if corrupt:
        logger.warning("skipped %d unreadable of %d images: %s", corrupt, found, "; ".join(named))
