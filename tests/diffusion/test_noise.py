from __future__ import annotations

import math

import pytest
import torch
from diffusers import EDMEulerScheduler
from hypothesis import assume, given
from hypothesis import strategies as st

from fewstep.diffusion.noise import CosineGap, ECTGap, FullGap, KarrasGap, LogNormal, karras

positive = st.floats(1e-3, 150)


def test_karras_is_diffusers_grid() -> None:
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80, rho=7)
    scheduler.set_timesteps(18)
    torch.testing.assert_close(karras(18).float(), scheduler.sigmas[:-1])


@given(t=positive, q=st.floats(1.5, 300), stages=st.integers(1, 10), progress=st.floats(0, 1))
def test_gap_stays_below_t_and_never_widens(t: float, q: float, stages: int, progress: float) -> None:
    assume(stages * math.log2(q) <= 20)
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
    t = LogNormal(-1.1, 2.0)(torch.randn(200_000)).log()
    assert abs(float(t.mean()) + 1.1) < 0.02 and abs(float(t.std()) - 2.0) < 0.02


def test_lognormal_is_cut_above_only() -> None:
    z = torch.tensor([5.0, -5.0])
    assert LogNormal()(z, sigma_max=80.0).tolist() == pytest.approx([80.0, math.exp(-11.1)])
    assert LogNormal()(z).tolist() == pytest.approx([math.exp(8.9), math.exp(-11.1)])


def test_impossible_gap_is_refused() -> None:
    with pytest.raises(ValueError, match="q > 1"):
        ECTGap(q=1.0)
    with pytest.raises(ValueError, match="float32 resolves"):
        ECTGap(q=48.0, stages=10)
    for grid in (CosineGap, KarrasGap):
        with pytest.raises(ValueError, match=r"at least one step|1 <= first <= last"):
            grid(0, 8)


def test_cosine_gap_is_one_step_of_the_cosine_grid() -> None:
    levels = (torch.pi / 2 * torch.arange(64, dtype=torch.float64) / 64).tan()
    torch.testing.assert_close(CosineGap(64, 64)(levels[1:], 0.3), levels[:-1], atol=1e-12, rtol=1e-9)


def test_karras_gap_is_one_step_of_karras_grid() -> None:
    levels = karras(41)  # 40 steps between the first and the last
    torch.testing.assert_close(KarrasGap(40, 40)(levels[:-1], 0.7)[:-1], levels[1:-1])
    assert KarrasGap(40, 40)(levels[-2:], 0.7).tolist() == [0, 0]  # below the last level there is only 0


@pytest.mark.parametrize(
    ("gap", "steps"), [(CosineGap(64, 1280), (64, 286.2, 1280)), (KarrasGap(10, 1280), (10, 160, 1280))]
)
def test_grids_grow_with_progress(gap, steps) -> None:
    """From the first number of steps to the last: log-linearly the one, doubling the other."""
    t = torch.tensor([1.0], dtype=torch.float64)
    for progress, n in zip((0.0, 0.5, 1.0), steps, strict=True):
        fixed = CosineGap(n, n) if isinstance(gap, CosineGap) else KarrasGap(n, n)
        torch.testing.assert_close(gap(t, progress), fixed(t, 0.0), rtol=1e-3, atol=0)


@given(t=positive, progress=st.floats(0, 1))
def test_grids_stay_below_t(t: float, progress: float) -> None:
    level = torch.tensor([t], dtype=torch.float64)
    for gap in (CosineGap(), KarrasGap()):
        assert 0 <= gap(level, progress) < level
