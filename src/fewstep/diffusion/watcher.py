"""Watches a run: its samples, its losses by noise level, and whether the samples have collapsed.

Watching does not change the training: results are bit-equal.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..core.device import widest
from ..core.files import atomic_file
from ..core.interrupts import agreed
from ..core.intervals import jackknifed, left_out
from ..core.nfe import count_nfe
from ..core.resuming import LOOKS, looks_in
from .collapse import Signs, collapsed, signs
from .cond import Cond
from .data import Images, Paths, Samples, Source
from .data.order import Order
from .denoiser import Denoiser
from .measure.features import View, extract, views
from .measure.scores import frechet
from .model import Model
from .pipeline import Pipeline
from .sheets import decodes, pictures, write_sheet
from .step import Step
from .tracking import Tracking
from .two_times import TwoTimes
from .walk import DDIM, Consistency, Heun, Segments, Walk, sample
from .watching import Watching

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

EDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # between the ranges of noise levels, in units of the data
SHEETS = "watch"
TRACK = "track"
REAL = 4000  # pictures that samples are scored against


@dataclass(frozen=True)
class Watch:
    """How a run is watched.

    Attributes:
        watching: the settings.
        walks: how the student is sampled at a look. The last one has the most network calls; its samples are tested for
            collapse.
        teacher, teacher_walk: the model whose samples are the reference, and how it is sampled.
        views: features that samples are scored with; see `measure.features.views`. Empty for no scores.
    """

    watching: Watching
    walks: Sequence[Walk]
    teacher: Denoiser
    teacher_walk: Walk
    views: Sequence[View] = field(default=(), repr=False)


def watch_of(
    watching: Watching, student: Model, data: Source, teacher: Denoiser, teacher_walk: Walk, *, bundled: bool = False
) -> Watch:
    """How a run that learns from `data` is watched.

    Args:
        watching: the settings.
        student: the model of the run, with the walk that it is tuned for.
        data: the training data, against which samples are scored.
        teacher, teacher_walk: the model whose samples are the reference, and how it is sampled.
        bundled: whether the data are the bundled ones.

    Raises:
        ValueError: the student does not take these numbers of calls, or there are no pictures to score samples against.
    """
    walks = [student.walk_in(steps) for steps in sorted(watching.look_steps)] or _usual(student)
    if not watching.look_score:
        return Watch(watching, walks, teacher, teacher_walk)
    if isinstance(data, Paths) or student.pipeline is not None or cast(Samples, data).raw([0]).dtype != torch.uint8:
        raise ValueError("--look-score needs data that are pictures; leave it out")
    real = Images(cast(Samples, data).shuffled().raw(range(min(REAL, len(data)))))
    named = "fashion" if bundled and student.denoiser.space.shape == (1, 28, 28) else "random"
    return Watch(watching, walks, teacher, teacher_walk, views(named, real, bundled=bundled))


def _usual(student: Model) -> list[Walk]:
    """The default walks of a look."""
    if isinstance(student.denoiser, TwoTimes):
        return [Segments(1), Segments(2), Segments(4)]
    if isinstance(student.walk, Heun):
        return [DDIM(16)]  # a diffusion model: half the calls are enough to see it
    return [Consistency(1), student.walk] if isinstance(student.walk, Consistency) else [student.walk]


class ByLevel:
    """Losses summed by noise level on the device, so that the host does not wait for them.

    Attributes:
        sums: sums of losses and numbers of rows of this process, (2, len(EDGES) + 1).
        loss, steps: the sum of the steps' mean losses, and the number of steps.
    """

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(2, len(EDGES) + 1, dtype=widest(device), device=device)
        self.loss, self.steps = 0.0, 0

    def add(self, step: Step) -> None:
        """Adds the rows of a step."""
        places = torch.bucketize(step.levels.float(), torch.tensor(EDGES)).to(self.sums.device, non_blocking=True)
        losses = step.losses.to(self.sums.dtype)
        self.sums.index_add_(1, places, torch.stack([losses, torch.ones_like(losses)]))
        self.loss, self.steps = self.loss + step.loss, self.steps + 1

    def state(self, accelerator: Accelerator) -> dict[str, Any]:
        """The sums over all processes. Every process must call this."""
        whole: Any = accelerator.reduce(self.sums, "sum")
        return {"sums": whole.cpu(), "loss": self.loss, "steps": self.steps}

    def load(self, state: Mapping[str, Any], *, main: bool) -> None:
        """Restores a `state()`; the main process takes the sums of all."""
        self.sums.copy_(state["sums"] if main else torch.zeros_like(state["sums"]))
        self.loss, self.steps = state["loss"], state["steps"]

    def clear(self) -> None:
        self.sums.zero_()
        self.loss, self.steps = 0.0, 0


def ranges(sums: Tensor) -> list[dict[str, float | int | None]]:
    """The mean loss in each range of noise levels that has any rows."""
    bounds = list(zip([0.0, *EDGES], [*EDGES, None], strict=True))
    return [
        {"low": low, "high": high, "rows": round(rows), "loss": loss / rows}
        for (low, high), loss, rows in zip(bounds, *sums.tolist(), strict=True)
        if rows
    ]


class Watcher:
    """Looks at the samples of a run after each step where that is due. The main process samples and writes.

    A line of watch.jsonl is a look: `images`, `step`, mean `loss` since the last look, `levels` (the loss by noise level),
    `samples` (for each number of calls the signs of `collapse` and the scores in each view), `sheet` (file of the picture)
    and `network_rows`. The first line has images 0: the student before its first step, and its teacher.
    """

    def __init__(
        self, out: Path, watch: Watch, data: Source, accelerator: Accelerator, recipe: Mapping[str, Any],
        pipeline: Pipeline | None = None,
    ) -> None:  # fmt: skip
        self.out, self.watch, self.accelerator = out, watch, accelerator
        self.images, self.batch = int(recipe["images"]), int(recipe["batch"])
        self.every = watch.watching.every(self.images)
        self.main = bool(accelerator.is_main_process)
        self.since = ByLevel(accelerator.device)
        self.data, self.pipeline = data, pipeline if pipeline is not None and decodes(pipeline) else None
        self.rows: list[dict[str, Any]] = []
        self.track = Tracking(watch.watching.track, out / TRACK) if self.main else None

    @property
    def looks(self) -> bool:
        """Whether any look is due in this run."""
        return 0 < self.every <= self.images

    def begin(self, denoiser: Denoiser, state: Mapping[str, Any] | None) -> None:
        """Looks at the student before the first step, or restores the rows up to a saved state."""
        if state and "watched" in state:
            self.since.load(state["watched"], main=self.main)
        if not self.main:
            return
        first = state["step"] if state else 0
        assert self.track is not None
        self.track.begin(first)
        if not self.looks:
            return
        self.rows = [row for row in looks_in(self.out) if row.get("step", math.inf) <= first] if state else []
        if not self.rows:
            teacher, device = self.watch.teacher, self.watch.teacher.device
            teachers = self._seen(teacher.to(self.accelerator.device).eval(), [self.watch.teacher_walk], "teacher")
            if device != self.accelerator.device:
                teacher.to(device)  # back to where it was
            students = self._seen(denoiser.to(self.accelerator.device).eval(), self.watch.walks)
            self._write({"step": 0, "images": 0}, [*teachers, *students])
        else:
            _write_rows(self.out / LOOKS, self.rows)

    def __call__(self, step: Step) -> str | None:
        """How the samples have collapsed, "" if they have not; None if no look was due."""
        if self.track is not None:
            self.track.log({"loss": step.loss, "rate": step.rate, "gap": step.gap}, step.step)
        if not self.looks:
            return None
        self.since.add(step)
        due = step.images // self.every > (step.images - self.batch) // self.every or step.images >= self.images
        if not due:
            return None
        since, model = self.since.state(self.accelerator), step.ema  # every process must call both
        self.since.clear()
        found = self._look(step, since, model) if self.main else ""
        stop = agreed(self.accelerator, int(bool(found) and self.watch.watching.stop_collapsed))[0]
        return (found or "the samples have collapsed") if stop else ""

    def state(self) -> dict[str, Any]:
        """The state for `begin` of a resumed run. Every process must call this."""
        return {"watched": self.since.state(self.accelerator)} if self.looks else {}

    def end(self) -> None:
        """Ends the trackers."""
        if self.track is not None:
            self.track.end()

    def _look(self, step: Step, since: Mapping[str, Any], model: Denoiser) -> str:
        """Writes a row and a sheet. Returns how the samples have collapsed, "" if they have not."""
        row = {"step": step.step, "images": step.images, "loss": since["loss"] / max(since["steps"], 1)}
        row |= {"levels": ranges(since["sums"])}
        try:
            self._write(row, self._seen(model.to(self.accelerator.device), self.watch.walks))
        except OSError as error:
            logger.warning("the look at %d images could not be written: %s", step.images, error)
            return ""
        happened = _verdict(self.rows)
        if not happened:
            return ""
        sheet = self.rows[-1].get("sheet")
        told = f"after {step.images:,} images the samples have collapsed: {happened}"
        told += f"; {self.out / sheet} shows them beside those before" if sheet else ""
        if not self.watch.watching.stop_collapsed:
            logger.warning("%s", told)
        return told

    def _seen(self, denoiser: Denoiser, walks: Sequence[Walk], name: str = "student") -> list[dict[str, Any]]:
        """The entries of a row for each walk; "shown" holds the samples if they are pictures, else None."""
        watching = self.watch.watching
        count, device = max(watching.look_n, watching.look_score), self.accelerator.device
        cond, found = self._cond(denoiser, count), list[dict[str, Any]]()
        pipeline = None if self.pipeline is None else self.pipeline.around(denoiser.network)
        for walk in walks:
            bf16 = self.accelerator.mixed_precision == "bf16"
            with count_nfe(denoiser.network) as nfe, torch.autocast(device.type, torch.bfloat16, bf16):
                x0 = sample(denoiser, range(count), walk, cond)
            said = {"name": name, "calls": round(nfe.rows / count), "walk": repr(walk), "network_rows": nfe.rows}
            said |= signs(x0, denoiser.space.limits)._asdict()
            if watching.look_score and said["finite"] == 1:
                said |= {"n": count, "frechet": self._scores(denoiser.space.decode(x0))}
            found.append(said | {"shown": pictures(x0[: watching.look_n], denoiser.space, pipeline)})
        return found

    def _scores(self, images: Tensor) -> dict[str, dict[str, Any]]:
        """Fréchet distances of uint8 pictures by view, with those without each group of seeds for paired differences."""
        found = {}
        for view in self.watch.views:
            seen = extract(view.network, images)
            without = left_out(lambda rows, seen=seen, view=view: [frechet(seen[rows], view.real)], len(seen))  # type: ignore[misc]
            (distance,) = jackknifed([frechet(seen, view.real)], without)
            found[view.name] = distance._asdict() | {"left_out": without[:, 0].tolist()}
        return found

    def _cond(self, denoiser: Denoiser, count: int) -> Cond:
        """The conditions of `count` examples, drawn at random but always the same."""
        order = Order(len(self.data), 0)
        examples = [self.data.cond(order(k)) for k in range(count)]
        names = [name for name in examples[0] if name in denoiser.takes or name.removesuffix("#") in denoiser.takes]
        return Cond({name: torch.stack([each[name] for each in examples]) for name in names}, self.data.shared)

    def _write(self, row: dict[str, Any], shown: list[dict[str, Any]]) -> None:
        """Writes a row and its sheet, and reports both to the trackers."""
        assert self.track is not None
        drawn = [line for each in shown if (line := each.pop("shown")) is not None]
        if drawn:
            row["sheet"] = f"{SHEETS}/{row['images']:09d}.png"
            self.track.show(write_sheet(drawn, self.out / row["sheet"]), row["step"])
        row["network_rows"] = sum(each.pop("network_rows") for each in shown)
        row["samples"] = shown
        self.rows.append(row)
        _write_rows(self.out / LOOKS, self.rows)
        self.track.log(_flat(row), row["step"])


def _verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """Compares the samples with the most calls in the last row with those of the rows before; see `collapsed`."""
    of = [[Signs(*(each[name] for name in Signs._fields)) for each in row["samples"]] for row in rows]
    teacher = of[0][0]
    return collapsed(of[-1][-1], [each[-1] for each in of[:-1]], teacher)


def _flat(row: Mapping[str, Any]) -> dict[str, float]:
    """The named numbers of a row for a tracker."""
    told = {f"loss/{each['low']:g}-{each['high'] or 'up'}": each["loss"] for each in row.get("levels", ())}
    for each in row["samples"]:
        at = f"{each['name']}, {each['calls']} calls"
        told |= {f"samples/{name}, {at}": each[name] for name in ("spread", "inside")}
        told |= {f"frechet/{view}, {at}": score["value"] for view, score in each.get("frechet", {}).items()}
    return told


def _write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with atomic_file(file) as opened:
        opened.write("".join(json.dumps(row) + "\n" for row in rows).encode())
