"""Commit rules: which undecided positions become final at this step. A rule around a rule is a rule.

Ties go to the left, so that a row's result does not depend on a sorting algorithm or on its batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from .predictor import scatter
from .step import Around, Change, CommitRule, Scores, Step


@dataclass(frozen=True)
class TopK(CommitRule):
    """The best k positions, with k such that all positions are decided at the deadline.

    Args:
        by: what makes a position good: the confidence in the proposal (LLaDA's "low confidence remasking", Dream's "maskgit
            plus"), the margin between the two largest probabilities (Dream's "top-k margin"), the gap between the two
            largest logits, low entropy, or chance ("random remasking").
        schedule: the number of tokens k that a step decides. even is LLaDA's, k = ⌈masked / steps left⌉. dream is Dream's,
            k = int(masked·(1 − s/t)) from time t to s on a line from 1 to .001: few or no tokens at first, and all that
            are left at the last step.

    Reference: Nie et al. 2025, Large Language Diffusion Models; Ye et al. 2025, Dream 7B.
    """

    by: Literal["confidence", "margin", "gap", "entropy", "chance"] = "confidence"
    schedule: Literal["even", "dream"] = "even"

    def __call__(self, step: Step) -> Tensor:
        k = -(-step.masked.sum(1) // step.left) if self.schedule == "even" else _dream(step)
        return (ranked(_score(step, self.by), step.masked) < k[:, None]) & step.masked


@dataclass(frozen=True)
class Threshold(CommitRule):
    """Every position at least this confident, and always the most confident one.

    Reference: Wu et al. 2025, Fast-dLLM.
    """

    confidence: float = 0.9

    def __post_init__(self) -> None:
        _probability(self.confidence)

    def __call__(self, step: Step) -> Tensor:
        best = ranked(step.confidence, step.masked) == 0
        return ((step.confidence >= self.confidence) | best) & step.masked


@dataclass(frozen=True)
class Factor(CommitRule):
    """The n most confident positions, for the largest n with (n + 1)·(1 − c_(n)) ≤ factor, and always the first.

    c_(n) is the n-th largest confidence.

    Reference: Wu et al. 2025, Fast-dLLM.
    """

    factor: float = 1.0

    def __post_init__(self) -> None:
        if not self.factor >= 0:
            raise ValueError(f"the factor must not be negative, got {self.factor}")

    def __call__(self, step: Step) -> Tensor:
        rank = ranked(step.confidence, step.masked)
        # (n + 1)·(1 − c_(n)) only grows with n, so the positions that pass are the first n
        return (((rank + 2) * (1 - step.confidence) <= self.factor) | (rank == 0)) & step.masked


@dataclass(frozen=True)
class EntropyBound(CommitRule):
    """The n positions of lowest entropy H, for the largest n with H_(1) + … + H_(n) − H_(n) ≤ bound (nats).

    The left side bounds the mutual information of these tokens.

    Reference: Ben-Hamu et al. 2025, Accelerated Sampling from Masked Diffusion Models via Entropy Bounded Unmasking.
    """

    bound: float = 0.1

    def __post_init__(self) -> None:
        if not self.bound >= 0:
            raise ValueError(f"the entropy bound must not be negative, got {self.bound}")

    def __call__(self, step: Step) -> Tensor:
        rank = ranked(-step.entropy, step.masked)
        ordered = torch.zeros_like(step.entropy).scatter(1, rank, step.entropy.masked_fill(~step.masked, 0.0))
        before = ordered.cumsum(1) - ordered
        return (before.gather(1, rank) <= self.bound) & step.masked


@dataclass(frozen=True)
class KLASS(CommitRule):
    """Every position this confident whose prediction moved less than `drift` at each of the last steps.

    The most confident position is always committed. A position can be stable only after `steps` earlier predictions.

    Args:
        confidence: probability of the proposal, at least.
        drift: KL divergence (nats) from the step before, less than.
        steps: for how many steps in a row.

    Reference: Kim et al. 2025, KLASS: KL-Guided Fast Inference in Masked Diffusion Models.
    """

    confidence: float = 0.9
    drift: float = 0.01
    steps: int = 2

    def __post_init__(self) -> None:
        _probability(self.confidence)
        if self.steps < 1:
            raise ValueError(f"stability takes at least one step, got steps = {self.steps}")

    def __call__(self, step: Step) -> Tensor:
        best = ranked(step.confidence, step.masked) == 0
        stable = (step.drift[..., -self.steps :] < self.drift).all(-1)
        return (stable & (step.confidence >= self.confidence) | best) & step.masked

    def remembers(self) -> int:
        return self.steps


@dataclass(frozen=True)
class Credit(CommitRule):
    """Every position this confident after tokens got credit for earlier probabilities, and always the best one.

    At each step credits are multiplied by `decay`, and the credit of a position's most likely token grows by p^`power`,
    where p is its probability. The probability of a token with credit c is multiplied by (1 + c)^`strength`, and all are
    normalised again. The committed token is the network's present proposal, so a position waits if another token has the
    most credit. The last 32 steps count; by default, older credit has fallen below 1/1000.

    Args:
        confidence: probability of the proposal with credit, at least.
        decay, power, strength: β, γ and α of the paper.

    Reference: Wang et al. 2025, CreditDecoding; Ma et al. 2025, dInfer.
    """

    confidence: float = 0.9
    decay: float = 0.8
    power: float = 0.2
    strength: float = 0.7

    def __post_init__(self) -> None:
        _probability(self.confidence)
        if not 0 <= self.decay < 1:
            raise ValueError(f"credit falls from step to step: its decay lies between 0 and 1, got {self.decay}")
        if not (self.power >= 0 and self.strength >= 0):
            raise ValueError(f"power and strength of credit are not negative, got {self.power} and {self.strength}")

    def __call__(self, step: Step) -> Tensor:
        tokens, weight = step.recalled[step.where], step.trusted[step.where] ** self.power  # (N, R)
        age = torch.arange(tokens.shape[1] - 1, -1, -1, device=tokens.device)
        weight = (weight * self.decay**age).masked_fill(tokens < 0, 0.0)
        same = tokens[:, :, None] == tokens[:, None]  # (N, R, R)
        credit = torch.einsum("nrs,ns->nr", same.to(weight.dtype), weight)
        first = ~same.tril(-1).any(-1) & (tokens >= 0)  # each token counts once
        p = (step.logits.gather(1, tokens.clamp(min=0)) - step.scores.normaliser[:, None]).exp()
        more = ((1 + credit) ** self.strength - 1).masked_fill(~first, 0.0)
        now = (tokens == step.proposal[step.where][:, None]) * more  # of the proposal
        confidence = step.confidence[step.where] * (1 + now.sum(-1)) / (1 + (p * more).sum(-1))
        score = scatter(confidence, step.where, step.masked.shape, -1.0)
        return ((score >= self.confidence) | (ranked(score, step.masked) == 0)) & step.masked

    def recalls(self) -> int:
        return 32


@dataclass(frozen=True)
class Hierarchical(CommitRule):
    """The most confident position of each run of neighbouring masks, every sure one, and always the most confident one.

    A decided position divides its run, so decided tokens spread over the text and every open position soon has a neighbour.

    Args:
        confidence: a position is sure if the probability of its proposal is above this.
        low: the most confident position of a run is committed only if it is above this.

    Reference: Ma et al. 2025, dInfer: An Efficient Inference Framework for Diffusion Language Models.
    """

    confidence: float = 0.9
    low: float = 0.4

    def __post_init__(self) -> None:
        _probability(self.confidence)
        _probability(self.low)

    def __call__(self, step: Step) -> Tensor:
        rank, masked = ranked(step.confidence, step.masked), step.masked
        begins = masked & ~pad(masked, (1, -1))
        run = begins.cumsum(1) * masked  # counted from 1; 0 where a position is not masked
        first = rank == torch.full_like(pad(rank, (1, 0)), rank.shape[1]).scatter_reduce(1, run, rank, "amin").gather(
            1, run
        )
        sure = (step.confidence > self.confidence) | (first & (step.confidence > self.low))
        return (sure | (rank == 0)) & masked


@dataclass(frozen=True)
class WINO(CommitRule):
    """Commits many tokens, and reopens those that the rest of the text does not support: wide in, narrow out.

    Of m masked positions those with a proposal more probable than `draft` are committed, at most ⌊.7·m⌋ clamped to 5 to 20,
    and always the best one. If more than one is committed, earlier tokens whose probability has fallen below `verify` are
    reopened, the least probable first, and fewer than were committed a step before. The last draft stays unverified.

    The predictor must not see the token that it judges, so a network needs `LeaveOneOut` around it. Inside `Blockwise` only
    tokens of the block are reopened, as published.

    Args:
        draft: a proposal must be more probable than this.
        verify: a decided token must be at least this probable.

    Reference: Hong et al. 2025, Wide-In, Narrow-Out: Revokable Decoding for Efficient and Effective DLLMs.
    """

    draft: float = 0.6
    verify: float = 0.9

    def __post_init__(self) -> None:
        _probability(self.draft)
        _probability(self.verify)

    def __call__(self, step: Step) -> Change:
        rank = ranked(step.confidence, step.masked)
        most = (7 * step.masked.sum(1) // 10).clamp(5, 20)[:, None]
        commit = ((step.confidence > self.draft) & (rank < most) | (rank == 0)) & step.masked
        support = step.support
        doubted = (support < self.verify) & (support >= 0)
        before = ((step.committed_at == step.index[:, None] - 1) & (support >= 0)).sum(1)
        back = torch.where(doubted.sum(1) < before, doubted.sum(1), before - 1)[:, None]
        reopen = doubted & (ranked(-support, doubted) < back) & (commit.sum(1, keepdim=True) > 1)
        return Change(commit, reopen)

    def sees(self, masked: Tensor, open: Tensor) -> Tensor:
        return open

    def reopens(self) -> bool:
        return True


@dataclass(frozen=True)
class Blockwise(Around):
    """Semi-autoregressive: `rule` works on the first block that is not decided yet.

    Blocks have `length` positions. They are counted from a row's first open position. Where they are `aligned` they are
    counted from its first column, as models that were trained on blocks see them.

    N blocks of a row hold open positions. Each gets a step. The other steps are shared by the number of open positions:
    block k should be done by step k + ⌈(steps − N)·(m − k)/(n − N)⌉. Here n is the number of open positions in the row,
    and m is the number of those in blocks 1 to k. With full blocks this is ⌈steps·k/N⌉, as published. With n steps it is
    one position a step. The next block gets the steps that a block did not need.

    A rule that reopens sees the current block. If it reopens a position of an earlier block, that block is current again.
    A rule that remembers sees everything that is undecided, so its memory of a position does not depend on the blocks.

    Reference: Nie et al. 2025, Large Language Diffusion Models.
    """

    rule: CommitRule = TopK()
    length: int = 32
    aligned: bool = False

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"a block needs at least one position, got length = {self.length}")

    def _block(self, masked: Tensor, open: Tensor) -> tuple[Tensor, Tensor]:
        """The block of each position, (B, L) long, and the current block of each row, (B, 1) long."""
        column = torch.arange(open.shape[1], device=open.device)
        begin = torch.zeros_like(_first(open)) if self.aligned else _first(open)
        block = (column - begin[:, None]).clamp(min=0) // self.length
        return block, block.masked_fill(~masked, open.shape[1] - 1).amin(1, keepdim=True)

    def __call__(self, step: Step) -> Tensor | Change:
        block, now = self._block(step.masked, step.open)
        held = torch.zeros_like(block).scatter_add(1, block, step.open.long())  # open positions of each block
        n, m = held.sum(1), held.cumsum(1).gather(1, now)[:, 0]
        blocks, k = (held > 0).sum(1), (held > 0).cumsum(1).gather(1, now)[:, 0]
        due = k - (-(step.steps - blocks).clamp(min=0) * (m - k) // (n - blocks).clamp(min=1))
        return self.rule(step.within(block == now, due))

    def block(self) -> int:
        return self.length

    def sees(self, masked: Tensor, open: Tensor) -> Tensor:
        if self.remembers() or self.recalls():
            return self.rule.sees(masked, open)
        block, now = self._block(masked, open)
        here = block == now
        seen = self.rule.sees(masked & here, open)
        return seen & here if self.reopens() else seen


@dataclass(frozen=True)
class Last(Around):
    """`rule`, which sees some tokens with probability 0. Positions where these are the best guess are decided last.

    LLaDA's evaluations do so with the tokens that end a text on some tasks.

    Reference: Nie et al. 2025, Large Language Diffusion Models, appendix B.4.
    """

    rule: CommitRule
    tokens: tuple[int, ...]

    def __call__(self, step: Step) -> Tensor | Change:
        tokens = torch.tensor(self.tokens, dtype=torch.long, device=step.logits.device)
        return self.rule(replace(step, scores=Scores(step.logits.index_fill(1, tokens, -torch.inf))))


def _probability(confidence: float) -> None:
    if not 0 <= confidence <= 1:
        raise ValueError(f"a confidence is a probability, between 0 and 1, got {confidence}")


def _first(flags: Tensor) -> Tensor:
    """Column of a row's first true value, (B, L) -> (B,); 0 where there is none."""
    return flags.to(torch.uint8).argmax(1)


def _score(step: Step, by: str) -> Tensor:
    if by == "entropy":
        return -step.entropy
    score: Tensor = getattr(step, "lottery" if by == "chance" else by)
    return score


@lru_cache
def _times(steps: int) -> Tensor:
    return torch.linspace(1, 1e-3, steps + 1)


def _dream(step: Step) -> Tensor:
    """How many masked positions of a row Dream's schedule decides, (B,) long; in float32, like Dream's own code."""
    counts = []
    for masked, index, steps in torch.stack([step.masked.sum(1), step.index, step.deadline], 1).tolist():
        t, s = _times(steps)[index : index + 2] if index < steps - 1 else torch.tensor([1.0, 0.0])
        counts.append(int(masked * (1 - s / t)))
    return torch.tensor(counts, device=step.masked.device)


def ranked(score: Tensor, masked: Tensor) -> Tensor:
    """0 for a row's highest score among `masked`, then 1, …; the others come last. (B, L) long."""
    order = score.masked_fill(~masked, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    places = torch.arange(score.shape[1], device=score.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


SURE = 0.99
DEFAULT = Blockwise(Threshold(SURE))  # the default of all that decodes
LLADA = Blockwise()  # one token a step, the most confident first, in blocks of 32
