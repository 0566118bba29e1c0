"""The demo: a diffusion checkpoint becomes a few-step generator, with pictures and scores, in minutes."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from .core.device import best_device, fast_precision
from .core.files import alone_in
from .core.interrupts import Interrupted
from .core.intervals import Estimate
from .core.receipt import plain, write_json
from .diffusion.average import Exponential
from .diffusion.data import Images, load_images
from .diffusion.formats.exporting import export
from .diffusion.formats.folder import load
from .diffusion.hop import Heun
from .diffusion.loss import InverseGap
from .diffusion.measure.dial import Looks, Point, Setting, ratio, scores
from .diffusion.measure.features import View, views
from .diffusion.measure.settings import diffusion_settings, student_settings
from .diffusion.model import Model
from .diffusion.optim import Cosine
from .diffusion.recipes import ect_demo
from .diffusion.report import plot, sheet, table
from .diffusion.stages import Stage, run_stages
from .diffusion.walk import Consistency

# (share of the training images, settings) of each student; the second starts from the first, docs/log.md
STAGES: tuple[tuple[float, dict[str, Any]], ...] = (
    (0.7, {"segments": 2, "weight": InverseGap(power=0.0), "rate": Cosine(1e-3), "average": Exponential(0.98)}),
    (0.3, {"segments": 1, "weight": InverseGap(), "rate": Cosine(2e-3), "average": Exponential(0.99)}),
)


def demo(out: Path, *, images: int, n: int, seed: int) -> None:
    """Runs it; see `fewstep demo --help`."""
    with alone_in(out):
        try:
            _demo(out, images=images, n=n, seed=seed)
        except Interrupted as stop:
            raise Interrupted("the demo was stopped; the next one begins at its beginning", stop.signal) from stop


def _demo(out: Path, *, images: int, n: int, seed: int) -> None:
    console, start = Console(), time.monotonic()
    teacher = load("bundled").denoiser.to(best_device())
    precision = fast_precision()
    data = load_images("bundled", channels=1, size=28)
    seen_by = views("fashion", Images(data.raw(range(4000))), bundled=True)
    looks = Looks.over(data)

    def score(settings: list[Setting]) -> list[Point]:
        points = scores(settings, range(seed, seed + n), seen_by, precision=precision)
        console.print(table(points, looks))
        return points

    student = Model(teacher, Consistency())  # a bad one, until it is tuned
    console.print(f"[b]1. A diffusion checkpoint needs many network calls[/b] ({best_device()}, {precision})")
    points = score(diffusion_settings(teacher, (1, 2, 4, 8, 35)) + student_settings(student, (2,), name="untuned"))

    console.print("[b]2. Tuning by its own ODE: a student of two segments, and from it one of one[/b]")
    frozen = copy.deepcopy(teacher).requires_grad_(False)
    stages = []
    for share, settings in STAGES:
        recipe = ect_demo(round(share * images)) | settings | {"hop": Heun(frozen), "seed": seed}
        stages.append(Stage(f"{recipe['segments']}-segment", recipe, data))
        shutil.rmtree(out / stages[-1].folder, ignore_errors=True)  # an earlier demo's
    student = run_stages(teacher, stages, out, precision=precision, teacher="bundled").to(best_device())

    console.print("[b]3. The same seeds, few calls[/b]")
    points += score(student_settings(student, (1, 2, 4)))
    ratios = _ratios(points, seen_by)
    for name, found in ratios.items():
        console.print(f"  Fréchet distance, {name}: {', '.join(f'[b]{r.value:.2f}[/b] ({v})' for v, r in found.items())}")

    console.print("[b]4. A folder that plain diffusers samples[/b]")
    card = {"teacher": "fewstep's bundled Fashion-MNIST model", "data": "Fashion-MNIST, 10,000 images", "recipe": recipe,
            "seed": seed, "samples scored": n}  # fmt: skip
    agreement = export(student, out / "exported", card=plain(card | _scores(points)))
    console.print(f"  verified in a fresh process: its images differ from ours {agreement}")

    plot(points, out / "quality.png")
    sheet(points, out / "samples.png")
    said = {name: {view: found._asdict() for view, found in pair.items()} for name, pair in ratios.items()}
    measured = {"points": [p.summary() for p in points], "real": looks._asdict(), "ratios": said}
    write_json(out / "measure.json", measured | {"precision": precision, "seed": seed})
    console.print(f"[b]Done in {time.monotonic() - start:.0f} s.[/b] Look at:")
    for what, file in {
        "pictures": "samples.png",
        "plot": "quality.png",
        "table": "measure.json",
        "folder": "exported",
    }.items():
        console.print(f"  {what:9} {out / file}")


def _ratios(points: list[Point], seen_by: Sequence[View]) -> dict[str, dict[str, Estimate]]:
    """How many times another's Fréchet distance the student's is, in each view."""
    at = {(point.name, point.nfe): point for point in points}
    pairs = {
        "student at 2 calls over teacher at 35": (at["student", 2], at["teacher", 35]),
        "student at 2 calls over the untuned teacher at 2": (at["student", 2], at["untuned", 2]),
        "student at 1 call over the untuned teacher at 1": (at["student", 1], at["teacher", 1]),
    }
    return {name: {view.name: ratio(a, b, view) for view in seen_by} for name, (a, b) in pairs.items()}


def _scores(points: list[Point]) -> dict[str, dict[str, float]]:
    """What a model card says of them."""
    return {
        f"Fréchet distance, {view} features": {
            f"{p.name}, {p.nfe:.0f} calls": round(p.frechet[view].value, 2) for p in points
        }
        for view in points[0].frechet
    }
