"""Every parametrisation of the exact Gaussian denoiser must come out as that denoiser."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny
from diffusers import DDIMScheduler, DDPMScheduler, ScoreSdeVeScheduler
from oracle import GaussianOracle, OracleNetwork

from fewstep.diffusion.cond import labelled
from fewstep.diffusion.denoiser import Denoiser, Guided, edm, flow, vp
from fewstep.diffusion.prediction import Trigonometric, unit_score
from fewstep.diffusion.schedule import DiscreteVP, Exploding, TrigFlow


def vp_oracle(prediction: str) -> Denoiser:
    scheduler = DDPMScheduler(prediction_type=prediction)
    table = DiscreteVP().ln_sigmas

    def to_sigma(time):
        below = time.long().clamp(max=len(table) - 2)
        return (table[below] + (time - below) * (table[below + 1] - table[below])).exp()

    outputs = {
        "epsilon": lambda x, x0, s: (x - x0) / s,
        "v_prediction": lambda x, x0, s: (x - x0) / s / (1 + s**2).sqrt() - x0 * s / (1 + s**2).sqrt(),
        "sample": lambda x, x0, s: x0,
    }
    return vp(OracleNetwork(to_sigma, lambda z, s: z * (1 + s**2).sqrt(), outputs[prediction]), scheduler)


def edm_oracle(time_scale: float = 250.0) -> Denoiser:
    def output(x, x0, s):
        c_skip, c_out = 0.25 / (s**2 + 0.25), s * 0.5 / (s**2 + 0.25).sqrt()
        return (x0 - c_skip * x) / c_out

    network = OracleNetwork(lambda time: (time / time_scale).exp(), lambda z, s: z * (s**2 + 0.25).sqrt(), output)
    return edm(network, time_scale=time_scale)


def flow_oracle() -> Denoiser:
    def to_sigma(time):
        return (time / 1000) / (1 - time / 1000)

    return flow(OracleNetwork(to_sigma, lambda z, s: z * (1 + s), lambda x, x0, s: (x - x0) / s - x0))


def trigflow_oracle() -> Denoiser:
    """F = z·cos t − x0/sd·sin t in units of sd, where x_t/sd = cos t·x0/sd + sin t·z."""

    def output(x, x0, s):
        t = (s / 0.5).atan()
        return t.cos() * (x - x0) / s - t.sin() * x0 / 0.5

    network = OracleNetwork(lambda time: 0.5 * time.tan(), lambda z, s: z * (s**2 + 0.25).sqrt(), output)
    return Denoiser(network, TrigFlow(), Trigonometric())


def exploding_oracle() -> Denoiser:
    """The score of the pictures from 0 to 1, whose mean is (.3 + 1)/2 and whose deviation is half of .5, in closed form."""

    def output(x, x0, s):
        return -((x + 1) / 2 - 0.65) / (0.25**2 + (s / 2) ** 2)

    network = OracleNetwork(lambda time: 2 * time, lambda y, s: 2 * y - 1, output)
    return Denoiser(network, Exploding(), unit_score)


ORACLES = {
    "epsilon": lambda: vp_oracle("epsilon"),
    "v_prediction": lambda: vp_oracle("v_prediction"),
    "sample": lambda: vp_oracle("sample"),
    "edm": edm_oracle,
    "edm, its own time": lambda: edm_oracle(0.25),
    "flow": flow_oracle,
    "trigflow": trigflow_oracle,
    "exploding": exploding_oracle,
}


@pytest.mark.parametrize("kind", ORACLES)
def test_exact_network_gives_exact_denoiser(kind: str) -> None:
    sigma = torch.tensor([0.02, 0.3, 1.0, 7.0, 70.0], dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64) * (sigma + 1)[:, None, None]
    torch.testing.assert_close(ORACLES[kind]()(x, sigma), GaussianOracle()(x, sigma), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("parametrisation", ["vp", "edm"])
def test_identity_at_zero_noise(parametrisation: str) -> None:
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(tiny(parametrisation)(x, torch.zeros(4)), x, rtol=0, atol=0)


def test_identity_at_zero_noise_for_flow() -> None:
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(flow(tiny().network)(x, torch.zeros(4)), x, rtol=0, atol=0)


def test_exploding_is_the_step_of_its_scheduler_and_the_identity_at_zero_noise() -> None:
    """With f, the predictor's mean y + (σ² − σ'²)·score is the posterior mean x + (1 − σ'²/σ²)·(f − x)."""
    scheduler, denoiser = ScoreSdeVeScheduler(20, sigma_max=50.0), exploding_oracle()
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    for k in (19, 7):
        sigma, below = scheduler.discrete_sigmas[[k, k - 1]].double() * 2
        noisy = x + sigma * torch.randn_like(x)
        output = denoiser.network((noisy + 1) / 2, (sigma / 2).expand(4))
        mean = scheduler.step_pred(output, (k + 0.5) / 19 if k < 19 else 1.0, (noisy + 1) / 2).prev_sample_mean
        ours = noisy + (1 - (below / sigma) ** 2) * (denoiser(noisy, sigma.expand(4)) - noisy)
        torch.testing.assert_close(2 * mean - 1, ours, rtol=1e-6, atol=1e-6)
    assert torch.equal(denoiser(x, torch.zeros(4, dtype=torch.float64)), x)


def test_edm_offset_moves_the_identity() -> None:
    denoiser = edm(tiny("edm").network, offset=0.002)
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(denoiser(x, torch.full((4,), 0.002)), x)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_vp_agrees_with_diffusers_scheduler(prediction: str) -> None:
    """The x0 that diffusers' own DDIM scheduler derives from the same network output, at every kind of timestep."""
    network = tiny().network
    scheduler = DDIMScheduler(prediction_type=prediction, clip_sample=False)
    scheduler.set_timesteps(1000)
    denoiser = vp(network, DDPMScheduler(prediction_type=prediction))
    for timestep in (0, 1, 499, 999):
        z = torch.randn(2, 1, 8, 8)  # diffusers' variance-preserving state
        alpha_bar = scheduler.alphas_cumprod[timestep].double()
        sigma = ((1 - alpha_bar) / alpha_bar).sqrt()
        with torch.no_grad():
            expected = scheduler.step(network(z, timestep).sample, timestep, z).pred_original_sample
            x0 = denoiser((z / alpha_bar.sqrt()).float(), sigma.float().expand(2))
        torch.testing.assert_close(x0, expected, rtol=1e-4, atol=2e-4 * float(sigma.clamp(min=1)))


def test_learned_variance_is_dropped() -> None:
    class Doubled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Conv2d(1, 2, 1)

        def forward(self, x, time):
            return self.inner(x)

    assert vp(Doubled(), DDPMScheduler())(torch.randn(2, 1, 4, 4), torch.ones(2)).shape == (2, 1, 4, 4)


def test_unknown_prediction_is_refused() -> None:
    scheduler = DDPMScheduler()
    scheduler.register_to_config(prediction_type="score")
    with pytest.raises(ValueError, match="score"):
        vp(torch.nn.Identity(), scheduler)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_guidance_is_a_number(scale: float) -> None:
    with pytest.raises(ValueError, match="guidance scale must be finite"):
        Guided(tiny(classes=3), scale, labelled(torch.tensor([2])))
