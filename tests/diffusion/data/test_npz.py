from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import pytest
import torch
from conftest import noise_images
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fewstep.diffusion.data import Images, load_images, save_images

PIXELS = np.zeros((2, 8, 8), np.uint8)


@pytest.mark.parametrize("layout", ["NHW", "NHWC", "NCHW"])
def test_npz_layouts(tmp_path, layout: str) -> None:
    channels = 1 if layout == "NHW" else 3
    pixels = noise_images(5, channels).pixels
    stored = {"NHW": pixels[:, 0], "NHWC": pixels.permute(0, 2, 3, 1), "NCHW": pixels}[layout]
    np.savez(tmp_path / "data.NPZ", images=stored.numpy())
    (tmp_path / "data.NPZ.npz").rename(tmp_path / "data.NPZ")
    assert torch.equal(load_images(tmp_path / "data.NPZ", channels=channels, size=8).pixels, pixels)


def test_save_and_load(tmp_path) -> None:
    named = Images(noise_images(3).pixels, torch.tensor([1, 0, 1]), ("ant", "zebra", "nobody"))
    for data in (noise_images(labels=True), Images(torch.randn(4, 6, 8, 8)), named):
        save_images(data, tmp_path / "data.npz")
        back = load_images(tmp_path / "data.npz", channels=data.shape[0], size=8)
        assert torch.equal(back.pixels, data.pixels) and back.classes == data.classes
        assert (back.labels is None) == (data.labels is None)
        assert data.labels is None or torch.equal(back.labels, data.labels)


@pytest.mark.parametrize(
    ("labels", "found", "names"),
    [
        (np.array([207, 2], np.uint16), [207, 2], None),
        (np.array([3.0, 1.0], np.float32), [3, 1], None),
        (np.array(["dog", "cat"]), [1, 0], ("cat", "dog")),
        (np.array(["10", "2"]), [10, 2], None),
        (np.array([-1, -1]), None, None),
    ],
)
def test_the_rule_of_classes_is_that_of_folders(tmp_path, labels, found, names) -> None:
    np.savez(tmp_path / "data.npz", images=PIXELS, labels=labels)
    data = load_images(tmp_path / "data.npz", channels=1, size=8)
    assert (data.labels if found is None else data.labels.tolist()) == found and data.classes == names


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(3, np.int64), "2 samples but 3 labels"),
        (np.eye(2), r"shape \(2, 2\); they must be one class per sample"),
        (np.array(1), r"shape \(\)"),
        (np.array([0, np.nan]), "label nan in .* is no class"),
        (np.array([0, -1]), "1 of 2 samples"),
        (np.array([0, -3]), "label -3 .* is no class"),
        (np.array([0.5, 1]), "no class"),
        (np.array([1j, 1]), "no class"),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path, caplog, labels, message: str) -> None:
    np.savez(tmp_path / "data.npz", images=PIXELS, labels=labels)
    with pytest.raises(ValueError, match=message):
        load_images(tmp_path / "data.npz", channels=1, size=8)
    assert load_images(tmp_path / "data.npz", channels=1, size=8, labels=False).labels is None
    assert "taken without classes" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": np.zeros((2, 8, 8), np.float32)}, "must be uint8"),
        ({"images": np.zeros((2, 8), np.uint8)}, r"must be \(N, H, W\)"),
        ({"images": np.zeros((), np.uint8)}, r"must be \(N, H, W\)"),
        ({"images": np.zeros((1, 1, 1, 8, 8), np.uint8)}, r"must be \(N, H, W\)"),
        ({"pictures": PIXELS}, r"holds \['pictures'\]; it needs an array called"),
        ({"images": np.zeros((0, 8, 8), np.uint8)}, "no samples"),
        ({"images": np.zeros((2, 9, 9), np.uint8)}, "1x9x9, the model takes 1x8x8"),
        ({"images": np.array([{"code": "object"}])}, "not a readable .npz of plain arrays: it holds Python objects"),
        ({"images": np.zeros(2, [("a", np.uint8)])}, "must be uint8"),
        ({"images": np.zeros(1, [(f"column {k}", np.uint8) for k in range(4000)])}, "it holds tables"),
        ({"latents": np.zeros((2, 8, 8), np.float32)}, r"must be floats \(N, C, H, W\), not float32 \(2, 8, 8\)"),
        ({"latents": np.zeros((2, 1, 8, 8), np.int64)}, "must be floats"),
        (
            {"latents": np.full((2, 1, 8, 8), np.nan, np.float32)},
            "2 of 2 latents in .* hold NaN or infinity, the first at place 0",
        ),
        ({"latents": np.full((2, 1, 8, 8), 1e300)}, "2 of 2 latents"),
        (
            {"latents": np.array([0, np.inf], np.float16).repeat(64).reshape(2, 1, 8, 8)},
            "1 of 2 latents .* the first at place 1",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Stored array in format 2.0")
def test_bad_arrays(tmp_path, content: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "data.npz", **content)
    with pytest.raises(ValueError, match=message):
        load_images(tmp_path / "data.npz", channels=1, size=8)


@pytest.mark.parametrize("kind", [">f4", "<f8", "<f2"])
def test_latents_of_every_kind_become_float32(tmp_path, kind: str) -> None:
    latents = np.linspace(-1, 1, 64).astype(kind).reshape(1, 1, 8, 8)
    np.savez(tmp_path / "data.npz", latents=latents)
    assert np.array_equal(load_images(tmp_path / "data.npz", channels=1, size=8).pixels, latents.astype(np.float32))


def test_what_is_called_npz_and_is_none(tmp_path) -> None:
    whole, file = io.BytesIO(), tmp_path / "data.npz"
    np.savez_compressed(whole, images=noise_images().pixels.numpy())
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    for content in (whole.getvalue()[:-40], array.getvalue(), b""):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="not a readable"):
            load_images(file, channels=1, size=8)
    file.unlink()
    file.mkdir()
    with pytest.raises(ValueError, match="there is no file"):
        load_images(file, channels=1, size=8)


