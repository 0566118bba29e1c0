"""The demo of text-to-image: a stock pipeline gets a LoRA for few calls, with the guidance built in, in minutes."""

from __future__ import annotations

import shutil
from pathlib import Path

from rich.console import Console

from .core.device import best_device, fast_precision
from .core.source import ASSETS
from .demo import in_minutes
from .diffusion.checkpoints import tune_checkpoint
from .diffusion.choices import Lessons, Run, Training
from .diffusion.encoding import encode_data
from .diffusion.measuring import measure_checkpoint
from .diffusion.objective import Loss
from .diffusion.report import table
from .diffusion.scoring import Scoring
from .diffusion.using import export_checkpoint
from .report import write_report

CHECKPOINT = "bundled-text"
PICTURES = 2000  # that are encoded, of 60,000
GUIDANCE = 3.0
RANK, RATE = 16, 0.01  # a LoRA needs a higher rate than full tuning
PROMPTS = ASSETS / "text_to_image" / "prompts.txt"


def demo_text(out: Path, *, images: int, n: int, seed: int) -> None:
    """Runs the demo; see `fewstep demo --help`."""
    files = {"report": "report.html", "pictures": "samples.png", "plot": "quality.png", "adapter": "exported"}
    with in_minutes(out, files) as console:
        _demo(console, out, images=images, n=n, seed=seed)
        write_report([out], out / "report.html")


def _demo(console: Console, out: Path, *, images: int, n: int, seed: int) -> None:
    for name in ("student", "latents", "exported"):
        shutil.rmtree(out / name, ignore_errors=True)  # an earlier demo's
    console.print(f"[b]1. {PICTURES} pictures with captions become latents, once[/b] ({best_device()}, {fast_precision()})")
    encode_data(CHECKPOINT, CHECKPOINT, out / "latents", n=PICTURES)

    console.print(f"[b]2. A LoRA of rank {RANK} learns any number of calls, guidance {GUIDANCE:g} included[/b]")
    tune_checkpoint(
        CHECKPOINT, Lessons(str(out / "latents"), guidance=GUIDANCE), Run(out / "student"), loss=Loss("any"),
        training=Training(images=images, seed=seed, lora=RANK, rate=RATE),
    )  # fmt: skip

    console.print("[b]3. The same prompts and seeds; guidance costs the teacher two rows a call[/b]")
    scoring = Scoring(CHECKPOINT, out, n=n, seed=seed, prompts=PROMPTS, guidance=GUIDANCE)
    measured = measure_checkpoint(
        str(out / "student"), scoring, teacher=CHECKPOINT, steps=(1, 2, 4), teacher_calls=(1, 2, 4, 8, 25)
    )
    console.print(table(measured.found.points, measured.found.real))

    console.print("[b]4. An adapter that plain diffusers loads[/b]")
    exported = export_checkpoint(str(out / "student"), out / "exported", steps=(4,), measured=out / "measure.json")
    for written in exported.values():
        console.print(f"  verified in a fresh process: its samples differ from ours {written.agreement}")
