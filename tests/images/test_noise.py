from __future__ import annotations

import math

import pytest
import torch
from diffusers import EDMEulerScheduler
from hypothesis import given
from hypothesis import strategies as st

from fewstep.images.noise import ECTGap, FullGap, LogNormal, karras

positive = st.floats(1e-3, 150)


def test_karras_is_diffusers_grid() -> None:
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80, rho=7)
    scheduler.set_timesteps(18)
    torch.testing.assert_close(karras(18).float(), scheduler.sigmas)


@given(t=positive, q=st.floats(1.5, 300), stages=st.integers(1, 10), progress=st.floats(0, 1))
def test_gap_stays_below_t_and_never_widens(t: float, q: float, stages: int, progress: float) -> None:
    gap, level = ECTGap(q=q, stages=stages), torch.tensor([t], dtype=torch.float64)
    r = gap(level, progress)
    assert 0 <= r < level
    assert r >= gap(level, progress / 2)
    assert FullGap()(level, progress) == 0


def test_gap_is_the_published_formula() -> None:
    """Hand-computed at t = 2, q = 2, second of eight stages: r = 2·(1 − (1 + 8/(1 + e²))/4)."""
    r = ECTGap(q=2, stages=8)(torch.tensor([2.0]), progress=1 / 8)
    assert math.isclose(float(r), max(0.0, 2 * (1 - (1 + 8 / (1 + math.exp(2))) / 4)), rel_tol=1e-6)


def test_published_recipes_end_at_one_256th() -> None:
    large = torch.tensor([80.0])
    for gap in (ECTGap(q=2, stages=8), ECTGap(q=4, stages=4), ECTGap(q=256, stages=1)):
        torch.testing.assert_close((large - gap(large, 1.0)) / large, torch.tensor([1 / 256]), rtol=1e-3, atol=0)


def test_lognormal_has_its_moments() -> None:
    t = LogNormal(-1.1, 2.0)(torch.randn(200_000), sigma_max=1e9, sigma_min=1e-9).log()
    assert abs(float(t.mean()) + 1.1) < 0.02 and abs(float(t.std()) - 2.0) < 0.02


def test_lognormal_is_cut() -> None:
    assert LogNormal()(torch.tensor([50.0, -50.0]), sigma_max=80.0).tolist() == pytest.approx([80.0, 1e-3])


def test_impossible_gap_is_refused() -> None:
    with pytest.raises(ValueError, match="q > 1"):
        ECTGap(q=1.0)