def archive(place, header: bytes, body: bytes = b"", method: int = zipfile.ZIP_DEFLATED):
    """An .npz whose array `images` says `header` of itself."""
    with zipfile.ZipFile(place, "w", method) as file:
        file.writestr("images.npy", b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + body)
    return place


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 8, 8)}",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 8, 8)}",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (" + b"9" * 4000 + b", 8, 8)}",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (2, 8, 8)}",
        b"(" * 9000,
        b"[" * 60000,
        b"{'descr': '|u1', 'fortran_order': False, 'shape': __import__('os').abort()}",
        b"\xff" * 100,
    ],
)
def test_a_header_that_promises_too_much_takes_no_memory(tmp_path, header: bytes) -> None:
    with pytest.raises(ValueError, match=r"data\.npz is not a readable"):
        load_images(archive(tmp_path / "data.npz", header), channels=1, size=8)


def test_a_size_below_zero_does_not_make_room_for_another_array(tmp_path) -> None:
    np.savez_compressed(tmp_path / "data.npz", images=PIXELS)
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (-1000000000,)}"
    with zipfile.ZipFile(tmp_path / "data.npz", "a") as file:
        file.writestr("labels.npy", b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(ValueError, match=r"an array of \(-1000000000,\) is incomplete"):
        load_images(tmp_path / "data.npz", channels=1, size=8)


def test_an_npz_that_expands_without_measure_is_refused_unless_it_is_meant(tmp_path, monkeypatch) -> None:
    """512 MiB of zeros, of which the header alone is read."""
    header, zeros = b"{'descr': '|u1', 'fortran_order': False, 'shape': (8388608, 8, 8)}", bytes(2**20)
    with zipfile.ZipFile(tmp_path / "data.npz", "w", zipfile.ZIP_DEFLATED) as file, file.open("images.npy", "w") as entry:
        entry.write(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header)
        for _ in range(512):
            entry.write(zeros)
    monkeypatch.setattr("numpy.lib.format.read_array", lambda *_, **__: pytest.fail("the array was read"))
    with pytest.raises(ValueError, match=r"takes 0\.5 MiB on the disk and would become 0\.5 GiB; .*FEWSTEP_MAX_GIB"):
        load_images(tmp_path / "data.npz", channels=1, size=8)
    monkeypatch.setattr("numpy.lib.format.read_array", lambda *_, **__: PIXELS)
    monkeypatch.setenv("FEWSTEP_MAX_GIB", "1")
    assert len(load_images(tmp_path / "data.npz", channels=1, size=8)) == 2


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_without_a_bound_are_not_unpacked(tmp_path, method: int) -> None:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1, 8, 8)}"
    with pytest.raises(ValueError, match="neither stored nor deflated"):
        load_images(archive(tmp_path / "data.npz", header, bytes(64), method), channels=1, size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(data=st.data())
def test_a_broken_npz_is_read_or_refused_in_one_sentence(tmp_path_factory, data) -> None:
    whole = io.BytesIO()
    names = np.array(["a", "b", "c", "d", "e"])
    np.savez_compressed(whole, images=noise_images(2).pixels.numpy(), labels=np.array([3, 4]), classes=names)
    content = bytearray(whole.getvalue())
    for place, byte in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=6)):
        content[place] = byte
    file = tmp_path_factory.mktemp("fuzz") / "data.npz"
    file.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    try:
        images = load_images(file, channels=1, size=8)
    except ValueError:
        return
    assert images.shape == (1, 8, 8) and (images.labels is None or len(images.labels) == len(images))
