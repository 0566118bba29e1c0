"""Detects whether the samples of a run have collapsed, by three statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

TIMES = 4.0  # a sign counts when it has changed by this factor
SOME = 0.1  # with a smaller share between the limits pictures are black and white, and no sign of saturation
NEAR = 2 / 127.5  # two grey levels, relative to the limits: a value this close to a limit counts as at the limit


class Signs(NamedTuple):
    """Statistics of samples x0 of different seeds.

    Attributes:
        finite: share of the values that are finite.
        spread: variance over the samples of the values clamped to the limits, averaged over all places of a sample. It is
            NaN if a value is not finite.
        inside: share of the values strictly between the limits; 1 without limits.
    """

    finite: float
    spread: float
    inside: float


def signs(x0: Tensor, limits: float | None) -> Signs:
    """The signs of samples x0 (B, *), B >= 2, in a space with values within ± limits; None is without limits."""
    if len(x0) < 2:
        raise ValueError(f"the signs of a collapse need at least two samples, got {len(x0)}")
    inside = torch.ones(()) if limits is None else (x0.abs() < limits * (1 - NEAR)).float().mean()
    shown = x0 if limits is None else x0.clamp(-limits, limits)
    return Signs(float(x0.isfinite().float().mean()), float(shown.double().var(0).mean()), float(inside))


def collapsed(now: Signs, before: Sequence[Signs], teacher: Signs) -> str:
    """How the samples of a student have collapsed, as a clause; "" if they have not.

    A student that has learned little draws blurred pictures, which also have a small variance. So each sign is compared
    with the best that the student had reached, or with the teacher's if that is less strict. A sign counts when it differs
    by a factor of `TIMES`. docs/log/tuning.md shows the signs of healthy runs.

    Args:
        now: signs of the student's samples.
        before: signs at earlier looks of this run, at least that before the first step.
        teacher: signs of the teacher's samples of the same seeds and conditions.
    """
    if now.finite < 1:
        return f"{1 - now.finite:.1%} of their values are not finite"
    if now.spread < (had := min(teacher.spread, max(each.spread for each in before))) / TIMES:
        return f"those of different seeds are alike: their variance is {now.spread:.2g}, and was {had:.2g} or more"
    if now.spread > TIMES * (had := max(teacher.spread, min(each.spread for each in before))):
        return f"they have blown up: their variance is {now.spread:.2g}, and was {had:.2g} or less"
    had = min(teacher.inside, max(each.inside for each in before))
    if had >= SOME and now.inside < had / TIMES:
        return f"they are saturated: {now.inside:.1%} of their values lie between the limits, and {had:.1%} or more did"
    return ""
