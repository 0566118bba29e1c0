"""Recipes: plain functions that return keyword arguments for tune()."""

from __future__ import annotations

from typing import Any

from .images.denoiser import EDM, VP, NetworkDenoiser
from .images.loss import MeanSquare, OutputScale
from .images.noise import FullGap, LogNormal
from .images.tune import Adam, Cosine


def diffusion(*, images: int, batch: int, rate: float = 1e-3, ema_decay: float = 0.999, seed: int = 0) -> dict[str, Any]:
    """Trains a diffusion model: the same loss with the gap held open, the network's own error as weight."""
    return {
        "images": images,
        "batch": batch,
        "noise": LogNormal(P_mean=-0.6, P_std=1.6),
        "gap": FullGap(),
        "distance": MeanSquare(),
        "weight": OutputScale(1.0),
        "rate": Cosine(rate, warmup=100),
        "optimizer": Adam(betas=(0.9, 0.99)),
        "ema_decay": ema_decay,
        "max_grad_norm": 1.0,
        "seed": seed,
    }


def new_denoiser(channels: int, size: int, widths: tuple[int, ...], parametrisation: str) -> NetworkDenoiser:
    """An untrained stock UNet2DModel with attention at its lowest resolution, small enough for a CPU.

    `vp` predicts v on a schedule whose noise at the middle timestep is σ = 1.77: there a stock two-step pipeline denoises
    the second time. `edm` takes diffusers' consistency time, 250·ln σ.
    """
    from diffusers import DDPMScheduler, UNet2DModel

    levels = len(widths)
    if size % 2 ** (levels - 1):
        raise ValueError(f"{levels} widths halve the image {levels - 1} times, but {size} pixels do not divide so often")
    network = UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=widths,
        down_block_types=("DownBlock2D",) * (levels - 1) + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
        norm_num_groups=8,
        attention_head_dim=32,
    )
    if parametrisation == "edm":
        return EDM(network)
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=1e-4, beta_end=0.027, prediction_type="v_prediction", clip_sample=False
    )
    return VP(network, scheduler)
