from __future__ import annotations

import io
import json
import os
import stat
import string
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import png, put
from PIL import Image

from fewstep.diffusion.data import load_images
from fewstep.diffusion.data.load import MADE_OF, pictures_in

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
CLASSES = {"cat/a.png": png(RED), "cat/b.png": png(GREEN, (32, 16)), "dog/c.png": png(BLUE)}


@pytest.fixture(params=["data", "data.zip"])
def place(request, tmp_path) -> Path:
    """A folder and a zip: what holds for the one holds for the other."""
    return tmp_path / request.param


def load(place: Path, **options: object):
    return load_images(place, channels=3, size=8, **options)


def test_folders_are_classes(place, caplog) -> None:
    data = load(put(place, CLASSES))
    assert data.shape == (3, 8, 8) and data.labels.tolist() == [0, 0, 1] and data.classes == ("cat", "dog")
    assert data.pixels.float().mean((2, 3)).tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert "2 classes: 0 cat, 1 dog" in caplog.text


def test_folders_that_are_numbers_are_those_classes(place) -> None:
    data = load(put(place, {f"{n}/a.png": png((n % 256, 0, 0)) for n in (2, 10, 207, 360, 0, 11)}))
    assert data.classes is None
    assert dict(zip(data.labels.tolist(), data.pixels[:, 0, 0, 0].tolist(), strict=True)) == {
        n: n % 256 for n in (0, 2, 10, 11, 207, 360)
    }


def test_one_stray_image_does_not_drop_the_labels_in_silence(place, caplog) -> None:
    put(place, CLASSES | {"stray.png": png(RED)})
    with pytest.raises(ValueError, match=r"which folders .* are classes\? stray\.png and cat/a\.png"):
        load(place)
    assert load(place, labels=False).labels is None
    assert "stray.png" in caplog.text and "taken without classes" in caplog.text


def test_named_folders_are_the_classes_of_datasets_own_image_folder(tmp_path) -> None:
    from datasets import load_dataset

    put(tmp_path / "data", CLASSES | {"Zebra/d.png": png((9, 9, 9)), "äpfel/e.png": png((7, 7, 7))})
    theirs = load_dataset("imagefolder", data_dir=str(tmp_path / "data"), split="train")
    ours = load(tmp_path / "data")
    assert list(ours.classes) == theirs.features["label"].names
    by_colour = {tuple(np.asarray(row["image"])[0, 0]): row["label"] for row in theirs}
    assert [by_colour[tuple(image[:, 0, 0].tolist())] for image in ours.pixels] == ours.labels.tolist()


METADATA = {
    "metadata.jsonl": lambda rows: "".join(
        f'{{"file_name": "{n}", "label": {json.dumps(k)}, "t": "\u2028"}}\n' for n, k in rows
    ),
    "metadata.csv": lambda rows: "file_name,text,label\r\n" + "".join(f'{n},"a, ""b""",{k}\r\n' for n, k in rows),
    "dataset.json": lambda rows: json.dumps({"labels": [list(row) for row in rows]}),
}
SHARDS = {f"0000{k // 2}/img{k}.png": png((k, 0, 0)) for k in range(5)}


@pytest.mark.parametrize("name", [*METADATA, "metadata.parquet"])
@pytest.mark.parametrize("labels", [[5, 1, 0, 1, 5], ["dog", "cat", "cat", "ox", "dog"]], ids=["numbers", "names"])
def test_metadata_beside_the_images_say_the_classes_and_folders_are_shards(place, name: str, labels: list) -> None:
    rows = list(zip(SHARDS, labels, strict=True))
    if name == "metadata.parquet":
        import pyarrow
        from pyarrow import parquet

        buffer = io.BytesIO()
        parquet.write_table(pyarrow.table({"file_name": [n for n, _ in rows], "label": labels}), buffer)
        content = buffer.getvalue()
    else:
        content = METADATA[name](rows).encode()
    data = load(put(place, SHARDS | {name: content}))
    assert [data.classes[label] if data.classes else label for label in data.labels.tolist()] == labels
    assert data.pixels[:, 0, 0, 0].tolist() == list(range(5))


