"""What a pipeline is asked for: prompts or classes, from a file or all of them in turn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from ..core.weights import in_short
from .denoiser import Denoiser
from .pipeline import Asked, Pipeline

T = TypeVar("T")


def prompts_in(file: Path) -> list[str]:
    """The prompts in a text file, one a line; empty lines are left out.

    Raises:
        ValueError: there is no such file, no text in it, or no prompt.
    """
    if not file.is_file():
        what = "a folder" if file.is_dir() else "no file"
        raise ValueError(f"--prompts {file} is {what}; give a text file with a prompt a line")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{file} is no text ({in_short(error)}); give a text file with a prompt a line") from error
    if "\0" in text:
        raise ValueError(f"{file} is no text (there are zeros in it); give a text file with a prompt a line")
    prompts = [line.strip() for line in text.split("\n") if line.strip()]
    if not prompts:
        raise ValueError(f"there is no prompt in {file}; write one a line")
    return prompts


def asked_of(pipeline: Pipeline | None, denoiser: Denoiser, prompts: Sequence[str] | None) -> Asked:
    """What a pipeline, around the network of `denoiser`, is asked for in turn: these prompts, or classes by their numbers.

    A pipeline of classes is asked for all of them where no prompts are given; one that is told nothing, for "".

    Raises:
        ValueError: prompts for a pipeline that takes none, none for one that does, or a class that it does not know.
    """
    if pipeline is None or not (pipeline.prompted or denoiser.classes):
        if prompts is not None:
            raise ValueError("this model is told nothing but noise, so it takes no --prompts or --prompt; leave them out")
        return [""]
    if pipeline.prompted:
        if prompts is None:
            raise ValueError("this pipeline is asked by prompts; give a text file of them, one a line, with --prompts")
        return list(prompts)
    assert denoiser.classes is not None
    count = denoiser.classes.count
    if prompts is None:
        return list(range(count))
    for prompt in prompts:
        if not (prompt.isdecimal() and len(prompt) < 10 and int(prompt) < count):
            raise ValueError(
                f"this pipeline is asked by class, 0 to {count - 1}, not by {prompt[:40]!r}; write such a number a line"
            )
    return [int(prompt) for prompt in prompts]


def in_turn(asked: Sequence[T], rows: Sequence[int]) -> list[T]:
    """What is asked for in these rows, the first again after the last."""
    return [asked[k % len(asked)] for k in rows]


def once(asked: Sequence[T]) -> list[T]:
    """The same, each once, in their order."""
    return list(dict.fromkeys(asked))
