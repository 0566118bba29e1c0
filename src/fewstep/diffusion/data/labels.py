"""The rule for classes: numbers are the classes themselves, names are numbered in sorted order."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .pictures import shown

logger = logging.getLogger(__name__)

NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")
LARGEST = 2**31 - 1


class Labels(NamedTuple):
    """The classes of all samples of a data set.

    Attributes:
        values: class of each sample, (N,) int64, or None.
        names: names of class 0, 1, …, or None.
    """

    values: Tensor | None = None
    names: tuple[str, ...] | None = None

    def __str__(self) -> str:
        assert self.values is not None, "classes that are told are there"
        if self.names is None:
            return f"{len(self.values.unique())} classes that are numbers, {self.values.min()} to {self.values.max()}"
        first = ", ".join(f"{number} {shown(name)}" for number, name in enumerate(self.names[:20]))
        return f"{len(self.names)} classes: {first}" + (", …" if len(self.names) > 20 else "")


def labels_of(labels: Sequence[object] | NDArray[Any], source: str, names: Sequence[str] | None = None) -> Labels:
    """Reads classes from labels.

    Args:
        labels: label of each sample. A whole number, also as text, is the class itself. Other texts are names, which are
            numbered in sorted order. None, the empty text and −1 mean no class.
        source: source of the labels, for messages.
        names: names of class 0, 1, …, if the labels are numbers.

    Raises:
        ValueError: some samples have no class, numbers and names are mixed, or a label is neither.
    """
    if isinstance(labels, np.ndarray) and labels.ndim != 1:
        raise ValueError(f"the labels in {source} have the shape {labels.shape}; they must be one class per sample")
    values = [_value(label, source) for label in (labels.tolist() if isinstance(labels, np.ndarray) else labels)]
    missing = values.count(None)
    if missing == len(values):
        return Labels()
    if missing:
        raise ValueError(
            f"{missing} of {len(values)} samples in {source} have no class, the first is at place {values.index(None)}; "
            "give all of them a class, or none"
        )
    numbers = [value for value in values if isinstance(value, int)]
    texts = sorted({value for value in values if isinstance(value, str)})
    if not numbers:
        place = {text: number for number, text in enumerate(texts)}
        return Labels(torch.tensor([place[str(value)] for value in values]), tuple(texts))
    if texts:
        raise ValueError(
            f"the classes in {source} are numbers, such as {numbers[0]}, and names, such as {texts[0]!r}; make all of them "
            "numbers or names"
        )
    _one_spelling(labels, source)
    if names is not None and max(numbers) >= len(names):
        raise ValueError(f"{source} holds the class {max(numbers)} but has names for {len(names)}")
    return Labels(torch.tensor(numbers), None if names is None else tuple(names))


def read_labels(said: Callable[[], Labels], source: str, *, needed: bool) -> Labels:
    """The classes that `said` returns, which are logged. If they are ambiguous and not needed, none with a warning.

    Raises:
        ValueError: the classes are ambiguous and needed.
    """
    try:
        labels = said()
    except ValueError as error:
        if needed:
            raise
        logger.warning("%s. The samples are taken without classes", error)
        return Labels()
    if labels.values is not None:
        logger.info("%s: %s", source, labels)
    return labels


def _value(label: object, source: str) -> int | str | None:
    """A label as a class number or a name; None is no class."""
    if label is None or label == "":
        return None
    if isinstance(label, str) and not NUMBER.fullmatch(label.strip()):
        return label
    number = float(label) if isinstance(label, str) else label
    if not isinstance(number, int | float) or not -1 <= number <= LARGEST or number != int(number):
        raise ValueError(f"the label {label!r} in {source} is no class; a class is a whole number from 0 on, or a name")
    return None if number == -1 else int(number)


def _one_spelling(labels: Iterable[object], source: str) -> None:
    """Raises ValueError if two spellings, such as 7 and 07, mean the same number."""
    spelling: dict[int, str] = {}
    for label in {label.strip() for label in labels if isinstance(label, str)}:
        other = spelling.setdefault(int(float(label)), label)
        if other != label:
            raise ValueError(
                f"the classes {min(other, label)} and {max(other, label)} in {source} are the same number; use one"
            )


def folder_labels(files: Sequence[PurePosixPath], source: str) -> list[str | None]:
    """The class of each file by its folder: the only level at which the folders differ.

    If they do not differ, a folder whose name is a number is the class of all; otherwise there are no classes.

    Raises:
        ValueError: folders differ at several levels, or files are at different depths.
    """
    if not files:
        return []
    folders = [file.parts[:-1] for file in files]
    depth = Counter(map(len, folders)).most_common(1)[0][0]
    stray = next((file for file, folder in zip(files, folders, strict=True) if len(folder) != depth), None)
    if stray is not None:
        others = next(file for file, folder in zip(files, folders, strict=True) if len(folder) == depth)
        raise ValueError(
            f"which folders of {source} are classes? {stray} and {others} are at different depths; put each image "
            "into the folder of its class, or all into one"
        )
    levels = [level for level in range(depth) if len({folder[level] for folder in folders}) > 1]
    if len(levels) > 1:
        raise ValueError(
            f"which folders of {source} are classes? They differ at {len(levels)} levels, as {files[0].parent} and "
            f"{files[-1].parent} do; let the classes be the only folders, or name them in a metadata.jsonl"
        )
    if levels:
        return [folder[levels[0]] for folder in folders]
    only = folders[0][-1] if depth else ""
    return [only if NUMBER.fullmatch(only) else None] * len(files)
