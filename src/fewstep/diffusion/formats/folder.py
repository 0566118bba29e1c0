"""diffusers folders in and out: load() gives a denoiser, save() a folder that stock pipelines open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...core.files import atomic_folder
from ...core.source import folder_of, read_json
from ..denoiser import EDM, VP, Flow, NetworkDenoiser
from .network import read_network
from .parts import network_part, part_folder
from .trained import scheduler_config

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

NOTE = "fewstep.json"
MOST_SEGMENTS = 100_000  # no schedule has more timesteps
NO_OFFSET = 1e-6  # the consistency scheduler needs a positive sigma_min; this one stands for "f is the identity at 0"


def load(source: str | Path) -> NetworkDenoiser:
    """The denoiser in a diffusers folder or hub repository that holds a UNet2DModel or DiTTransformer2DModel.

    The scheduler's configuration says which parametrisation it is. Weights come from safetensors or from plain tensors in
    a .bin file; no code of the checkpoint runs.

    Args:
        source: a folder, the id of a hub repository, or "bundled" for the small model that comes with the package.

    Returns:
        The denoiser in float32, on the CPU, in evaluation mode.

    Raises:
        ValueError: nothing there, or not such a checkpoint.
    """
    folder = _folder(source)
    network = read_network(part_folder(folder, network_part(folder)))
    return wrap(network, scheduler_config(part_folder(folder, "scheduler"))).eval()


def _folder(source: str | Path) -> Path:
    return folder_of(source, "diffusers folder", bundled="teacher", pickles=True)


def wrap(network: torch.nn.Module, scheduler: dict[str, Any]) -> NetworkDenoiser:
    """The denoiser that `network` is, if it was trained as the diffusers scheduler configuration says."""
    from diffusers import DDPMScheduler

    kind = scheduler.get("_class_name", "")
    if kind == "CMStochasticIterativeScheduler":
        offset = scheduler["sigma_min"] if scheduler["sigma_min"] > NO_OFFSET else 0.0
        return EDM(network, sigma_data=scheduler["sigma_data"], sigma_max=scheduler["sigma_max"], offset=offset)
    if kind.startswith("EDM"):
        if scheduler.get("prediction_type", "epsilon") != "epsilon":
            raise ValueError(f"an {kind} with prediction_type {scheduler['prediction_type']} is not known, only epsilon")
        return EDM(network, sigma_data=scheduler["sigma_data"], sigma_max=scheduler["sigma_max"], time_scale=0.25)
    if kind.startswith("FlowMatch"):
        own = {"sigma_max": scheduler["sigma_max"]} if "sigma_max" in scheduler else {}  # diffusers has no such setting
        return Flow(network, time_scale=float(scheduler.get("num_train_timesteps", 1000)), **own)
    if "beta_schedule" in scheduler:
        keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
                "rescale_betas_zero_snr")  # fmt: skip
        known = {key: scheduler[key] for key in keys if scheduler.get(key) is not None}
        return VP(network, DDPMScheduler(**known, clip_sample=False))
    raise ValueError(f"the scheduler {kind or 'without a name'} does not say how the network was trained")


def save(denoiser: NetworkDenoiser, folder: str | Path, *, segments: int | None = None) -> None:
    """Writes the stock diffusers pipeline of `denoiser` to `folder`, atomically; `load` reads it back.

    Args:
        denoiser: what to save.
        folder: where to.
        segments: that a student was tuned with, which `segments_of` reads back; None for a diffusion model.
    """
    with atomic_folder(Path(folder)) as temporary:
        diffusion_pipeline(denoiser).save_pretrained(temporary)
        if segments is not None:
            write_segments(temporary, segments)


def write_segments(folder: Path, segments: int) -> None:
    """Notes in a student's folder how many segments it has; stock diffusers does not mind the file."""
    (folder / NOTE).write_text(json.dumps({"segments": segments}) + "\n")


def segments_of(source: str | Path) -> int | None:
    """How many segments the student in `source` was tuned with; None if it is a diffusion model, or not of our making."""
    note = _folder(source) / NOTE
    if not note.is_file():
        return None
    segments = read_json(note, "it says how many segments the student has").get("segments")
    if isinstance(segments, bool) or not isinstance(segments, int) or not 1 <= segments <= MOST_SEGMENTS:
        raise ValueError(f"{note} does not say how many segments the student has: {segments!r:.80}")
    return segments


def diffusion_pipeline(denoiser: NetworkDenoiser) -> DiffusionPipeline:
    """A pipeline that says all of `denoiser`; stock diffusers samples it in many steps if it is a VP UNet2DModel.

    EDM comes as the few-step pipeline, as diffusers has no other. What no pipeline samples (EDM's own time, flow matching
    in pixels, DiTs without their decoder) is kept as its parts.
    """
    from diffusers import DDPMPipeline, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

    if isinstance(denoiser, VP):
        return DDPMPipeline(unet=denoiser.network, scheduler=denoiser.scheduler)
    if isinstance(denoiser, Flow):
        flow = FlowMatchEulerDiscreteScheduler(num_train_timesteps=int(denoiser.time_scale))
        flow.register_to_config(sigma_max=denoiser.sigma_max)
        return DDPMPipeline(unet=denoiser.network, scheduler=flow)
    assert isinstance(denoiser, EDM)
    if denoiser.time_scale == 0.25:
        edm = EDMEulerScheduler(sigma_max=denoiser.sigma_max, sigma_data=denoiser.sigma_data)
        return DDPMPipeline(unet=denoiser.network, scheduler=edm)
    if type(denoiser.network).__name__ != "UNet2DModel":
        return DDPMPipeline(unet=denoiser.network, scheduler=_few_step_scheduler(denoiser, None))
    return few_step_pipeline(denoiser)


