"""Recipes: functions that return keyword arguments for `tune`. Also the small network that `fewstep train` builds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .average import Average, Exponential, PowerFunction
from .denoiser import Denoiser, edm, vp
from .loss import InverseGap, MeanSquare, OutputScale, PseudoHuber
from .noise import ECTGap, FullGap, Levels, LogNormal
from .optim import Adam, Constant, Cosine, Dropout, InverseSqrt, LearningRate, RAdam
from .two_times import GRIDS


def ect_cifar10(images: int = 12_800_000) -> dict[str, Any]:
    """Easy Consistency Tuning as published for CIFAR-10, 12.8 to 51.2 million images; the gap ends at Δt/t = 1/256.

    Reference: Geng et al. 2025, Consistency Models Made Easy.
    """
    return {
        "images": images,
        "batch": 128,
        "noise": LogNormal(P_mean=-1.1, P_std=2.0),
        "gap": ECTGap(q=2.0, stages=8),
        "distance": PseudoHuber(c=0.0),
        "weight": InverseGap(),
        "rate": Constant(1e-4),
        "optimizer": RAdam(),
        "average": Exponential(0.9999),
        "dropout": Dropout(0.2),
    }


def ect_one_hour(images: int = 1_024_000) -> dict[str, Any]:
    """The published "one A100-hour" recipe for CIFAR-10: the smallest gap from the start.

    Reference: Geng et al. 2025, Consistency Models Made Easy.
    """
    return ect_cifar10(images) | {"gap": ECTGap(q=256.0, stages=1), "average": Exponential(0.9993)}


def ect_imagenet64(images: int = 12_800_000) -> dict[str, Any]:
    """Easy Consistency Tuning as published for ImageNet-64 with EDM2 networks.

    Reference: Geng et al. 2025, Consistency Models Made Easy.
    """
    return {
        "images": images,
        "batch": 128,
        "noise": LogNormal(P_mean=-0.8, P_std=1.6),
        "gap": ECTGap(q=4.0, stages=4),
        "distance": PseudoHuber(c=0.06),
        "weight": OutputScale(0.5),
        "rate": InverseSqrt(1e-3, 2000),
        "optimizer": Adam(betas=(0.9, 0.99)),
        "average": PowerFunction(0.05),
        "dropout": Dropout(0.4, max_size=16),
    }


def ect_demo(images: int = 20_000) -> dict[str, Any]:
    """Minutes on a laptop: a coarse gap and much weight on high noise levels, for few images. See docs/log/tuning.md."""
    return {
        "images": images,
        "batch": 32,
        "noise": LogNormal(P_mean=0.4, P_std=1.7),
        "gap": ECTGap(q=8.0, stages=1),
        "distance": PseudoHuber(c=0.03),
        "weight": InverseGap(),
        "rate": Cosine(1e-3),
        "optimizer": RAdam(betas=(0.9, 0.99)),
        "average": Exponential(0.995),
    }


def any_step(images: int = 16_000) -> dict[str, Any]:
    """A student for any number of calls, in minutes on a laptop. It needs a teacher's hops and a `TwoTimes`.

    The weight is a compromise between few calls and many; see docs/log/any-step.md.
    """
    return ect_demo(images) | {
        "segments": GRIDS,
        "weight": InverseGap(power=0.5),
        "rate": Cosine(2e-3),
        "average": Exponential(0.99),
    }


def path_regression(levels: Sequence[float] = ()) -> dict[str, Any]:
    """Changes of a recipe for path regression: the student learns the end of a teacher's path from the points on it.

    Args:
        levels: noise levels of the points that are learned; without them all points are. See docs/log/multistep.md.

    Reference: consistency mid-training, arXiv 2509.24526.
    """
    only = {"noise": Levels(tuple(map(float, levels)))} if levels else {}
    return {"gap": FullGap(), "weight": InverseGap(power=0.0), **only}


RECIPES = {recipe.__name__: recipe for recipe in (any_step, ect_demo, ect_one_hour, ect_cifar10, ect_imagenet64)}


def rate_of(ours: Constant | Cosine | InverseSqrt, peak: float | None, warmup: int | None) -> LearningRate:
    """The recipe's learning rate with another peak and another warm-up, if given.

    Raises:
        ValueError: a warm-up is given, and the recipe's rate has none.
    """
    changed = ours if peak is None else replace(ours, rate=peak)
    if warmup is not None and isinstance(changed, Cosine):
        return replace(changed, warmup=warmup)
    if warmup is not None:
        raise ValueError("--warmup belongs to the cosine rates of ect_demo and any_step; leave it out for this recipe")
    return changed


def averages(decays: tuple[float, ...], ours: Average, *, afresh: bool) -> tuple[Average, ...]:
    """Averages with these decays, or the recipe's own; with a warm-up if the weights are new (`afresh`)."""
    chosen = tuple(map(Exponential, decays)) or (ours,)
    return tuple(replace(a, warmup=afresh) if isinstance(a, Exponential) else a for a in chosen)


def diffusion(images: int, *, batch: int = 64, rate: float = 1e-3) -> dict[str, Any]:
    """Training of a diffusion model from scratch: the same loss with r = 0, with the weight 1/c_out²."""
    return {
        "images": images,
        "batch": batch,
        "noise": LogNormal(P_mean=-0.6, P_std=1.6),
        "gap": FullGap(),
        "distance": MeanSquare(),
        "weight": OutputScale(1.0),
        "rate": Cosine(rate, warmup=100),
        "optimizer": Adam(betas=(0.9, 0.99)),
        "average": Exponential(0.999, warmup=True),
        "max_grad_norm": 1.0,
    }


def new_denoiser(
    channels: int, size: int, *, widths: tuple[int, ...] = (32, 48, 96), parametrisation: str = "vp", classes: int = 0
) -> Denoiser:
    """An untrained stock UNet2DModel with attention at its lowest resolution, small enough for a CPU by default.

    Args:
        channels, size: number of channels and side of the images.
        widths: channels of the network at each resolution, multiples of 8.
        parametrisation: `vp` predicts v. Its middle timestep, at which stock pipelines make the second of two steps, has
            σ = 1.78. `edm` is given the time of diffusers' consistency scheduler, 250·ln σ.
        classes: number of classes, 0 for an unconditional model.

    Raises:
        ValueError: the size cannot be halved often enough, or a width is no multiple of 8.
    """
    from diffusers import DDPMScheduler, UNet2DModel

    levels = len(widths)
    if size % 2 ** (levels - 1):
        raise ValueError(f"the size must be a multiple of {2 ** (levels - 1)} with {levels} widths, got {size}")
    if any(width < 8 or width % 8 for width in widths):
        raise ValueError(f"the widths must be multiples of 8, got {widths}")
    network = UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=widths,
        down_block_types=("DownBlock2D",) * (levels - 1) + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
        norm_num_groups=8,
        attention_head_dim=32 if widths[-1] % 32 == 0 else widths[-1],
        num_class_embeds=classes or None,
    )
    if parametrisation == "edm":
        return edm(network)
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=1e-4, beta_end=0.027, prediction_type="v_prediction", clip_sample=False
    )
    return vp(network, scheduler)
