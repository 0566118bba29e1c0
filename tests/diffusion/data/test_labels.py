from __future__ import annotations

import json
import logging
import string
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep.diffusion.data.labels import folder_labels, labels_of, read_labels

NAME = st.builds(str.__add__, st.sampled_from("aZäß_-."), st.text(string.ascii_letters + "äß _-.1"))
NAMES = st.lists(NAME.filter(lambda name: name.strip("-.1 ")), min_size=1)
NUMBERS = st.lists(st.integers(0, 2**31 - 1), min_size=1)


@given(numbers=NUMBERS)
def test_numbers_are_the_classes_themselves_in_every_spelling(numbers: list[int]) -> None:
    texts = [f" {number}" for number in numbers]
    for labels in (numbers, texts, [f"{text}.0" for text in texts], [float(text) for text in texts], np.array(numbers)):
        found = labels_of(labels, "here")
        assert found.values is not None and found.values.dtype == torch.int64
        assert found.values.tolist() == numbers and found.names is None


@given(names=NAMES)
def test_names_are_counted_in_sorted_order_and_kept(names: list[str]) -> None:
    for labels in (names, np.array(names)):
        found = labels_of(labels, "here")
        assert found.values is not None and found.names is not None
        assert [found.names[label] for label in found.values] == [str(name) for name in labels]
        assert list(found.names) == sorted(set(map(str, labels)))


def test_twelve_folders_that_are_numbers_are_not_sorted_as_words() -> None:
    folders = [PurePosixPath(f"{n}/a.png") for n in (0, 1, 10, 11, 2, 3, 207)]
    assert labels_of(folder_labels(folders, "here"), "here").values.tolist() == [0, 1, 10, 11, 2, 3, 207]


@pytest.mark.parametrize("labels", [[None, None], ["", ""], [-1, -1], ["-1", None]])
def test_without_labels_there_are_no_classes(labels: list[object]) -> None:
    assert labels_of(labels, "here") == (None, None)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, None, 1], "1 of 3 samples in here have no class, the first is at place 1"),
        (["cat", "", "dog"], "1 of 3 samples"),
        ([3, -1], "1 of 2 samples"),
        ([1, "cat"], "numbers, such as 1, and names, such as 'cat'"),
        (["1", "cat"], "numbers, such as 1, and names"),
        (["7", "07"], "classes 07 and 7 in here are the same number"),
        (["3", "3.0"], "are the same number"),
        ([-2], "label -2 in here is no class"),
        (["-2"], "label '-2' in here is no class"),
        ([1.5], "no class"),
        (["1.5"], "no class"),
        ([float("nan"), 1.0], "no class"),
        ([float("inf")], "no class"),
        (["9" * 400], "no class"),
        ([10**400], "no class"),
        ([2**31], "no class"),
        ([[0, 1], [1, 0]], "no class"),
        ([{"name": 1}], "no class"),
        ([b"cat"], "no class"),
        (np.eye(3), r"shape \(3, 3\)"),
        (np.array(3), r"shape \(\)"),
    ],
)
def test_what_is_no_class_is_refused(labels: Sequence[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        labels_of(labels, "here")


def test_numbers_may_bring_their_names() -> None:
    assert labels_of([1, 0], "here", ["cat", "dog"]).names == ("cat", "dog")
    with pytest.raises(ValueError, match="the class 2 but has names for 2"):
        labels_of([1, 2], "here", ["cat", "dog"])


PART = st.text(string.ascii_lowercase, min_size=1, max_size=3)


@given(above=st.lists(PART, max_size=3), below=st.lists(PART, max_size=2), classes=st.lists(PART, min_size=2))
def test_the_level_of_folders_that_differs_is_the_class(above: list[str], below: list[str], classes: list[str]) -> None:
    files = [PurePosixPath(*above, name, *below, f"{k}.png") for k, name in enumerate(classes)]
    assert folder_labels(files, "here") == (classes if len(set(classes)) > 1 else [None] * len(classes))


def test_a_single_folder_is_a_class_only_if_it_is_a_number() -> None:
    for folder, label in (("", None), ("images", None), ("images/207", "207"), ("207", "207"), ("207/images", None)):
        assert folder_labels([PurePosixPath(folder, f"{k}.png") for k in range(3)], "here") == [label] * 3, folder


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["stray.png", "cat/a.png", "dog/b.png"], r"stray\.png and cat/a\.png are at different depths"),
        (["cat/a.png", "dog/b.png", "dog/more/c.png"], r"dog/more/c\.png and cat/a\.png"),
        (["train/cat/a.png", "train/dog/a.png", "test/cat/a.png"], "differ at 2 levels, as train/cat and test/cat"),
        (["2023/01/a.png", "2024/02/b.png"], "differ at 2 levels"),
    ],
)
def test_folders_that_might_mean_this_or_that_are_refused(files: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=f"which folders of here are classes.*{message}"):
        folder_labels([PurePosixPath(file) for file in files], "here")


def test_classes_are_told_and_unclear_ones_end_only_what_needs_them(caplog) -> None:
    with caplog.at_level(logging.INFO):
        read_labels(lambda: labels_of(["dog", "cat"], "here"), "here", needed=True)
        read_labels(lambda: labels_of(["2", "10"], "here"), "there", needed=False)
        assert read_labels(lambda: labels_of([1, None], "here"), "here", needed=False) == (None, None)
    assert "here: 2 classes: 0 cat, 1 dog" in caplog.text
    assert "there: 2 classes that are numbers, 2 to 10" in caplog.text
    assert "1 of 2 samples in here have no class" in caplog.text and "taken without classes" in caplog.text
    with pytest.raises(ValueError, match="1 of 2 samples"):
        read_labels(lambda: labels_of([1, None], "here"), "here", needed=True)
    assert json.loads(json.dumps(labels_of(["dog", "cat"], "here").names)) == ["cat", "dog"]
