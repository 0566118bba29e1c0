"""A learned commit rule: a small filter estimates for each proposal the probability that full decoding ends with it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import pad

from ..core.device import widest
from ..core.weights import read_safetensors
from .predictor import scatter
from .rules import ranked
from .step import CommitRule, Step

PROMPTS = "prompts"  # entry of the file: the prompts that the rule was learned from
LOOKS = 4  # predictions that the filter sees: the present one and three before
HIDDEN = (40, 24)
STEEP, WIDE = 9.0, 20.0  # log-odds and gaps are clamped to these
FEATURES = (
    "log-odds of the proposal's probability", "margin", "entropy", "gap",
    *(f"{what} {ago} looks ago" for ago in (3, 2, 1) for what in ("same token", "its probability if the same")),
    "looks that it is unchanged", "left is decided", "right is decided", "left's probability", "right's probability",
    "share decided", "log of how many may be decided", "their mean probability", "their least", "their greatest",
    "share of them that are surer",
)  # fmt: skip
WEIGHTS = {
    "mean": (len(FEATURES),), "scale": (len(FEATURES),), "own": (2,),
    "in.weight": (HIDDEN[0], len(FEATURES)), "in.bias": (HIDDEN[0],),
    "mid.weight": (HIDDEN[1], HIDDEN[0]), "mid.bias": (HIDDEN[1],), "out.weight": (1, HIDDEN[1]), "out.bias": (1,),
}  # fmt: skip


def features(step: Step) -> Tensor:
    """The filter's input at each position, (B, L, F), in the order of `FEATURES`; valid where logits were wanted.

    A neighbour that is decided, given, or beyond the row has probability 1. "Their" in `FEATURES` means the positions that
    the rule may decide now. The step must recall `LOOKS` steps.
    """
    kind = widest(step.masked.device)
    sure = step.confidence.to(kind).clamp(0, 1)
    undecided = step.open & (step.held < 0)
    beside = torch.where(undecided, sure, 1.0)
    token, then = step.recalled[..., -1:], step.trusted.to(kind)
    same = (step.recalled[..., :-1] == token) & (token >= 0)
    past = torch.stack([same.to(kind), then[..., :-1] * same], -1).flatten(-2)  # (B, L, 2·(LOOKS − 1))
    n = step.masked.sum(1, keepdim=True).to(kind)
    total = torch.where(step.masked, sure, 0.0).sum(1, keepdim=True)
    least = torch.where(step.masked, sure, 1.0).amin(1, keepdim=True)
    most = torch.where(step.masked, sure, 0.0).amax(1, keepdim=True)
    decided = 1 - undecided.sum(1, keepdim=True).to(kind) / step.open.sum(1, keepdim=True).clamp(min=1)
    own = [
        torch.logit(sure, 1e-6).clamp(-STEEP, STEEP), step.margin, step.entropy, step.gap.clamp(max=WIDE), *past.unbind(-1),
        step.unchanged.clamp(max=8), ~pad(undecided, (1, -1)), ~pad(undecided, (-1, 1)),
        pad(beside, (1, -1), value=1.0), pad(beside, (-1, 1), value=1.0),
    ]  # fmt: skip
    rows = [decided, n.log1p(), total / n.clamp(min=1), least, most]
    surer = ranked(sure, step.masked) / n.clamp(min=1)
    return torch.stack([each.to(kind) for each in (*own, *(row.expand_as(sure) for row in rows), surer)], -1)


def filtered(weights: dict[str, Tensor], seen: Tensor) -> Tensor:
    """Log-odds that full decoding ends with the proposals, features (…, F) -> (…,).

    They are the model's own log-odds, scaled and shifted, plus the output of a small network.
    """
    hidden = (seen - weights["mean"]) / weights["scale"]
    for layer in ("in", "mid"):
        hidden = torch.nn.functional.silu(hidden @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"])
    more = (hidden @ weights["out.weight"].T + weights["out.bias"]).squeeze(-1)
    return weights["own"][0] * seen[..., 0] + weights["own"][1] + more


@dataclass(frozen=True)
class Learned(CommitRule):
    """Every position at which a learned filter is this confident, and always the most probable one.

    The filter is a network of some two thousand parameters. It estimates the probability that full decoding, one token a
    step, ends with a proposal. Its inputs are the probabilities at the position, now and at the last steps, those of its
    neighbours, and how far the row is. `learn_rule` makes a filter for one model and one kind of prompt.

    Args:
        file: written by `learn_rule`.
        sha256: hash of the file, so that a rule means one filter; `Learned.read` computes it.
        confidence: probability by the filter, at least.

    Raises:
        ValueError: the file does not exist, has another hash, or holds no filter.

    Reference: Bao et al. 2025, Learning to Parallel (Learn2PD), whose filter sees only the probabilities of a block.
    """

    file: str
    sha256: str
    confidence: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.confidence <= 1:
            raise ValueError(f"a confidence is a probability, between 0 and 1, got {self.confidence}")
        read_filter(self.file, self.sha256)

    @classmethod
    def read(cls, file: Path, confidence: float = 0.9) -> Learned:
        """The rule in a file of `learn_rule`."""
        if not file.is_file():
            raise ValueError(f"there is no file {file}; make a learned rule with fewstep learn-rule")
        return cls(str(file.resolve()), hashlib.sha256(file.read_bytes()).hexdigest(), confidence)

    def __call__(self, step: Step) -> Tensor:
        weights = read_filter(self.file, self.sha256)
        seen = features(step)[step.where]
        said = filtered({name: part.to(seen) for name, part in weights.items()}, seen).sigmoid()
        score = scatter(said, step.where, step.masked.shape, -1.0)
        best = ranked(step.confidence, step.masked) == 0  # by the model, as in full decoding, not by the filter
        return ((score >= self.confidence) | best) & step.masked

    def recalls(self) -> int:
        return LOOKS

    @property
    def prompts(self) -> frozenset[str]:
        """The prompts that it was learned from, as hashed by `fitting.known_as`."""
        with safe_open(self.file, "pt") as file:
            return frozenset(json.loads((file.metadata() or {}).get(PROMPTS, "[]")))


@lru_cache
def read_filter(file: str, sha256: str) -> dict[str, Tensor]:
    """The weights of a filter.

    Raises:
        ValueError: as for `Learned`.
    """
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"the learned rule {file} is gone; put it back, or learn and calibrate another")
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise ValueError(f"the learned rule {file} is another one by now; put the old one back, or calibrate again")
    weights = read_safetensors(path)
    if {name: tuple(part.shape) for name, part in weights.items()} != WEIGHTS:
        raise ValueError(f"{file} holds no learned rule of this version; make one with fewstep learn-rule")
    if not all(part.isfinite().all() for part in weights.values()):
        raise ValueError(f"the learned rule {file} holds values that are not finite; learn it again")
    return weights
