"""The learned rule: what its filter sees against a plain computation, alone and in a batch, its files, its guarantee."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from masked.toy import MASK, Toy, masks
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.core import receipt
from fewstep.masked.boldness import calibrate_rule, graded
from fewstep.masked.calibration import Calibration, Decoding, fixed_sequence, read_rule
from fewstep.masked.decoding import decode, walk
from fewstep.masked.learned import FEATURES, LOOKS, WEIGHTS, Learned, features, filtered
from fewstep.masked.learning import Examples, Lesson, gather, learn
from fewstep.masked.predictor import pad
from fewstep.masked.rules import Blockwise, Threshold, TopK
from fewstep.masked.step import CommitRule, Step

ROWS = [masks("12" + "_" * n) for n in (7, 4, 9)] + [masks("3__4_1__")]
SHORT = Lesson(steps=200, batch=64)


def plainly(rule: CommitRule) -> CommitRule:
    return rule


def prompts(n: int, seed: int = 0, length: int = 6) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.cat([torch.randint(10, (3,), generator=rng), torch.full((length,), MASK)]) for _ in range(n)]


@pytest.fixture(scope="module")
def examples() -> Examples:
    return gather(Toy(), prompts(24), plainly, SHORT, steps=None, batch=8)


@pytest.fixture(scope="module")
def learned(examples: Examples, tmp_path_factory: pytest.TempPathFactory) -> Learned:
    file = tmp_path_factory.mktemp("learned") / "rule.safetensors"
    save_file(learn(examples, 24, lesson=SHORT).weights, file)
    return Learned.read(file, 0.8)


class Watch(CommitRule):
    """Keeps the steps it sees."""

    def __init__(self, rule: CommitRule) -> None:
        self.rule, self.steps = rule, list[Step]()

    def __call__(self, step: Step) -> Tensor:
        self.steps.append(step)
        said = self.rule(step)
        assert isinstance(said, Tensor)
        return said

    def recalls(self) -> int:
        return LOOKS


@pytest.mark.parametrize("block", [None, 4])
def test_features_are_a_plain_computation(block: int | None) -> None:
    """One row at a time, with the whole past of every position; in a batch rows leave at different steps."""
    toy, watch = Toy(scale=2.0), Watch(TopK())
    done = decode(toy, ROWS, Blockwise(watch, block) if block else watch)
    looked = 0
    for number, (row, final) in enumerate(zip(ROWS, done, strict=True)):
        ids, past = row.clone(), list[tuple[Tensor, Tensor]]()
        for index in range(int(final.nfe)):
            canvas = pad([ids], MASK)
            logits = toy(canvas._replace(open=(row == MASK)[None]), torch.ones_like(canvas.valid))
            logits[:, MASK] = -torch.inf
            p = logits.softmax(-1)
            past.append((p.amax(-1), p.argmax(-1)))
            step = next(s for s in watch.steps if (s.seed == number).any() and s.index[s.seed == number] == index)
            place = int((step.seed == number).nonzero())
            scope = [i for i in range(len(ids)) if step.masked[place, i]]
            assert scope and all(ids[i] == MASK for i in scope)
            found = features(step)[place]
            for i in scope:
                torch.testing.assert_close(found[i], by_hand(row, ids, logits, past, i, scope), rtol=1e-9, atol=1e-9)
                looked += 1
            ids = torch.where(final.committed_at == index, final.ids, ids)
    assert looked > 40


def by_hand(
    row: Tensor, ids: Tensor, logits: Tensor, past: Sequence[tuple[Tensor, Tensor]], i: int, scope: Sequence[int]
) -> Tensor:
    """The features of place i."""
    p, token = past[-1]
    first, second = logits[i].topk(2).values
    odds = [p[i], logits[i].softmax(-1).topk(2).values[1]]
    entropy = -sum(q * math.log(q) for q in logits[i].softmax(-1).tolist() if q)
    history = []
    for ago in (3, 2, 1):
        same = len(past) > ago and past[-1 - ago][1][i] == token[i]
        history += [float(same), past[-1 - ago][0][i].item() if same else 0.0]
    unchanged = 0
    while unchanged + 1 < len(past) and past[-2 - unchanged][1][i] == token[i]:
        unchanged += 1

    def beside(j: int) -> tuple[float, float]:
        return (0.0, p[j].item()) if 0 <= j < len(ids) and ids[j] == MASK else (1.0, 1.0)

    (left, p_left), (right, p_right) = beside(i - 1), beside(i + 1)
    sure = p[list(scope)]
    decided = 1 - (ids == MASK).sum().item() / (row == MASK).sum().item()
    surer = sum(1 for j in scope if p[j] > p[i] or (p[j] == p[i] and j < i)) / len(scope)
    values = [
        max(-9.0, min(9.0, math.log(p[i]) - math.log1p(-p[i]))), float(odds[0] - odds[1]), entropy,
        min(20.0, float(first - second)), *history, min(unchanged, 8), left, right, p_left, p_right, decided,
        math.log1p(len(scope)), sure.mean().item(), sure.min().item(), sure.max().item(), surer,
    ]  # fmt: skip
    assert len(values) == len(FEATURES)
    return torch.tensor(values, dtype=torch.float64)


def test_it_decides_what_its_filter_is_sure_of_and_the_most_probable(learned: Learned) -> None:
    weights = {name: part.double() for name, part in load_file(learned.file).items()}
    several = 0
    for walked in walk(Toy(), ROWS, learned):
        step = walked.step
        sure = filtered(weights, features(step)).sigmoid() >= learned.confidence
        for place, masked in enumerate(step.masked):
            best = step.confidence[place].masked_fill(~masked, -1).argmax()
            wanted = sure[place] & masked
            wanted[best] = True
            assert torch.equal(learned(step)[place], wanted)
            several += int(wanted.sum()) > 1
    assert several


def test_a_row_does_not_know_its_batch(learned: Learned) -> None:
    rows = [*prompts(5), *ROWS]
    together = decode(Toy(), rows, Blockwise(learned, 4), batch=4)
    for number, (row, one) in enumerate(zip(rows, together, strict=True)):
        alone = decode(Toy(), [row], Blockwise(learned, 4), seeds=[number])[0]
        assert torch.equal(alone.ids, one.ids) and torch.equal(alone.committed_at, one.committed_at)


def test_examples_know_what_full_decoding_ends_with(examples: Examples) -> None:
    """The first proposals of each row: of full decoding and of both drafts, which see the same canvas."""
    toy, rows = Toy(), prompts(24)
    finals = decode(toy, rows, TopK())
    for number in (0, 7, 23):
        canvas = pad([rows[number]], MASK)
        logits = toy(canvas, canvas.open)
        logits[:, MASK] = -torch.inf
        right = logits.argmax(-1) == finals[number].ids[3:]
        mine = examples.right[examples.row == number]
        assert torch.equal(mine[:6], right)
    assert 0 < examples.right.double().mean() < 1


def test_learning_is_a_function_of_its_seed_and_beats_the_plain_probability(examples: Examples) -> None:
    one, again, other = (learn(examples, 24, seed=seed, lesson=SHORT) for seed in (0, 0, 1))
    assert all(torch.equal(one.weights[name], again.weights[name]) for name in WEIGHTS)
    assert not torch.equal(one.weights["in.weight"], other.weights["in.weight"])
    assert {name: tuple(part.shape) for name, part in one.weights.items()} == WEIGHTS
    assert 1500 < sum(part.numel() for part in one.weights.values()) < 2500
    assert one.loss < one.plain, "on rows that it has not learned from"
    with pytest.raises(ValueError, match="at least four prompts, got 3"):
        learn(examples, 3)
    with pytest.raises(ValueError, match="ends with none of its first proposals"):
        learn(examples._replace(right=torch.zeros_like(examples.right)), 24)


def test_files_that_are_gone_or_others_are_refused(learned: Learned, tmp_path: Path) -> None:
    rule = Blockwise(learned, 4)
    assert read_rule(receipt.plain(rule)) == rule
    with pytest.raises(ValueError, match=r"there is no file .*fewstep learn-rule"):
        Learned.read(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="is gone; put it back"):
        Learned(str(tmp_path / "none.safetensors"), learned.sha256)
    with pytest.raises(ValueError, match="is another one by now"):
        Learned(learned.file, "0" * 64)
    save_file({"in.weight": torch.zeros(2, 2)}, tmp_path / "o.safetensors")
    with pytest.raises(ValueError, match="holds no learned rule of this version"):
        Learned.read(tmp_path / "o.safetensors")
    broken = load_file(learned.file) | {"out.bias": torch.tensor([torch.nan])}
    save_file(broken, tmp_path / "n.safetensors")
    with pytest.raises(ValueError, match="not finite"):
        Learned.read(tmp_path / "n.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="no safetensors file"):
        Learned.read(tmp_path / "x.safetensors")


@pytest.mark.parametrize("kind", ["learned", "threshold"])
def test_its_guarantee_holds_over_many_draws(kind: str, learned: Learned) -> None:
    """Many calibrations, each on a draw from 150 prompts of which all that every setting changes is known."""
    toy, rows, epsilon, delta = Toy(scale=4.0), prompts(150, seed=5), 0.15, 0.2
    rules = graded(learned if kind == "learned" else Threshold())[::3]
    whole = decode(toy, rows, TopK(), batch=50)
    changed = torch.stack([
        torch.tensor([not torch.equal(a.ids, b.ids) for a, b in zip(decode(toy, rows, rule, batch=50), whole, strict=True)])
        for _, rule in rules
    ]).double()  # fmt: skip
    risk, rng, wrong = changed.mean(1), torch.Generator().manual_seed(0), 0
    for _ in range(400):
        drawn = torch.randint(len(rows), (60,), generator=rng)
        found = fixed_sequence([int(k) for k in changed[:, drawn].sum(1)], 60, epsilon, delta)
        wrong += found is not None and bool(risk[found] > epsilon)
    assert wrong / 400 <= delta + 3 * math.sqrt(delta * (1 - delta) / 400)
    assert risk.max() > epsilon, "some settings break it"


def test_calibration_stops_at_the_first_setting_that_changes_too_much(learned: Learned, tmp_path: Path) -> None:
    toy, rows = Toy(scale=4.0), prompts(60, seed=9, length=4)
    rules = graded(Blockwise(learned, 4))
    full = Blockwise(TopK(), 4)
    found = calibrate_rule(toy, rows, rules, Decoding(batch=20), full=full, epsilon=0.2, delta=0.1)
    whole = decode(toy, rows, full, batch=20)
    changes = []
    for _, rule in rules:
        done = decode(toy, rows, rule, batch=20)
        changes.append(sum(not torch.equal(a.ids, b.ids) for a, b in zip(done, whole, strict=True)))
        if rule == found.rule:
            assert found.changed == changes[-1] and found.early_steps == sum(row.nfe for row in done) / len(rows)
    allowed = 7  # P(Bin(60, .2) ≤ 7) = .069, ≤ 8: .129
    passed = next((place for place, k in enumerate(changes) if k > allowed), len(rules))
    assert 0 < passed < len(rules) and (found.factor, found.rule) == rules[passed - 1]
    assert found.full_steps == 4 and found.bound is not None and found.bound <= 0.2
    found.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == found
    chance = [(0.0, TopK("chance"))]
    none = calibrate_rule(toy, rows, chance, Decoding(batch=20), full=full, epsilon=0.2, delta=0.1)
    assert none.rule == full and none.factor is None and none.bound is None
