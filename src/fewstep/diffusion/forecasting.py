"""How many more images a run needs: what `fewstep forecast` does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.checks import at_least
from ..core.files import writable
from ..core.intervals import Estimate, jackknifed
from ..core.receipt import receipt
from ..core.resuming import looks_in
from ..core.words import counted
from .measure.forecast import FAR, FEWEST, SIGMAS, Curve, PowerLaw


@dataclass(frozen=True)
class Forecast:
    """The forecast for one number of network calls, in the view in which the goal is furthest away.

    Attributes:
        calls, view: number of network calls, and the features of the scores.
        within: the goal, as the share by which the distance may exceed the teacher's Fréchet distance.
        curve: distances relative to the teacher's, over images seen; intervals are those of the paired difference.
        settled: the end of the curve that follows a power law; None if it is too early to tell.
        law: the power law that was fitted to this end.
        level: the value at which the law levels off.
        needed: total number of images until the goal; infinite if no number is enough.
    """

    calls: int
    view: str
    within: float
    curve: Curve
    settled: Curve | None
    law: PowerLaw
    level: Estimate
    needed: Estimate

    @property
    def sentence(self) -> str:
        """The forecast in one or two sentences."""
        said, best = self._said, min(self.curve.values, key=lambda value: value.value)
        if self.curve.values[-1].low <= best.value:
            return said
        then = self.curve.images[self.curve.values.index(best)]
        return f"{said} It was better before: {best} x after {then:,.0f} images."

    @property
    def _said(self) -> str:
        goal = f"{counted(self.calls, 'call')} within {1 + self.within:g} x of the checkpoint's best"
        last, seen = self.curve.values[-1], self.curve.images[-1]
        if last.value <= 1 + self.within:
            return f"{goal}: reached, {last} x after {seen:,.0f} images ({self.view} features)."
        if self.settled is None:
            return f"{goal}: too early to tell, {last} x after {seen:,.0f} images and still falling ({self.view} features)."
        low, high = (_more(end, seen) for end in (self.needed.low, self.needed.high))
        reach = f"[{low}, {high}]" if math.isfinite(self.needed.high) else f"[{low}, or more than this curve can tell]"
        if math.isfinite(self.needed.value):
            return f"{goal} need about {_more(self.needed.value, seen)} more images, {reach} ({self.view} features)."
        why = f"it levels off at {self.level} x"
        if self.law.a <= 1 + self.within:
            why = f"it takes more than {FAR:g} times what it has seen"
        hope = f"; at best {low} more would do" if math.isfinite(self.needed.low) else ""
        return f"{goal}: not reached by any amount this curve can tell, {why}{hope} ({self.view} features)."

    def summary(self) -> dict[str, Any]:
        """The entries for a JSON; null stands for infinity."""
        points = [{"images": n} | value._asdict() for n, value in zip(self.curve.images, self.curve.values, strict=True)]
        return {
            "calls": self.calls,
            "view": self.view,
            "within": self.within,
            "points": points,
            "settled_from": None if self.settled is None else self.settled.images[0],
            "law": {"a": self.law.a, "b": self.law.b, "c": self.law.c},
            "level": self.level._asdict(),
            "needed": {name: end if math.isfinite(end) else None for name, end in self.needed._asdict().items()},
            "seen": self.curve.images[-1],
            "sentence": self.sentence,
        }


def forecast_runs(
    runs: Sequence[str], *, within: float = 0.3, calls: Sequence[int] = (), out: Path | None = None
) -> list[Forecast]:
    """Fits a power law to the scores of runs over the images seen, and forecasts how many more images a goal needs.

    Of one run all looks are used. Of several runs only the last looks are used: a run whose learning rate has fallen to 0
    scores better than a longer run after as many images, so runs of different lengths forecast better than one.

    Args:
        runs: folders of runs with `--look-score`; several must have been tuned in the same way.
        within: the goal, as the share by which the Fréchet distance may exceed that of the checkpoint at many calls.
        calls: numbers of network calls; by default all that have scores.
        out: JSON file for the results; by default forecast.json in the first run's folder.

    Returns:
        One forecast for each number of calls.

    Raises:
        ValueError: a run has no scores or too few, or the runs were scored differently.
    """
    at_least(0, within=within)
    at_least(1, calls=calls)
    if not runs:
        raise ValueError("name at least one run")
    file = Path(runs[0]) / "forecast.json" if out is None else out
    writable(file.parent)
    looks = {run: _looks(Path(run)) for run in runs}
    taken = [rows for run in runs for rows in (looks[run][1:] if len(runs) == 1 else looks[run][-1:])]
    taken = sorted(taken, key=lambda each: int(each["images"]))
    teacher = looks[runs[0]][0]["samples"][0]
    there = sorted({each["calls"] for row in taken for each in row["samples"] if "frechet" in each})
    if missing := sorted(set(calls) - set(there)):
        raise ValueError(f"there are no scores of {missing[0]} calls; choose among {', '.join(map(str, there))}")
    teachers = {run: looks[run][0]["samples"][0] for run in runs}
    if any(each.get("frechet") != teacher["frechet"] for each in teachers.values()):
        raise ValueError("these runs were scored against different teachers or data; give runs of the same")
    if len(taken) < FEWEST:
        raise ValueError(
            f"a forecast needs at least {FEWEST} looks with scores, got {len(taken)}; tune with a smaller --look-every, "
            "or name more runs"
        )
    with receipt(file, runs=list(runs), within=within) as entries:
        views = teacher["frechet"]
        found = [_furthest([_forecast(taken, views[view], n, view, within) for view in views]) for n in calls or there]
        entries["forecasts"] = [each.summary() for each in found]
    return found


def _looks(run: Path) -> list[dict[str, Any]]:
    """The scored looks of a run, starting with that before the first step."""
    if not run.is_dir():
        raise ValueError(f"there is no folder {run}; give that of a run of fewstep tune")
    rows = [row for row in looks_in(run) if any("frechet" in each for each in row.get("samples", ()))]
    if len(rows) < 2 or rows[0]["images"] != 0:
        raise ValueError(f"{run} has no scores to forecast from; tune with --look-score 250")
    return rows


def _forecast(
    rows: Sequence[Mapping[str, Any]], teacher: Mapping[str, Any], calls: int, view: str, within: float
) -> Forecast:
    """The forecast from the curve of one number of calls in one view."""
    said = [
        (float(row["images"]), each["frechet"][view])
        for row in rows
        for each in row["samples"]
        if each["name"] == "student" and each["calls"] == calls and "frechet" in each
    ]
    images, best = tuple(n for n, _ in said), float(teacher["value"])
    ours, theirs = np.array([score["left_out"] for _, score in said]).T, np.array([teacher["left_out"]]).T
    without = 1 + (ours - theirs) / best  # (groups, k), of paired differences
    values = jackknifed([score["value"] / best for _, score in said], without)
    others = np.corrcoef(without.T)[~np.eye(len(said), dtype=bool)] if len(said) > 1 else np.zeros(1)
    curve = Curve(images, tuple(values), float(np.clip(others.mean(), 0.0, 0.95)))
    (apart,) = jackknifed([best], theirs)
    error = within * (apart.high - apart.low) / (2 * SIGMAS * best)  # the goal is relative to a score with an error
    settled = curve.settled()
    end = settled or curve
    needed = end.needed(1 + within, error) if settled else Estimate(math.inf, images[-1], math.inf)
    return Forecast(calls, view, within, curve, settled, end.fit(), end.predict(math.inf), needed)


def _furthest(forecasts: Sequence[Forecast]) -> Forecast:
    """The forecast with the most images needed; among equals, that with the largest last value."""
    return max(forecasts, key=lambda each: (each.needed.value, each.curve.values[-1].value))


def _more(images: float, seen: float) -> str:
    """Number of images beyond those seen, to two figures."""
    more = max(0.0, images - seen)
    return "none" if more == 0 else f"{float(f'{more:.2g}'):,.0f}"
