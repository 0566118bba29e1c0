"""The stock diffusers pipelines that sample a student: which one, and how it must be set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..denoiser import Denoiser
from ..lora import fused, is_adapted
from ..schedule import DiscreteVP, Karras
from ..two_times import TwoTimes, baked
from ..walk import Consistency, Segments, Walk
from . import schedulers

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def stock_pipeline(denoiser: Denoiser, walk: Walk) -> DiffusionPipeline:
    """The stock pipeline that takes `denoiser` along `walk`: the same levels, the same noise from the same seeds.

    A student that is told where its segments end becomes a plain one for this walk, and a LoRA is fused with its base.

    Raises:
        ValueError: there is none, and why; a sentence for before the tuning.
    """
    if is_adapted(denoiser.network):
        denoiser = fused(denoiser)
    kind = type(denoiser.network).__name__
    if kind != "UNet2DModel":
        raise ValueError(f"no stock pipeline samples a {kind} in few steps with reproducible noise; sample it with fewstep")
    if isinstance(walk, Segments):
        return _multistep(baked(denoiser, walk.levels(denoiser)) if isinstance(denoiser, TwoTimes) else denoiser, walk)
    if not isinstance(walk, Consistency):
        raise ValueError(f"only few-step generators are exported, and {walk} samples a diffusion model")
    if isinstance(denoiser.schedule, DiscreteVP):
        return _vp(denoiser, denoiser.schedule)
    if isinstance(denoiser.schedule, Karras):
        return _edm(denoiser, denoiser.schedule, walk)
    raise ValueError(
        f"there is no stock few-step pipeline for a UNet2DModel on the {type(denoiser.schedule).__name__} schedule"
    )


def _vp(denoiser: Denoiser, schedule: DiscreteVP) -> DiffusionPipeline:
    from diffusers import DDPMPipeline, LCMScheduler

    _unconditional(denoiser, "DDPMPipeline")
    # original_inference_steps = T makes the pipeline's n timesteps T − 1 − floor(i·T/n); f has a skip connection of its
    # own, so LCM's is shut by a large timestep_scaling, at every timestep but 0
    lcm = LCMScheduler.from_config(
        schedulers.vp_config(denoiser, schedule), original_inference_steps=schedule.num_train_timesteps,
        clip_sample=False, timestep_spacing="leading", timestep_scaling=1e6,
    )  # fmt: skip
    return DDPMPipeline(unet=denoiser.network, scheduler=lcm)


def _edm(denoiser: Denoiser, schedule: Karras, walk: Consistency) -> DiffusionPipeline:
    from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline

    if schedule.time_scale != 250:
        raise ValueError(
            "this network was trained with EDM's own time, ln σ/4, and stock pipelines give it 250·ln σ; import an ADM "
            "network with --consistency-time and tune that"
        )
    settings = schedule.consistency_settings(walk.middle, denoiser.identity)
    return ConsistencyModelPipeline(unet=denoiser.network, scheduler=CMStochasticIterativeScheduler(**settings))


def _multistep(denoiser: Denoiser, walk: Segments) -> DiffusionPipeline:
    """A DDIMPipeline where the segments divide the schedule's timesteps.

    Where they do not, DDIMScheduler goes to a level beside the one where it calls the network next, so the same step is
    taken by the first-order DPM solver.
    """
    from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DPMSolverMultistepScheduler

    if not isinstance(denoiser.schedule, DiscreteVP):
        raise ValueError(
            "only VP checkpoints of a UNet2DModel have a stock pipeline for several segments; sample this one with fewstep"
        )
    _unconditional(denoiser, "DDIMPipeline")
    config = schedulers.vp_config(denoiser, denoiser.schedule)
    if denoiser.schedule.num_train_timesteps % walk.steps == 0:
        ddim = DDIMScheduler.from_config(config, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True)
        return DDIMPipeline(unet=denoiser.network, scheduler=ddim)
    if denoiser.schedule.ends_in_pure_noise:
        raise ValueError(
            f"{walk.steps} segments do not divide {denoiser.schedule.num_train_timesteps} timesteps, and no stock solver "
            "starts such steps from pure noise (rescale_betas_zero_snr); choose a number of segments that divides them"
        )
    solver = DPMSolverMultistepScheduler.from_config(
        config, timestep_spacing="trailing", solver_order=1, algorithm_type="dpmsolver++", final_sigmas_type="zero"
    )
    return DDPMPipeline(unet=denoiser.network, scheduler=solver)


def _unconditional(denoiser: Denoiser, pipeline: str) -> None:
    if denoiser.takes:
        raise ValueError(
            f"{pipeline} passes no {', '.join(denoiser.takes)} to the network, so this conditional student has no stock "
            "pipeline; sample it with fewstep"
        )
