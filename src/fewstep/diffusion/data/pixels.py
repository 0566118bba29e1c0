"""One encoded picture becomes uint8 pixels: upright, opaque, of 8 bits, of the size that is asked for."""

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

# Pixels behind a signature that tells them apart: nothing that runs a program (EPS), nothing that is known by name alone.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "QOI")
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # of TIFF
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
    """How the names of such files end, in lower case."""
    from PIL import Image

    known = Image.registered_extensions()
    return frozenset(suffix for suffix, name in known.items() if name in (*formats(), "MPO"))  # MPO: JPEGs of cameras


def decode(content: bytes, channels: int, height: int, width: int) -> Tensor:
    """The first frame of a picture as uint8 (channels, height, width).

    It is turned as its EXIF orientation says, laid on white where transparent, and cut to the largest rectangle of that
    form in its middle, which is resized by antialiased bicubic interpolation.

    Args:
        content: of a file in one of `FORMATS`.
        channels: 1 for grey, 3 for colour.
        height, width: in pixels.

    Raises:
        ValueError: it is something else, broken, too large, or does not say which number is black and which is white.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with _bounded(), Image.open(io.BytesIO(content), formats=formats()) as file:
            file.load()
            with suppress(Exception):  # EXIF data may be broken in any way; the pixels are turned before the rest is read
                ImageOps.exif_transpose(file, in_place=True)
            picture = _on_white(_eight_bits(file, content)).convert("RGB")
            picture = picture.convert("L") if channels == 1 else picture
            picture = ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"more than {max_pixels():,} pixels; set {MAX_PIXELS} to allow more") from None
    except UnidentifiedImageError:
        raise ValueError(f"not one of {', '.join(formats())}") from None
    except Exception as error:  # Pillow raises anything on a broken file
        raise ValueError(str(error) or type(error).__name__) from error
    return torch.from_numpy(np.array(picture)).view(height, width, channels).permute(2, 0, 1).contiguous()


@contextmanager
def _bounded() -> Iterator[None]:
    """Pillow takes pictures up to our bound, fails beyond it, and keeps its remarks on a file's oddities to itself."""
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
    """The loaded `file` with 8 bits a channel, its transparent colour in the same numbers.

    Pillow cuts greys of more bits off at 255 and leaves 16-bit greys of TIFFs whose white is 0 as negatives.
    """
    from PIL import Image

    tags = getattr(file, "tag_v2", {})
    formats_said = set(tags.get(SAMPLE_FORMAT, ())) - {UNSIGNED, UNDEFINED}
    if file.mode == "F" or (file.mode == "I" and tags) or formats_said:
        raise ValueError("floats, signed numbers or more than 16 bits: which number is white? Save it with 8 or 16 bits")
    clear = file.info.get("transparency")
    if not file.mode.startswith("I"):
        depth = content[24] if file.format == "PNG" else 8  # of the header; the transparent colour is given in its terms
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
