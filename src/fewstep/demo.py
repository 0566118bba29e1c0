"""The demo: a diffusion checkpoint becomes a few-step generator, with pictures and scores, in minutes."""

from __future__ import annotations

import copy
import shutil
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from .core.device import best_device, fast_precision
from .core.files import writable
from .core.receipt import plain, write_json
from .diffusion.average import Exponential
from .diffusion.data import load_images
from .diffusion.formats.exporting import export
from .diffusion.formats.folder import load
from .diffusion.hop import Heun
from .diffusion.loss import InverseGap
from .diffusion.measure import dial
from .diffusion.measure.dial import Point, difference
from .diffusion.measure.features import extractor, reference
from .diffusion.measure.settings import diffusion_settings, student_settings
from .diffusion.optim import Cosine
from .diffusion.recipes import ect_demo
from .diffusion.report import plot, sheet, table
from .diffusion.runs import run

# (share of the training images, settings) of each student; the second starts from the first, docs/log.md
STAGES: tuple[tuple[float, dict[str, Any]], ...] = (
    (0.7, {"segments": 2, "weight": InverseGap(power=0.0), "rate": Cosine(1e-3), "average": Exponential(0.98)}),
    (0.3, {"segments": 1, "weight": InverseGap(), "rate": Cosine(2e-3), "average": Exponential(0.997)}),
)


def demo(out: Path, *, images: int, n: int, seed: int) -> None:
    """Runs it; see `fewstep demo --help`."""
    console, start = Console(), time.monotonic()
    writable(out)
    device = best_device()
    precision = fast_precision()
    teacher = load("bundled").to(device)
    data = load_images("bundled", channels=1, size=28)
    network = extractor("fashion").to(device)
    real = reference(network, data.pixels[:n])
    seeds = range(seed, seed + n)

    def score(settings: list[dial.Setting]) -> list[Point]:
        points = []
        for setting in settings:
            with console.status(f"sampling {setting.name}, {len(setting.grid)} steps, n = {n}"):
                points.append(dial.score(setting, seeds, data.shape, network, real, precision=precision))
        console.print(table(points))
        return points

    console.print(f"[b]1. A diffusion checkpoint needs many network calls[/b] ({device}, {precision})")
    points = score(diffusion_settings(teacher, (1, 2, 4, 8, 35)) + student_settings(teacher, (2,), name="untuned"))

    console.print("[b]2. Tuning by its own ODE: a student of two segments, and from it one of one[/b]")
    frozen, student = copy.deepcopy(teacher).requires_grad_(False), teacher
    for share, settings in STAGES:
        recipe = ect_demo(round(share * images)) | settings | {"hop": Heun(frozen), "seed": seed}
        folder = out / f"{recipe['segments']}-segment"
        shutil.rmtree(folder, ignore_errors=True)  # an earlier demo's
        student = run(copy.deepcopy(student), data, folder, recipe, precision=precision, teacher="bundled").to(device)

    console.print("[b]3. The same seeds, few calls[/b]")
    points += score(student_settings(student, (1, 2, 4)))
    at = {(point.name, point.nfe): point for point in points}
    one, two, many, untuned = at["student", 1], at["student", 2], at["teacher", 35], at["untuned", 2]
    facts = {
        "student at 2 calls over teacher at 35": two.frechet.value / many.frechet.value,
        "student at 2 calls over the untuned teacher at 2": two.frechet.value / untuned.frechet.value,
        "student at 1 call over the untuned teacher at 1": one.frechet.value / at["teacher", 1].frechet.value,
    }
    for name, ratio in facts.items():
        console.print(f"  Fréchet distance, {name}: [b]{ratio:.2f}[/b]")
    gap = difference(two, many, real)
    console.print(f"  paired difference, student at 2 calls minus teacher at 35: {gap} (95 %, same seeds, n = {n})")

    console.print("[b]4. A folder that plain diffusers samples[/b]")
    card = {"teacher": "fewstep's bundled Fashion-MNIST model", "data": "Fashion-MNIST, 10,000 images", "recipe": recipe,
            "seed": seed, "Fréchet distance": {f"{p.name}, {p.nfe:.0f} calls": round(p.frechet.value, 2) for p in points},
            "features and n": f"fashion, {n}"}  # fmt: skip
    largest = export(student, out / "exported", card=plain(card))
    console.print(f"  verified in a fresh process: largest difference {largest:.1e} of 255 grey levels")

    plot(points, out / "quality.png", features="fashion")
    sheet(points, out / "samples.png")
    write_json(out / "measure.json", {"points": [p.summary() for p in points], "ratios": facts, "difference": gap._asdict(),
                                      "precision": precision, "seed": seed})  # fmt: skip
    console.print(f"[b]Done in {time.monotonic() - start:.0f} s.[/b] Look at:")
    for what, name in (
        ("pictures", "samples.png"),
        ("plot", "quality.png"),
        ("table", "measure.json"),
        ("folder", "exported"),
    ):
        console.print(f"  {what:9} {out / name}")
