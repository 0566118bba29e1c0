"""The identities of the one loss: each named method is a setting of it."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import tiny
from oracle import GaussianOracle
from torch import Tensor

from fewstep.core.nfe import count_nfe
from fewstep.diffusion.cond import Cond
from fewstep.diffusion.hop import Euler, Heun
from fewstep.diffusion.loss import (
    InverseGap,
    MeanSquare,
    OutputScale,
    PseudoHuber,
    beyond_limits,
    consistency_loss,
    ddim,
    inv_ddim,
)
from fewstep.diffusion.noise import ECTGap, like
from fewstep.diffusion.optim import Dropout


def draw(n: int = 8) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 1, 8, 8), torch.randn(n, 1, 8, 8)


def test_edge_is_denoising() -> None:
    """r = lo with a hop from the data: the target is x0 itself, to float precision, and costs no network call."""
    (x0, eps), lo, denoiser = draw(), torch.rand(8), tiny()
    t = lo + torch.rand(8) + 0.1
    with count_nfe(denoiser.network) as nfe:
        loss = consistency_loss(denoiser, x0, eps, t, lo, lo)
    assert nfe.calls == 1
    difference = denoiser(x0 + like(t, x0) * eps, t) - x0
    torch.testing.assert_close(loss, PseudoHuber()(difference) / (t - lo), rtol=1e-4, atol=1e-5)


def test_one_segment_is_ect() -> None:
    """lo = 0 with a hop from the data: the target is f(x_r, r)."""
    (x0, eps), denoiser = draw(), tiny()
    t = torch.rand(8) * 3 + 0.1
    r = ECTGap(q=4.0)(t, progress=0.5)
    loss = consistency_loss(denoiser, x0, eps, t, r, torch.zeros(8))
    with torch.no_grad():
        target = denoiser(x0 + like(r, x0) * eps, r)
        difference = denoiser(x0 + like(t, x0) * eps, t) - target
    torch.testing.assert_close(loss, PseudoHuber()(difference) / (t - r), rtol=1e-4, atol=1e-5)


def test_the_hop_stops_at_the_edge_but_the_weight_does_not() -> None:
    """With r below lo the target is that of r = lo, and w = 1/(t − r) stays what the gap says."""
    (x0, eps), denoiser = draw(), tiny()
    lo = torch.rand(8) + 0.5
    t, r = lo + torch.logspace(-4, 0, 8), lo / 2
    below, at = (consistency_loss(denoiser, x0, eps, t, level, lo) for level in (r, lo))
    torch.testing.assert_close(below * (t - r), at * (t - lo), rtol=1e-3, atol=1e-5)


def test_the_target_survives_just_above_an_edge() -> None:
    """1 − lo/t = 1e-5 at a noise level of 100: the target still is x0, where float32 would be wrong by tenths."""
    (x0, eps), denoiser, lo = draw(), tiny(), torch.full((8,), 100.0)
    t = lo * (1 + 1e-5)
    ones = {"distance": MeanSquare(), "weight": InverseGap(power=0)}
    loss = consistency_loss(denoiser, x0, eps, t, lo, lo, **ones)
    expected = (denoiser(x0 + like(t, x0) * eps, t) - x0).square().mean((1, 2, 3))
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=0)


def test_rows_at_the_edge_and_inside_mix() -> None:
    """Each row's loss is what it would be alone, also where a batch holds rows at the edge and inside."""
    (x0, eps), denoiser = draw(4), tiny()
    t, lo = torch.tensor([2.0, 2.0, 0.5, 5.0]), torch.tensor([0.0, 1.0, 0.0, 2.0])
    r = torch.tensor([0.0, 1.5, 0.2, 2.0])
    together = consistency_loss(denoiser, x0, eps, t, r, lo)
    for row in range(4):
        one = slice(row, row + 1)
        alone = consistency_loss(denoiser, x0[one], eps[one], t[one], r[one], lo[one])
        torch.testing.assert_close(alone, together[one], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("hop", "order"), [(Euler, 2.0), (Heun, 3.0)])
