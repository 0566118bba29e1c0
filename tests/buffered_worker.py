"""A run of two processes on a network with buffers, which one of them asks twice a step and the other once."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from conftest import noise_images, tiny
from torch import nn

from fewstep.diffusion.noise import ECTGap
from fewstep.diffusion.tuning import tune


def main(folder: Path) -> None:
    accelerator, denoiser = Accelerator(cpu=True), tiny()
    denoiser.network.conv_in = nn.Sequential(denoiser.network.conv_in, nn.BatchNorm2d(8))
    # to the end of a segment no second call is needed
    gap = ECTGap(q=256, stages=1) if accelerator.is_main_process else lambda t, progress: torch.zeros_like(t)
    losses = [step.loss for step in tune(denoiser, noise_images(), accelerator=accelerator, images=48, batch=8, gap=gap)]
    seen = int(denoiser.network.conv_in[1].num_batches_tracked)
    torch.save((losses, seen), folder / f"{accelerator.process_index}.pt")
