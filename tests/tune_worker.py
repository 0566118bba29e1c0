"""A short run in processes of its own, for tests that kill or distribute it."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from conftest import noise_images, tiny

from fewstep.core.files import load_state, save_state
from fewstep.diffusion.data import Source
from fewstep.diffusion.noise import ECTGap
from fewstep.diffusion.optim import Adam, Constant
from fewstep.diffusion.tuning import tune


def main(folder: Path, data: Source | None = None) -> None:
    accelerator = Accelerator(cpu=True)
    state = folder / "state.pt"
    losses = []
    settings = {"images": 48, "batch": 8, "gap": ECTGap(q=4, stages=2), "rate": Constant(1e-3), "optimizer": Adam()}
    denoiser = tiny()
    saved = load_state(state) if state.exists() else None
    for step in tune(denoiser, data or noise_images(), accelerator=accelerator, state=saved, **settings):
        losses.append(step.loss)
        if accelerator.is_main_process:
            save_state(state, step.state())
    if accelerator.is_main_process:
        torch.save((losses, accelerator.num_processes), folder / "losses.pt")
        save_state(folder / "weights.pt", [p.detach() for p in denoiser.parameters()])