def few_step_pipeline(denoiser: NetworkDenoiser, middle: float | None = None) -> DiffusionPipeline:
    """The stock pipeline that samples `denoiser` as a consistency function, on the noise levels of `few_step_grid`.

    Args:
        denoiser: a VP (unconditional) or EDM student around a UNet2DModel.
        middle: see `few_step_grid`.

    Raises:
        ValueError: there is no stock pipeline for it.
    """
    from diffusers import ConsistencyModelPipeline, DDPMPipeline

    network = denoiser.network
    if type(network).__name__ != "UNet2DModel":
        raise ValueError(
            f"no stock pipeline samples a {type(network).__name__} in few steps with reproducible noise; "
            "sample it with fewstep"
        )
    if isinstance(denoiser, VP):
        if denoiser.conditional:
            raise ValueError("DDPMPipeline passes no classes to the network, so a conditional VP student has no pipeline")
        return DDPMPipeline(unet=network, scheduler=_few_step_scheduler(denoiser, middle))
    if isinstance(denoiser, EDM):
        if denoiser.time_scale != 250:
            raise ValueError("this network was trained with EDM's own time, ln σ/4; stock pipelines give it 250·ln σ")
        return ConsistencyModelPipeline(unet=network, scheduler=_few_step_scheduler(denoiser, middle))
    raise ValueError(f"there is no stock few-step pipeline for a {type(denoiser).__name__} denoiser of a UNet2DModel")


def multistep_pipeline(denoiser: NetworkDenoiser, segments: int) -> DiffusionPipeline:
    """The stock pipeline that walks `denoiser.grid(segments)` with DDIM: a multistep consistency model's sampler.

    A DDIMPipeline where the segments divide the schedule's timesteps. Where they do not, DDIMScheduler goes to a level
    beside the one where it calls the network next, so the same step is taken by the first-order DPM solver.

    Raises:
        ValueError: there is no stock pipeline for it.
    """
    from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DPMSolverMultistepScheduler

    if not isinstance(denoiser, VP) or type(denoiser.network).__name__ != "UNet2DModel" or denoiser.conditional:
        raise ValueError(
            "only unconditional VP checkpoints of a UNet2DModel have a stock pipeline for several segments; "
            "sample this one with fewstep"
        )
    config = denoiser.scheduler.config
    if config.num_train_timesteps % segments == 0:
        ddim = DDIMScheduler.from_config(config, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True)
        return DDIMPipeline(unet=denoiser.network, scheduler=ddim)
    solver = DPMSolverMultistepScheduler.from_config(
        config, timestep_spacing="trailing", solver_order=1, algorithm_type="dpmsolver++", final_sigmas_type="zero"
    )
    return DDPMPipeline(unet=denoiser.network, scheduler=solver)


def few_step_grid(denoiser: NetworkDenoiser, steps: int, middle: float | None = None) -> Tensor:
    """The noise levels (steps,), float64, that the stock few-step pipeline visits: what is measured is what is exported.

    Args:
        denoiser: the student. Flow students have no stock pipeline; theirs are evenly spaced in u = σ/(1 + σ).
        steps: how many.
        middle: noise level of the second of two steps. For EDM any (default .821, published for CIFAR-10); a VP pipeline
            takes the middle timestep, whatever its noise is.
    """
    if steps < 1:
        raise ValueError(f"a sample takes at least one network call, got steps = {steps}")
    if isinstance(denoiser, Flow):
        return denoiser.grid(steps)
    scheduler = _few_step_scheduler(denoiser, middle)
    scheduler.set_timesteps(steps)
    if isinstance(denoiser, VP):
        return denoiser.ln_sigmas.cpu()[scheduler.timesteps].exp()
    sigmas: Tensor = scheduler.sigmas
    return sigmas[:steps].double()


def _few_step_scheduler(denoiser: NetworkDenoiser, middle: float | None) -> Any:
    from diffusers import CMStochasticIterativeScheduler, LCMScheduler

    if isinstance(denoiser, VP):
        if middle is not None:
            raise ValueError("a VP student's second step starts at its middle timestep; leave `middle` out")
        timesteps = denoiser.scheduler.config.num_train_timesteps
        # original_inference_steps = T makes the pipeline's n timesteps T − 1 − floor(i·T/n)
        return LCMScheduler.from_config(
            denoiser.scheduler.config, original_inference_steps=timesteps, clip_sample=False, timestep_spacing="leading"
        )
    assert isinstance(denoiser, EDM)
    sigma_min, middle = denoiser.offset or NO_OFFSET, 0.821 if middle is None else middle
    return CMStochasticIterativeScheduler(
        sigma_min=sigma_min, sigma_max=denoiser.sigma_max, sigma_data=denoiser.sigma_data, clip_denoised=False,
        rho=_rho(middle, sigma_min, denoiser.sigma_max),
    )  # fmt: skip


def _rho(middle: float, sigma_min: float, sigma_max: float, timesteps: int = 40) -> float:
    """The rho with which the Karras ramp of the consistency scheduler has its second of two steps at `middle`."""
    from scipy.optimize import brentq

    ramp = (timesteps // 2) / (timesteps - 1)

    def sigma(rho: float) -> float:
        return float((sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho)

    lowest, highest = sigma(100.0), sigma(1.0)
    if not lowest < middle < highest:
        raise ValueError(f"the middle noise level must lie between {lowest:.3g} and {highest:.3g}, got {middle}")
    return float(brentq(lambda rho: sigma(rho) - middle, 1.0, 100.0, xtol=1e-12))
