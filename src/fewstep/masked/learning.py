"""Learns a commit rule from the results of full decoding, on prompts like those to be decoded."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..core.progress import track
from .decoding import Decoded, decode
from .learned import FEATURES, HIDDEN, LOOKS, features, filtered
from .predictor import MaskPredictor
from .rules import Threshold, TopK
from .step import Change, CommitRule, Step

logger = logging.getLogger(__name__)
BLIND = 0.25  # share of the rows that test the filter and do not train it
Around = Callable[[CommitRule], CommitRule]  # puts a rule into blocks


@dataclass(frozen=True)
class Lesson:
    """How the filter is trained.

    Attributes:
        drafts: confidences of `Threshold`; every row is decoded once by each, so that the filter also sees rows in which
            several tokens were decided at once, some of them wrongly.
        steps: of the optimizer.
        batch: examples a step.
        lr: the highest learning rate; it falls along a cosine.
        decay: weight decay.
        look: every so many steps the filter is tested on the test rows; the best filter is kept.
    """

    drafts: tuple[float, ...] = (0.9, 0.6)
    steps: int = 2000
    batch: int = 512
    lr: float = 2e-3
    decay: float = 1e-2
    look: int = 100


class Examples(NamedTuple):
    """Proposals, and whether full decoding ends with them."""

    seen: Tensor  # (N, F) features
    right: Tensor  # (N,) bool
    row: Tensor  # (N,) long: number of the row


class Learnt(NamedTuple):
    """A filter and its results on the test rows, by which it was also chosen during training."""

    weights: dict[str, Tensor]
    examples: int  # number of training proposals
    blind: int  # number of test proposals
    right: float  # share of the test proposals that full decoding ends with
    loss: float  # cross entropy on the test proposals, nats
    plain: float  # the same for the model's own probability


class _Gather(CommitRule):
    """A rule around a rule that keeps the filter's inputs at each step."""

    def __init__(self, rule: CommitRule) -> None:
        self.rule = rule
        self.kept: list[tuple[Tensor, ...]] = []

    def __call__(self, step: Step) -> Tensor | Change:
        row, column = step.masked.nonzero(as_tuple=True)
        found = features(step)[row, column], step.seed[row], column, step.proposal[row, column]
        self.kept.append(tuple(part.cpu() for part in found))
        return self.rule(step)

    def recalls(self) -> int:
        return LOOKS


def gather(
    predictor: MaskPredictor,
    rows: Sequence[Tensor],
    around: Around,
    lesson: Lesson,
    *,
    steps: int | None,
    batch: int,
    first: int = 0,
) -> Examples:
    """All proposals of full decoding and of the drafts, and whether full decoding ends with them.

    Args:
        predictor, rows, steps, batch: as for `decode`.
        around: puts a rule into another, such as blocks.
        lesson: names the drafts.
        first: number of the first row, if the rows are a part of all.
    """
    numbers = range(first, first + len(rows))
    finals: list[Decoded] = []
    found: list[Examples] = []
    for rule in track((TopK(), *map(Threshold, lesson.drafts)), "watching"):
        watch = _Gather(rule)
        done = decode(predictor, rows, around(watch), steps=steps if not finals else None, seeds=numbers, batch=batch)
        finals = finals or done
        seen, row, column, proposal = (torch.cat(parts) for parts in zip(*watch.kept, strict=True))
        width = max(len(final.ids) for final in finals)
        table = torch.full((len(rows), max(width, int(column.max()) + 1)), -1)
        for number, final in enumerate(finals):
            table[number, : len(final.ids)] = final.ids.cpu()
        ends = table[row - first, column]
        known = ends >= 0  # positions after the end of a row have no answer
        found.append(Examples(seen[known], (proposal == ends)[known], row[known]))
    return joined(found)


def joined(parts: Iterable[Examples]) -> Examples:
    """The examples of all parts, in order."""
    return Examples(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def learn(examples: Examples, n: int, *, seed: int = 0, lesson: Lesson = Lesson()) -> Learnt:
    """A filter from the proposals of `n` rows, of which the last quarter are test rows; trained on the CPU.

    Raises:
        ValueError: fewer than four rows, or no proposal is right.
    """
    if n < 4:
        raise ValueError(f"a rule is learned from at least four prompts, got {n}; give a few hundred")
    blind = examples.row >= n - math.ceil(BLIND * n)
    seen, right = examples.seen[~blind].float(), examples.right[~blind].float()
    if not right.any():
        raise ValueError("full decoding ends with none of its first proposals; give prompts that the model can answer")
    apart, truth = examples.seen[blind].float(), examples.right[blind].float()
    rng = torch.Generator().manual_seed(seed)
    weights = _begun(rng) | {"mean": seen.mean(0), "scale": seen.std(0).clamp(min=1e-3)}
    moving = [part.requires_grad_() for name, part in weights.items() if name not in ("mean", "scale")]
    optimizer = torch.optim.AdamW(moving, lr=lesson.lr, weight_decay=lesson.decay)
    best = plain = _loss(apart[:, 0], truth)
    made = {name: part.detach().clone() for name, part in weights.items()}  # at first it gives the model's own probability
    for step in track(range(lesson.steps), "learning"):
        for group in optimizer.param_groups:
            group["lr"] = lesson.lr * (1 + math.cos(math.pi * step / lesson.steps)) / 2
        some = torch.randint(len(seen), (lesson.batch,), generator=rng)
        loss = _loss(filtered(weights, seen[some]), right[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % lesson.look == lesson.look - 1:
            with torch.no_grad():
                loss = _loss(filtered(weights, apart), truth)
            if loss < best:
                best, made = loss, {name: part.detach().clone() for name, part in weights.items()}
    return Learnt(made, len(seen), len(apart), truth.mean().item(), best.item(), plain.item())


def _loss(said: Tensor, truth: Tensor) -> Tensor:
    """Cross entropy of log-odds."""
    return nn.functional.binary_cross_entropy_with_logits(said, truth)


def _begun(rng: torch.Generator) -> dict[str, Tensor]:
    """The weights before the first step."""
    sizes = (len(FEATURES), *HIDDEN, 1)
    made = {}
    for name, wide, narrow in zip(("in", "mid", "out"), sizes, sizes[1:], strict=False):
        made[f"{name}.weight"] = torch.randn(narrow, wide, generator=rng) / math.sqrt(wide)
        made[f"{name}.bias"] = torch.zeros(narrow)
    return made | {"own": torch.tensor([1.0, 0.0]), "out.weight": torch.zeros(1, HIDDEN[-1])}


def as_facts(lesson: Lesson, learnt: Learnt) -> dict[str, object]:
    """The entries of a receipt."""
    told = {name: value for name, value in learnt._asdict().items() if name != "weights"}
    parameters = sum(part.numel() for name, part in learnt.weights.items() if name not in ("mean", "scale"))
    return asdict(lesson) | told | {"parameters": parameters}
