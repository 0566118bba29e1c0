"""The input of a commit rule at one step, and its answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..core.device import widest, with_float64
from .noise import uniform
from .predictor import scatter


@dataclass(frozen=True)
class Scores:
    """Logits (N, V), and statistics over the vocabulary, each of which is computed at its first use only."""

    logits: Tensor

    @cached_property
    def best(self) -> tuple[Tensor, Tensor]:
        """The largest logits and their tokens, (N,) each."""
        values, tokens = self.logits.max(-1)
        return values, tokens

    @cached_property
    def second(self) -> Tensor:
        """The second largest logits, (N,)."""
        others: Tensor = self.logits.scatter(1, self.best[1][:, None], -torch.inf)
        return others.amax(-1)

    @cached_property
    def normaliser(self) -> Tensor:
        """ln Σ exp of the logits, (N,)."""
        return self.logits.logsumexp(-1)

    @cached_property
    def entropy(self) -> Tensor:
        """Entropy of the predictions, in nats, (N,)."""
        parts: Tensor = torch.special.entr(self.logits.softmax(-1))
        return parts.sum(-1)


@dataclass(frozen=True)
class Step:
    """The input of a commit rule at one decoding step. Statistics over (B, L) are computed at their first use.

    Attributes:
        scores: the logits at the wanted positions, row by row, −inf for the mask token; (N, V).
        where: rows and columns of the wanted positions, (N,) each.
        masked: undecided positions that the rule may commit; (B, L) bool.
        open: positions that were undecided at the start; (B, L) bool.
        held: the decided token of an open position, −1 if undecided; (B, L) long.
        committed_at: the step at which a position was decided, −1 if undecided; (B, L) long.
        proposal: the token that a commit makes final; (B, L) long.
        unchanged: for how many steps in a row the most likely token has stayed the same; (B, L) long.
        drift: KL divergence (nats) of the prediction from that of the step before, at each of the last H steps, +inf
            without a step before; H is what the rule `remembers`; (B, L, H).
        recalled: the most likely token at each of the last R steps, the present one last, −1 where a position was not
            wanted; R is what the rule `recalls`; (B, L, R) long.
        trusted: the probability of that token at that step, 0 where a position was not wanted; (B, L, R).
        seed: of each row; (B,) long.
        index: steps done, 0 at the first; (B,) long.
        steps: steps in all; (B,) long.
        deadline: the step by which `masked` should be decided; (B,) long.
    """

    scores: Scores
    where: tuple[Tensor, Tensor]
    masked: Tensor
    open: Tensor
    held: Tensor
    committed_at: Tensor
    proposal: Tensor
    unchanged: Tensor
    drift: Tensor
    recalled: Tensor
    trusted: Tensor
    seed: Tensor
    index: Tensor
    steps: Tensor
    deadline: Tensor

    @property
    def logits(self) -> Tensor:
        """The logits of `scores`, (N, V)."""
        return self.scores.logits

    @property
    def left(self) -> Tensor:
        """Steps until the deadline, this one included, (B,) long, at least 1."""
        return (self.deadline - self.index).clamp(min=1)

    @cached_property
    def confidence(self) -> Tensor:
        """The probability of the proposal, (B, L), −1 where no logits were wanted."""
        chosen = self.logits.gather(1, self.proposal[self.where][:, None]).squeeze(1)
        return scatter((chosen - self.scores.normaliser).exp(), self.where, self.masked.shape, -1.0)

    @cached_property
    def support(self) -> Tensor:
        """The probability of the decided token, (B, L), −1 where there is none or no logits were wanted."""
        held = self.held[self.where]
        chosen = self.logits.gather(1, held.clamp(min=0)[:, None]).squeeze(1)
        support = (chosen - self.scores.normaliser).exp().masked_fill(held < 0, -1.0)
        return scatter(support, self.where, self.masked.shape, -1.0)

    @cached_property
    def gap(self) -> Tensor:
        """The largest logit minus the second largest, (B, L), 0 where no logits were wanted."""
        return scatter(self.scores.best[0] - self.scores.second, self.where, self.masked.shape, 0.0)

    @cached_property
    def margin(self) -> Tensor:
        """The largest probability minus the second largest, (B, L), 0 where no logits were wanted."""
        first, second = ((top - self.scores.normaliser).exp() for top in (self.scores.best[0], self.scores.second))
        return scatter(first - second, self.where, self.masked.shape, 0.0)

    @cached_property
    def entropy(self) -> Tensor:
        """Entropy of the prediction, in nats, (B, L), 0 where no logits were wanted."""
        return scatter(self.scores.entropy, self.where, self.masked.shape, 0.0)

    @cached_property
    def lottery(self) -> Tensor:
        """Uniform random numbers that stay the same at all steps of a row, (B, L)."""
        home = self.masked.device
        column = torch.arange(self.masked.shape[1], device=with_float64(home))
        drawn = uniform(self.seed[:, None].to(column.device), -1, column)  # step −1: no step's noise
        return drawn.to(widest(home)).to(home)

    def within(self, scope: Tensor, deadline: Tensor) -> Step:
        """The same step for a rule that may commit only inside `scope` (B, L), by `deadline` (B,)."""
        return replace(self, masked=self.masked & scope, deadline=deadline)


class Change(NamedTuple):
    """The answer of a rule that may reopen decided positions.

    Attributes:
        commit: positions that become final, (B, L) bool, a subset of `step.masked`.
        reopen: decided positions that are undecided again, (B, L) bool, where `step.held` has a token.
    """

    commit: Tensor
    reopen: Tensor


class CommitRule(Protocol):
    """Which masked positions become final now: step -> (B, L) bool, a subset of `step.masked`; or a `Change`.

    From the last planned step on the rule must commit at least one position of each row with masked ones, and nothing is
    reopened any more. So a row of n open positions takes fewer than steps + n steps.
    """

    def __call__(self, step: Step, /) -> Tensor | Change: ...

    def sees(self, masked: Tensor, open: Tensor, /) -> Tensor:
        """The positions whose logits the rule needs, (B, L) bool; by default those it may commit."""
        return masked

    def remembers(self) -> int:
        """The number of steps H of `Step.drift` that the rule needs; above 0 the last logits are kept in memory."""
        return 0

    def recalls(self) -> int:
        """The number of steps R of `Step.recalled` and `Step.trusted` that the rule needs, the present one included."""
        return 0

    def reopens(self) -> bool:
        """Whether the rule returns a `Change`; its decisions are then streamed only once they are final."""
        return False

    def block(self) -> int | None:
        """The length of blocks that are decided one after another, from the first open position on; None: no blocks."""
        return None


class Around(CommitRule):
    """A rule around a rule. By default it needs what the inner rule needs."""

    rule: CommitRule

    def sees(self, masked: Tensor, open: Tensor) -> Tensor:
        return self.rule.sees(masked, open)

    def remembers(self) -> int:
        return self.rule.remembers()

    def recalls(self) -> int:
        return self.rule.recalls()

    def reopens(self) -> bool:
        return self.rule.reopens()

    def block(self) -> int | None:
        return self.rule.block()


def all_or(enough: Tensor, step: Step, otherwise: Tensor | Change) -> Tensor | Change:
    """Commits all masked positions in the rows (B,) that are `enough`, and in the others what `otherwise` says."""
    rows = enough[:, None]
    if isinstance(otherwise, Change):
        return Change(torch.where(rows, step.masked, otherwise.commit), otherwise.reopen & ~rows)
    return torch.where(rows, step.masked, otherwise)
