from __future__ import annotations

import pytest
import torch
from conftest import tiny
from diffusers import DDIMPipeline, DDIMScheduler
from oracle import GaussianOracle

from fewstep.core.nfe import count_nfe
from fewstep.core.seeds import generators, normal
from fewstep.diffusion.formats.folder import few_step_grid
from fewstep.diffusion.noise import karras
from fewstep.diffusion.samplers import consistency, ddim, heun, sample


@pytest.mark.parametrize(("sampler", "order"), [(ddim, 1), (heun, 2)])
def test_order_of_convergence(sampler, order: int) -> None:
    """Against the exact solution of the Gaussian's ODE, the error falls at the method's order."""
    oracle = GaussianOracle()
    x = 80 * torch.randn(64, 4).double()
    exact = oracle.consistency(x, torch.full((64,), 80.0).double())

    def error(n: int) -> float:
        return float((sampler(oracle, x, karras(n, sigma_min=1e-4), []) - exact).abs().mean())

    slope = torch.log2(torch.tensor(error(64) / error(128))).item()
    assert abs(slope - order) < 0.2


def test_exact_consistency_function_is_exact_in_one_step() -> None:
    """One step of the exact function gives the data's distribution, and more steps keep it."""
    oracle = GaussianOracle()
    rngs = generators(range(4000))
    x = 80 * normal(rngs, (4,)).double()
    for grid in ([80.0], [80.0, 1.0], [80.0, 5.0, 0.5]):
        x0 = consistency(oracle.consistency, x, torch.tensor(grid).double(), rngs)
        assert abs(float(x0.mean()) - oracle.mean) < 0.02 and abs(float(x0.std()) - oracle.std) < 0.02


@pytest.mark.parametrize("sampler", [consistency, ddim, heun])
def test_an_image_does_not_know_its_batch(sampler) -> None:
    denoiser = tiny().double()
    grid = few_step_grid(denoiser, 3)
    together = sample(denoiser, range(10), (1, 8, 8), sampler, grid)
    split = sample(denoiser, range(10), (1, 8, 8), sampler, grid, batch=3)
    alone = sample(denoiser, [7], (1, 8, 8), sampler, grid)
    torch.testing.assert_close(together, split)
    torch.testing.assert_close(together[7:8], alone)


@pytest.mark.parametrize(("sampler", "nfe"), [(consistency, 4), (ddim, 4), (heun, 7)])
def test_nfe_is_counted_at_the_network(sampler, nfe: int) -> None:
    denoiser = tiny()
    with count_nfe(denoiser.network) as counted:
        sample(denoiser, range(6), (1, 8, 8), sampler, few_step_grid(denoiser, 4), batch=2)
    assert (counted.calls, counted.rows) == (3 * nfe, 6 * nfe)


def test_ddim_is_the_stock_pipeline(vp) -> None:
    """Deterministic sampling on the trailing timesteps gives the images of diffusers' own pipeline."""
    scheduler = DDIMScheduler.from_config(
        vp.scheduler.config, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True
    )
    pipeline = DDIMPipeline(vp.network, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(batch_size=3, generator=generators(range(3)), num_inference_steps=4, output_type="np").images
    ours = sample(vp, range(3), (1, 8, 8), ddim, few_step_grid(vp, 4))
    images = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert abs(images - theirs).max() < 1e-5
