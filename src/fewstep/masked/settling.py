"""When an answer settles: full decoding watched step by step, with the first and the stable hit of its final answer."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .decoding import Decoded, tell, walk
from .early import EarlyCommit
from .predictor import MaskPredictor
from .step import Around, Change, CommitRule, Step

Same = Callable[[Tensor, Tensor], bool]  # (the row at a step, the final row), (n,) each -> whether the answer is the same


@dataclass(frozen=True)
class Trace:
    """One row's full decoding.

    Attributes:
        final: its result.
        shown: (T, m) long: the whole row at each of the T steps if everything were committed there; longer than `final` if
            that ends before its canvas.
        known: (T,) the early rule's statistic at each step.
        progress: (T,) the share of the planned steps done, as the early rule counts them.
        region: (m,) bool: the early rule's place of the answer.
    """

    final: Decoded
    shown: Tensor
    known: Tensor
    progress: Tensor
    region: Tensor

    def against(self, final: Decoded) -> Trace:
        """The same decoding, compared with another final row."""
        return replace(self, final=final)

    def hits(self, same: Same | None = None) -> Tensor:
        """The steps that showed the final answer, (T,) bool."""
        return self.agree(self.shown, same)

    def agree(self, rows: Tensor, same: Same | None = None) -> Tensor:
        """Which of `rows` (T, m) have the final answer, (T,) bool; without `same` every token of the region must agree."""
        rows = rows[:, : len(self.final.ids)]
        if same is None:
            return (rows == self.final.ids)[:, self.region[: len(self.final.ids)]].all(1)
        return torch.tensor([same(row, self.final.ids) for row in rows])


class Settled(NamedTuple):
    """When an answer appeared, as shares of the steps made, the step that showed it included."""

    first: float  # the final answer was shown for the first time
    stable: float  # from this step on it never changed again


def record(
    predictor: MaskPredictor,
    rows: Sequence[Tensor],
    rule: CommitRule,
    *,
    steps: int | None = None,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
    eos: bool = True,
    batch: int = 16,
) -> list[Trace]:
    """Decodes `rows` in full and keeps the answer that every step would have given.

    Args:
        predictor, rows, steps, temperature, seeds, eos, batch: as for `decode`.
        rule: an `EarlyCommit`, whose statistic and region are watched while its inner rule decodes alone; or any rule,
            watched over the whole generation.

    Returns:
        One trace a row.
    """
    early = rule if isinstance(rule, EarlyCommit) else EarlyCommit(rule)
    return record_each(predictor, rows, [early], steps=steps, temperature=temperature, seeds=seeds, eos=eos, batch=batch)[0]


def record_each(
    predictor: MaskPredictor,
    rows: Sequence[Tensor],
    rules: Sequence[EarlyCommit],
    *,
    steps: int | None = None,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
    eos: bool = True,
    batch: int = 16,
) -> list[list[Trace]]:
    """What `record` would return for each of `rules`, from one decoding by the inner rule that they share.

    Raises:
        ValueError: the rules have different inner rules.
    """
    if any(rule.rule != rules[0].rule for rule in rules):
        raise ValueError("rules that watch one decoding must be built around the same inner rule")
    seen: list[list[tuple[Tensor, ...]]] = [[] for _ in rows]
    traces: list[dict[int, Trace]] = [{} for _ in rules]
    watch = _Watch(rules[0].rule, tuple(rules))
    walks = walk(predictor, rows, watch, steps=steps, temperature=temperature, seeds=seeds, eos=eos, batch=batch)
    for walked in tell(walks, rows, predictor.mask_id):
        step, open = walked.step, walked.canvas.open
        shown = torch.where(step.masked, step.proposal, walked.canvas.ids).cpu()
        known = torch.stack([rule.known(step) for rule in rules], 1).cpu()  # (b, R)
        counted = torch.stack([rule.progress(step) for rule in rules], 1).cpu()  # (b, R)
        regions = [open if rule.region is None else rule.region(open) for rule in rules]
        region = torch.stack(regions, 1).cpu()  # (b, R, L)
        table = zip(shown, known, counted, region, strict=True)
        for progress, (ids, *rest) in zip(walked.progress, table, strict=True):
            seen[progress.number].append((ids[: len(rows[progress.number])], *rest))
        for number, row in walked.finished.items():
            final = row._replace(ids=row.ids.cpu(), committed_at=row.committed_at.cpu())
            whole, statistics, shares = (torch.stack([entry[k] for entry in seen[number]]) for k in range(3))
            for place, found in enumerate(traces):
                looked = seen[number][0][3][place, : whole.shape[1]]  # later steps may have fewer columns
                found[number] = Trace(final, whole, statistics[:, place], shares[:, place], looked)
            seen[number].clear()
    return [[found[number] for number in range(len(rows))] for found in traces]


def settle(trace: Trace, same: Same | None = None) -> Settled:
    """The first and the stable hit of the final answer; see `Trace.hits`.

    Early emergence is usually quoted by the first hit, but decoding can stop only at the stable one.

    Reference: Li et al. 2025, Diffusion Language Models Know the Answer Before Decoding.
    """
    hits = trace.hits(same)
    wrong = (~hits).nonzero()
    stable = int(wrong[-1]) + 1 if len(wrong) else 0
    assert hits[-1], "the last step shows the final answer"
    return Settled((int(hits.to(torch.uint8).argmax()) + 1) / len(hits), (stable + 1) / len(hits))


def emergence(settled: Sequence[Settled], at: Sequence[float] = (0.25, 0.5)) -> list[tuple[float, Settled]]:
    """The shares of rows that had shown their answer, and had shown it for good, by each of the shares `at` of steps."""
    table = torch.tensor([list(row) for row in settled], dtype=torch.float64)
    return [(share, Settled(*(table <= share).double().mean(0).tolist())) for share in at]


def same_answer(extract: Callable[[Tensor], Hashable]) -> Same:
    """Two rows agree if `extract` gives the same for both, e.g. the number after the last "####"."""
    return lambda shown, final: extract(shown) == extract(final)


def same_place(find: Callable[[Tensor], slice]) -> Same:
    """Two rows agree if they are equal at the final row's answer, as published: its place is known only from that row."""
    return lambda shown, final: bool((shown[find(final)] == final[find(final)]).all())


@dataclass(frozen=True)
class _Watch(Around):
    """Decodes by `rule`, with the logits that each of `watched` needs too."""

    rule: CommitRule
    watched: tuple[EarlyCommit, ...]

    def __call__(self, step: Step) -> Tensor | Change:
        return self.rule(step)

    def sees(self, masked: Tensor, open: Tensor) -> Tensor:
        return torch.stack([rule.sees(masked, open) for rule in (*self.watched, self.rule)]).any(0)
