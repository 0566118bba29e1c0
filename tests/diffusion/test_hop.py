"""Hops by a teacher, on the exact denoiser of Gaussian data, where each has a closed form."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny
from oracle import GaussianOracle
from torch import Tensor

from fewstep.core.nfe import count_nfe
from fewstep.diffusion.cond import labelled
from fewstep.diffusion.denoiser import Guided
from fewstep.diffusion.hop import ADDIM, Euler, Heun
from fewstep.diffusion.noise import like

ORACLE = GaussianOracle(mean=0.0, std=0.5)


def points(t: float, size: int = 4096) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, x0, t of eight very wide samples, whose means over values are close to expectations."""
    x0, level = ORACLE.std * torch.randn(8, size).double(), torch.full((8,), t).double()
    return x0 + t * torch.randn(8, size).double(), x0, level


@pytest.mark.parametrize("r", [0.0, 0.3, 2.0])
def test_euler_and_heun_are_the_samplers_steps(r: float) -> None:
    x, x0, t = points(3.0)
    level = torch.full_like(t, r)
    slope = (x - ORACLE(x, t)) / 3.0
    euler = x + (r - 3.0) * slope
    torch.testing.assert_close(Euler(ORACLE)(x, x0, t, level), euler)
    heun = euler if r == 0 else x + (r - 3.0) / 2 * (slope + (euler - ORACLE(euler, level)) / r)
    torch.testing.assert_close(Heun(ORACLE)(x, x0, t, level), heun)


def test_heun_rows_at_zero_and_above_mix() -> None:
    x, x0, t = points(3.0, 16)
    r = torch.tensor([0.0, 1.0] * 4).double()
    mixed = Heun(ORACLE)(x, x0, t, r)
    for row in range(8):
        one = slice(row, row + 1)
        torch.testing.assert_close(mixed[one], Heun(ORACLE)(x[one], x0[one], t[one], r[one]))


@pytest.mark.parametrize(("t", "r"), [(80.0, 0.5), (3.0, 0.0), (1.0, 0.2)])
def test_addim_on_gaussian_data(t: float, r: float) -> None:
    """With eta = 1: x_r = x·(s² + t·√(r² + (1 − r/t)²·s²))/(s² + t²), the spread that plain DDIM loses on long hops."""
    x, x0, level = points(t)
    lower = torch.full_like(level, r)
    got = ADDIM(ORACLE, eta=1.0)(x, x0, level, lower)
    s2 = ORACLE.std**2
    expected = x * (s2 + t * (r**2 + (1 - r / t) ** 2 * s2) ** 0.5) / (s2 + t**2)
    assert float((got - expected).norm() / expected.norm()) < 0.03
    true_spread = (s2 + r**2) ** 0.5
    plain = Euler(ORACLE)(x, x0, level, lower)
    assert abs(float(got.std()) - true_spread) < 0.7 * abs(float(plain.std()) - true_spread)


def test_addim_without_spread_is_euler() -> None:
    x, x0, t = points(3.0, 16)
    torch.testing.assert_close(ADDIM(ORACLE, eta=0.0)(x, x0, t, t / 2), Euler(ORACLE)(x, x0, t, t / 2))


def test_analytic_addim_needs_no_data() -> None:
    """x_var = .1/(2 + 1/t²), whatever x0 is."""
    x, x0, t = points(3.0)
    got = ADDIM(ORACLE, analytic=True)(x, x0 * float("nan"), t, t / 2)
    estimate = ORACLE(x, t)
    eps = (x - estimate) / 3.0
    scale = (1.5**2 + 0.25 * 0.1 / (2 + 1 / 9) / eps.square().mean(1)).sqrt()
    torch.testing.assert_close(got, estimate + like(scale, x) * eps)


def test_guidance_is_linear_between_two_estimates() -> None:
    denoiser = tiny(classes=4).double()
    x, sigma, labels = torch.randn(3, 1, 8, 8).double(), torch.ones(3).double(), torch.tensor([0, 1, 2])
    free, told = (denoiser(x, sigma, labelled(of)) for of in (torch.full((3,), 3), labels))
    for scale in (0.0, 1.0, 2.5):
        guided = Guided(denoiser, scale, null=labelled(torch.tensor([3])))
        with count_nfe(guided.network) as nfe:
            torch.testing.assert_close(guided(x, sigma, labelled(labels)), free + scale * (told - free))
        assert (nfe.calls, nfe.rows) == (1, 6)
    with pytest.raises(ValueError, match="conditional"):
        Guided(tiny(), 2.0, labelled(torch.tensor([0])))
    with pytest.raises(ValueError, match="labels 0 to 3"):
        Guided(denoiser, 2.0, labelled(torch.tensor([4])))


def test_guided_addim_takes_its_spread_from_the_unguided_estimate() -> None:
    denoiser = tiny(classes=4).double()
    x0, labels, t = torch.randn(2, 1, 8, 8).double(), torch.tensor([0, 1]), torch.full((2,), 2.0).double()
    x = x0 + 2 * torch.randn_like(x0)
    guided = Guided(denoiser, 3.0, null=labelled(torch.tensor([3])))
    estimate = guided(x, t, labelled(labels))
    x_var = 0.75 * (denoiser(x, t, labelled(labels)) - x0).square().mean((1, 2, 3))
    eps = (x - estimate) / 2
    scale = (1 + 0.25 * x_var / eps.square().mean((1, 2, 3))).sqrt()
    with count_nfe(guided.network) as nfe:
        got = ADDIM(guided)(x, x0, t, t / 2, labelled(labels))
    torch.testing.assert_close(got, estimate + like(scale, x) * eps)
    assert nfe.rows == 4  # both estimates in one call
