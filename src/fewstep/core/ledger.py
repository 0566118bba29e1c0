"""The ledger: what a change to a model gained and lost, how sure that is, and what to do. One for every wing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from .drift import Drift
from .intervals import Estimate, chance_of_none, holm, mean_difference, share_difference
from .words import counted, whole

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

LEVEL = 0.05  # chance of any "gained" or "lost" in a ledger where nothing has changed
GROUPS = 20  # of a jackknife
Said = Literal["kept", "gained", "lost", "not known", "another task"]


@dataclass(frozen=True)
class Line:
    """One figure of both checkpoints.

    Attributes:
        group: heading of the line.
        name: of the figure.
        before, after: its values.
        difference: after − before, paired, with its 95 % interval.
        chance: p-value of "there is no difference".
        n: pairs.
        unit: `Ledger.within` is a share of this.
        best: the best value: 0 for errors, ∞ where more is better, the real data's value for a look.
        asked: whether the changed checkpoint was made to keep this.
        level: noise level of a denoising error.
    """

    group: str
    name: str
    before: float
    after: float
    difference: Estimate
    chance: float
    n: int
    unit: float
    best: float = 0.0
    asked: bool = True
    level: float = math.nan

    @property
    def better(self) -> bool:
        """Whether the value after is nearer to `best`."""
        if math.isinf(self.best):
            return (self.after - self.before) * self.best > 0
        return abs(self.after - self.best) < abs(self.before - self.best)


@dataclass(frozen=True)
class Verdict:
    """The verdict on a line; where it is "not known", `more` is how many more samples a verdict takes."""

    said: Said
    more: int = 0

    def __str__(self) -> str:
        return f"not known at this n: take about {self.more:,} more" if self.said == "not known" else self.said


@dataclass(frozen=True)
class Ledger:
    """Lines with verdicts, the drift of weights, and what could not be measured.

    Attributes:
        lines: in the order of the table.
        within: a difference is "kept" if its whole 95 % interval is within this share of the line's unit.
        drift: of each layer from input to output; empty where the networks differ in form.
        calls: network calls of a sample or an answer, before and after.
        notes: what was left out, and why; what a figure means.
        advice: group -> a sentence that says what to do if one of its lines is lost.
    """

    lines: tuple[Line, ...]
    within: float
    drift: tuple[Drift, ...] = ()
    calls: tuple[float, float] = (math.nan, math.nan)
    notes: tuple[str, ...] = ()
    advice: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def chances(self) -> Array:
        """p-value of each line, adjusted for the number of judged lines (Holm)."""
        judged = np.array([line.asked for line in self.lines], bool)
        adjusted = np.ones(len(self.lines))
        adjusted[judged] = holm([line.chance for line in self.lines if line.asked])
        return adjusted

    @cached_property
    def verdicts(self) -> tuple[Verdict, ...]:
        """One verdict a line. Where nothing has changed, the chance of any "gained" or "lost" is at most 5 %.

        "Kept" is judged for each line alone: its chance is 2.5 % where the loss is as large as `within`.
        """
        return tuple(self._verdict(line, p) for line, p in zip(self.lines, self.chances, strict=True))

    def _verdict(self, line: Line, chance: float) -> Verdict:
        margin = self.within * line.unit
        if not line.asked:
            return Verdict("another task")
        if -margin <= line.difference.low and line.difference.high <= margin:
            return Verdict("kept")
        if chance <= LEVEL:
            return Verdict("gained" if line.better else "lost")
        return Verdict("not known", self._more(line, margin))

    def _more(self, line: Line, margin: float) -> int:
        """Samples to add until a line with this difference gets a verdict: intervals shrink as 1/√n."""
        reach, value = line.difference.high - line.difference.value, abs(line.difference.value)
        strict = stats.norm.isf(LEVEL / 2 / max(1, sum(each.asked for each in self.lines))) / stats.norm.isf(0.025)
        needs = [reach * strict / value] if value else []
        needs += [reach / (margin - value)] if value < margin else []
        more = line.n * (float(min(needs, default=2**0.5)) ** 2 - 1)
        size = 10 ** max(0, int(math.log10(max(more, 1))) - 1)  # two figures, rounded up
        return max(1, int(math.ceil(more / size - 1e-9) * size))

    def of(self, *said: Said) -> list[Line]:
        """The lines with one of these verdicts."""
        return [line for line, verdict in zip(self.lines, self.verdicts, strict=True) if verdict.said in said]

    def sentences(self) -> list[str]:
        """What was gained, what was lost and what to do, a sentence each."""
        gained, lost, unknown = self.of("gained"), self.of("lost"), self.of("not known")
        judged = sum(line.asked for line in self.lines)
        said = [f"Gained: {_names(gained)}."] if gained else []
        if self.calls[0] > self.calls[1]:
            said.append(f"It takes {counted(self.calls[1], 'network call')} in place of {whole(self.calls[0])}.")
        said += [f"Lost: {_names(lost)}."] if lost else [f"No loss was found in {counted(judged, 'line')}."]
        if unknown:
            said.append(f"Not known at this n: {len(unknown)} of {judged} lines.")
        groups = dict.fromkeys(line.group for line in lost)
        return said + [self.advice[group] for group in groups if group in self.advice]

    def summary(self) -> dict[str, Any]:
        """The ledger as it is written to JSON."""
        rows = zip(self.lines, self.verdicts, self.chances, strict=True)
        return {
            "within": self.within,
            "level": LEVEL,
            "calls": {"before": self.calls[0], "after": self.calls[1]},
            "lines": [
                {"group": line.group, "line": line.name, "before": line.before, "after": line.after}
                | {"difference": line.difference._asdict(), "n": line.n, "unit": line.unit}
                | {"best": line.best if math.isfinite(line.best) else "more"}
                | {"p": line.chance, "p_adjusted": float(p), "verdict": verdict.said, "more": verdict.more}
                for line, verdict, p in rows
            ],
            "drift": [layer._asdict() for layer in self.drift],
            "notes": self.notes,
            "sentences": self.sentences(),
        }


def _names(lines: Sequence[Line]) -> str:
    """The lines' names by group, at most three of a group."""
    said = []
    for group in dict.fromkeys(line.group for line in lines):
        names = [line.name.partition(" (")[0] for line in lines if line.group == group]
        few = ", ".join(names[:3])
        said.append(f"{group} ({few}{f' and {len(names) - 3} more' if len(names) > 3 else ''})")
    return "; ".join(said)


