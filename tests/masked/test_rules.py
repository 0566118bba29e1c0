"""Contracts that every rule keeps, and each rule against its formula."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import groupby, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked.toy import MASK, VOCABULARY, Toy, masks
from torch import Tensor

from fewstep.masked.decoding import decode, walk
from fewstep.masked.early import EarlyCommit, StableAndConfident, sched
from fewstep.masked.noise import uniform
from fewstep.masked.predictor import Canvas, pad
from fewstep.masked.rules import KLASS, Blockwise, Credit, EntropyBound, Factor, Hierarchical, Last, Threshold, TopK
from fewstep.masked.schedule import Cosine, Exponential, Linear, Scaled, Span, Stairs, Suffix
from fewstep.masked.settling import record
from fewstep.masked.step import CommitRule, Scores, Step

unit = st.floats(0, 1)
base = st.one_of(
    st.builds(TopK, by=st.sampled_from(["confidence", "margin", "gap", "entropy", "chance"])),
    st.builds(Threshold, confidence=unit),
    st.builds(Factor, factor=st.floats(0, 3)),
    st.builds(EntropyBound, bound=st.floats(0, 2)),
    st.builds(KLASS, unit, st.floats(0, 2), st.integers(1, 3)),
    st.builds(Hierarchical, unit, unit),
    st.builds(Credit, unit, unit.filter(lambda share: share < 1), unit, unit),
)
schedules = st.one_of(
    st.sampled_from([Stairs(), Linear(3, 0), Exponential()]), st.builds(Scaled, schedule=st.just(Cosine()), factor=unit)
)
regions = st.one_of(st.none(), st.builds(Span, st.integers(-6, 6), st.none()), st.builds(Suffix, st.integers(1, 4)))


def wrap(rules: st.SearchStrategy[CommitRule]) -> st.SearchStrategy[CommitRule]:
    return st.one_of(
        st.builds(Blockwise, rules, st.integers(1, 9)),
        st.builds(
            EarlyCommit, rules, schedules, st.one_of(st.just("mean"), st.just("minimum"), unit), regions,
            st.sampled_from(["undecided", "region"]),
        ),
        st.builds(StableAndConfident, rules, st.integers(0, 2), st.floats(0, 2)),
        st.builds(sched, rules),
        st.builds(Last, rules, st.just((10, 3))),
    )  # fmt: skip


rules = st.recursive(base, wrap, max_leaves=3)
canvases = st.lists(
    st.text("0123_____", min_size=1, max_size=14).map(lambda row: masks(row + "_")), min_size=1, max_size=4
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    rows=canvases, rule=rules, steps=st.one_of(st.none(), st.integers(1, 20)), temperature=st.sampled_from([0.0, 1.0]),
    batch=st.integers(1, 4),
)  # fmt: skip
def test_rules_keep_their_contract_and_rows_do_not_know_their_batch(
    rows: list[Tensor], rule: CommitRule, steps: int | None, temperature: float, batch: int
) -> None:
    toy, seeds = Toy(), list(range(5, 5 + len(rows)))
    seen: dict[int, int] = dict.fromkeys(range(len(rows)), 0)
    for walked in walk(toy, rows, rule, steps=steps, temperature=temperature, seeds=seeds, batch=batch):
        before, after = walked.canvas.ids, walked.rows.ids
        assert not (rule(walked.step) & ~walked.step.masked).any()
        assert torch.equal(before[~walked.step.masked], after[~walked.step.masked])
        assert ((before == MASK) & (after != MASK)).any(1).all()
        for number in walked.rows.number.tolist():
            seen[number] += 1
    together = decode(toy, rows, rule, steps=steps, temperature=temperature, seeds=seeds, batch=batch)
    for number, (row, seed) in enumerate(zip(rows, seeds, strict=True)):
        alone = decode(toy, [row], rule, steps=steps, temperature=temperature, seeds=[seed])[0]
        for one, other in zip(alone[:-1], together[number][:-1], strict=True):  # all but what padding costs
            assert torch.equal(one, other) if isinstance(one, Tensor) else one == other
        assert alone.positions == alone.nfe * len(row) <= together[number].positions
        assert alone.nfe == seen[number] <= (row == MASK).sum()
        assert torch.equal(alone.ids[row != MASK], row[row != MASK]) and (alone.ids != MASK).all()
        assert torch.equal(alone.committed_at == -1, row != MASK) and alone.committed_at.max() == alone.nfe - 1


def make_step(probabilities: Any, **changes: Any) -> Step:
    """One row that is masked where a distribution is given and not where there is None."""
    given = [i for i, p in enumerate(probabilities) if p is not None]
    logits = torch.tensor([probabilities[i] for i in given], dtype=torch.float64).log()
    masked = torch.zeros(1, len(probabilities), dtype=torch.bool)
    masked[0, given] = True
    where = (torch.zeros(len(given), dtype=torch.long), torch.tensor(given))
    blank = torch.zeros(1, len(probabilities), dtype=torch.long)
    return Step(
        **{
            "scores": Scores(logits), "where": where, "masked": masked, "open": torch.ones_like(masked),
            "held": blank - 1, "committed_at": blank - 1, "unchanged": blank,
            "proposal": blank.index_put(where, logits.argmax(-1)),
            "drift": torch.zeros(1, len(probabilities), 0), "recalled": blank[..., None][..., :0],
            "trusted": torch.zeros(1, len(probabilities), 0), "seed": torch.tensor([7]),
            "index": torch.tensor([0]), "steps": torch.tensor([4]), "deadline": torch.tensor([4]),
        }
        | changes
    )  # fmt: skip


SHARP, FAIR, SURE = [0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.95, 0.04, 0.01]
CERTAIN = [0.999, 0.0005, 0.0005]
ROW = [FAIR, None, SURE, SHARP, CERTAIN]


def chosen(rule: CommitRule, step: Step) -> list[int]:
    return rule(step)[0].nonzero().flatten().tolist()


@pytest.mark.parametrize(("confidence", "drift", "steps"), [(0.3, 0.5, 1), (0.3, 0.5, 2), (0.2, 2.0, 3), (0.9, 0.01, 2)])
def test_klass_is_its_plain_reading(confidence: float, drift: float, steps: int) -> None:
    """One row at a time, every distribution kept; in a batch of which rows leave at different steps."""
    toy, rows, at_once = Toy(scale=2.0), [masks("12" + "_" * n) for n in (9, 5, 12)], 0
    for row, ours in zip(rows, decode(toy, rows, KLASS(confidence, drift, steps)), strict=True):
        ids, history, index = row.clone(), [], 0
        while (ids == MASK).any():
            masked = ids == MASK
            canvas = pad([ids], MASK)
            logits = toy(canvas._replace(open=(row == MASK)[None]), torch.ones_like(canvas.valid))
            logits[:, MASK] = -torch.inf
            history.append(logits[:, :MASK].softmax(-1))
            kl = [(b * (b / a).log()).sum(-1) for a, b in pairwise(history)][-steps:]
            best = history[-1].amax(-1).masked_fill(~masked, -1)
            stable = torch.stack(kl).max(0).values < drift if len(kl) == steps else torch.zeros_like(masked)
            commit = masked & stable & (best >= confidence)
            at_once += int(commit.sum()) > 1
            commit[best.argmax()] = True
            ids[commit] = logits.argmax(-1)[commit]
            assert torch.equal(ours.committed_at == index, commit)
            index += 1
        assert torch.equal(ours.ids, ids)
    assert at_once or confidence > 0.5


@pytest.mark.parametrize(("confidence", "low"), [(0.9, 0.4), (0.99, 0.0), (0.5, 0.45), (1.0, 1.0), (0.2, 0.6)])
def test_hierarchical_is_its_plain_reading(confidence: float, low: float) -> None:
    """Run after run of neighbouring masks, one row at a time; several runs are decided at one step."""
    toy, rows, most = Toy(scale=2.0), [masks("12" + "_" * 9), masks("__3_4____5"), masks("_" * 14)], 0
    for row, ours in zip(rows, decode(toy, rows, Hierarchical(confidence, low)), strict=True):
        ids, index = row.clone(), 0
        while (ids == MASK).any():
            canvas = pad([ids], MASK)
            logits = toy(canvas._replace(open=(row == MASK)[None]), torch.ones_like(canvas.valid))
            logits[:, MASK] = -torch.inf
            sure, token = logits.softmax(-1).max(-1)
            open_ones = [i for i in range(len(ids)) if ids[i] == MASK]
            runs = [list(run) for _, run in groupby(open_ones, key=lambda i: (ids[:i] != MASK).sum().item())]
            firsts = [max(run, key=lambda i: sure[i].item()) for run in runs]
            commit = {i for i in open_ones if sure[i] > confidence} | {i for i in firsts if sure[i] > low}
            commit.add(max(open_ones, key=lambda i: sure[i].item()))
            most = max(most, len(commit))
            assert (ours.committed_at == index).nonzero().flatten().tolist() == sorted(commit)
            ids[list(commit)] = token[list(commit)]
            index += 1
        assert torch.equal(ours.ids, ids)
    assert (most > 1) == (low < 1)


@pytest.mark.parametrize(
    ("confidence", "decay", "power", "strength"), [(0.9, 0.8, 0.2, 0.7), (0.6, 0.5, 1, 2), (0.3, 0, 0, 0)]
)
def test_credit_is_its_plain_reading(confidence: float, decay: float, power: float, strength: float) -> None:
    """A table of credits over the whole vocabulary, one row at a time; in a batch rows leave at different steps."""
    toy, rows, sooner = Toy(scale=2.0), [masks("12" + "_" * n) for n in (9, 5, 12)], 0
    for row, ours in zip(rows, decode(toy, rows, Credit(confidence, decay, power, strength)), strict=True):
        ids, index = row.clone(), 0
        credits = torch.zeros(len(row), VOCABULARY, dtype=torch.float64)
        while (ids == MASK).any():
            masked = (ids == MASK).nonzero().flatten()
            canvas = pad([ids], MASK)
            logits = toy(canvas._replace(open=(row == MASK)[None]), torch.ones_like(canvas.valid))
            logits[:, MASK] = -torch.inf
            sure, token = logits.softmax(-1).max(-1)
            credits *= decay
            credits[masked, token[masked]] += sure[masked] ** power
            with_credit = (logits + strength * credits.log1p()).softmax(-1).gather(1, token[:, None])[:, 0]
            best = max(masked.tolist(), key=lambda i: with_credit[i].item())
            commit = {i for i in masked.tolist() if with_credit[i] >= confidence} | {best}
            sooner += sum(sure[i].item() < confidence for i in commit - {best})
            assert (ours.committed_at == index).nonzero().flatten().tolist() == sorted(commit)
            ids[list(commit)] = token[list(commit)]
            index += 1
        assert torch.equal(ours.ids, ids)
    assert (sooner > 0) == (strength > 0), "some are decided that would not be without credit"


def test_statistics_are_the_textbook_ones() -> None:
    step = make_step(ROW)
    torch.testing.assert_close(step.confidence[0], torch.tensor([0.5, -1, 0.95, 0.7, 0.999], dtype=torch.float64))
    gaps = [math.log(5 / 3), 0, math.log(95 / 4), math.log(3.5), math.log(1998)]
    torch.testing.assert_close(step.gap[0], torch.tensor(gaps, dtype=torch.float64))
    entropy = -sum(p * math.log(p) for p in SHARP)
    torch.testing.assert_close(step.entropy[0, 3].item(), entropy)
    assert step.entropy[0, 1] == 0


@pytest.mark.parametrize(("deadline", "k"), [(4, 1), (3, 2), (2, 2), (1, 4), (0, 4)])
def test_top_k_meets_its_deadline(deadline: int, k: int) -> None:
    step = make_step(ROW, deadline=torch.tensor([deadline]))
    assert chosen(TopK(), step) == sorted([4, 2, 3, 0][:k])
    assert chosen(TopK("entropy"), step) == sorted([4, 2, 3, 0][:k])
    assert chosen(TopK("gap"), step) == sorted([4, 2, 3, 0][:k])
    drawn = uniform(torch.tensor([[7]]), -1, torch.arange(len(ROW)))[0].tolist()
    assert chosen(TopK("chance"), step) == sorted(sorted([0, 2, 3, 4], key=lambda place: -drawn[place])[:k])


@pytest.mark.parametrize("masked", [1, 2, 7, 12, 23])
@pytest.mark.parametrize("steps", [1, 3, 5, 12])
def test_top_k_is_the_published_schedule(masked: int, steps: int) -> None:
    left, counts = masked, []
    for index in range(steps):
        step = make_step([FAIR] * left + [None], index=index, deadline=torch.tensor([steps])) if left else None
        counts.append(len(chosen(TopK(), step)) if step else 0)
        left -= counts[-1]
    assert counts == [masked // steps + (index < masked % steps) for index in range(steps)]


@pytest.mark.parametrize(
    ("confidence", "expected"), [(0.9, [2, 4]), (0.6999, [2, 3, 4]), (0.9999, [4]), (0.0, [0, 2, 3, 4])]
)
def test_threshold(confidence: float, expected: list[int]) -> None:
    assert chosen(Threshold(confidence), make_step(ROW)) == expected


@pytest.mark.parametrize(
    "rule",
    [
        TopK(), TopK(schedule="dream"), Threshold(0.9), Factor(9.0), EntropyBound(5.0), KLASS(0.3, 9.0, 1),
        Hierarchical(0.9, 0.1),
        Blockwise(Threshold(0.3), 3), Last(Threshold(0.3), (1,)), StableAndConfident(Threshold(0.9), 9),
        EarlyCommit(Threshold(0.9), over="region"), EarlyCommit(Threshold(0.9), Stairs((0.0,), ()), over="region"),
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_decided_is_never_decided_again(rule: CommitRule) -> None:
    """Decided positions are the surest of all, and a rule around a rule shows it their logits too."""
    step = make_step([CERTAIN, SURE, SHARP, FAIR, CERTAIN], drift=torch.zeros(1, 5, 1), steps=torch.tensor([1]))
    masked = torch.tensor([[False, True, True, True, False]])
    found = rule(replace(step, masked=masked, deadline=torch.tensor([1])))
    assert found.any() and not (found & ~masked).any()


@pytest.mark.parametrize("factor", [0.0, 0.001, 0.1, 0.16, 0.5, 1.3, 2.6, 9.0])
def test_factor(factor: float) -> None:
    ordered = sorted(zip([0.5, 0.95, 0.7, 0.999], [0, 2, 3, 4], strict=True), reverse=True)
    n = max([n for n in range(1, 5) if (n + 1) * (1 - ordered[n - 1][0]) <= factor], default=1)
    assert chosen(Factor(factor), make_step(ROW)) == sorted(place for _, place in ordered[:n])


@pytest.mark.parametrize("bound", [0.0, 0.005, 0.1, 0.3, 1.0, 1.2, 5.0])
def test_entropy_bound(bound: float) -> None:
    entropy = {place: -sum(p * math.log(p) for p in ROW[place] or []) for place in (0, 2, 3, 4)}
    ordered = sorted(entropy, key=entropy.__getitem__)
    n = max(n for n in range(1, 5) if sum(entropy[p] for p in ordered[:n]) - entropy[ordered[n - 1]] <= bound)
    assert chosen(EntropyBound(bound), make_step(ROW)) == sorted(ordered[:n])
    with pytest.raises(ValueError, match="must not be negative"):
        EntropyBound(-0.1)


def test_blocks_come_in_turn_and_pass_their_spare_steps_on() -> None:
    open = torch.tensor([[False, True, True, True, True, False, True, True]])  # places 0 … 6, blocks of 3
    for masked, block, due in (([1, 3, 6], [1, 3], 7), ([4, 6], [4, 6], 11), ([7], [7], 12)):
        step = make_step([FAIR if i in masked else None for i in range(8)], open=open, steps=torch.tensor([12]))
        seen: list[Step] = []

        class Spy(TopK):
            def __call__(self, step: Step, _seen: list[Step] = seen) -> Tensor:
                _seen.append(step)
                return step.masked

        assert chosen(Blockwise(Spy(), 3), step) == block
        assert seen[0].deadline.tolist() == [due]
        assert Blockwise(TopK(), 3).sees(step.masked, open)[0].nonzero().flatten().tolist() == block
    with pytest.raises(ValueError, match="at least one position"):
        Blockwise(TopK(), 0)


def test_early_commit_statistics_regions_and_averaging() -> None:
    """Gaps of the row: ln of 1.67, (decided), 23.75, 3.5, 1998."""
    gaps = [math.log(g) for g in (5 / 3, 95 / 4, 3.5, 1998)]
    step = make_step(ROW)
    cases = [
        (EarlyCommit(), sum(gaps) / 4),
        (EarlyCommit(statistic="minimum"), min(gaps)),
        (EarlyCommit(statistic=0.0), min(gaps)),
        (EarlyCommit(statistic=1.0), max(gaps)),
        (EarlyCommit(statistic=0.4), sorted(gaps)[1]),
        (EarlyCommit(over="region"), sum(gaps) / 5),  # the decided position has a gap too; none was wanted here
        (EarlyCommit(region=Span(3)), (gaps[2] + gaps[3]) / 2),
        (EarlyCommit(region=Span(-1)), gaps[3]),
        (EarlyCommit(region=Span(0, 2)), gaps[0]),
        (EarlyCommit(region=Span(1, 2)), math.inf),
        (EarlyCommit(region=Span(5)), -math.inf),
    ]
    for rule, expected in cases:
        assert rule.known(step).item() == pytest.approx(expected), rule
    assert chosen(EarlyCommit(TopK(), Stairs((gaps[0],), ()), "minimum"), step) == [0, 2, 3, 4]
    assert chosen(EarlyCommit(TopK(), Stairs((gaps[0] + 1e-9,), ()), "minimum"), step) == [4]
    assert EarlyCommit(over="region").sees(step.masked, step.open).all()
    with pytest.raises(ValueError, match="quantile lies between"):
        EarlyCommit(statistic=1.5)


def test_regions() -> None:
    # given 0-1, open 2-5, given 6-7, open 8-10, given 11; and a row without inner text, shorter
    open = torch.tensor([[0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0]]).bool()
    places = lambda region: [row.nonzero().flatten().tolist() for row in region(open)]  # noqa: E731
    assert places(Suffix()) == [[8, 9, 10], [1, 2, 3]]
    assert places(Suffix(2)) == [[8, 9], [1, 2]]
    assert places(Span()) == [[2, 3, 4, 5, 8, 9, 10], [1, 2, 3]]
    assert places(Span(1, 7)) == [[3, 4, 5, 8], [2, 3]]
    assert places(Span(-2)) == [[9, 10], [2, 3]]
    assert places(Span(0, -2)) == [[2, 3, 4, 5, 8], [1]]


def test_schedules() -> None:
    p = torch.tensor([0, 0.329, 0.33, 0.5, 0.669, 0.67, 1.0], dtype=torch.float64)
    assert Stairs()(p).tolist() == [7.5, 7.5, 5, 5, 5, 2.5, 2.5]
    assert Scaled(Stairs(), 2.0)(p).tolist() == [15, 15, 10, 10, 10, 5, 5]
    assert Stairs((3.0,), ())(p).tolist() == [3.0] * 7
    for schedule in (Linear(8, 2), Cosine(8, 2), Exponential(8, 2, 50)):
        values = schedule(p)
        assert values[0] == 8 and values[-1].item() == pytest.approx(2) and (values.diff() < 0).all()
    assert Linear(8, 2)(p)[3] == 5 and Cosine(8, 2)(p)[3].item() == pytest.approx(5)
    with pytest.raises(ValueError, match="rising places"):
        Stairs((1.0, 2.0), (0.5, 0.6))


def test_stable_and_confident() -> None:
    step = make_step(ROW, unchanged=torch.tensor([[1, 0, 1, 2, 1]]))
    mean = step.entropy.sum().item() / 4
    assert chosen(StableAndConfident(TopK(), 1, mean + 1e-9), step) == [0, 2, 3, 4]
    assert chosen(StableAndConfident(TopK(), 1, mean), step) == [4]
    assert chosen(StableAndConfident(TopK(), 2, 9.0), step) == [4]


UNEVEN = [masks("_" * n) for n in (5, 7, 10)] + [masks("1_2__34_____5_6"), masks("_12345678_"), masks("______7__")]


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_blocks_of_any_filling_take_the_steps_that_are_asked_for(length: int) -> None:
    for row in UNEVEN:
        n, held = int((row == MASK).sum()), {int(p - (row == MASK).nonzero()[0]) // length for p in (row == MASK).nonzero()}
        assert decode(Toy(), [row], Blockwise(TopK(), length))[0].nfe == n  # one a token
        for steps in range(1, n + 3):
            took = decode(Toy(), [row], Blockwise(TopK(), length), steps=steps)[0].nfe
            assert took <= max(steps, len(held)) and (steps < len(held) or steps > n or took == steps)


@pytest.mark.parametrize(
    "inner", [Blockwise(KLASS(0.2, 2.0, 1), 3), Blockwise(KLASS(0.3, 0.5, 2), 4), sched(TopK(), Stairs((4.0,), ()))]
)
def test_a_wrapper_that_never_fires_changes_nothing(inner: CommitRule) -> None:
    rows = [masks(row + "_" * 9) for row in ("", "01", "5__5", "31415")]
    alone = decode(Toy(), rows, inner)
    never = (EarlyCommit(inner, Stairs((math.inf,), ())), StableAndConfident(inner, 99))
    for wrapped in (
        decode(Toy(), rows, never[0]),
        decode(Toy(), rows, never[1]),
        [t.final for t in record(Toy(), rows, never[0])],
    ):
        for one, other in zip(alone, wrapped, strict=True):
            assert torch.equal(one.ids, other.ids) and torch.equal(one.committed_at, other.committed_at)


def test_drift_of_tokens_that_cannot_be() -> None:
    """A token at −inf adds nothing to the divergence, so decoding is as if the vocabulary did not have it."""

    class Narrow(Toy):
        def forward(self, canvas: Canvas, wanted: Tensor) -> Tensor:
            return super().forward(canvas, wanted).index_fill(1, torch.tensor([9]), -torch.inf)

    rule, drifts = KLASS(0.2, 2.0, 1), []
    for walked in walk(Narrow(), [masks("012______")], rule):
        drifts.append(walked.step.drift[walked.step.masked])
    assert not torch.cat(drifts).isnan().any() and torch.cat(drifts[1:]).isfinite().all() and len(drifts) < 6


def test_a_statistic_that_nobody_knows() -> None:
    with pytest.raises(ValueError, match="mean, minimum or a quantile"):
        EarlyCommit(statistic="median")


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda: KLASS(steps=0), "at least one step"),
        (lambda: Credit(decay=1.0), "decay"),
        (lambda: Credit(power=-1.0), "not negative"),
        (lambda: Credit(strength=-0.1), "not negative"),
    ],
)
def test_a_rule_that_cannot_be_is_one_sentence(made, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        made()
