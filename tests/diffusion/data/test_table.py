from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import noise_images, tiny
from pictures import png, put
from torch.utils.data import DataLoader

from fewstep.diffusion.cond import CLASS, labelled
from fewstep.diffusion.data import Images, Rows, Table, load_images, make_table, making, save_images
from fewstep.diffusion.data import load as reading
from fewstep.diffusion.data.table import arrays_of, write_table
from fewstep.diffusion.noise import LogNormal
from fewstep.diffusion.tuning import tune

LEVELS = partial(LogNormal(), sigma_max=80.0)
COLOURS = {
    "cat/a.png": png((255, 0, 0)),
    "cat/b.png": png((0, 255, 0), (32, 16)),
    "cat/c.png": b"broken",
    "dog/d.png": png((0, 0, 255)),
}


def same(table: Table, images: Images) -> None:
    assert len(table) == len(images) and table.shape == images.shape and table.classes == images.classes
    assert table.label_range == images.label_range
    assert torch.equal(table.raw(range(len(table))), images.raw(range(len(images))))
    assert [table.cond(k) for k in range(len(table))] == [images.cond(k) for k in range(len(images))]


def made(place: Path, images: Images, name: str = "table") -> Table:
    save_images(images, place / "data.npz")
    return make_table(place / "data.npz", place / name, channels=images.shape[0], size=images.shape[1])


@pytest.mark.parametrize("name", ["data", "data.zip"])
@pytest.mark.parametrize("rows", [1, 2, 1000])
def test_a_table_holds_what_would_be_in_memory(tmp_path, monkeypatch, name: str, rows: int) -> None:
    monkeypatch.setattr(making, "BATCH", rows * 3 * 8 * 8)
    put(tmp_path / name, COLOURS)
    table = make_table(tmp_path / name, tmp_path / "table", channels=3, size=8)
    same(table, load_images(tmp_path / name, channels=3, size=8))
    same(load_images(tmp_path / "table", channels=3, size=8), load_images(tmp_path / name, channels=3, size=8))
    assert table.classes == ("cat", "dog") and len(table) == 3
    receipt = json.loads((tmp_path / "table" / "receipt.json").read_text())
    assert (receipt["rows"], receipt["shape"], receipt["source"]) == (3, [3, 8, 8], str(tmp_path / name))


@pytest.mark.parametrize(
    "images",
    [
        noise_images(5),
        noise_images(5, channels=3, labels=True),
        Images(torch.randn(4, 6, 8, 8), torch.tensor([7, 7, 0, 2])),
        Images(noise_images(3).pixels, torch.tensor([1, 0, 1]), ("ant", "zebra", "nobody")),
    ],
)
def test_arrays_become_tables(tmp_path, images: Images) -> None:
    same(made(tmp_path, images), images)


def test_datasets_reads_a_table_and_knows_the_classes(tmp_path) -> None:
    images = Images(noise_images(3).pixels, torch.tensor([1, 0, 1]), ("ant", "zebra"))
    made(tmp_path, images)
    theirs = datasets.load_from_disk(tmp_path / "table")
    assert theirs["image"][:] == images.pixels.tolist()
    assert theirs.features["label"].int2str(theirs["label"][:]) == ["zebra", "ant", "zebra"]


