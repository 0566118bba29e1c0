"""Decodes a picture to uint8 pixels: upright, opaque, with 8 bits, at a given size."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .limits import MAX_PIXELS, max_pixels

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from PIL.ImageFile import ImageFile

# Formats with a signature. None that runs a program (EPS), and none that is recognised by its name alone.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "QOI")
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
UNSIGNED, UNDEFINED = 1, 4  # sample formats
WHITE_IS_ZERO = 0


@cache
def formats() -> tuple[str, ...]:
    """The `FORMATS` that the installed Pillow knows."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def suffixes() -> frozenset[str]:
    """The suffixes of these formats, in lower case."""
    from PIL import Image

    known = Image.registered_extensions()
    return frozenset(suffix for suffix, name in known.items() if name in (*formats(), "MPO"))  # MPO: JPEGs of cameras


def decode(content: bytes, channels: int, height: int, width: int) -> Tensor:
    """The first frame of a picture as uint8 (channels, height, width).

    It is rotated by its EXIF orientation, gets a white background where it is transparent, and is cropped around its centre
    and resized by antialiased bicubic interpolation.

    Args:
        content: content of a file in one of `FORMATS`.
        channels: 1 for grey, 3 for colour.
        height, width: in pixels.

    Raises:
        ValueError: the content is something else, broken or too large, or has values without a defined white.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with _bounded(), Image.open(io.BytesIO(content), formats=formats()) as file:
            file.load()
            with suppress(Exception):  # broken EXIF data must not prevent reading the pixels
                ImageOps.exif_transpose(file, in_place=True)
            picture = _on_white(_eight_bits(file, content)).convert("RGB")
            picture = picture.convert("L") if channels == 1 else picture
            picture = ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"more than {max_pixels():,} pixels; set {MAX_PIXELS} to allow more") from None
    except UnidentifiedImageError:
        raise ValueError(f"not one of {', '.join(formats())}") from None
    except Exception as error:  # Pillow raises anything for a broken file
        raise ValueError(str(error) or type(error).__name__) from error
    return torch.from_numpy(np.array(picture)).view(height, width, channels).permute(2, 0, 1).contiguous()


@contextmanager
def _bounded() -> Iterator[None]:
    """In this context Pillow raises an error beyond `max_pixels` and gives no other warnings."""
    from PIL import Image

    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _eight_bits(file: ImageFile, content: bytes) -> Picture:
    """The loaded `file` with 8 bits per channel, and its transparent colour in the same values.

    Pillow itself would clip greys of more bits at 255, and leave 16-bit greys of TIFFs with white at 0 inverted.
    """
    from PIL import Image

    tags = getattr(file, "tag_v2", {})
    formats_said = set(tags.get(SAMPLE_FORMAT, ())) - {UNSIGNED, UNDEFINED}
    if file.mode == "F" or (file.mode == "I" and tags) or formats_said:
        raise ValueError("floats, signed numbers or more than 16 bits have no defined white; save it with 8 or 16 bits")
    clear = file.info.get("transparency")
    if not file.mode.startswith("I"):
        depth = content[24] if file.format == "PNG" else 8  # in the header; the transparent colour has this depth
        if file.mode == "L" and depth < 8 and clear is not None:
            file.info["transparency"] = clear * 255 // (2**depth - 1)
        elif file.mode == "RGB" and depth == 16 and clear is not None:
            file.info["transparency"] = tuple(part >> 8 for part in clear)
        return file
    top = 2 ** tags.get(BITS, (16,))[0] - 1
    values = np.asarray(file).astype(np.uint32)
    grey = (values * 255 + top // 2) // top
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        grey = 255 - grey
    if clear is not None:
        grey[values == clear] = 255
    return Image.fromarray(grey.clip(0, 255).astype(np.uint8))


def _on_white(picture: Picture) -> Picture:
    from PIL import Image

    if not picture.has_transparency_data:
        return picture
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture.convert("RGBA"))
    return white
