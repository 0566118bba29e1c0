from __future__ import annotations

import gc
import weakref

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler
from tiny_pipelines import CALLS, FAMILIES
from torch import Tensor

from fewstep.core.seeds import generators, normal
from fewstep.diffusion import samplers
from fewstep.diffusion.calling import Calling
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.formats.folder import load, save
from fewstep.diffusion.model import Model
from fewstep.diffusion.schedule import PURE_NOISE, DiscreteVP, TrigFlow
from fewstep.diffusion.walk import Segments

PROMPTS = ["a red boot", "a small house beside a large tree"]
STEPS = 4
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries alone


def opened(folders, family: str) -> Model:
    return load(folders(family), call=CALLS.get(family, {}))


def asked(model: Model) -> list[str] | list[int]:
    return PROMPTS if model.pipeline.prompted else [3, 7]


def levels(model: Model) -> Tensor:
    """The noise levels of the pipeline's own scheduler as it was last set up."""
    scheduler, schedule = model.pipeline.stock.scheduler, model.denoiser.schedule
    if isinstance(schedule, DiscreteVP):
        return schedule.ln_sigmas[scheduler.timesteps.long()].exp()
    if isinstance(schedule, TrigFlow):
        return (scheduler.betas[:STEPS].double() / scheduler.alphas[:STEPS].double()).clamp(max=PURE_NOISE)
    u = scheduler.sigmas[:STEPS].double()
    return torch.where(u < 1, u / (1 - u), PURE_NOISE)


def whole(denoiser: Denoiser) -> Denoiser:
    """The same told its time without a fraction, as the scheduler would."""

    class Whole(Calling):
        def told(self, time: Tensor) -> Tensor:
            return super().told((time + 1e-6).floor())

    for part in (denoiser, getattr(denoiser, "denoiser", denoiser)):
        part.call = Whole(**vars(part.call))
    return denoiser


def begun(model: Model) -> Tensor:
    """The state at the first of these levels, of the noise that the pipeline begins with."""
    scheduler, shape, first = model.pipeline.stock.scheduler, model.denoiser.space.shape, levels(model)[0]
    noise = normal(generators([0, 1]), shape).double()
    if isinstance(scheduler, EulerDiscreteScheduler):
        return noise * float(scheduler.init_noise_sigma)
    return noise / model.denoiser.schedule.scale(first)


def walked(model: Model, denoiser: Denoiser, cond) -> Tensor:
    """By our loop on the scheduler's levels, which is DDIM or Euler; by the scheduler's own where it is of higher order."""
    x = begun(model)
    if isinstance(model.pipeline.stock.scheduler, DPMSolverMultistepScheduler | UniPCMultistepScheduler):
        denoiser = whole(denoiser)
    if not isinstance(denoiser.schedule, TrigFlow):
        return samplers.ddim(denoiser, x, levels(model), cond)
    scheduler = model.pipeline.stock.scheduler
    scheduler.set_timesteps(STEPS)
    z = x * denoiser.schedule.scale(levels(model)[0])
    for t, sigma in zip(scheduler.timesteps, levels(model), strict=True):
        s = sigma.expand(2)
        with torch.no_grad():
            x0 = denoiser(z * (1 + sigma**2) ** 0.5, s, cond)
        angle = sigma.atan()
        z = scheduler.step((angle.cos() * z - x0) / angle.sin(), t, z).prev_sample
    return z


@pytest.mark.parametrize("family", FAMILIES)
def test_our_sampler_on_what_was_recorded_is_the_stock_pipeline(folders, family: str) -> None:
    """Its latents from the same noise in four steps of its own scheduler, without guidance and with it."""
    model = opened(folders, family)
    pipeline = model.pipeline
    cond, null = pipeline.conditions(asked(model))
    model.denoiser.check(cond)
    theirs = pipeline.latents(asked(model), [0, 1], steps=STEPS)
    ours = walked(model, model.denoiser, cond)
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()
    assert theirs.shape[1:] == model.denoiser.space.shape and theirs.std() > 0.1
    if null is None:
        return
    guided = pipeline.latents(asked(model), [0, 1], steps=STEPS, guidance=3.0)
    ours = walked(model, pipeline.guided(model.denoiser, 3.0, null), cond)
    assert (ours - guided).abs().max() < 1e-4 * guided.abs().max()
    assert (guided - theirs).abs().max() > 1e-3 * theirs.abs().max(), "guidance does something"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_is_saved_as_its_whole_pipeline(folders, tmp_path, family: str) -> None:
    """With its network in the place of the teacher's; the folder reads back as the same model and is asked the same way."""
    model = opened(folders, family)
    with torch.no_grad():
        for weight in model.denoiser.network.parameters():
            weight.add_(0.01)
    save(Model(model.denoiser, Segments(2), pipeline=model.pipeline), tmp_path / "student")
    files = [file for file in (tmp_path / "student").rglob("*") if file.is_file()]
    assert all(file.stat().st_nlink == 1 and not file.is_symlink() for file in files)  # none is the teacher's as well
    back = load(tmp_path / "student")
    assert (back.walk, back.pipeline.call, back.denoiser.schedule) == (
        Segments(2), model.pipeline.call, model.denoiser.schedule,
    )  # fmt: skip
    cond, _ = back.pipeline.conditions(asked(back))
    assert back.denoiser.space == model.denoiser.space
    assert torch.equal(back.sample([0, 1], cond), model.sample([0, 1], cond, walk=Segments(2)))
    carried = {part.name for part in folders(family).iterdir()}
    assert carried | {"fewstep.json"} == {part.name for part in (tmp_path / "student").iterdir()}


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("audio_ldm", "dance_diffusion")])
def test_pictures_come_back_as_their_decoder_draws_them(folders, family: str) -> None:
    """Encoded, scaled and laid out, and back by the pipeline's own tail: what the autoencoder alone makes of them."""
    pipeline = opened(folders, family).pipeline
    coder = pipeline.stock.vqvae if family == "ldm" else pipeline.stock.vae
    pictures = torch.randint(0, 256, (2, *pipeline.shown), dtype=torch.uint8)
    x = pictures.float() / 127.5 - 1
    with torch.no_grad():
        code = coder.encode(x.unsqueeze(2) if family == "qwen_image" else x)
        latents = {"ldm": "latents", "sana": "latent"}.get(family)
        alone = coder.decode(getattr(code, latents) if latents else code.latent_dist.mode()).sample
    alone = ((alone.squeeze(2) if family == "qwen_image" else alone) / 2 + 0.5).clamp(0, 1) * 255
    back = pipeline.decode(pipeline.encode(pictures))
    assert (back - alone).abs().max() <= 0.51 and alone.std() > 1
    with pytest.raises(ValueError, match="encodes pictures of"):
        pipeline.encode(torch.zeros(1, 3, *(2 * side for side in pipeline.shown[1:]), dtype=torch.uint8))


@pytest.mark.parametrize("in_a_ring", [False, True])
def test_encoders_and_decoders_are_free_as_soon_as_they_are_let_go(folders, in_a_ring: bool) -> None:
    pipeline = opened(folders, "stable_diffusion").pipeline
    pipeline.stock.vae.rings = [pipeline.stock.vae] if in_a_ring else []
    weights = [weakref.ref(weight) for weight in pipeline.stock.vae.parameters()]
    gc.disable()  # it would come sooner or later
    try:
        pipeline.let_go()
        assert weights and all(weight() is None for weight in weights)
    finally:
        gc.enable()
    assert pipeline.stock.vae.config.latent_channels == 4