def paired(
    group: str, name: str, before: Array, after: Array, *, unit: float, best: float = 0.0, asked: bool = True
) -> Line:
    """The line of a figure that each of n pairs has; both sides are (n,)."""
    found = mean_difference(after, before)
    values = float(before.mean()), float(after.mean())
    return Line(group, name, *values, found, chance_of_none(found, len(before) - 1), len(before), unit, best, asked)


def shares(group: str, name: str, before: Flags, after: Flags, *, unit: float, best: float) -> Line:
    """The line of a share of n pairs, from booleans (n,) each; its p is McNemar's exact one."""
    more, less, n = int((after & ~before).sum()), int((before & ~after).sum()), len(before)
    found = share_difference(more, less, n) if more + less else Estimate(0.0, 0.0, 0.0)
    chance = float(stats.binomtest(more, more + less).pvalue) if more + less else 1.0
    return Line(group, name, float(before.mean()), float(after.mean()), found, chance, n, unit, best)


def scored(
    group: str, name: str, before: float, after: float, difference: Estimate, n: int, *, unit: float, best: float = 0.0
) -> Line:
    """The line of a score that n samples have together; `difference` is of a jackknife of `GROUPS` groups, n if fewer."""
    return Line(group, name, before, after, difference, chance_of_none(difference, min(GROUPS, n) - 1), n, unit, best)