def test_metadata_say_what_datasets_own_image_folder_reads(tmp_path) -> None:
    from datasets import load_dataset

    rows = list(zip(SHARDS, [5, 1, 0, 1, 5], strict=True))
    put(tmp_path / "data", SHARDS | {"metadata.jsonl": METADATA["metadata.jsonl"](rows).encode()})
    theirs = load_dataset("imagefolder", data_dir=str(tmp_path / "data"), split="train")
    assert theirs["label"] == load(tmp_path / "data").labels.tolist()


def test_metadata_in_folders_of_their_own_speak_of_those(place) -> None:
    parts = {
        f"{part}/metadata.csv": b"file_name,label\nb/../a.png,%d\nb\\c.png,3\n" % k for k, part in enumerate(("x", "y"))
    }
    files = {f"{part}/{name}": png(RED) for part in ("x", "y") for name in ("a.png", "b/c.png")}
    assert load(put(place, files | parts)).labels.tolist() == [0, 3, 1, 3]


@pytest.mark.parametrize(
    "described", [{"dataset.json": b'{"labels": null}'}, {"metadata.csv": b"file_name,text\ncat/a.png,a cat\n"}]
)
def test_metadata_without_classes_mean_none(place, described: dict[str, bytes]) -> None:
    assert load(put(place, CLASSES | described)).labels is None


def test_a_dataset_json_of_another_kind_says_nothing(place) -> None:
    assert load(put(place, CLASSES | {"dataset.json": b"[1]"})).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dataset.json", b'{"labels": [["cat/a.png", 1]]}', r"leaves out 2 of 3 pictures, the first is cat/b\.png"),
        ("metadata.csv", b"file_name,label\ncat/a.png,1\ncat/b.png,\ndog/c.png,2\n", "1 of 3 samples"),
        ("metadata.csv", b"file_name,label\ncat/a.png,1\ncat/a.png,2\n", r"cat/a\.png has both '1' and '2'"),
        ("metadata.csv", b"path,label\ncat/a.png,1\n", "row 1 has no `file_name`"),
        ("metadata.csv", b"\xff\xfe", "does not hold the classes"),
        ("metadata.csv", b"file_name,label\n" + b"x" * 200_000 + b",1\n", "does not hold the classes"),
        ("metadata.jsonl", b"{nothing\n", "does not hold the classes"),
        ("metadata.jsonl", b'"cat/a.png"\n', "row 1 has no `file_name`"),
        ("metadata.jsonl", b'{"file_name": 3, "label": 1}\n', "row 1 has no `file_name`"),
        ("metadata.parquet", b"PAR1", "does not hold the classes"),
        ("dataset.json", b"[" * 100_000, "nested without end"),
        ("dataset.json", b'{"labels": {"cat/a.png": 1}}', r"should be a list of \[path, class\]"),
        ("dataset.json", b'{"labels": [["cat/a.png", 1, 2]]}', r"should be a list of \[path, class\]"),
        ("dataset.json", b'{"labels": [["cat/a.png", [0.5, 1]], ["cat/b.png", 1], ["dog/c.png", 1]]}', "no class"),
    ],
)
def test_metadata_that_cannot_be_followed_are_refused(place, caplog, name: str, content: bytes, message: str) -> None:
    put(place, CLASSES | {name: content})
    with pytest.raises(ValueError, match=message):
        load(place)
    assert load(place, labels=False).labels is None and "taken without classes" in caplog.text


def test_metadata_cannot_reach_out_of_the_folder(place, caplog) -> None:
    secret = place.parent / "secret.png"
    secret.write_bytes(png(BLUE))
    rows = [{"file_name": name, "label": 1} for name in (*CLASSES, "../secret.png", str(secret))]
    data = load(put(place, CLASSES | {"metadata.jsonl": "\n".join(map(json.dumps, rows)).encode()}))
    assert len(data) == 3 and "names 2 pictures that are not there" in caplog.text