@pytest.mark.parametrize("lo", [0.0, 1.0])
def test_exact_function_has_no_loss_in_the_limit(hop, order: float, lo: float) -> None:
    """Along the exact ODE the exact consistency function is consistent; a hop errs by its solver's local order."""
    oracle = GaussianOracle()
    x0, eps = torch.randn(64, 4).double(), torch.randn(64, 4).double()
    t, edge = torch.full((64,), 2.0).double(), torch.full((64,), lo).double()

    def exact(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """The x0 whose DDIM step lands where the exact ODE is at the lower edge."""
        s = like(sigma, x)
        end = oracle.mean + ((oracle.std**2 + lo**2) / (oracle.std**2 + s**2)).sqrt() * (x - oracle.mean)
        return inv_ddim(end, x, sigma, edge)

    def distance(gap: float) -> Tensor:
        loss = consistency_loss(
            exact, x0, eps, t, t - gap, edge, hop=hop(oracle), distance=PseudoHuber(1e-14), weight=InverseGap(power=0)
        )
        return loss.mean()

    slope = torch.log2(distance(0.04) / distance(0.02)).item()
    assert abs(slope - order) < 0.15


def test_both_passes_share_the_dropout_mask() -> None:
    """As r → t the two passes see the same input; only another mask could make them differ."""
    x0, eps = (part.double() for part in draw())
    denoiser = tiny().double().train()
    Dropout(0.5)(denoiser.network)
    t = torch.full((8,), 1.0).double()
    loss = consistency_loss(denoiser, x0, eps, t, t * (1 - 1e-9), t * 0, distance=MeanSquare(), weight=InverseGap(power=0))
    assert loss.max() < 1e-10
    first, second = denoiser(x0 + eps, t), denoiser(x0 + eps, t)
    assert (first - second).abs().max() > 1e-3  # the masks do differ from call to call


def some_at_the_edge() -> tuple[Tensor, Tensor, Tensor]:
    """Levels (t, r, lo) of eight rows, three of them inside their segment."""
    t = torch.tensor([2.0, 1.5, 0.5, 5.0, 3.0, 0.8, 4.0, 2.5])
    lo = torch.tensor([0.0, 1.0, 0.0, 2.0, 1.0, 0.4, 2.0, 2.0])
    return t, torch.tensor([0.0, 0.5, 0.2, 1.0, 2.0, 0.1, 3.9, 0.0]), lo


def test_the_student_is_asked_again_only_inside_a_segment() -> None:
    """Each row's loss is that of the formula in which every row is asked twice."""
    (x0, eps), denoiser, (t, r, lo) = draw(), tiny(), some_at_the_edge()
    with count_nfe(denoiser.network) as nfe:
        loss = consistency_loss(denoiser, x0, eps, t, r, lo)
    assert (nfe.calls, nfe.rows) == (2, 8 + 3)
    reached = torch.maximum(r, lo).clamp(min=1e-9)
    with torch.no_grad():
        x_t, x_r = (x0.double() + like(level.double(), x0) * eps.double() for level in (t, reached))
        x_lo = torch.where(like(r > lo, x0), ddim(x_r, denoiser(x_r.float(), reached).double(), reached, lo), x_r)
        target = inv_ddim(x_lo, x_t, t, lo).float()
        expected = PseudoHuber()(denoiser(x_t.float(), t) - target) / (t - r)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def network_that_draws(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
    """Draws as label dropout does: by no layer that anyone could find."""
    return x * (torch.rand(len(x)) < 0.5).to(x).view(-1, 1, 1, 1)


@pytest.mark.parametrize("drawing", ["a layer", "a function"])
def test_rows_at_an_edge_leave_the_masks_of_the_others(drawing: str) -> None:
    """As r → t a row inside sees the same input twice, so only another mask could give it a loss."""
    x0, eps = (part.double() for part in draw())
    denoiser = tiny().double().train()
    Dropout(0.5)(denoiser.network)
    t = torch.full((8,), 1.0).double()
    r, lo = t * (1 - 1e-9), t * 0
    lo[[0, 3, 4]] = r[[0, 3, 4]]
    student = denoiser if drawing == "a layer" else network_that_draws
    plain = {"distance": MeanSquare(), "weight": InverseGap(power=0)}
    for _ in range(4):
        assert consistency_loss(student, x0, eps, t, r, lo, **plain)[[1, 2, 5, 6, 7]].max() < 1e-10


def test_the_loss_seeds_nothing() -> None:
    """What is drawn after it is what one pass of the network leaves, and nothing for a network that draws nothing."""
    (x0, eps), denoiser, levels = draw(), tiny().train(), some_at_the_edge()
    before = torch.get_rng_state()
    consistency_loss(denoiser, x0, eps, *levels)
    assert torch.equal(torch.get_rng_state(), before)
    Dropout(0.5)(denoiser.network)
    consistency_loss(denoiser, x0, eps, *levels)
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    denoiser(x0, levels[0])
    assert torch.equal(torch.get_rng_state(), after) and not torch.equal(before, after)


def test_target_gets_no_gradient() -> None:
    """The gradient is that of the distance to a constant target."""
    (x0, eps), denoiser = draw(), tiny()
    t, r = torch.full((8,), 2.0), torch.full((8,), 1.0)
    consistency_loss(denoiser, x0, eps, t, r, torch.zeros(8)).sum().backward()
    got = [p.grad.clone() for p in denoiser.parameters()]
    denoiser.zero_grad()
    target = denoiser(x0 + eps, r).detach()
    (PseudoHuber()(denoiser(x0 + 2 * eps, t) - target) / (t - r)).sum().backward()
    for a, p in zip(got, denoiser.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad)


def test_inv_ddim_inverts_ddim() -> None:
    x, x0 = torch.randn(8, 4).double(), torch.randn(8, 4).double()
    t = torch.rand(8).double() * 50 + 1
    s = t * (1 - 10 ** torch.linspace(-6, -0.1, 8).double())
    torch.testing.assert_close(inv_ddim(ddim(x, x0, t, s), x, t, s), x0, rtol=1e-7, atol=1e-7)


def test_weights_are_their_formulas() -> None:
    t, r = torch.tensor([0.5, 2.0]), torch.tensor([0.25, 1.0])
    torch.testing.assert_close(InverseGap()(t, r), torch.tensor([4.0, 1.0]))
    torch.testing.assert_close(InverseGap(power=0.5)(t, r), torch.tensor([2.0, 1.0]))
    torch.testing.assert_close(InverseGap(power=0)(t, r), torch.ones(2))
    torch.testing.assert_close(OutputScale(1.0)(t, r), 1 / t**2 + 1)  # SNR + 1
    torch.testing.assert_close(OutputScale(0.5)(t, r), (t * 0.5 / (t**2 + 0.25).sqrt()) ** -2)  # 1/c_out²


def test_pseudo_huber_between_its_limits() -> None:
    """Near 0 it is ‖Δ‖²/2c, far away ‖Δ‖ − c; its gradient is finite at 0."""
    small, large = torch.full((1, 4), 1e-4), torch.full((1, 4), 100.0)
    torch.testing.assert_close(PseudoHuber(1.0).__call__(small.double()), torch.tensor([2e-8]).double(), rtol=1e-4, atol=0)
    torch.testing.assert_close(PseudoHuber(1.0)(large), torch.tensor([199.0]), rtol=1e-4, atol=0)
    zero = torch.zeros(1, 4, requires_grad=True)
    PseudoHuber()(zero).sum().backward()
    assert zero.grad is not None and not zero.grad.isnan().any()
    with pytest.raises(ValueError, match="0 or more"):
        PseudoHuber(-1.0)


def test_without_a_constant_it_is_the_norm() -> None:
    """Its gradient is Δ/‖Δ‖, 0 at Δ = 0, and whatever is not a number stays so: nothing is masked."""
    difference = torch.tensor([[3.0, -4.0], [0.0, 0.0], [math.nan, 1.0]], requires_grad=True)
    loss = PseudoHuber(0.0)(difference)
    torch.testing.assert_close(loss, torch.tensor([5.0, 0.0, math.nan]), equal_nan=True)
    loss.sum().backward()
    torch.testing.assert_close(difference.grad[:2], torch.tensor([[0.6, -0.8], [0.0, 0.0]]))
    assert difference.grad[2].isnan().all()
    torch.testing.assert_close(PseudoHuber(1e-8)(difference[:1]), loss[:1])


def test_margin_moves_what_a_picture_cannot_hold() -> None:
    """Within two grey levels of a limit the target lies `margin` beyond it, in the lowest segment only."""
    x0 = torch.tensor([-1.0, -0.99, -0.98, 0.0, 0.98, 0.99, 1.0])
    expected = torch.tensor([-1.25, -1.25, -0.98, 0.0, 0.98, 1.25, 1.25])
    torch.testing.assert_close(beyond_limits(x0, 0.25), expected)
    noise, t, denoiser = torch.randn(2, 7), torch.full((2,), 2.0), GaussianOracle()
    x0, lo = x0.expand(2, 7), torch.tensor([0.0, 1.0])  # r = lo: the target is x0
    loss = consistency_loss(denoiser, x0, noise, t, lo, lo, margin=0.25)
    plain = consistency_loss(denoiser, x0, noise, t, lo, lo)
    moved = PseudoHuber()(denoiser(x0 + 2 * noise, t) - expected) / (t - lo)
    torch.testing.assert_close(loss, torch.stack([moved[0], plain[1]]))