ROWS = np.arange(5 * 3 * 4 * 4, dtype=np.uint8).reshape(5, 3, 4, 4)
LATENTS = np.arange(5 * 8, dtype=np.float32).reshape(5, 2, 2, 2)
IMAGE = {"image": datasets.Array2D((4, 4), "uint8")}
FOREIGN = {
    "datasets' own arrays": ({"image": datasets.Array3D((3, 4, 4), "uint8")}, {"image": ROWS}, ROWS),
    "channels last": ({"image": datasets.Array3D((4, 4, 3), "uint8")}, {"image": ROWS.transpose(0, 2, 3, 1)}, ROWS),
    "grey": ({"image": datasets.Array2D((4, 4), "uint8")}, {"image": ROWS[:, 0]}, ROWS[:, :1]),
    "latents": ({"latents": datasets.Array3D((2, 2, 2), "float32")}, {"latents": LATENTS}, LATENTS),
    "latents in half precision": (
        {"latents": datasets.Array3D((2, 2, 2), "float16")}, {"latents": LATENTS.astype(np.float16)}, LATENTS,
    ),
    "latents beside pictures": (
        {"latents": arrays_of((2, 2, 2), "float32"), "text": datasets.Value("string")} | IMAGE,
        {"latents": LATENTS, "text": ["a"] * 5, "image": ROWS[:, 0]}, LATENTS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_tables_that_others_wrote(tmp_path, name: str) -> None:
    """Also in several files, with several runs of rows in each."""
    features, content, expected = FOREIGN[name]
    known = datasets.Features(features | {"label": datasets.Value("int32")})
    rows = datasets.Dataset.from_dict(content | {"label": [3, 1, 4, 1, 5]}, known)
    rows.save_to_disk(tmp_path / "whole")
    rows.save_to_disk(tmp_path / "parts", num_shards=3)
    for place in ("whole", "parts"):
        same(Table(tmp_path / place), Images(torch.from_numpy(expected.copy()), torch.tensor([3, 1, 4, 1, 5])))
    order = [4, 0, 3]
    rows.select(order).save_to_disk(tmp_path / "some")
    assert torch.equal(Table(tmp_path / "some").raw(range(3)), torch.from_numpy(expected[order]))


def test_latents_that_are_not_finite_are_named(tmp_path) -> None:
    """Where they are read, as nobody reads a whole table first; the training would put it down to its learning rate."""
    latents = LATENTS.copy()
    latents[3, 1, 0, 1] = np.nan
    known = datasets.Features({"latents": arrays_of((2, 2, 2), "float32")})
    datasets.Dataset.from_dict({"latents": latents}, known).save_to_disk(tmp_path / "table")
    table = Table(tmp_path / "table")
    assert torch.equal(table.raw([0, 4]), torch.from_numpy(LATENTS[[0, 4]]))
    with pytest.raises(ValueError, match=r"row 3 of .*table holds numbers that are not finite"):
        table.raw([4, 3])


def test_a_folder_of_datasets_with_encoded_pictures_is_read_like_its_parquet(tmp_path) -> None:
    put(tmp_path / "data", COLOURS)
    rows = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "data"), split="train")
    rows.save_to_disk(tmp_path / "folder")
    rows.to_parquet(tmp_path / "data.parquet")
    same(load_images(tmp_path / "folder", channels=3, size=8), load_images(tmp_path / "data.parquet", channels=3, size=8))
    same(
        make_table(tmp_path / "folder", tmp_path / "table", channels=3, size=8),
        load_images(tmp_path / "data", channels=3, size=8),
    )


def saved(place: Path, features: dict, content: dict) -> Path:
    datasets.Dataset.from_dict(content, datasets.Features(features)).save_to_disk(place)
    return place


@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    [
        (datasets.Value("string"), ["a", "b", "c", "d", "e"], "holds string; make it whole numbers"),
        (datasets.Value("float32"), [0, 1, 2, 3, 4], "holds float; make it whole numbers"),
        (datasets.Value("int64"), [1, None, 2, -1, 0], "2 of 5 rows of .* have no class"),
        (datasets.Value("int64"), [1, 2, -2, 0, 0], "-2 .* is no class"),
    ],
)
def test_classes_that_are_not_clear_are_refused(tmp_path, caplog, kind, labels, message: str) -> None:
    place = saved(tmp_path / "table", IMAGE | {"label": kind}, {"image": ROWS[:, 0], "label": labels})
    with pytest.raises(ValueError, match=message):
        load_images(place, channels=1, size=4)
    table = load_images(place, channels=1, size=4, labels=False)
    assert (table.label_range, table.classes, table.cond(0)) == (None, None, {})
    assert "taken without classes" in caplog.text
    assert pickle.loads(pickle.dumps(table)).label_range is None


def test_a_column_of_no_classes_is_none(tmp_path) -> None:
    kind = datasets.ClassLabel(names=["a", "b"])
    place = saved(tmp_path / "table", IMAGE | {"label": kind}, {"image": ROWS[:, 0], "label": [-1] * 5})
    assert Table(place).label_range is None


