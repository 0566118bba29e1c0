"""What exports are verified by: stock diffusers in a fresh process, and how far its numbers are from ours."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...core.progress import progress
from ...core.receipt import plain
from .rounding import STEP

ROOM = 8  # times what float32 moves our own numbers by is allowed; stock pipelines with random networks needed up to 3
SECONDS = 15.0  # that a fresh process is expected to take: most of it goes into its imports


class Agreement(NamedTuple):
    """How well what stock diffusers makes of an export agrees with ours.

    Attributes:
        largest: difference of all numbers compared, in parts of `whole`.
        allowed: several times what float32 rounding moves ours by.
        whole: what these are parts of.
        unit: how many of them make the whole.
    """

    largest: float
    allowed: float
    whole: str
    unit: float = 1.0

    @classmethod
    def of(cls, theirs: Tensor, ours: Tensor, moved: Tensor, whole: str, *, size: float, unit: float = 1.0) -> Agreement:
        """That of their numbers and ours, which rounding has `moved`; all of one shape, and of this size at most."""
        apart, rounding = (float((each - ours).abs().max()) / size for each in (theirs, moved))
        return cls(unit * apart, unit * ROOM * max(rounding, STEP), whole, unit)

    def __str__(self) -> str:
        whole = f"{self.unit:g} {self.whole}" if self.unit != 1 else f"the {self.whole}"
        return (
            f"by up to {self.largest:.2g} of {whole} (allowed: {self.allowed:.2g}, {ROOM} times as far as float32 rounding "
            "moves ours)"
        )

    def check(self, what: str) -> None:
        """Raises ValueError where the difference is more than is allowed; `what` begins the sentence."""
        if not self.largest <= self.allowed:
            raise ValueError(f"{what} {self}; nothing was exported")


def said_by(script: ModuleType, *given: str | Path, seconds: float = SECONDS) -> Tensor:
    """The numbers that a script of stock diffusers, and nothing of ours, writes in a fresh process.

    Args:
        script: its main(out, *given) writes an array to the file `out`.
        given: its other arguments.
        seconds: that it is expected to take.

    Raises:
        ValueError: it failed, and the last thing that it said.
    """
    with TemporaryDirectory() as scratch:
        out = Path(scratch) / "said.npy"
        run(script, [str(out), *map(str, given)], seconds)
        return torch.from_numpy(np.load(out))


def run(script: ModuleType, given: list[str], seconds: float) -> None:
    """Runs a script in a fresh process; see `said_by`."""
    command = [sys.executable, "-I", str(script.__file__), *given]
    with (
        progress("verifying", seconds) as done,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process,
    ):
        said = None
        while said is None:
            try:
                said = process.communicate(timeout=1)[1]
            except subprocess.TimeoutExpired:
                done(1)
    if process.returncode:
        last = (said.strip().splitlines() or ["it ended without a word"])[-1][:500]  # of a traceback the error itself
        raise ValueError(f"stock diffusers cannot take what was exported: {last}")


def lines_of(facts: Mapping[str, Any]) -> str:
    """What a model card says of the facts, a line each."""
    said = {key: value if isinstance(value, str) else json.dumps(plain(value)) for key, value in facts.items()}
    return "\n".join(f"- **{key}**: {value}" for key, value in said.items())
