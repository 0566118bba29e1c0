"""Captions of pictures, wherever they are said."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import datasets
import pytest
from pictures import png, put

from fewstep.diffusion.data import load_images
from fewstep.diffusion.data.load import pictures_in

RED, BLUE = png((255, 0, 0)), png((0, 0, 255))
PAIRS = {"a/1.png": "a red square", "a/2.png": 'a blue square, "wide"'}
PICTURES = {"a/1.png": RED, "a/2.png": BLUE}


def lines(column: str = "text") -> bytes:
    return "\n".join(json.dumps({"file_name": name, column: said}) for name, said in PAIRS.items()).encode()


def tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def said_by(source: Path) -> dict[str, str]:
    pictures = pictures_in(source, 3)
    return dict(zip([pictures.read(k) for k in range(len(pictures))], pictures.captions, strict=True))


EXPECTED = {RED: PAIRS["a/1.png"], BLUE: PAIRS["a/2.png"]}


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("how", ["text", "caption", "beside", "json"])
def test_captions_of_files(tmp_path, how: str, kind: str, caplog) -> None:
    beside = {
        "text": {"metadata.jsonl": lines()},
        "caption": {"metadata.jsonl": lines("caption")},
        "beside": {name.replace("png", "txt"): said.encode() + b"\n" for name, said in PAIRS.items()},
        "json": {name.replace("png", "json"): json.dumps({"caption": said}).encode() for name, said in PAIRS.items()},
    }[how]
    place = tmp_path / ("data" if kind == "folder" else "data.zip")
    put(place, PICTURES | beside)
    assert said_by(place) == EXPECTED and "skipped" not in caplog.text


def test_captions_of_rows(tmp_path) -> None:
    rows = {"image": [{"bytes": RED, "path": None}, {"bytes": BLUE, "path": None}], "text": list(PAIRS.values())}
    table = datasets.Dataset.from_dict(
        rows, datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    )
    table.to_parquet(tmp_path / "data.parquet")
    table.save_to_disk(tmp_path / "table")
    assert said_by(tmp_path / "data.parquet") == said_by(tmp_path / "table") == EXPECTED


def test_web_data_sets_are_read_where_they_lie(tmp_path) -> None:
    """As `datasets` reads them; several shards may have the same names."""
    (tmp_path / "shards").mkdir()
    for k, (name, picture) in enumerate(PICTURES.items()):
        files = {"x/000.weird.png": picture, "x/000.txt": PAIRS[name].encode(), "x/000.cls": b"3"}
        shard = tar(tmp_path / "shards" / f"{k}.tar", files)
        (theirs,) = datasets.load_dataset(
            "webdataset", data_files=str(shard), split="train", cache_dir=str(tmp_path / "cache")
        )
        assert theirs["txt"] == PAIRS[name]
    assert said_by(tmp_path / "shards") == EXPECTED
    assert said_by(shard) == {BLUE: PAIRS["a/2.png"]}
    assert len(load_images(tmp_path / "shards", channels=3, size=8)) == 2


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "2 of 2 pictures in .* have no caption, the first is a/1.png; add them"),
        ({"a/2.txt": b"blue"}, "1 of 2 pictures in .* have no caption, the first is a/1.png"),
        ({"a/1.txt": b" ", "a/2.txt": b"blue"}, "1 of 2 pictures in .* have no caption, the first is a/1.png"),
        ({"a/1.txt": b"\xff\xfe", "a/2.txt": b"blue"}, "a/1.txt in .* is no caption"),
        ({"a/1.json": b"{", "a/2.txt": b"blue"}, "a/1.json in .* is no caption"),
        ({"metadata.jsonl": b'{"file_name": "a/1.png", "text": "red"}'}, "leaves out 1 of 2 pictures"),
        ({"metadata.jsonl": b'{"file_name": "a/1.png", "label": 1}\n{"file_name": "a/2.png"}'}, "2 of 2 pictures in"),
        ({"metadata.csv": b"file_name,text\na/1.png,red\na/1.png,blue\n"}, "a/1.png has both 'red' and 'blue'"),
    ],
)  # fmt: skip
def test_captions_that_are_missing_or_unclear_are_one_sentence(tmp_path, files: dict[str, bytes], sentence: str) -> None:
    put(tmp_path / "data", PICTURES | files)
    with pytest.raises(ValueError, match=sentence) as caught:
        _ = pictures_in(tmp_path / "data", 3).captions
    assert "\n" not in str(caught.value)


def test_a_broken_tar_is_one_sentence(tmp_path) -> None:
    whole = tar(tmp_path / "whole.tar", PICTURES).read_bytes()
    for k, content in enumerate((b"", b"x" * 2000, whole[:100])):
        (tmp_path / f"{k}.tar").write_bytes(content)
        with pytest.raises(ValueError, match=r"is not a readable \.tar|no readable images"):
            load_images(tmp_path / f"{k}.tar", channels=3, size=8)
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(ValueError, match="no readable images"):
        load_images(tmp_path / "links.tar", channels=3, size=8)
