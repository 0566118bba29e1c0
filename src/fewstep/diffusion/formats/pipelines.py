"""The stock diffusers pipelines and schedulers that sample a student, and their settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..denoiser import Denoiser
from ..lora import fused, is_adapted
from ..pipeline import Pipeline
from ..schedule import DiscreteVP, Karras, Rectified
from ..two_times import TwoTimes, baked
from ..walk import Consistency, Segments, Walk
from . import schedulers

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def stock_pipeline(denoiser: Denoiser, walk: Walk) -> DiffusionPipeline:
    """The stock pipeline that samples `denoiser` as `walk` does: at the same levels, with the same noise for each seed.

    A `TwoTimes` is baked for this walk, and a LoRA is fused with its base.

    Raises:
        ValueError: there is no such pipeline; the message says why.
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


def few_step_scheduler(denoiser: Denoiser, walk: Walk, pipeline: Pipeline) -> Any:
    """The stock scheduler with which `pipeline` samples the student as `walk` does.

    Raises:
        ValueError: there is no such scheduler; the message says why.
    """
    if not isinstance(walk, Consistency | Segments):
        raise ValueError(f"only few-step generators are exported, and {walk} samples a diffusion model")
    schedule = denoiser.schedule
    if isinstance(schedule, Rectified):
        return _flow(schedule, walk, pipeline)
    if not isinstance(schedule, DiscreteVP):
        raise ValueError(
            f"no stock scheduler takes few steps on the {type(schedule).__name__} schedule of this pipeline; sample the "
            "student with fewstep"
        )
    return _lcm(denoiser, schedule) if isinstance(walk, Consistency) else _first_order(denoiser, schedule, walk.steps)


def check_exportable(denoiser: Denoiser, walk: Walk, pipeline: Pipeline | None) -> None:
    """Raises ValueError if no stock pipeline samples the student as `walk` does."""
    if pipeline is None:
        stock_pipeline(denoiser, walk)
    else:
        few_step_scheduler(denoiser, walk, pipeline)


def plain(denoiser: Denoiser, walk: Walk) -> Denoiser:
    """The student for this walk in the checkpoint's architecture: a LoRA is fused, and a second time is baked."""
    denoiser = fused(denoiser) if is_adapted(denoiser.network) else denoiser
    return baked(denoiser, walk.levels(denoiser)) if isinstance(denoiser, TwoTimes) else denoiser


def _flow(schedule: Rectified, walk: Consistency | Segments, pipeline: Pipeline) -> Any:
    """Euler or LCM scheduler on the schedule's levels, if the pipeline gives its scheduler even levels or none."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler

    handed = pipeline.manner.sigmas
    if handed is not None and any(abs(u - 1 + k / len(handed)) > 1e-4 for k, u in enumerate(handed)):
        raise ValueError(
            "this pipeline gives its scheduler noise levels of its own, which no stock scheduler can replace; sample the "
            "student with fewstep"
        )
    last = float(schedule.grid(walk.steps)[-1])
    kind = FlowMatchLCMScheduler if isinstance(walk, Consistency) else FlowMatchEulerDiscreteScheduler
    return kind(
        num_train_timesteps=int(schedule.time_scale), shift=schedule.shift,
        shift_terminal=last / (1 + last) if schedule.stretched and walk.steps > 1 else None,
    )  # fmt: skip


def _vp(denoiser: Denoiser, schedule: DiscreteVP) -> DiffusionPipeline:
    from diffusers import DDPMPipeline

    _unconditional(denoiser, "DDPMPipeline")
    return DDPMPipeline(unet=denoiser.network, scheduler=_lcm(denoiser, schedule))


def _lcm(denoiser: Denoiser, schedule: DiscreteVP) -> Any:
    from diffusers import LCMScheduler

    # With original_inference_steps = T the pipeline's n timesteps are T − 1 − ⌊i·T/n⌋. f has its own skip connection, so a
    # large timestep_scaling disables that of LCM at every timestep but 0.
    return LCMScheduler.from_config(
        schedulers.vp_config(denoiser, schedule), original_inference_steps=schedule.num_train_timesteps,
        clip_sample=False, timestep_spacing="leading", timestep_scaling=1e6,
    )  # fmt: skip


def _edm(denoiser: Denoiser, schedule: Karras, walk: Consistency) -> DiffusionPipeline:
    from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline

    if schedule.time_scale != 250:
        raise ValueError(
            "this network has EDM's own time, ln σ/4, and stock pipelines give 250·ln σ; sample its student with fewstep, "
            "or import a file of EDM with --consistency-time and tune that"
        )
    settings = schedule.consistency_settings(walk.middle, denoiser.identity)
    return ConsistencyModelPipeline(unet=denoiser.network, scheduler=CMStochasticIterativeScheduler(**settings))


def _multistep(denoiser: Denoiser, walk: Segments) -> DiffusionPipeline:
    from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline

    if not isinstance(denoiser.schedule, DiscreteVP):
        raise ValueError(
            "only VP checkpoints of a UNet2DModel have a stock pipeline for several segments; sample this one with fewstep"
        )
    _unconditional(denoiser, "DDIMPipeline")
    scheduler = _first_order(denoiser, denoiser.schedule, walk.steps)
    kind = DDIMPipeline if isinstance(scheduler, DDIMScheduler) else DDPMPipeline
    return kind(unet=denoiser.network, scheduler=scheduler)


def _first_order(denoiser: Denoiser, schedule: DiscreteVP, steps: int) -> Any:
    """DDIM if the number of segments divides the number of timesteps, else the first-order DPM solver.

    If it does not, a step of DDIMScheduler ends at another level than that at which the next call begins.
    """
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    config = schedulers.vp_config(denoiser, schedule)
    if schedule.num_train_timesteps % steps == 0:
        return DDIMScheduler.from_config(config, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True)
    if schedule.ends_in_pure_noise:
        raise ValueError(
            f"{steps} segments do not divide {schedule.num_train_timesteps} timesteps, and no stock solver "
            "starts such steps from pure noise (rescale_betas_zero_snr); choose a number of segments that divides them"
        )
    return DPMSolverMultistepScheduler.from_config(
        config, timestep_spacing="trailing", solver_order=1, algorithm_type="dpmsolver++", final_sigmas_type="zero"
    )


def _unconditional(denoiser: Denoiser, pipeline: str) -> None:
    if denoiser.takes:
        raise ValueError(
            f"{pipeline} passes no {', '.join(denoiser.takes)} to the network, so this conditional student has no stock "
            "pipeline; sample it with fewstep"
        )
