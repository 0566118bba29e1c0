"""The demo: a diffusion checkpoint becomes a few-step generator, with pictures and scores, in minutes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from .core.device import best_device, fast_precision
from .core.files import alone_in
from .core.interrupts import Interrupted
from .core.intervals import Estimate
from .core.receipt import plain, receipt
from .core.words import counted
from .diffusion.checkpoints import tune_checkpoint
from .diffusion.choices import Lessons, Run, Training
from .diffusion.data import Images, load_images
from .diffusion.formats.exporting import export
from .diffusion.formats.folder import load
from .diffusion.measure.dial import Looks, Point, ratio, scores
from .diffusion.measure.features import View, views
from .diffusion.measure.seen import Setting
from .diffusion.measure.settings import diffusion_settings, student_settings
from .diffusion.objective import Loss
from .diffusion.recipes import any_step
from .diffusion.report import keep_pictures, plot, sheet, table
from .report import write_report


@contextmanager
def in_minutes(out: Path, files: Mapping[str, str]) -> Iterator[Console]:
    """Runs a demo in the block and locks its folder `out`. At the end it prints the time and the files to look at.

    Args:
        out: the folder.
        files: description -> name of a file that the demo writes there.
    """
    console, start = Console(), time.monotonic()
    with alone_in(out):
        try:
            yield console
        except Interrupted as stop:
            raise Interrupted("the demo was stopped; run it again to start from the beginning", stop.signal) from stop
    console.print(f"[b]Done in {time.monotonic() - start:.0f} s.[/b] Look at:")
    for what, file in files.items():
        console.print(f"  {what:9} {out / file}")


def demo(out: Path, *, images: int, n: int, seed: int) -> None:
    """Runs the demo; see `fewstep demo --help`."""
    files = {"report": "report.html", "pictures": "samples.png", "plot": "quality.png", "folder": "exported"}
    with in_minutes(out, files) as console:
        with receipt(out / "measure.json", seed=seed) as entries:
            entries.update(_demo(console, out, images=images, n=n, seed=seed))
        write_report([out], out / "report.html")


def _demo(console: Console, out: Path, *, images: int, n: int, seed: int) -> dict[str, Any]:
    """Tunes, scores, exports and draws; returns the content of measure.json."""
    teacher = load("bundled").denoiser.to(best_device())
    precision = fast_precision()
    data = load_images("bundled", channels=1, size=28)
    seen_by = views("fashion", Images(data.raw(range(4000))), bundled=True)
    looks = Looks.over(data)

    def score(settings: list[Setting]) -> list[Point]:
        points = scores(settings, range(seed, seed + n), seen_by, precision=precision)
        console.print(table(points, looks))
        return points

    console.print(f"[b]1. A diffusion checkpoint needs many network calls[/b] ({best_device()}, {precision})")
    points = score(diffusion_settings(teacher, (1, 2, 4, 8, 35)))

    console.print("[b]2. Tuning by its own ODE: one student for any number of calls[/b]")
    shutil.rmtree(out / "student", ignore_errors=True)  # an earlier demo's
    student = tune_checkpoint(
        "bundled", Lessons("bundled"), Run(out / "student"), loss=Loss("any"), training=Training(images=images, seed=seed)
    ).to(best_device())

    console.print("[b]3. The same seeds, few calls[/b]")
    points += score(student_settings(student, (1, 2, 4, 8, 16)))
    ratios = _ratios(points, seen_by)
    for name, found in ratios.items():
        console.print(f"  Fréchet distance, {name}: {', '.join(f'[b]{r.value:.2f}[/b] ({v})' for v, r in found.items())}")

    console.print("[b]4. A folder that plain diffusers samples[/b]")
    card = {"teacher": "fewstep's bundled Fashion-MNIST model", "data": "Fashion-MNIST, 10,000 images",
            "recipe": any_step(images), "seed": seed, "samples scored": n}  # fmt: skip
    agreement = export(student, out / "exported", card=plain(card | _scores(points)))
    console.print(f"  verified in a fresh process: its images differ from ours {agreement}")

    plot(points, out / "quality.png")
    sheet(points, out / "samples.png")
    said = {name: {view: found._asdict() for view, found in pair.items()} for name, pair in ratios.items()}
    measured = {"points": [p.summary() for p in points], "real": looks._asdict(), "ratios": said}
    return measured | {"precision": precision, "pictures": keep_pictures(points, out, seed=seed)}


def _ratios(points: list[Point], seen_by: Sequence[View]) -> dict[str, dict[str, Estimate]]:
    """Ratios of the student's Fréchet distance to the teacher's, in each view."""
    at = {(point.name, point.nfe): point for point in points}
    pairs = {
        "student at 2 calls over teacher at 35": (at["student", 2], at["teacher", 35]),
        "student at 2 calls over teacher at 2": (at["student", 2], at["teacher", 2]),
        "student at 1 call over teacher at 1": (at["student", 1], at["teacher", 1]),
    }
    return {name: {view.name: ratio(a, b, view) for view in seen_by} for name, (a, b) in pairs.items()}


def _scores(points: list[Point]) -> dict[str, dict[str, float]]:
    """The scores of a model card."""
    return {
        f"Fréchet distance, {view} features": {
            f"{p.name}, {counted(p.nfe, 'call')}": round(p.frechet[view].value, 2) for p in points
        }
        for view in points[0].frechet
    }
