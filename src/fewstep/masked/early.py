"""Rules that commit all open positions of a row as soon as its answer is known, and follow another rule until then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..core.device import wide
from .rules import LLADA
from .schedule import Cosine, Region, Schedule, Stairs
from .step import Around, Change, CommitRule, Step, all_or

PROPHET = Stairs()


@dataclass(frozen=True)
class EarlyCommit(Around):
    """Prophet: a row whose gaps between the two largest logits are wide enough commits all open positions; else `rule`.

    The condition is g ≥ τ(p), where g is a statistic of the gaps in the answer region and p the share of the steps done. It
    costs no further forward pass. If nothing in the region is undecided, the answer is known, whatever τ.

    Args:
        rule: decides until then.
        threshold: τ, in logits.
        statistic: of the gaps: their mean (as published), the minimum, or a quantile in [0, 1]. A mean can hide one
            position that is not sure.
        region: the place of the answer; None is the whole generation.
        over: whether the statistic is taken over the undecided positions of the region, or over all of them (as published).
        first: p = (steps done + first) / steps: 0 as published, 1 as in the paper's own code.

    Reference: Li et al. 2025, Diffusion Language Models Know the Answer Before Decoding.
    """

    rule: CommitRule = LLADA
    threshold: Schedule = PROPHET
    statistic: Literal["mean", "minimum"] | float = "mean"
    region: Region | None = None
    over: Literal["undecided", "region"] = "undecided"
    first: Literal[0, 1] = 0

    def __post_init__(self) -> None:
        if isinstance(self.statistic, str) and self.statistic not in ("mean", "minimum"):
            raise ValueError(f"a statistic is mean, minimum or a quantile, got {self.statistic!r}")
        if not isinstance(self.statistic, str) and not 0 <= self.statistic <= 1:
            raise ValueError(f"a quantile lies between 0 and 1, got statistic = {self.statistic}")

    def _region(self, open: Tensor) -> Tensor:
        return open if self.region is None else self.region(open)

    def progress(self, step: Step) -> Tensor:
        """p, (B,) in [0, 1]."""
        return (wide(step.index + self.first) / step.steps).clamp(max=1)

    def known(self, step: Step) -> Tensor:
        """g, (B,): +inf if no position of the region counts any more, −inf if the region never had one."""
        region = self._region(step.open)
        counted = region if self.over == "region" else region & step.masked
        g = statistic_of(step.gap, counted, self.statistic).masked_fill(~counted.any(1), torch.inf)
        return g.masked_fill(~region.any(1), -torch.inf)

    def __call__(self, step: Step) -> Tensor | Change:
        enough = self.known(step) >= self.threshold(self.progress(step))
        return all_or(enough, step, self.rule(step))

    def sees(self, masked: Tensor, open: Tensor) -> Tensor:
        seen = masked | self.rule.sees(masked, open)
        return seen | self._region(open) if self.over == "region" else seen


def sched(rule: CommitRule = LLADA, threshold: Schedule = Cosine()) -> EarlyCommit:
    """SchED: the mean gap over the full span, decided positions too, against a smooth falling threshold.

    The default threshold falls over the range of Prophet's.

    Reference: SchED, arXiv 2512.02892.
    """
    return EarlyCommit(rule, threshold, over="region")


@dataclass(frozen=True)
class StableAndConfident(Around):
    """A row commits all open positions once no most likely token changed for `steps` steps and the mean entropy is low.

    Args:
        rule: decides until then.
        steps: for this many steps all undecided positions must have kept their most likely token.
        entropy: the mean over the undecided positions must be below this, nats.

    Reference: the adaptive stopping of DiffusionGemma in transformers.
    """

    rule: CommitRule = LLADA
    steps: int = 1
    entropy: float = 0.005

    def __call__(self, step: Step) -> Tensor | Change:
        stable = (step.unchanged >= self.steps).logical_or(~step.masked).all(1)
        sure = statistic_of(step.entropy, step.masked, "mean") < self.entropy
        return all_or(stable & sure, step, self.rule(step))

    def sees(self, masked: Tensor, open: Tensor) -> Tensor:
        return masked | self.rule.sees(masked, open)


def statistic_of(value: Tensor, counted: Tensor, statistic: str | float) -> Tensor:
    """The mean, minimum or (lower) quantile of a row's `counted` values, (B, L) -> (B,)."""
    n = counted.sum(1)
    if statistic == "mean":
        return value.masked_fill(~counted, 0.0).sum(1) / n.clamp(min=1)
    q = 0.0 if isinstance(statistic, str) else statistic
    ordered = value.masked_fill(~counted, torch.inf).sort(1).values
    return ordered.gather(1, (q * (n - 1).clamp(min=0)).long()[:, None]).squeeze(1)