@pytest.mark.parametrize(
    ("features", "content", "message"),
    [
        ({"text": datasets.Value("string")}, {"text": ["a"]}, r"holds 1 rows of \['text'\]; it needs a column `image`"),
        ({"image": datasets.Array2D((None, 4), "uint8")}, {"image": [ROWS[0, 0]]}, "all of one shape"),
        ({"image": datasets.Array2D((4, 4), "int32")}, {"image": ROWS[:, 0]}, "`image` in .* holds int32; make it uint8"),
        ({"image": datasets.Array2D((4, 4), "float32")}, {"image": ROWS[:, 0]}, "holds float32; make it uint8"),
        ({"latents": datasets.Array2D((4, 4), "uint8")}, {"latents": ROWS[:, 0]}, "holds uint8; make it float32"),
        ({"image": arrays_of((4, 4), "uint8")}, {"image": [ROWS[0, 0], None]}, "cannot be mapped into memory"),
    ],
)  # fmt: skip
def test_columns_that_are_no_samples_are_refused(tmp_path, features, content, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Table(saved(tmp_path / "table", features, content))


def test_a_table_without_rows_is_refused(tmp_path) -> None:
    write_table(tmp_path, {"image": arrays_of((1, 4, 4), "uint8")}, [])
    with pytest.raises(ValueError, match="holds 0 rows"):
        Table(tmp_path)
    none = {"image": np.zeros((0, 1, 4, 4), np.uint8)}
    datasets.Dataset.from_dict(none, datasets.Features({"image": arrays_of((1, 4, 4), "uint8")})).save_to_disk(
        tmp_path / "none"
    )
    with pytest.raises(ValueError, match="none is not a readable table: it holds 0 rows"):
        load_images(tmp_path / "none", channels=1, size=4)


def test_a_table_of_another_shape_says_what_it_holds(tmp_path) -> None:
    made(tmp_path, noise_images(3))
    with pytest.raises(ValueError, match="table holds samples of 1x8x8, the model takes 3x16x16"):
        load_images(tmp_path / "table", channels=3, size=16)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(ValueError, match=r"holds several tables; give one of them, such as .*two/train"):
        load_images(tmp_path / "two", channels=1, size=8)


def test_a_damaged_table_is_one_sentence(tmp_path) -> None:
    """Cut off, of other numbers than it says, or a name that leads nowhere."""
    made(tmp_path, noise_images(100))
    (rows,) = (tmp_path / "table").glob("*.arrow")
    whole, state = rows.read_bytes(), (tmp_path / "table" / "state.json").read_text()
    for content in (b"", whole[:100], whole[: len(whole) // 2], bytes(len(whole)), b"x" * 100):
        rows.write_bytes(content)
        with pytest.raises(ValueError, match=r"table is not a readable table: |holds 0 rows") as caught:
            Table(tmp_path / "table")
        assert "\n" not in str(caught.value)
    rows.write_bytes(whole)
    for said in (state.replace(rows.name, "nowhere.arrow"), "{", "[]"):
        (tmp_path / "table" / "state.json").write_text(said)
        with pytest.raises(ValueError, match="not a readable table"):
            Table(tmp_path / "table")


def test_training_from_a_table_is_training_from_memory(tmp_path, monkeypatch) -> None:
    """Row by row, with any workers, and bit-equal when it goes on from a saved state with the table opened anew."""
    monkeypatch.setattr(making, "BATCH", 5 * 64)
    images = noise_images(23, labels=True)
    table = made(tmp_path, images)
    settings = {"seed": 3, "mirror": True, "dropped": (0.3, labelled(torch.tensor([3])))}
    ours, theirs = Rows(table, LEVELS, **settings), Rows(images, LEVELS, **settings)
    for k in range(60):
        assert ours[k][3] == theirs[k][3]
        assert all(torch.equal(ours[k][part], theirs[k][part]) for part in (0, 1, 2, 4))
    for a, b in zip(ours.batches(0, 40, 8, workers=2), theirs.batches(0, 40, 8), strict=True):
        assert torch.equal(a.x0, b.x0) and torch.equal(a.cond.rows[CLASS], b.cond.rows[CLASS])

    def trained(data, state=None, stop=6) -> tuple[list[torch.Tensor], dict]:
        denoiser = tiny(classes=4)
        for step in tune(denoiser, data, images=48, batch=8, state=state):
            if step.step == stop:
                break
        return [p.detach().clone() for p in denoiser.parameters()], step.state()

    whole, _ = trained(images)
    _, half = trained(table, stop=3)
    resumed, _ = trained(Table(tmp_path / "table"), state=half)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_open_the_table_themselves(tmp_path, monkeypatch, start: str) -> None:
    """What goes to them is its path, whatever it holds."""
    monkeypatch.chdir(tmp_path)
    table = made(Path(), noise_images(4000, labels=True))
    assert len(pickle.dumps(table)) < 1000 < len(pickle.dumps(noise_images(4000)))
    rows = Rows(table, LEVELS, seed=0)
    loader = DataLoader(rows, batch_size=4, sampler=range(8), num_workers=1, multiprocessing_context=start)
    for (x0, eps, t, cond, u), expected in zip(loader, rows.batches(0, 8, 4), strict=True):
        ours, theirs = (x0, eps, t, cond[CLASS], u), (*expected[:3], expected.cond.rows[CLASS], expected.u)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


READER = """
import sys, torch
from fewstep.diffusion.data import Table

def kib(name):
    return int(open("/proc/self/status").read().split(name + ":")[1].split()[0])

table = Table(sys.argv[1])
table.raw([0]), table.cond(0)
before = {name: kib(name) for name in ("RssAnon", "RssFile")}
total = sum(int(table.raw([k]).sum()) + int(table.cond(k)["class_labels"]) for k in range(0, len(table), 4))
print(total, *(kib(name) - was for name, was in before.items()))
"""


def test_reading_a_table_takes_no_memory_of_its_own(tmp_path) -> None:
    """64 MiB of it are mapped, and shared with whoever reads them as well; next to nothing belongs to the reader."""
    pixels = np.random.default_rng(0).integers(0, 256, (1024, 1, 256, 256), np.uint8)
    (tmp_path / "table").mkdir()
    features = {"image": arrays_of((1, 256, 256), "uint8"), "label": datasets.Value("int64")}
    write_table(tmp_path / "table", features, [{"image": pixels, "label": np.arange(1024)}])
    program = [sys.executable, "-c", READER, tmp_path / "table"]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    total, private, mapped = map(int, done.stdout.split())
    assert total == int(pixels[::4].sum(dtype=np.int64)) + sum(range(0, 1024, 4))
    assert private < 4 * 1024 and mapped > 15 * 1024  # KiB; a quarter of the rows is read


def test_more_pictures_than_memory_should_hold_are_refused_with_the_command_that_helps(tmp_path, monkeypatch) -> None:
    place = put(tmp_path / "data", {f"{k}.png": png(k) for k in range(5)})
    monkeypatch.setattr("fewstep.diffusion.data.limits.IN_MEMORY", 5 * 64 - 1)
    with pytest.raises(
        ValueError, match=r"GiB in memory; write it as a table once, `fewstep table .*data --channels 1 --size 8"
    ):
        load_images(place, channels=1, size=8)
    assert len(make_table(place, tmp_path / "table", channels=1, size=8)) == 5
    assert len(load_images(tmp_path / "table", channels=1, size=8)) == 5
    monkeypatch.setenv("FEWSTEP_MAX_GIB", "1")
    assert len(load_images(place, channels=1, size=8)) == 5


def test_a_table_is_there_once_it_is_whole(tmp_path, monkeypatch) -> None:
    place = put(tmp_path / "data", COLOURS)
    table = tmp_path / "table"

    def stopped(content: bytes, *shape: int) -> torch.Tensor:
        if content == COLOURS["dog/d.png"]:
            raise KeyboardInterrupt
        return torch.zeros(shape, dtype=torch.uint8)

    with monkeypatch.context() as patch:
        patch.setattr(reading, "decode", stopped)
        with pytest.raises(KeyboardInterrupt):
            make_table(place, table, channels=3, size=8)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    for source, message in ((place, "already there"), (table, "is a table already")):
        make_table(place, table, channels=3, size=8) if not table.exists() else None
        with pytest.raises(ValueError, match=message):
            make_table(source, table if source is place else tmp_path / "new", channels=3, size=8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "table"]


def test_a_table_of_nothing_is_refused_and_leaves_nothing(tmp_path) -> None:
    place = put(tmp_path / "data", {"a.png": b"broken"})
    with pytest.raises(ValueError, match=r"no readable images in .*a\.png"):
        make_table(place, tmp_path / "table", channels=3, size=8)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_without_room_nothing_is_begun(tmp_path, monkeypatch) -> None:
    place = put(tmp_path / "data", COLOURS)
    usage = shutil.disk_usage(tmp_path)._replace(free=700)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"takes 0\.0 GiB, but 0\.0 GiB are free at .*new/table"):
        make_table(place, tmp_path / "new" / "table", channels=3, size=8)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_small_file_that_becomes_a_giant_table_is_refused(tmp_path) -> None:
    pixels = np.zeros((1, 1), np.uint8)
    np.savez_compressed(tmp_path / "data.npz", images=np.broadcast_to(pixels, (2**15, 2**7, 2**7)))
    with pytest.raises(ValueError, match="set FEWSTEP_MAX_GIB"):
        make_table(tmp_path / "data.npz", tmp_path / "table", channels=1, size=2**7)
