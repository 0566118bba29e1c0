from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
import torch
from pictures import png, put
from pyarrow import parquet

from fewstep.diffusion.data import load_images

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def load(source: str | Path, **options: object):
    return load_images(source, channels=3, size=8, **options)


def written(place: Path, labels: dict[str, Any], features: dict[str, Any] | None = None) -> Path:
    """A .parquet as `datasets` writes it, of a red, a green and a blue picture."""
    content = {"image": [{"bytes": png(colour), "path": None} for colour in (RED, GREEN, BLUE)]} | labels
    known = None if features is None else datasets.Features({"image": datasets.Image()} | features)
    table = datasets.Dataset.from_dict(content, known)
    (table if known else table.cast_column("image", datasets.Image())).to_parquet(place / "data.parquet")
    return place / "data.parquet"


def test_a_parquet_is_the_folder_it_was_made_of(tmp_path) -> None:
    put(tmp_path / "data", {"cat/a.png": png(RED), "cat/b.png": png(GREEN), "dog/c.png": png(BLUE)})
    datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "data"), split="train").to_parquet(tmp_path / "a.parquet")
    table, folder = load(tmp_path / "a.parquet"), load(tmp_path / "data")
    assert torch.equal(table.pixels, folder.pixels)
    assert torch.equal(table.labels, folder.labels) and table.classes == folder.classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("labels", "features", "found", "names"),
    [
        ({"label": [207, 2, 10]}, None, [207, 2, 10], None),
        ({"label": ["207", "2", "10"]}, None, [207, 2, 10], None),
        ({"label": ["ox", "cat", "dog"]}, None, [2, 0, 1], ("cat", "dog", "ox")),
        ({"label": [1, 0, 1]}, {"label": datasets.ClassLabel(names=["zebra", "ant"])}, [1, 0, 1], ("zebra", "ant")),
        ({"kind": [1, 0, 1]}, {"kind": datasets.ClassLabel(names=["zebra", "ant"])}, [1, 0, 1], ("zebra", "ant")),
        ({"label": [5, 6, 7], "kind": [1, 0, 1]}, None, [5, 6, 7], None),
        ({"kind": [1, 0, 1]}, None, None, None),
        ({"label": [-1, -1, -1]}, {"label": datasets.ClassLabel(names=["zebra", "ant"])}, None, None),
        ({"label": [None, None, None]}, None, None, None),
    ],
)
def test_the_column_of_classes(tmp_path, labels, features, found, names) -> None:
    data = load(written(tmp_path, labels, features))
    assert (data.labels if found is None else data.labels.tolist()) == found and data.classes == names


@pytest.mark.parametrize(
    ("labels", "features", "message"),
    [
        ({"label": [1, None, 2]}, None, "1 of 3 samples in .* have no class"),
        ({"label": [1, -1, 0]}, {"label": datasets.ClassLabel(names=["a", "b"])}, "1 of 3 samples"),
        ({"label": [1.5, 2.0, 3.0]}, None, "no class"),
        ({"label": [[1], [2], [3]]}, None, "no class"),
        (
            {"fine": [0, 0, 0], "coarse": [0, 0, 0]},
            {"fine": datasets.ClassLabel(names=["a"]), "coarse": datasets.ClassLabel(names=["a"])},
            "2 columns of classes, fine and coarse; rename one to `label`",
        ),
    ],
)
def test_columns_that_are_not_clear_are_refused(tmp_path, caplog, labels, features, message: str) -> None:
    path = written(tmp_path, labels, features)
    with pytest.raises(ValueError, match=message):
        load(path)
    assert load(path, labels=False).labels is None and "taken without classes" in caplog.text


def test_bytes_without_datasets_own_description_are_pictures_too(tmp_path) -> None:
    contents = [png(RED), png(BLUE)]
    for column in (contents, [{"bytes": content, "path": None} for content in contents]):
        parquet.write_table(pyarrow.table({"img": column, "label": [3, 4]}), tmp_path / "data.parquet")
        data = load(tmp_path / "data.parquet")
        assert data.pixels.float().mean((2, 3)).tolist() == [[255, 0, 0], [0, 0, 255]] and data.labels.tolist() == [3, 4]


def test_rows_without_a_picture_are_named_and_skipped(tmp_path, caplog) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    images = [
        {"bytes": png(RED), "path": None},
        None,
        {"bytes": None, "path": None},
        {"bytes": None, "path": "gone.png"},
        {"bytes": None, "path": str(tmp_path / "pipe.png")},
        {"bytes": b"", "path": None},
        {"bytes": png(BLUE), "path": "gone.png"},
    ]
    parquet.write_table(pyarrow.table({"image": images, "label": list(range(7))}), tmp_path / "data.parquet")
    data = load(tmp_path / "data.parquet")
    assert data.labels.tolist() == [0, 6]
    for text in ("skipped 5 unreadable of 7", "row 1 (the row holds no", "gone.png is not there", "pipe.png is not there"):
        assert text in caplog.text


