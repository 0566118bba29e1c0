from __future__ import annotations

import pytest
import torch
from oracle import GaussianOracle

from fewstep.core.seeds import generators, normal
from fewstep.diffusion.noise import karras
from fewstep.diffusion.samplers import consistency, ddim, heun


@pytest.mark.parametrize(("sampler", "order"), [(ddim, 1), (heun, 2)])
def test_order_of_convergence(sampler, order: int) -> None:
    """Against the exact solution of the Gaussian's ODE, the error falls at the method's order."""
    oracle = GaussianOracle()
    x = 80 * torch.randn(64, 4).double()
    exact = oracle.consistency(x, torch.full((64,), 80.0).double())

    def error(n: int) -> float:
        return float((sampler(oracle, x, karras(n, sigma_min=1e-4)) - exact).abs().mean())

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
