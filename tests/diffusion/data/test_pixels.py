from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from fewstep.diffusion.data.pixels import decode, formats, suffixes

RGB = arrays(np.uint8, (8, 8, 3))


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def seen(content: bytes, channels: int = 3, size: int = 8) -> NDArray[np.uint8]:
    """What `decode` makes of it, (size, size, channels) or (size, size)."""
    return decode(content, channels, size, size).permute(1, 2, 0).squeeze(-1).numpy()


def png(
    bits: int, colour: int, rows: list[bytes], width: int, *, clear: bytes = b"", size: tuple[int, int] | None = None
) -> bytes:
    """A PNG by the specification, not by Pillow: `rows` as they are packed, `clear` the transparent colour."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", *(size or (width, len(rows))), bits, colour, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + (chunk(b"tRNS", clear) if clear else b"")
        + body
        + chunk(b"IEND", b"")
    )


def tiff(values: NDArray[np.generic], bits: int, *, photometric: int = 1, sample_format: int = 1) -> bytes:
    """A grey TIFF by the specification; `values` hold the packed bytes of a square picture of 8 pixels a side."""
    data = values.tobytes()
    tags = ((256, 8), (257, 8), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 8), (279, len(data)))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in (*tags, (339, sample_format)))
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags) + 1) + entries + bytes(4)


@given(pixels=arrays(np.uint8, (4, 8, 3)))
def test_oblong_pixels_of_the_right_size_stay_as_they_are(pixels) -> None:
    assert np.array_equal(decode(encoded(Image.fromarray(pixels)), 3, 4, 8).permute(1, 2, 0), pixels)


@given(pixels=RGB)
def test_of_another_form_the_middle_stays(pixels) -> None:
    """Of a square picture the middle rows of an oblong one, and the middle columns of an upright one."""
    content = encoded(Image.fromarray(pixels))
    assert np.array_equal(decode(content, 3, 4, 8).permute(1, 2, 0), pixels[2:6])
    assert np.array_equal(decode(content, 3, 8, 2).permute(1, 2, 0), pixels[:, 3:5])


@given(pixels=RGB)
def test_pixels_of_the_right_size_stay_as_they_are(pixels) -> None:
    for kind, options in (("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("PPM", {}), ("QOI", {})):
        assert np.array_equal(seen(encoded(Image.fromarray(pixels), kind, **options)), pixels), kind
    grey = pixels[..., 0]
    assert np.array_equal(seen(encoded(Image.fromarray(grey)), channels=1), grey)
    assert np.array_equal(seen(encoded(Image.fromarray(grey))), np.repeat(grey[..., None], 3, -1))


# Row and column of the picture that the stored row and column 0 are, by EXIF 2.3, table 6.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_a_picture_stands_as_its_camera_was_held(kind: str, orientation: int) -> None:
    stored = np.repeat(
        np.repeat(np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8), 8, 0), 8, 1
    )
    exif = Image.Exif()
    exif[274] = orientation
    options = {"tiffinfo": {274: orientation}} if kind == "TIFF" else {"exif": exif}
    options |= {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    found = seen(encoded(Image.fromarray(stored), kind, **options), size=16)
    assert np.abs(found.astype(int) - UPRIGHT[orientation](stored)).max() <= 2


def test_a_deep_grey_is_turned_as_well() -> None:
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    exif = Image.Exif()
    exif[274] = 6
    found = seen(encoded(Image.fromarray(values), exif=exif), channels=1)
    assert np.array_equal(found, np.round(UPRIGHT[6](values) / 257))


def test_exif_data_that_cannot_be_read_leave_the_picture_readable() -> None:
    broken = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(range(256))
    assert seen(encoded(Image.new("RGB", (8, 8), (9, 9, 9)), "JPEG", quality=100, exif=broken)).mean() == pytest.approx(
        9, abs=1
    )


@given(pixels=RGB, alpha=arrays(np.uint8, (8, 8)))
def test_what_is_transparent_shows_white(pixels, alpha) -> None:
    share = alpha[..., None] / 255
    on_white = pixels * share + 255 * (1 - share)
    stored = encoded(Image.fromarray(np.concatenate([pixels, alpha[..., None]], -1)))
    assert np.abs(seen(stored) - on_white).max() <= 1
    grey_and_alpha = encoded(Image.fromarray(np.stack([pixels[..., 0], alpha], -1)))
    assert np.abs(seen(grey_and_alpha, channels=1) - on_white[..., 0]).max() <= 1


def test_a_transparent_colour_shows_white_at_every_depth() -> None:
    """As a palette's entry and as PNG's tRNS, which is given in the numbers of the file."""
    palette = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8), "L").convert("P")
    for kind, clear in (("GIF", 5), ("PNG", 5), ("PNG", bytes([255] * 5 + [0] + [255] * 250))):
        found = seen(encoded(palette, kind, transparency=clear), channels=1)
        assert found[0, 5] == 255 and np.array_equal(np.delete(found, 5), np.delete(np.arange(64), 5)), (kind, clear)
    for bits in (1, 2, 4, 8, 16):
        top, numbers = 2**bits - 1, np.arange(8) % 2**bits
        packed = "".join(f"{number:0{bits}b}" for number in numbers)
        row = int(packed, 2).to_bytes(len(packed) // 8, "big")
        found = seen(png(bits, 0, [row] * 8, 8, clear=struct.pack(">H", 1)), channels=1)
        assert np.array_equal(found, [np.where(numbers == 1, 255, np.round(numbers / top * 255))] * 8), bits
    for bits, code in ((8, "B"), (16, "H")):
        row = struct.pack(f">24{code}", *([2 ** (bits - 1), 0, 0, 0, 2 ** (bits - 1), 0] * 4))
        found = seen(png(bits, 2, [row] * 8, 8, clear=struct.pack(">3H", 2 ** (bits - 1), 0, 0)))
        assert np.array_equal(found, [[[255, 255, 255], [0, 128, 0]] * 4] * 8), bits


@given(values=arrays(np.uint16, (8, 8)))
def test_deep_greys_become_eight_bits_by_rounding(values) -> None:
    expected = np.round(values / 257)
    twelve = values & 4095
    low, high = twelve.reshape(-1, 2).T
    packed = np.stack([low >> 4, (low & 15) << 4 | high >> 8, high & 255], -1).astype(np.uint8)
    for name, content, right in (
        ("PNG", encoded(Image.fromarray(values)), expected),
        ("TIFF", encoded(Image.fromarray(values), "TIFF"), expected),
        ("TIFF, most significant byte first", encoded(Image.fromarray(values.astype(">u2")), "TIFF"), expected),
        ("TIFF, white is 0", tiff(values, 16, photometric=0), 255 - expected),
        ("TIFF of 12 bits", tiff(packed, 12), np.round(twelve / 4095 * 255)),
        ("JPEG 2000", encoded(Image.fromarray(values), "JPEG2000", irreversible=False), expected),
        ("PGM", b"P5 8 8 65535\n" + values.astype(">u2").tobytes(), expected),
    ):
        assert np.array_equal(seen(content, channels=1), right), name
        assert np.array_equal(seen(content)[..., 2], right), name


@pytest.mark.parametrize("channels", [1, 3])
def test_other_kinds_of_pictures_are_what_pillow_makes_of_them(channels: int) -> None:
    base = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    for mode, kind in (("CMYK", "TIFF"), ("P", "PNG"), ("1", "PNG"), ("LAB", "TIFF"), ("YCbCr", "TIFF")):
        stored = encoded(
            base.convert("RGB").convert(mode) if mode != "LAB" else Image.frombytes("LAB", (8, 8), base.tobytes()), kind
        )
        try:
            with Image.open(io.BytesIO(stored)) as file:
                expected = np.asarray(file.convert("RGB") if channels == 3 else file.convert("RGB").convert("L"))
        except OSError:
            assert mode in ("LAB", "YCbCr")  # before 13 Pillow itself cannot read one of these that it has written
            continue
        assert np.array_equal(seen(stored, channels=channels), expected), mode


@pytest.mark.parametrize(
    "content",
    [
        encoded(Image.fromarray(np.full((8, 8), 0.5, np.float32)), "TIFF"),
        encoded(Image.fromarray(np.full((8, 8), 2**20, np.int32)), "TIFF"),
        tiff(np.full((8, 8), -5, np.int8), 8, sample_format=2),
        tiff(np.full((8, 8), -5, np.int16), 16, sample_format=2),
        tiff(np.full((8, 8), 5, np.uint32), 32),
        b"Pf 8 8 -1.0\n" + bytes(8 * 8 * 4),
    ],
    ids=["float", "int32", "int8", "int16", "uint32", "PFM"],
)
def test_numbers_without_a_stated_white_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="have no defined white"):
        decode(content, 1, 8, 8)


def test_what_runs_a_program_or_has_no_signature_is_not_opened(monkeypatch) -> None:
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was called"))
    picture = Image.new("RGB", (8, 8))
    for kind in ("EPS", "TGA", "PDF", "PCX", "ICO"):
        with pytest.raises(ValueError, match="not one of PNG, JPEG"):
            decode(encoded(picture, kind), 3, 8, 8)
    assert not {"EPS", "WMF", "PSD"} & set(formats())
    assert {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".apng",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".avif",
    } <= suffixes()


def test_a_picture_beyond_the_bound_is_refused_and_the_bound_can_be_raised(monkeypatch) -> None:
    bomb = png(1, 0, [bytes(2500)] * 10, 20_000, size=(20_000, 20_000))
    small = encoded(Image.new("L", (40, 40), 7))
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ValueError, match=r"more than 89,478,485 pixels; set FEWSTEP_MAX_PIXELS"):
        decode(bomb, 1, 8, 8)
    monkeypatch.setenv("FEWSTEP_MAX_PIXELS", "1000")
    with pytest.raises(ValueError, match="more than 1,000 pixels"):
        decode(small, 1, 8, 8)
    monkeypatch.setenv("FEWSTEP_MAX_PIXELS", "1600")
    assert (seen(small, channels=1) == 7).all()
    assert before == Image.MAX_IMAGE_PIXELS
    monkeypatch.setenv("FEWSTEP_MAX_PIXELS", "many")
    with pytest.raises(ValueError, match="FEWSTEP_MAX_PIXELS must be a positive number, not 'many'"):
        decode(small, 1, 8, 8)


WHOLE = {
    kind: encoded(Image.fromarray(np.random.default_rng(1).integers(0, 256, (9, 7, 3), np.uint8)), kind)
    for kind in ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "QOI")
}


@settings(max_examples=200, deadline=None)
@given(kind=st.sampled_from(sorted(WHOLE)), data=st.data())
def test_a_broken_file_is_a_picture_or_one_error_and_nothing_else(kind: str, data) -> None:
    content = bytearray(WHOLE[kind])
    for place, byte in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=8)):
        content[place] = byte
    cut = data.draw(st.integers(0, len(content)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSTEP_MAX_PIXELS", "10000")  # a broken header may ask for millions, which take their time
        try:
            picture = decode(bytes(content[:cut]), 3, 8, 8)
        except ValueError:
            return
    assert picture.shape == (3, 8, 8) and picture.dtype == torch.uint8


@given(width=st.integers(1, 40), height=st.integers(1, 40), size=st.integers(1, 12))
@example(width=1, height=40, size=12)
def test_any_oblong_becomes_the_square(width: int, height: int, size: int) -> None:
    assert (
        seen(encoded(Image.new("RGB", (width, height), (10, 200, 30))), size=size).reshape(-1, 3) == [10, 200, 30]
    ).all()