def test_a_row_that_is_larger_than_a_picture_is_not_decoded(tmp_path, monkeypatch, caplog) -> None:
    rows = [png(RED), png(BLUE) + bytes(1000)]
    parquet.write_table(pyarrow.table({"image": rows}), tmp_path / "data.parquet")
    monkeypatch.setenv("FEWSTEP_MAX_PIXELS", "64")
    assert len(load(tmp_path / "data.parquet")) == 1
    assert "bytes are more than four for each of 64 pixels; set FEWSTEP_MAX_PIXELS higher" in caplog.text


def test_which_column_of_pictures(tmp_path) -> None:
    pictures = [{"bytes": png(RED), "path": None}]
    others = [{"bytes": png(BLUE), "path": None}]
    parquet.write_table(pyarrow.table({"edges": others, "image": pictures}), tmp_path / "data.parquet")
    assert load(tmp_path / "data.parquet").pixels[0, :, 0, 0].tolist() == [255, 0, 0]
    for columns, message in (
        ({"edges": others, "photo": pictures}, "2 columns of images, edges and photo; name one `image`"),
        ({"text": ["a"]}, r"no column of images, only \['text'\]"),
    ):
        parquet.write_table(pyarrow.table(columns), tmp_path / "data.parquet")
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "data.parquet")


def test_a_name_with_a_pattern_in_it_is_that_file(tmp_path) -> None:
    for name, colour in (("[a]*.parquet", RED), ("a1.parquet", BLUE)):
        parquet.write_table(pyarrow.table({"image": [png(colour)]}), tmp_path / name)
    assert load(tmp_path / "[a]*.parquet").pixels[:, :, 0, 0].tolist() == [[255, 0, 0]]


def test_a_broken_parquet_is_one_sentence(tmp_path) -> None:
    whole = written(tmp_path, {}).read_bytes()
    for content in (b"", b"PAR1", whole[:-20], whole[:200] + bytes(100) + whole[300:]):
        (tmp_path / "data.parquet").write_bytes(content)
        with pytest.raises(ValueError, match=r"data\.parquet is not a readable \.parquet|no readable images") as caught:
            load(tmp_path / "data.parquet")
        assert "\n" not in str(caught.value)


def test_a_table_of_the_same_picture_over_and_over_is_refused(tmp_path) -> None:
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 100_000, pyarrow.int32()), pyarrow.array([png(RED)]))
    parquet.write_table(pyarrow.table({"image": column.cast(pyarrow.binary())}), tmp_path / "data.parquet")
    with pytest.raises(ValueError, match="set FEWSTEP_MAX_GIB"):
        load_images(tmp_path / "data.parquet", channels=3, size=64)


def test_a_name_without_an_owner_asks_nobody(monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(ValueError, match="on the hub as owner/name"):
        load("nosuchname")


def test_without_the_hub_a_data_set_comes_from_the_cache_and_nothing_is_tried_again(monkeypatch) -> None:
    def away(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", away)
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: pytest.fail("waited to try again"))
        with pytest.raises(ValueError, match="owner/nosuch is neither a path nor a data set that can be loaded"):
            load("owner/nosuch")

    def cached(name: str, split: str) -> datasets.Dataset:
        assert (name, split, datasets.config.HF_HUB_OFFLINE) == ("owner/name-v1.5", "train", True)
        image = [{"bytes": png(BLUE), "path": None}]
        return datasets.Dataset.from_dict({"image": image}, datasets.Features(image=datasets.Image()))

    monkeypatch.setattr(datasets, "load_dataset", cached)
    assert load("owner/name-v1.5").pixels.float().mean((0, 2, 3)).tolist() == [0, 0, 255]
    assert datasets.config.HF_HUB_OFFLINE is False


def test_the_hub_is_asked_where_it_answers(monkeypatch) -> None:
    from huggingface_hub.errors import HFValidationError

    def loaded(name: str, split: str) -> datasets.Dataset:
        assert (name, split, datasets.config.HF_HUB_OFFLINE) == ("owner/name", "train", False)
        return datasets.Dataset.from_dict(
            {"image": [{"bytes": png(BLUE), "path": None}]}, datasets.Features(image=datasets.Image())
        )

    def refused(*_: object, **__: object) -> None:
        raise HFValidationError("no name of a repository")

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets, "load_dataset", loaded)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: None)
    assert len(load("owner/name")) == 1
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refused)
    with pytest.raises(ValueError, match="no name of a repository"):
        load("owner/name")
