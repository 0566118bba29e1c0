"""Verifies exports: stock diffusers computes in a new process, and its values are compared with ours."""

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

ROOM = 8  # allowed difference in multiples of float32 rounding; stock pipelines of random networks needed up to 3
SECONDS = 15.0  # expected time of a new process, mostly for its imports


class Agreement(NamedTuple):
    """How well the values of stock diffusers agree with ours.

    Attributes:
        largest: largest difference, in units of `whole`.
        allowed: allowed difference, ROOM times the effect of float32 rounding.
        whole: name of the reference value.
        unit: number of these units in the whole range.
    """

    largest: float
    allowed: float
    whole: str
    unit: float = 1.0

    @classmethod
    def of(cls, theirs: Tensor, ours: Tensor, moved: Tensor, whole: str, *, size: float, unit: float = 1.0) -> Agreement:
        """Compares `theirs` with `ours`, given ours with rounding, `moved`; all of one shape, relative to `size`."""
        apart, rounding = (float((each - ours).abs().max()) / size for each in (theirs, moved))
        return cls(unit * apart, unit * ROOM * max(rounding, STEP), whole, unit)

    def __str__(self) -> str:
        whole = f"{self.unit:g} {self.whole}" if self.unit != 1 else f"the {self.whole}"
        return (
            f"by up to {self.largest:.2g} of {whole} (allowed: {self.allowed:.2g}, {ROOM} times the effect of float32 "
            "rounding)"
        )

    def check(self, what: str) -> None:
        """Raises ValueError if the difference is larger than allowed; `what` begins the message."""
        if not self.largest <= self.allowed:
            raise ValueError(f"{what} {self}; nothing was exported")


def said_by(script: ModuleType, *given: str | Path, seconds: float = SECONDS) -> Tensor:
    """The array that a script of stock diffusers writes in a new process without fewstep.

    Args:
        script: module whose main(out, *given) writes an array to the file `out`.
        given: its other arguments.
        seconds: expected time, for the progress bar.

    Raises:
        ValueError: the script failed; the message holds its last line.
    """
    with TemporaryDirectory() as scratch:
        out = Path(scratch) / "said.npy"
        run(script, [str(out), *map(str, given)], seconds)
        return torch.from_numpy(np.load(out))


def run(script: ModuleType, given: list[str], seconds: float) -> None:
    """Runs a script in a new process; see `said_by`."""
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
        last = (said.strip().splitlines() or ["it ended without a message"])[-1]  # of a traceback: the error
        raise ValueError(f"stock diffusers cannot load the export: {last[:500]}")


def lines_of(facts: Mapping[str, Any]) -> str:
    """The facts as lines of a model card."""
    said = {key: value if isinstance(value, str) else json.dumps(plain(value)) for key, value in facts.items()}
    return "\n".join(f"- **{key}**: {value}" for key, value in said.items())