def test_names_of_all_kinds_are_found_and_the_rest_is_counted(place, caplog) -> None:
    picture = Image.new("RGB", (8, 8), RED)
    kinds = {
        ".jpg": "JPEG", ".JPEG": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".PNG": "PNG", ".avif": "AVIF", ".webp": "WEBP",
        ".TIF": "TIFF", ".bmp": "BMP", ".gif": "GIF", ".ppm": "PPM", ".jp2": "JPEG2000", ".qoi": "QOI",
    }  # fmt: skip
    files = {}
    for suffix, kind in kinds.items():
        content = io.BytesIO()
        picture.save(content, kind)
        files[f"a{suffix}"] = content.getvalue()
    data = load(
        put(
            place,
            files | {"b.heic": b"", "c.heic": b"", "notes.txt": b"", "._a.jpg": png(BLUE), "__MACOSX/a.jpg": png(BLUE)},
        )
    )
    assert len(data) == len(kinds) and "skipped 3 files that are no supported pictures: 2 .heic, 1 .txt" in caplog.text
    assert (data.pixels.float().mean((0, 2, 3)) - torch.tensor([255.0, 0, 0])).abs().max() < 2


def test_corrupt_files_are_named_and_skipped(place, caplog) -> None:
    data = load(put(place, CLASSES | {"cat/broken.png": b"not an image", "dog/cut.png": CLASSES["dog/c.png"][:40]}))
    assert len(data) == 3 and data.labels.tolist() == [0, 0, 1]
    assert "skipped 2 unreadable of 5" in caplog.text and "broken.png" in caplog.text and "cut.png" in caplog.text


def test_a_class_whose_pictures_are_all_corrupt_keeps_its_number(place) -> None:
    data = load(put(place, CLASSES | {"cat/a.png": b"", "cat/b.png": b""}))
    assert data.labels.tolist() == [1] and data.classes == ("cat", "dog")


def test_all_corrupt_is_an_error(place) -> None:
    with pytest.raises(ValueError, match=r"no readable images in .*broken\.png \(not one of PNG"):
        load(put(place, {"broken.png": b"not an image"}))


