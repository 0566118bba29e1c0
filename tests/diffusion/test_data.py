from __future__ import annotations

import io
import logging
import zipfile
from functools import partial

import numpy as np
import pytest
import torch
from conftest import noise_images
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fewstep.diffusion.data import Images, Rows, load_images, save_images
from fewstep.diffusion.noise import LogNormal
from fewstep.diffusion.space import to_uint8

LEVELS = partial(LogNormal(), sigma_max=80.0)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def picture(size: tuple[int, int], colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", size, colour)


@pytest.fixture
def folder(tmp_path):
    """Two classes, three images, one of them oblong; and a file that is no image."""
    for name, size, colour in (
        ("cat/a.png", (8, 8), (255, 0, 0)),
        ("cat/b.png", (32, 16), (0, 255, 0)),
        ("dog/c.png", (8, 8), (0, 0, 255)),
    ):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(size, colour).save(path)
    return tmp_path / "data"


def test_folder_with_classes(folder) -> None:
    data = load_images(folder, channels=3, size=8)
    assert data.shape == (3, 8, 8) and data.labels is not None
    assert data.labels.tolist() == [0, 0, 1]
    assert data.pixels.float().mean((2, 3)).tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


def test_corrupt_files_are_named_and_skipped(folder, caplog) -> None:
    (folder / "cat" / "broken.png").write_bytes(b"not an image")
    whole = (folder / "dog" / "c.png").read_bytes()
    (folder / "dog" / "cut.png").write_bytes(whole[: len(whole) // 2])
    with caplog.at_level(logging.WARNING):
        data = load_images(folder, channels=3, size=8)
    assert len(data) == 3
    assert "skipped 2 unreadable of 5" in caplog.text and "broken.png" in caplog.text and "cut.png" in caplog.text


def test_all_corrupt_is_an_error(tmp_path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "broken.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"no readable images in .*broken\.png"):
        load_images(tmp_path / "data", channels=3, size=8)


def test_zip_is_its_folder(folder, tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder))
    zipped, plain = (load_images(source, channels=1, size=8) for source in (tmp_path / "data.zip", folder))
    assert torch.equal(zipped.pixels, plain.pixels)
    assert zipped.labels is not None and plain.labels is not None and torch.equal(zipped.labels, plain.labels)


def test_parquet(folder, tmp_path) -> None:
    from datasets import load_dataset

    load_dataset("imagefolder", data_dir=str(folder), split="train").to_parquet(tmp_path / "data.parquet")
    assert torch.equal(
        load_images(tmp_path / "data.parquet", channels=3, size=8).pixels, load_images(folder, channels=3, size=8).pixels
    )


def test_a_name_without_an_owner_asks_nobody(monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(ValueError, match="on the hub as owner/name"):
        load_images("nosuchname", channels=3, size=8)


def test_without_the_hub_a_data_set_comes_from_the_cache_and_nothing_is_tried_again(monkeypatch) -> None:
    import datasets

    def away(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", away)
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: pytest.fail("waited to try again"))
        with pytest.raises(ValueError, match="owner/nosuch is neither a path nor a data set that can be loaded"):
            load_images("owner/nosuch", channels=3, size=8)

    def cached(name: str, split: str) -> datasets.Dataset:
        assert (name, split, datasets.config.HF_HUB_OFFLINE) == ("owner/name", "train", True)
        return datasets.Dataset.from_dict(
            {"image": [picture((8, 8), (0, 0, 255))]}, datasets.Features(image=datasets.Image())
        )

    monkeypatch.setattr(datasets, "load_dataset", cached)
    assert load_images("owner/name", channels=3, size=8).pixels.float().mean((0, 2, 3)).tolist() == [0, 0, 255]
    assert datasets.config.HF_HUB_OFFLINE is False


@pytest.mark.parametrize("layout", ["NHW", "NHWC", "NCHW"])
def test_npz_layouts(tmp_path, layout: str) -> None:
    channels = 1 if layout == "NHW" else 3
    pixels = noise_images(5, channels).pixels
    stored = {"NHW": pixels[:, 0], "NHWC": pixels.permute(0, 2, 3, 1), "NCHW": pixels}[layout]
    np.savez(tmp_path / "data.npz", images=stored.numpy())
    assert torch.equal(load_images(tmp_path / "data.npz", channels=channels, size=8).pixels, pixels)


def test_save_and_load(tmp_path) -> None:
    for data in (noise_images(labels=True), Images(torch.randn(4, 6, 8, 8))):
        save_images(data, tmp_path / "data.npz")
        back = load_images(tmp_path / "data.npz", channels=data.shape[0], size=8)
        assert torch.equal(back.pixels, data.pixels)
        assert (back.labels is None) == (data.labels is None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": np.zeros((2, 8, 8), np.float32)}, "must be uint8"),
        ({"pictures": np.zeros((2, 8, 8), np.uint8)}, "needs an array called"),
        ({"images": np.zeros((0, 8, 8), np.uint8)}, "no samples"),
        ({"images": np.zeros((2, 9, 9), np.uint8)}, "1x9x9, the model takes 1x8x8"),
        ({"images": np.zeros((2, 8, 8), np.uint8), "labels": np.zeros(3, np.int64)}, "2 samples but 3 labels"),
        ({"images": np.array([{"code": "object"}])}, "not a readable"),
    ],
)
def test_bad_npz(tmp_path, content, message: str) -> None:
    np.savez(tmp_path / "data.npz", **content)
    with pytest.raises(ValueError, match=message):
        load_images(tmp_path / "data.npz", channels=1, size=8)


def test_what_is_called_npz_and_is_none(tmp_path) -> None:
    whole, file = io.BytesIO(), tmp_path / "data.npz"
    np.savez_compressed(whole, images=noise_images().pixels.numpy())
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    names = io.BytesIO()
    np.savez(names, images=np.zeros((2, 8, 8), np.uint8), labels=np.array(["cat", "dog"]))
    for content in (whole.getvalue()[:-40], array.getvalue(), names.getvalue()):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="not a readable"):
            load_images(file, channels=1, size=8)


def test_sixteen_bits_become_eight(tmp_path) -> None:
    ramp = np.arange(0, 2**16, 1024, dtype=np.uint16).reshape(8, 8)
    (tmp_path / "data").mkdir()
    Image.fromarray(ramp).save(tmp_path / "data" / "ramp.png")
    (picture,) = load_images(tmp_path / "data", channels=1, size=8).pixels
    assert np.array_equal(picture[0].numpy(), (ramp / 257).round())


def test_a_shuffled_set_is_the_same_set() -> None:
    """Whose beginning is like the whole, although classes were in order."""
    labels = torch.arange(1000) // 100
    images = Images(labels.to(torch.uint8).view(-1, 1, 1, 1), labels).shuffled()
    assert torch.equal(images.labels.bincount(), torch.full((10,), 100))
    assert torch.equal(images.pixels.flatten().long(), images.labels)
    assert set(images.labels[:100].tolist()) == set(range(10))


@pytest.mark.parametrize("name", ["missing.npz", "missing.zip", "/nowhere/at/all", "empty"])
def test_missing_data(tmp_path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"there (is|are) no"):
        load_images(tmp_path / name, channels=1, size=8)


@given(start=st.integers(0, 100), batch=st.integers(1, 9), world=st.integers(1, 3))
def test_rows_are_the_same_however_they_are_dealt(start: int, batch: int, world: int) -> None:
    rows = Rows(noise_images(7), LEVELS, seed=1, mirror=True)
    stop = start + 2 * batch * world
    dealt = {}
    for rank in range(world):
        places = [k for first in range(start + rank * batch, stop, world * batch) for k in range(first, first + batch)]
        parts = list(rows.batches(start, stop, batch, rank=rank, world=world))
        dealt |= dict(zip(places, torch.cat([part.eps for part in parts]), strict=True))
    assert sorted(dealt) == list(range(start, stop))
    fresh = Rows(noise_images(7), LEVELS, seed=1, mirror=True)
    assert all(torch.equal(dealt[k], fresh[k][1]) for k in dealt)


def test_loader_workers_change_nothing() -> None:
    rows = Rows(noise_images(7), LEVELS, seed=1)
    alone, with_workers = (list(rows.batches(0, 24, 8, workers=workers)) for workers in (0, 2))
    for a, b in zip(alone, with_workers, strict=True):
        assert torch.equal(a.x0, b.x0) and torch.equal(a.eps, b.eps) and torch.equal(a.t, b.t)


def test_every_epoch_sees_every_image_once() -> None:
    data = Images(torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 1, 2, 2))
    rows = Rows(data, LEVELS, seed=0)
    order = [[to_uint8(rows[epoch * 10 + k][0])[0, 0, 0].item() for k in range(10)] for epoch in range(2)]
    assert sorted(order[0]) == sorted(order[1]) == list(range(10))
    assert order[0] != order[1]


def test_each_sight_of_an_image_has_noise_of_its_own() -> None:
    """The noise belongs to the row: the same image comes back in every epoch with other noise at another level."""
    rows = Rows(Images(torch.zeros(1, 1, 4, 4, dtype=torch.uint8)), LogNormal(), seed=0)
    _, eps, t, _ = (torch.stack(part) for part in zip(*(rows[k] for k in range(50)), strict=True))
    assert len(t.unique()) == 50 and len(eps.flatten(1).unique(dim=0)) == 50


def test_noise_is_standard_normal_and_seeds_differ() -> None:
    draws = [torch.stack([Rows(noise_images(size=16), LEVELS, seed=seed)[k][1] for k in range(64)]) for seed in (0, 1)]
    for eps in draws:
        assert abs(float(eps.mean())) < 0.03 and abs(float(eps.std()) - 1) < 0.03
    correlation = float((draws[0] * draws[1]).mean())
    neighbours = float((draws[0][1:] * draws[0][:-1]).mean())
    assert abs(correlation) < 0.03 and abs(neighbours) < 0.03


def test_uint8_round_trip() -> None:
    data = noise_images()
    assert torch.equal(to_uint8(torch.stack([data.x0(k) for k in range(len(data))])), data.pixels)
