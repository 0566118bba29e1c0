"""Drives tune(): a folder on disk, a progress bar, a saved state to resume from, the result as a diffusers folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from .checkpoints.atomic import load_state, save_state
from .checkpoints.folder import save
from .data import Images
from .images.denoiser import NetworkDenoiser
from .images.tune import Step, tune
from .receipt import receipt


def run(
    denoiser: NetworkDenoiser,
    data: Images,
    out: Path,
    *,
    settings: dict[str, Any],
    resume: bool = False,
    precision: str | None = None,
    save_every: float = 120.0,
    title: str = "tune",
    **facts: Any,
) -> NetworkDenoiser:
    """Tunes `denoiser` and leaves in `out` the averaged model (`model/`), `state.pt` to resume from and `receipt.json`.

    Args:
        denoiser, data: for `tune`.
        out: folder of the run.
        settings: keyword arguments of `tune`, as a recipe gives them.
        resume: go on from `out/state.pt`.
        precision: "no" (float32) or "bf16"; None takes bfloat16 where the hardware has it.
        save_every: seconds between saved states.
        title: for the progress bar.
        facts: for the receipt.

    Returns:
        The averaged model.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from accelerate import Accelerator

    accelerator = Accelerator(mixed_precision=precision or fast_precision())
    state_file = out / "state.pt"
    state = load_state(state_file) if resume else None
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f}/{task.total:,.0f} images"),
        TextColumn("{task.fields[speed]:.0f}/s  loss {task.fields[loss]:.3f}  gap {task.fields[gap]:.3f}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    last: Step | None = None
    with receipt(out / "receipt.json", settings=settings, resumed=resume, **facts) as entries, Progress(*columns) as bar:
        task = bar.add_task(title, total=settings["images"], speed=0.0, loss=float("nan"), gap=1.0)
        start = saved = time.monotonic()
        first = None
        for last in tune(denoiser, data, state=state, accelerator=accelerator, **settings):
            now = time.monotonic()
            first = first if first is not None else last.images - settings["batch"]
            speed = (last.images - first) / (now - start)
            bar.update(task, completed=last.images, speed=speed, loss=last.loss, gap=last.gap)
            if now - saved > save_every:
                save_state(state_file, last.state())
                saved = time.monotonic()
        if last is None:
            raise ValueError(f"the run in {out} is already complete; ask for more images to go on")
        save_state(state_file, last.state())
        save(last.ema, out / "model")
        entries |= {"steps": last.step, "images": last.images, "images_per_second": round(speed, 1), "loss": last.loss}
    return last.ema


def fast_precision() -> str:
    """bfloat16 where the hardware computes it, else float32."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "no"
