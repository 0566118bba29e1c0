"""Rules that take back what was decided, against a plain loop of one row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from masked.test_decoding import forward
from masked.toy import MASK, Toy, masks
from torch import Tensor

from fewstep.masked.decoding import Decoded, decode, stream, walk
from fewstep.masked.early import EarlyCommit, StableAndConfident
from fewstep.masked.rules import Blockwise, Last, Threshold
from fewstep.masked.schedule import Stairs
from fewstep.masked.settling import record
from fewstep.masked.step import Change, CommitRule, Step

ROWS = [masks("01"[: n % 3] + "_" * (3 + (5 * n) % 9) + "4_" * (n % 2)) for n in range(9)]


@dataclass(frozen=True)
class Doubt(CommitRule):
    """Commits what is as probable as `draft`, and the best; takes back what is less probable than `keep` by now."""

    draft: float = 0.3
    keep: float = 0.5

    def __call__(self, step: Step) -> Change:
        p = torch.ones(step.open.shape, dtype=torch.float64)
        chosen = step.logits.softmax(-1).gather(1, step.held[step.where].clamp(min=0)[:, None])[:, 0]
        return Change(Threshold(self.draft)(step), (p.index_put(step.where, chosen) < self.keep) & (step.held >= 0))

    def sees(self, masked: Tensor, open: Tensor) -> Tensor:
        return open

    def reopens(self) -> bool:
        return True


def plain(toy: Toy, given: Tensor, rule: Doubt, block: int, steps: int | None) -> tuple[list[int], list[int], int, int]:
    """Ids, when each was committed, forwards, and how many tokens were taken back."""
    row, opened = given.clone(), [i for i in range(len(given)) if given[i] == MASK]
    at, made, back = [-1] * len(row), 0, 0
    while True:
        left = [i for i in opened if row[i] == MASK]
        if not left:
            return row.tolist(), at, made, back
        p = forward(toy, row).softmax(-1)
        now = min((i - opened[0]) // block for i in left)
        drafted = [i for i in left if (i - opened[0]) // block == now]
        best = max(drafted, key=lambda i: float(p[i].max()))
        seen = [i for i in opened if (i - opened[0]) // block == now]  # elsewhere a token counts as certain
        doubted = [i for i in opened if row[i] != MASK and (p[i, row[i]] if i in seen else 1.0) < rule.keep]
        for i in drafted:
            if i == best or p[i].max() >= rule.draft:
                row[i], at[i] = p[i].argmax(), made
        if made < (len(opened) if steps is None else steps) - 1:
            for i in doubted:
                row[i], at[i], back = MASK, -1, back + 1
        made += 1


@pytest.mark.parametrize("rule", [Doubt(), Doubt(0.4, 0.9), Doubt(0.35, 0.6), Doubt(0.3, 1.1)])
@pytest.mark.parametrize("block", [6, 99])
@pytest.mark.parametrize("steps", [None, 1, 4, 40])
def test_reopened_positions_are_decided_anew(rule: Doubt, block: int, steps: int | None) -> None:
    toy, taken_back = Toy(scale=1.5), 0
    for row, found in zip(ROWS, decode(toy, ROWS, Blockwise(rule, block), steps=steps, batch=4), strict=True):
        ids, at, made, back = plain(toy, row, rule, block, steps)
        assert (found.ids.tolist(), found.committed_at.tolist(), found.nfe) == (ids, at, made)
        n = int((row == MASK).sum())
        assert made < (n if steps is None else steps) + n
        taken_back += back
    assert (taken_back > 0) == (steps != 1)


@pytest.mark.parametrize("around", [Blockwise, lambda rule: Last(rule, (10,)), EarlyCommit, StableAndConfident])
def test_a_rule_around_one_that_reopens_reopens(around: Callable[[CommitRule], CommitRule]) -> None:
    assert around(Doubt()).reopens() and not around(Threshold()).reopens()


def test_an_early_commit_takes_nothing_back() -> None:
    """Rows that know enough end with all their proposals; the others do what the inner rule says."""
    toy, early, taken_back = Toy(scale=1.5), 0, 0
    rule = EarlyCommit(Doubt(0.3, 0.8), Stairs((1.5,), ()))
    for walked in walk(toy, ROWS, rule, batch=4):
        known = rule.known(walked.step) >= 1.5
        assert [p.end is not None for p, yes in zip(walked.progress, known, strict=True) if yes] == [True] * int(
            known.sum()
        )
        early += int(known.sum())
        taken_back += int(((walked.step.held >= 0) & (walked.rows.ids == MASK)).sum())
    assert early > 3 and taken_back > 3


@pytest.mark.parametrize("rule", [Doubt(0.3, 0.9), Blockwise(Doubt(0.3, 1.1), 4), Blockwise(Doubt(), 3)])
@pytest.mark.parametrize("steps", [None, 6])
def test_what_was_streamed_never_changes(rule: CommitRule, steps: int | None) -> None:
    toy = Toy(scale=1.5, eos_bias=2.0)
    text: dict[int, list[int]] = {n: [] for n in range(len(ROWS))}
    ends: dict[int, Decoded] = {}
    early = 0
    for number, tokens, end in stream(walk(toy, ROWS, rule, steps=steps, batch=4)):
        text[number] += tokens
        early += end is None
        if end:
            ends[number] = end
    for number, row in enumerate(decode(toy, ROWS, rule, steps=steps)):
        assert text[number] == row.tokens == ends[number].tokens
    assert early or steps is None  # from the last planned step on nothing is held back


def test_progress_goes_back_and_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[float] = []

    @contextmanager
    def spy(title: str, total: float) -> Iterator[Callable[[float], None]]:
        said.append(-total)
        yield said.append

    monkeypatch.setattr("fewstep.masked.decoding.progress", spy)
    decode(Toy(scale=1.5, eos_bias=2.0), ROWS, Doubt(0.3, 0.9), batch=3)
    assert sum(said) == 0 and min(said[1:]) < 0


def test_a_full_decoding_that_reopens_is_watched_like_any() -> None:
    toy, rule = Toy(scale=1.5), Doubt(0.3, 0.9)
    for trace, row in zip(record(toy, ROWS, rule), decode(toy, ROWS, rule), strict=True):
        assert torch.equal(trace.final.ids, row.ids) and len(trace.shown) == row.nfe and trace.hits()[-1]


def test_a_rule_that_does_not_say_that_it_reopens_is_refused() -> None:
    class Silent(Doubt):
        def reopens(self) -> bool:
            return False

    with pytest.raises(ValueError, match=r"its reopens\(\) must return True"):
        decode(Toy(), ROWS, Silent())


def test_given_text_is_never_reopened() -> None:
    @dataclass(frozen=True)
    class All(Doubt):
        def __call__(self, step: Step) -> Change:
            return Change(torch.ones_like(step.masked), torch.ones_like(step.masked))

    for row, found in zip(ROWS, decode(Toy(), ROWS, All()), strict=True):
        assert torch.equal(found.ids[row != MASK], row[row != MASK]) and (found.ids != MASK).all()
