"""Schedules against diffusers' own tables and against closed forms."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from conftest import tiny
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SCMScheduler,
    ScoreSdeVeScheduler,
)

from fewstep.core.seeds import generators, normal
from fewstep.diffusion.denoiser import Denoiser, discrete_vp, vp
from fewstep.diffusion.formats import schedulers
from fewstep.diffusion.prediction import Trigonometric, unit_score
from fewstep.diffusion.schedule import PURE_NOISE, DiscreteVP, Exploding, Karras, Rectified, TrigFlow
from fewstep.diffusion.walk import Segments, sample

BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace")


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("timesteps", [2, 10, 100, 1000, 4000])
@pytest.mark.parametrize("betas", BETAS)
def test_every_level_of_every_schedule_of_diffusers(betas: str, timesteps: int, rescale: bool) -> None:
    """The scheduler's own levels, strictly rising, the last timestep reached."""
    scheduler = DDPMScheduler(timesteps, beta_schedule=betas, rescale_betas_zero_snr=rescale)
    schedule = discrete_vp(scheduler.config)
    alphas = scheduler.alphas_cumprod.double()
    theirs = ((1 - alphas) / alphas).sqrt()
    ours = schedule.ln_sigmas.exp()
    torch.testing.assert_close(ours[:-1], theirs[:-1], rtol=1e-12, atol=0)
    assert (ours[1:] > ours[:-1]).all()
    assert schedule.ends_in_pure_noise == rescale
    if rescale:
        assert schedule.sigma_max >= PURE_NOISE
    else:
        assert schedule.sigma_max == pytest.approx(float(theirs[-1]), rel=1e-12)
    torch.testing.assert_close(schedule.time(ours), torch.arange(timesteps, dtype=torch.float64), rtol=0, atol=1e-6)


def test_the_cosine_schedule_reaches_its_end() -> None:
    """squaredcos_cap_v2 over 1000 timesteps ends at σ = 20,291, where ᾱ is 2.4e-9."""
    assert DiscreteVP(beta_schedule="squaredcos_cap_v2").sigma_max == pytest.approx(20291, abs=1)


def test_time_is_a_fraction_between_timesteps() -> None:
    schedule = DiscreteVP()
    between = schedule.ln_sigmas[[10, 11]].mean().exp()
    torch.testing.assert_close(schedule.time(between[None]), torch.tensor([10.5], dtype=torch.float64))


@pytest.mark.parametrize(
    ("settings", "prediction"),
    [
        ({"beta_schedule": "squaredcos_cap_v2"}, "epsilon"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "v_prediction"),
        ({"rescale_betas_zero_snr": True}, "v_prediction"),
        ({"beta_schedule": "scaled_linear"}, "epsilon"),
    ],
)
def test_the_stock_ddim_walk_on_schedules_that_end_in_noise(settings, prediction: str) -> None:
    """Step for step in float64, from the same noise: as diffusers computes in variance-preserving coordinates."""
    network = tiny().network.double()
    config = DDPMScheduler(prediction_type=prediction, clip_sample=False, **settings).config
    stock = DDIMScheduler.from_config(config, timestep_spacing="trailing", set_alpha_to_one=True)
    stock.set_timesteps(4)
    z = normal(generators(range(2)), (1, 8, 8)).double()
    with torch.no_grad():
        for timestep in stock.timesteps:
            z = stock.step(network(z, timestep).sample, timestep, z).prev_sample
    ours = sample(vp(network, DDPMScheduler.from_config(config)), range(2), Segments(4))
    torch.testing.assert_close(ours.double(), z, rtol=1e-5, atol=1e-5 * float(z.abs().max()))


