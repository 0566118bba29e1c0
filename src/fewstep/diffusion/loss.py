"""The loss: consistency tuning, distillation, multistep consistency and denoising are settings of one function."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..core.device import wide
from ..core.seeds import States, drawn_from, generator_state
from .cond import NOTHING, Cond
from .denoiser import Denoise
from .noise import like

Distance = Callable[[Tensor], Tensor]  # difference (B, *) -> (B,)
Weight = Callable[[Tensor, Tensor], Tensor]  # (t, r) -> (B,)


class Hop(Protocol):
    """Takes x_t from noise level t down to r on the same path: (x_t, x0, t, r, cond) -> x_r, of x_t's shape."""

    def __call__(self, x_t: Tensor, x0: Tensor, t: Tensor, r: Tensor, cond: Cond = NOTHING) -> Tensor: ...


def from_data(x_t: Tensor, x0: Tensor, t: Tensor, r: Tensor, cond: Cond = NOTHING) -> Tensor:
    """The hop of consistency training: along the line to the clean sample, x_r = x0 + r·eps."""
    return ddim(x_t, x0, t, r)


@dataclass(frozen=True)
class PseudoHuber:
    """√(‖Δ‖² + c²) − c per sample; with c = 0 the norm ‖Δ‖, whose gradient at Δ = 0 is taken as 0.

    Reference: Song and Dhariwal 2024, Improved Techniques for Training Consistency Models.
    """

    c: float = 0.03

    def __post_init__(self) -> None:
        if not 0 <= self.c < math.inf:
            raise ValueError(f"the pseudo-Huber constant must be 0 or more, got c = {self.c}")

    def __call__(self, difference: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(difference.flatten(1), dim=1)
        return (norm.square() + self.c**2).sqrt() - self.c if self.c else norm


@dataclass(frozen=True)
class MeanSquare:
    """The mean of Δ² over a sample's values: the distance of plain denoising."""

    def __call__(self, difference: Tensor) -> Tensor:
        return difference.flatten(1).square().mean(1)


@dataclass(frozen=True)
class InverseGap:
    """w = (t − r)^−power. Power 1 is that of Easy Consistency Tuning; with 0 all levels have the same weight.

    Few-step sampling begins at the highest noise levels, where power 1 gives a hundredth of the weight at t = 1. See
    docs/log/tuning.md.

    Reference: Geng et al. 2025, its CIFAR-10 recipe.
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.power):
            raise ValueError(f"the power of the gap's weight must be finite, got {self.power}")

    def __call__(self, t: Tensor, r: Tensor) -> Tensor:
        return (t - r) ** -self.power


@dataclass(frozen=True)
class OutputScale:
    """w = 1/c_out² = (t² + sd²)/(t·sd)², with which the loss is the error of the network's output at every noise level.

    With sd = 1 this is SNR + 1, the weight of v-prediction.

    Reference: Karras et al. 2022, table 1; Geng et al. 2025, ImageNet-64; Heek et al. 2024.
    """

    sigma_data: float = 1.0

    def __call__(self, t: Tensor, r: Tensor) -> Tensor:
        return (t**2 + self.sigma_data**2) / (t * self.sigma_data) ** 2


def ddim(x: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Moves `x` from noise level t to s along the line through `x0`: x_s = x0 + (s/t)·(x_t − x0).

    Reference: Song et al. 2021, Denoising Diffusion Implicit Models, eq. 12 with eta = 0.
    """
    return x0 + like(s / t, x) * (x - x0)


def inv_ddim(x_s: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The x0 whose DDIM step takes `x_t` to `x_s`; give float64 where 1 − s/t may be small.

    Reference: Heek et al. 2024, Multistep Consistency Models, sec. 3.1.
    """
    ratio = like(s.to(x_t) / t.to(x_t), x_t)
    return (x_s - ratio * x_t) / (1 - ratio)


def beyond_limits(x0: Tensor, margin: float) -> Tensor:
    """Moves values within two grey levels of −1 or 1 to −1 − margin or 1 + margin.

    Picture files clip values beyond the limits, so these do no harm. A student with targets at exactly −1 leaves a haze
    just above −1.
    """
    return torch.where(x0.abs() > 1 - 2 / 127.5, x0.sign() * (1 + margin), x0)


def consistency_loss(
    student: Denoise,
    x0: Tensor,
    eps: Tensor,
    t: Tensor,
    r: Tensor,
    lo: Tensor,
    *,
    hop: Hop = from_data,
    distance: Distance = PseudoHuber(),
    weight: Weight = InverseGap(),
    margin: float = 0.0,
    cond: Cond = NOTHING,
    anyone: Callable[[bool], bool] = bool,
) -> Tensor:
    """w(t, r)·ρ(f(x_t, t) − f*), f* = inv_ddim(ddim(x_r, f(x_r, r), r → lo), x_t) without gradient.

    With one segment (lo = 0) and a hop from the data this is Easy Consistency Tuning. With a hop by the teacher it is
    consistency distillation, with several segments multistep consistency. With r = lo and a hop from the data it is
    denoising.

    Args:
        student: the denoiser to tune.
        x0: clean samples, shape (B, *).
        eps: standard normal noise, shape (B, *).
        t, r, lo: noise levels, shape (B,), with r < t and 0 <= lo < t; `lo` is the lower edge of t's segment. Where r
            lies below `lo`, the hop stops at `lo`. The weight still uses r, because 1/(t − lo) would diverge just above
            an edge. Give all three on the CPU, so that no device has to wait for them.
        hop: takes x_t to x_r: `from_data`, or one step of a frozen teacher's ODE (hop.py).
        distance: ρ, of the difference, (B, *) -> (B,).
        weight: w.
        margin: how far targets at the limits of a picture are moved `beyond_limits`, in the lowest segment.
        cond: conditions of B rows for the student, which also gets `lo`, and for the hop.
        anyone: takes whether a row of this process needs f(x_r, r); returns whether one does on any process. All processes
            must call a sharded student together.

    Returns:
        The loss per sample, shape (B,).

    Reference: Geng et al. 2025, Consistency Models Made Easy; Heek et al. 2024, Multistep Consistency Models.
    """
    inside = r > lo  # computed where the levels are: on the CPU no device has to wait
    t, r, lo = (level.to(x0.device, non_blocking=True) for level in (t, r, lo))
    x_t = x0 + like(t, x0) * eps
    start = generator_state(x0.device)
    told = cond.until(lo)
    prediction = student(x_t, t, told)
    with torch.no_grad():
        reached, x_t = torch.maximum(r, lo), wide(x_t)  # just above an edge float32 would lose the target
        x_r = hop(x_t, wide(x0), wide(t), wide(reached), cond)
        x_lo = x_r.clone()  # at an edge the path itself is the target
        if anyone(bool(inside.any())):
            rows = _rows_to_ask(inside, start, x0.device)
            inside = inside.to(x0.device, non_blocking=True)
            level, x_r = torch.where(inside, reached, t)[rows], x_r[rows]  # t keeps rows at an edge finite
            with drawn_from(start, x0.device):  # one dropout mask for both passes
                f_r = wide(student(x_r.to(x0.dtype), level, told.part(rows)))
            x_lo[rows] = torch.where(like(inside[rows], x_r), ddim(x_r, f_r, level, lo[rows]), x_r)
        target = inv_ddim(x_lo, x_t, t, lo).to(x0.dtype)
        if margin:
            target = torch.where(like(lo > 0, target), target, beyond_limits(target, margin))
    return weight(t, r) * distance(prediction - target)


def _rows_to_ask(inside: Tensor, start: States, device: torch.device) -> Tensor | slice:
    """The rows of the second pass: those inside their segment.

    All rows are taken in three cases: on a GPU, where changing shapes cost more; after a first pass with dropout, because
    each row must get the same mask again; and if only other processes need a row.
    """
    drew = any(not torch.equal(before, now) for before, now in zip(start, generator_state(device), strict=True))
    rows = inside.nonzero().squeeze(1)
    return slice(None) if drew or device.type != "cpu" or not len(rows) else rows
