"""The pictures of the first seeds, embedded in the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

SMALL = 64  # pixels: pictures up to this side are shown with sharp pixels
LARGEST = 4096  # pixels: longest side of a picture that is read


class Picture(NamedTuple):
    """A picture as a data URI, its seed, its prompt or class, and whether it has few pixels."""

    data: str
    seed: int
    asked: str
    small: bool


def strips(said: Mapping[str, Any] | None, folder: Path, *, count: int) -> list[tuple[Picture, ...]]:
    """The first `count` pictures in each of the files that a JSON names; none of a file that does not fit the JSON.

    Args:
        said: seeds, the size of a picture, and files with a picture for each seed, side by side.
        folder: of the files.
        count: pictures of each file.
    """
    if not said:
        return []
    seeds, size = [int(seed) for seed in said["seeds"]], (int(said["width"]), int(said["height"]))
    asked = [str(text) for text in said.get("asked") or [""] * len(seeds)]
    found = []
    for name in said["files"]:
        parts = zip(_cut(folder / str(name), size, len(seeds), folder)[:count], seeds, asked, strict=False)
        found.append(tuple(Picture(data, seed, text, max(size) <= SMALL) for data, seed, text in parts))
    return found


def _cut(file: Path, size: tuple[int, int], count: int, folder: Path) -> list[str]:
    from PIL import Image, UnidentifiedImageError

    if not file.resolve().is_relative_to(folder.resolve()) or not file.is_file():
        return []
    try:
        with Image.open(file, formats=["PNG"]) as strip:
            if strip.size != (size[0] * count, size[1]) or max(size) > LARGEST:
                return []
            strip.load()
            return [encoded(strip.crop((k * size[0], 0, (k + 1) * size[0], size[1]))) for k in range(count)]
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        return []


def encoded(picture: Any, *, side: int | None = None) -> str:
    """A picture of Pillow as a data URI: lossless if it is small, scaled down to `side` pixels if that is given."""
    if side and max(picture.size) > side:
        picture = picture.copy()
        picture.thumbnail((side, side))
    kept = max(picture.size) <= SMALL
    held = io.BytesIO()
    if kept:
        picture.save(held, format="PNG", optimize=True)
    else:
        picture.convert("RGB").save(held, format="WEBP", quality=82)
    kind = "png" if kept else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(held.getvalue()).decode()}"
