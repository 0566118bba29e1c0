"""The prompts or classes that a pipeline draws, from a file or all classes in turn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from ..core.weights import in_short
from .denoiser import Denoiser
from .pipeline import Asked, Pipeline

T = TypeVar("T")


def prompts_in(file: Path) -> list[str]:
    """Reads the prompts in a text file, one per line; empty lines are skipped.

    Raises:
        ValueError: the file does not exist, is no text, or holds no prompt.
    """
    if not file.is_file():
        what = "a folder" if file.is_dir() else "no file"
        raise ValueError(f"--prompts {file} is {what}; give a text file with one prompt per line")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{file} is no text ({in_short(error)}); give a text file with one prompt per line") from error
    if "\0" in text:
        raise ValueError(f"{file} is no text (it holds zero bytes); give a text file with one prompt per line")
    prompts = [line.strip() for line in text.split("\n") if line.strip()]
    if not prompts:
        raise ValueError(f"there is no prompt in {file}; write one per line")
    return prompts


def asked_of(pipeline: Pipeline | None, denoiser: Denoiser, prompts: Sequence[str] | None) -> Asked:
    """The prompts or class numbers that a pipeline draws in turn.

    Without `prompts` a pipeline of classes draws all classes. An unconditional one draws "".

    Raises:
        ValueError: prompts are given to a model that takes none or missing for one that does, or a class is unknown.
    """
    if pipeline is None or not (pipeline.prompted or denoiser.classes):
        if prompts is not None:
            raise ValueError("this model is unconditional; leave --prompts and --prompt out")
        return [""]
    if pipeline.prompted:
        if prompts is None:
            raise ValueError("this pipeline takes prompts; give a text file with one per line, with --prompts")
        return list(prompts)
    assert denoiser.classes is not None
    count = denoiser.classes.count
    if prompts is None:
        return list(range(count))
    for prompt in prompts:
        if not (prompt.isdecimal() and len(prompt) < 10 and int(prompt) < count):
            raise ValueError(
                f"this pipeline takes classes, 0 to {count - 1}, not {prompt[:40]!r}; write one such number per line"
            )
    return [int(prompt) for prompt in prompts]


def in_turn(asked: Sequence[T], rows: Sequence[int]) -> list[T]:
    """The entries of `asked` for these rows; after the last the first comes again."""
    return [asked[k % len(asked)] for k in rows]


def once(asked: Sequence[T]) -> list[T]:
    """The distinct entries, in their order."""
    return list(dict.fromkeys(asked))