def test_noise_cannot_be_predicted_where_there_is_nothing_else() -> None:
    with pytest.raises(ValueError, match="ends in pure noise"):
        vp(tiny().network, DDPMScheduler(rescale_betas_zero_snr=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_train_timesteps": 1}, "at least two timesteps"),
        ({"beta_schedule": "mystery"}, "cannot make the noise schedule"),
        ({"num_train_timesteps": 3, "trained_betas": (0.1, 0.0, 0.1)}, "do not rise"),
        ({"num_train_timesteps": 2, "trained_betas": (0.1, math.nan)}, "do not rise"),
        ({"trained_betas": (0.1, 0.2)}, "2 trained_betas for 1000"),
        ({"beta_start": -0.5}, "do not rise"),
    ],
)
def test_impossible_schedules_are_refused(settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiscreteVP(**settings)


@pytest.mark.parametrize(("low", "high"), [(0.0, 60.0), (-1.0, 60.0), (80.0, 180.0), (50.0, 40.0), (math.nan, 60.0)])
def test_noise_that_explodes_begins_above_nothing_and_ends_above_that(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="sigma_min"):
        Exploding(low, high)


def test_a_shifted_flow_has_the_levels_of_its_scheduler() -> None:
    """The levels between are those of diffusers' flow scheduler, whose own u = 1 is infinitely far away here."""
    for shift in (1.0, 3.0):
        stock = FlowMatchEulerDiscreteScheduler(shift=shift)
        stock.set_timesteps(sigmas=list(np.linspace(1, 1 / 4, 4)))
        grid = Rectified(shift=shift, sigma_max=1e9).grid(4)
        torch.testing.assert_close((grid / (1 + grid)).float(), stock.sigmas[:4], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "schedule",
    [DiscreteVP(), DiscreteVP(beta_schedule="squaredcos_cap_v2"), Karras(), Karras(time_scale=0.25), Rectified(3.0)],
)
def test_prior_and_scale_make_the_network_see_unit_variance_at_the_top(schedule) -> None:
    """On data of the schedule's own deviation, what the network sees at sigma_max has variance 1."""
    sigma = torch.tensor([schedule.sigma_max], dtype=torch.float64)
    seen = float(schedule.scale(sigma)) * (schedule.sigma_data**2 + schedule.sigma_max**2) ** 0.5
    expected = 1.0 if not isinstance(schedule, Rectified) else (1 + sigma.item() ** 2) ** 0.5 / (1 + sigma.item())
    assert seen == pytest.approx(expected, rel=1e-9)


def test_trigflow_walks_the_times_of_its_scheduler() -> None:
    stock, schedule = SCMScheduler(), TrigFlow(sigma_max=40.0)
    stock.set_timesteps(4, max_timesteps=math.atan(80.0), intermediate_timesteps=None)
    torch.testing.assert_close(schedule.time(schedule.grid(4)).float(), stock.timesteps[:4])
    torch.testing.assert_close(schedule.consistency_grid(2, 0.8, 0.0), torch.tensor([40.0, 0.8], dtype=torch.float64))


@pytest.mark.parametrize("schedule", [TrigFlow(), Exploding()])
@pytest.mark.parametrize("middle", [-1.0, 0.0, 81.0, 1e4, math.nan])
def test_a_middle_level_that_is_none(schedule, middle: float) -> None:
    with pytest.raises(ValueError, match="must lie between 0 and 80"):
        schedule.consistency_grid(2, middle, 0.0)
    third = float(schedule.grid(3)[2])
    assert schedule.consistency_grid(3, third * 1.01, 0.0).diff().lt(0).all()
    with pytest.raises(ValueError, match=f"between {third:.3g} and 80"):
        schedule.consistency_grid(3, third * 0.99, 0.0)


def test_exploding_levels_are_those_of_its_scheduler() -> None:
    """What the pipeline tells the network at the first 8 of 9 steps, of which the last would be at sigma_min."""
    stock = ScoreSdeVeScheduler(9, sigma_max=30.0, sampling_eps=0.0)
    schedule = Exploding(0.02, 60.0)
    torch.testing.assert_close(schedule.time(schedule.grid(8)).float(), stock.sigmas[:8], rtol=1e-5, atol=0)


@pytest.mark.parametrize("parametrisation", ["vp", "edm", "trigflow", "exploding"])
def test_scheduler_configurations_both_ways(parametrisation: str) -> None:
    trigflow = Denoiser(tiny("edm").network, TrigFlow(0.7, sigma_max=50.0), Trigonometric(0.7))
    exploding = Denoiser(tiny("edm").network, Exploding(0.04, 180.0), unit_score)
    of = {"trigflow": trigflow, "exploding": exploding}
    denoiser = of[parametrisation] if parametrisation in of else tiny(parametrisation)
    config = json.loads(schedulers.write(denoiser).to_json_string())
    assert schedulers.read(config) == (denoiser.schedule, denoiser.prediction)


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_levels_of_a_flow_scheduler_that_is_told_none(steps: int, shift: float) -> None:
    """Set up by a number of steps alone, and made to end where the even levels do, it has the stretched ones."""
    schedule = Rectified(shift=shift, sigma_max=PURE_NOISE, stretched=True)
    even = Rectified(shift=shift, sigma_max=PURE_NOISE).grid(steps)
    last = float(even[-1] / (1 + even[-1]))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift, shift_terminal=last if steps > 1 else None)
    scheduler.set_timesteps(steps)
    ours = schedule.grid(steps)
    torch.testing.assert_close((ours / (1 + ours)).float(), scheduler.sigmas[:-1], rtol=0, atol=2e-6)
    torch.testing.assert_close(ours[[0, -1]], even[[0, -1]], rtol=1e-9, atol=0)
