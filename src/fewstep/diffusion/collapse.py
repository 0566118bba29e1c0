"""Whether samples have collapsed: three signs that a machine sees, and when they mean it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

TIMES = 4.0  # so many times less, or more, than there was
SOME = 0.1  # share of values that lie between the limits: where the teacher has less, its pictures are black and white
NEAR = 2 / 127.5  # two grey levels: so near a limit a value lies at it


class Signs(NamedTuple):
    """What is seen of samples x0.

    Attributes:
        finite: share of the values that are finite.
        spread: variance over the samples, which have different seeds, on average over the places of a sample; of what lies
            within the limits. Not a number where a value is not finite.
        inside: share of the values that lie between the limits and not at them; 1 where there are none.
    """

    finite: float
    spread: float
    inside: float


def signs(x0: Tensor, limits: float | None) -> Signs:
    """Those of samples (B, *) of at least two seeds, in a space with these limits."""
    if len(x0) < 2:
        raise ValueError(f"whether samples differ is seen of at least two, got {len(x0)}")
    inside = torch.ones(()) if limits is None else (x0.abs() < limits * (1 - NEAR)).float().mean()
    shown = x0 if limits is None else x0.clamp(-limits, limits)
    return Signs(float(x0.isfinite().float().mean()), float(shown.double().var(0).mean()), float(inside))


def collapsed(now: Signs, before: Sequence[Signs], teacher: Signs) -> str:
    """What has happened to the samples of a student, as a clause; "" if nothing has.

    A student that has learned little yet draws blurred pictures, which also differ little. So it is compared with what it
    had already reached, `before`, and at most with its teacher. What a run begins with is no collapse. What brings it
    closer to its teacher is none either. A sign counts where it is `TIMES` times away. What healthy runs show is in
    docs/log/tuning.md.

    Args:
        now: of the student's samples.
        before: of those at earlier looks of this run, that before the first step among them; at least one.
        teacher: of its teacher's samples of the same seeds and conditions.
    """
    if now.finite < 1:
        return f"{1 - now.finite:.1%} of their values are not finite"
    if now.spread < (had := min(teacher.spread, max(each.spread for each in before))) / TIMES:
        return f"those of different seeds are alike: their variance is {now.spread:.2g}, and was {had:.2g}"
    if now.spread > TIMES * (had := max(teacher.spread, min(each.spread for each in before))):
        return f"they have blown up: their variance is {now.spread:.2g}, and was {had:.2g}"
    had = min(teacher.inside, max(each.inside for each in before))
    if had >= SOME and now.inside < had / TIMES:
        return f"they are saturated: {now.inside:.1%} of their values lie between the limits, and {had:.1%} did"
    return ""