@pytest.mark.parametrize("name", ["missing.npz", "missing.zip", "/nowhere/at/all", "empty", "empty.zip"])
def test_missing_data(tmp_path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    put(tmp_path / "empty.zip", {})
    with pytest.raises(ValueError, match=r"there (is|are) no"):
        load_images(tmp_path / name, channels=1, size=8)


def test_only_regular_files_are_opened(tmp_path, caplog) -> None:
    """A pipe would block, a folder cannot be read, a link may lead nowhere or back; links to files and folders are good."""
    place = put(tmp_path / "data", CLASSES)
    os.mkfifo(place / "cat" / "pipe.png")
    (place / "cat" / "folder.png").mkdir()
    (place / "cat" / "nowhere.png").symlink_to(place / "gone.png")
    (place / "cat" / "linked.png").symlink_to(place / "cat" / "a.png")
    (place / "cat" / "around").symlink_to(place)
    (place / "cow").symlink_to(place / "dog")
    data = load(place)
    assert data.labels.tolist() == [0, 0, 0, 1, 2] and data.classes == ("cat", "cow", "dog")
    assert all(name in caplog.text for name in ("skipped 3", "cat/pipe.png", "cat/folder.png", "cat/nowhere.png"))


def test_links_that_lead_to_each_other_end(tmp_path) -> None:
    place = put(tmp_path / "data", {"a/x.png": png(RED), "b/y.png": png(BLUE)})
    (place / "a" / "to").symlink_to(place / "b")
    (place / "b" / "to").symlink_to(place / "a")
    assert len(load(place, labels=False)) == 4


def test_names_cannot_write_to_the_terminal(place, caplog) -> None:
    load(put(place, {"cat/a.png": png(RED), "dog/\x1b[31mb\n.png": b"", "\x1b[2J/c.png": png(RED), "\x1b[2J/d.\x1b": b""}))
    assert "\x1b" not in caplog.text
    for text in ("dog/\\x1b[31mb\\n.png", "0 \\x1b[2J, 1 cat", "1 .\\x1b"):
        assert text in caplog.text


def test_a_name_that_is_no_text_is_read_and_told(tmp_path, caplog) -> None:
    place = put(tmp_path / "data", {"a.png": png(RED)})
    (place / os.fsdecode(b"\xff.png")).write_bytes(b"")
    assert len(load(place)) == 1 and "\\udcff.png" in caplog.text


PART = st.text(string.ascii_letters + " -_.0é", min_size=1, max_size=4).filter(lambda part: part.strip(". ") == part)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(names=st.lists(st.tuples(PART, PART), min_size=1, max_size=6, unique_by=lambda name: tuple(map(str.lower, name))))
def test_a_zip_is_its_folder(tmp_path_factory, names: list[tuple[str, str]]) -> None:
    files = {f"{folder}/{name}.png": png((k, 0, 0)) for k, (folder, name) in enumerate(names)}
    place = tmp_path_factory.mktemp("law")
    results = []
    for kind in ("data", "data.zip"):
        put(place / kind, files)
        try:
            results.append(load(place / kind))
        except ValueError as error:
            results.append(str(error).replace(".zip", ""))
    zipped, plain = results
    if isinstance(plain, str):
        assert zipped == plain
    else:
        assert torch.equal(zipped.pixels, plain.pixels) and zipped.classes == plain.classes
        assert str(zipped.labels) == str(plain.labels)


def test_a_zip_made_on_windows_has_folders_too(tmp_path) -> None:
    put(tmp_path / "data.zip", {name.replace("/", "\\"): content for name, content in CLASSES.items()})
    assert load(tmp_path / "data.zip").classes == ("cat", "dog")


def test_links_and_folders_in_a_zip_are_no_pictures(tmp_path, caplog) -> None:
    place = put(tmp_path / "data.zip", CLASSES | {"cat/folder.png/": b""})
    link = zipfile.ZipInfo("cat/link.png")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(place, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    assert len(load(place)) == 3
    assert "skipped 2" in caplog.text and "cat/link.png" in caplog.text and "cat/folder.png" in caplog.text


def test_an_encrypted_zip_says_so(tmp_path) -> None:
    content = bytearray(put(tmp_path / "data.zip", CLASSES).read_bytes())
    for signature, place in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        start = -1
        while (start := content.find(signature, start + 1)) >= 0:
            content[start + place] |= 1
    (tmp_path / "data.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"data\.zip is encrypted; unpack it"):
        load(tmp_path / "data.zip")


def test_an_entry_whose_checksum_is_wrong_is_skipped(tmp_path, caplog) -> None:
    content = bytearray(put(tmp_path / "data.zip", CLASSES).read_bytes())
    start = content.find(b"PK\1\2")
    content[start + 16 : start + 20] = struct.pack("<I", 0)
    (tmp_path / "data.zip").write_bytes(content)
    assert len(load(tmp_path / "data.zip")) == 2 and "cat/a.png (cannot be unpacked: Bad CRC-32" in caplog.text


def test_an_entry_that_lies_about_its_size_takes_no_more_memory_than_it_says(tmp_path) -> None:
    """64 MiB of zeros that say of themselves that they are 100 bytes."""
    content = bytearray(bomb("a.png", 2**26))
    for signature, place in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
        start = content.find(signature) + place
        content[start : start + 4] = struct.pack("<I", 100)
    (tmp_path / "data.zip").write_bytes(content)
    load_images(put(tmp_path / "warm", CLASSES), channels=3, size=8)
    tracemalloc.start()
    with pytest.raises(ValueError, match="no readable images"):
        load(tmp_path / "data.zip")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**23


def test_an_entry_without_a_name_is_no_picture(tmp_path) -> None:
    place = put(tmp_path / "data.zip", CLASSES | {"x": b""})
    content = place.read_bytes()
    for signature, length, name in ((b"PK\1\2", 28, 46), (b"PK\3\4", 26, 30)):
        start = content.rfind(signature)
        content = (
            content[: start + length] + bytes(2) + content[start + length + 2 : start + name] + content[start + name + 1 :]
        )
    end = content.rfind(b"PK\5\6")
    size, first = (int.from_bytes(content[end + k : end + k + 4], "little") for k in (12, 16))
    place.write_bytes(content[: end + 12] + struct.pack("<II", size - 1, first - 1) + content[end + 20 :])
    assert len(load(place)) == 3


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_without_a_bound_are_not_unpacked(tmp_path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w", method) as archive:
        archive.writestr("a.png", png(RED))
    with pytest.raises(ValueError, match="neither stored nor deflated"):
        load(tmp_path / "data.zip")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(data=st.data())
def test_a_broken_zip_is_read_or_refused_in_one_sentence(tmp_path_factory, data) -> None:
    place = tmp_path_factory.mktemp("fuzz") / "data.zip"
    content = bytearray(put(place, CLASSES | {"metadata.csv": b"file_name,label\ncat/a.png,1\n"}).read_bytes())
    for where, byte in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=6)):
        content[where] = byte
    place.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    try:
        images = load(place)
    except ValueError:
        return
    assert images.shape == (3, 8, 8) and (images.labels is None or len(images.labels) == len(images))


def bomb(entry: str, size: int) -> bytes:
    """A zip whose entry is all zeros, `size` bytes of them."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(entry, "w") as content:
        for _ in range(size // 2**20):
            content.write(bytes(2**20))
    return file.getvalue()


def test_an_entry_that_expands_beyond_a_picture_is_not_unpacked(tmp_path, monkeypatch) -> None:
    (tmp_path / "data.zip").write_bytes(bomb("a.png", 8 * 2**20))
    monkeypatch.setenv("FEWSTEP_MAX_PIXELS", str(2**20))
    monkeypatch.setattr("zipfile.ZipFile.open", lambda *_, **__: pytest.fail("the entry was unpacked"))
    with pytest.raises(ValueError, match=r"8,388,608 bytes are more than four for each of 1,048,576 pixels; set FEWSTEP"):
        load(tmp_path / "data.zip")


def test_a_file_that_is_larger_than_a_picture_is_not_read(tmp_path) -> None:
    place = put(tmp_path / "data", CLASSES)
    with (place / "cat" / "a.png").open("r+b") as file:
        file.truncate(2**40)  # of which the disk holds a few bytes
    assert len(load(place)) == 2


def test_many_pictures_of_nothing_are_refused_before_they_are_decoded(place, monkeypatch) -> None:
    put(place, {f"{k}.png": png(0) for k in range(300)})
    monkeypatch.setattr("fewstep.diffusion.data.load.decode", lambda *_: pytest.fail("a picture was decoded"))
    with pytest.raises(ValueError, match=r"would become .* GiB; to allow it, set FEWSTEP_MAX_GIB"):
        load_images(place, channels=3, size=4096)
    monkeypatch.setenv("FEWSTEP_MAX_GIB", "0.0001")
    with pytest.raises(ValueError, match="set FEWSTEP_MAX_GIB"):
        load_images(place, channels=3, size=64)
    monkeypatch.undo()
    monkeypatch.setenv("FEWSTEP_MAX_GIB", "0.01")
    assert len(load_images(place, channels=3, size=64)) == 300


def test_a_file_that_went_away_after_it_was_found_is_skipped(tmp_path) -> None:
    pictures = pictures_in(put(tmp_path / "data", CLASSES), 3)
    (tmp_path / "data" / "cat" / "a.png").unlink()
    found = {pictures.name(k): k for k in range(len(pictures))}
    with pytest.raises(ValueError, match="No such file"):
        pictures.read(next(k for name, k in found.items() if name.endswith("a.png")))


def test_hidden_files_of_a_tar_are_no_pictures(tmp_path) -> None:
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        for name, content in (CLASSES | {".hidden/d.png": png(RED), "cat/._a.png": b"mac"}).items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    assert len(load(tmp_path / "data.tar")) == 3


def test_what_are_no_pictures_for_the_model_says_so(tmp_path) -> None:
    put(tmp_path / "data", CLASSES)
    with pytest.raises(ValueError, match="pictures have 1 or 3 channels, the model takes 4"):
        load_images(tmp_path / "data", channels=4, size=8)
    with pytest.raises(ValueError, match="the bundled clothes are 3x32x32"):
        load_images("bundled-text", channels=1, size=28)
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / MADE_OF).write_text("{}")
    with pytest.raises(ValueError, match="is not complete"):
        load_images(tmp_path / "table", channels=3, size=8)
