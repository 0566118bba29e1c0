"""The guarantee by simulation, and traces against decoding itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from masked.toy import MASK, Toy, masks
from scipy.stats import binom
from torch import Tensor

from fewstep.core.receipt import plain
from fewstep.masked.calibration import Calibration, calibrate, exits, fixed_sequence, read_rule
from fewstep.masked.decoding import decode
from fewstep.masked.early import EarlyCommit, StableAndConfident, sched
from fewstep.masked.rules import Blockwise, EntropyBound, Factor, Last, Threshold, TopK
from fewstep.masked.schedule import Linear, Scaled, Span, Stairs, Suffix
from fewstep.masked.settling import emergence, record, record_each, same_answer, same_place, settle


def prompts(n: int, seed: int = 0, length: int = 6) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.cat([torch.randint(10, (3,), generator=rng), torch.full((length,), MASK)]) for _ in range(n)]


def test_the_guarantee_holds_over_many_draws() -> None:
    """True risks straddle epsilon just after the middle: a wrong choice must be as rare as delta, and not much rarer."""
    risk, epsilon, delta, n, draws = [0.001, 0.01, 0.02, 0.0501, 0.051, 0.2], 0.05, 0.1, 200, 4000
    rng = torch.Generator().manual_seed(0)
    score = torch.rand(draws, n, generator=rng)  # a row that changes at one threshold changes at every bolder one
    changed = torch.stack([(score < r).sum(1) for r in risk], 1).tolist()
    chosen = [fixed_sequence(row, n, epsilon, delta) for row in changed]
    wrong = sum(place is not None and risk[place] > epsilon for place in chosen) / draws
    exact = binom.cdf(max(k for k in range(n) if binom.cdf(k, n, epsilon) <= delta), n, 0.0501)
    error = 4 * (exact * (1 - exact) / draws) ** 0.5
    assert abs(wrong - exact) < error and wrong <= delta + error
    assert sum(place is not None and place >= 2 for place in chosen) / draws > 0.7  # and it is of use


def test_the_sequence_stops_at_the_first_failure() -> None:
    assert fixed_sequence([0, 9, 0, 0], 100, 0.05, 0.05) == 0
    assert fixed_sequence([9, 0], 100, 0.05, 0.05) is None
    assert fixed_sequence([0, 1, 1, 2], 100, 0.05, 0.05) == 2  # P(Bin(100, .05) ≤ 1) = .037, ≤ 2: .118


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("region", [None, Span(-2)])
def test_a_trace_says_what_early_decoding_would_do(temperature: float, region: Span | None) -> None:
    toy, rows = Toy(scale=4.0, eos_bias=0.0), prompts(12)
    early = EarlyCommit(Blockwise(TopK(), 3), Stairs((4.0, 3.0, 2.0)), region=region)
    factors = (3.0, 1.2, 1.0, 0.7, 0.1)
    traces = record(toy, rows, early, temperature=temperature, batch=5)
    full = decode(toy, rows, early.rule, temperature=temperature)
    for trace, one in zip(traces, full, strict=True):
        assert torch.equal(trace.final.ids, one.ids) and len(trace.shown) == one.nfe and trace.hits()[-1]
    lengths = set()
    for place, factor in enumerate(factors):
        rule = replace(early, threshold=Scaled(early.threshold, factor))
        for trace, one in zip(traces, decode(toy, rows, rule, temperature=temperature), strict=True):
            step = int(exits(trace, early, factors)[place])
            assert one.nfe == step + 1
            assert torch.equal(one.ids, trace.shown[step][: len(one.ids)])
            lengths.add(one.nfe)
    assert len(lengths) >= 4


def test_several_rules_watch_one_decoding() -> None:
    toy, rows = Toy(scale=4.0, eos_bias=0.0), [*prompts(7), *prompts(3, length=9)]
    rules = [EarlyCommit(TopK()), EarlyCommit(TopK(), statistic="minimum", region=Span(-2)), sched(TopK())]
    for rule, together in zip(rules, record_each(toy, rows, rules, batch=4), strict=True):
        for one, alone in zip(together, record(toy, rows, rule, batch=3), strict=True):
            torch.testing.assert_close(one.known, alone.known)
            assert torch.equal(one.shown, alone.shown)
            assert torch.equal(one.region, alone.region) and torch.equal(one.final.ids, alone.final.ids)
    with pytest.raises(ValueError, match="same inner rule"):
        record_each(toy, rows, [EarlyCommit(TopK()), EarlyCommit(Threshold())])


def test_calibration_keeps_its_word_on_other_prompts(tmp_path: Path) -> None:
    toy, early = Toy(scale=4.0), EarlyCommit(TopK(), Stairs((4.0,), ()), statistic="minimum")
    found = calibrate(toy, prompts(150), early, epsilon=0.1, delta=0.1)
    assert found.factor is not None and found.bound is not None and found.bound <= 0.1
    assert found.early_steps < found.full_steps == 6
    held_out = prompts(300, seed=1)
    full, quick = decode(toy, held_out, early.rule), decode(toy, held_out, found.rule)
    changed = sum(a.tokens != b.tokens for a, b in zip(full, quick, strict=True))
    assert binom.sf(changed - 1, 300, 0.1) > 0.001  # not more than a share .1 can explain
    assert sum(row.nfe for row in quick) < sum(row.nfe for row in full)
    found.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == found


@pytest.mark.parametrize(("region", "eos_bias"), [(None, 1.0), (Span(-2), -100.0)])
def test_another_rule_beside_the_calibrated_one(region: Span | None, eos_bias: float, tmp_path: Path) -> None:
    toy, rows, beside = Toy(scale=4.0, eos_bias=eos_bias), prompts(60), Threshold(0.6)
    found = calibrate(toy, rows, EarlyCommit(TopK(), Stairs((4.0,), ()), region=region), beside=beside).beside
    full, other = decode(toy, rows, TopK()), decode(toy, rows, beside)
    answer = slice(None) if region is None else slice(-2, None)
    changed = sum(a.ids[answer].tolist() != b.ids[answer].tolist() for a, b in zip(full, other, strict=True))
    assert found is not None and found.rule == beside and 0 < found.changed == changed < 60
    assert found.steps == pytest.approx(sum(row.nfe for row in other) / 60)
    assert binom.cdf(changed, 60, found.bound) == pytest.approx(0.05)
    made = Calibration(TopK(), None, 0.1, 0.1, 60, 0, None, 6.0, 6.0, found)
    made.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == made


def test_a_hopeless_statistic_never_commits_early(tmp_path: Path) -> None:
    early = EarlyCommit(TopK(), Stairs((1e-9,), ()))
    found = calibrate(Toy(), prompts(60), early, factors=(2.0, 1.0))
    assert found.factor is None and found.bound is None and found.rule == TopK()
    found.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == found


def test_what_cannot_be_calibrated(tmp_path: Path) -> None:
    early = EarlyCommit(TopK())
    with pytest.raises(ValueError, match=r"58 rows guarantee nothing .* at least 59"):
        calibrate(Toy(), prompts(58), early)
    with pytest.raises(ValueError, match="fall, from safe to bold"):
        calibrate(Toy(), prompts(60), early, factors=(1.0, 2.0))
    with pytest.raises(ValueError, match="lie between 0 and 1"):
        calibrate(Toy(), prompts(60), early, epsilon=0.0)
    with pytest.raises(ValueError, match="make a calibration with fewstep calibrate"):
        Calibration.load(tmp_path / "missing.json")
    for text in (
        "[]",
        "{",
        '{"a": ' * 100_000,
        '{"name": "Calibration", "rule": "TopK"}',
        '{"name": "Calibration"}',
        '{"name": "Calibration", "rule": {"name": "os.system"}}',
    ):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match="is not a calibration"):
            Calibration.load(tmp_path / "bad.json")


@pytest.mark.parametrize(
    "rule",
    [
        TopK("chance"), Threshold(0.8), Factor(0.5), EntropyBound(0.2), StableAndConfident(Threshold(), 2, 0.1), sched(),
        EarlyCommit(Blockwise(TopK(), 8), Stairs((8, 5, 3.5)), 0.1, Suffix(5), "region"),
        EarlyCommit(threshold=Scaled(Linear(3, 1), 0.5), region=Span(-4)),
        EarlyCommit(Blockwise(Last(TopK("margin", "dream"), (3, 9))), first=1),
    ],
)  # fmt: skip
def test_a_rule_is_its_json(rule: object) -> None:
    assert read_rule(json.loads(json.dumps(plain(rule)))) == rule


def test_settling_is_first_and_stable() -> None:
    trace = record(Toy(), [masks("12_____")], TopK())[0]
    final = trace.final.ids
    other = torch.where(final == 0, 1, 0).where(torch.arange(7) >= 2, final)
    for pattern, first, stable in (("01011", 2 / 5, 4 / 5), ("00001", 1, 1), ("11111", 0.2, 0.2), ("10111", 0.2, 0.6)):
        shown = torch.stack([final if letter == "1" else other for letter in pattern])
        assert settle(replace(trace, shown=shown)) == (first, stable)
    # the last two tokens only, where the final row has them; and by something read from the row
    half = torch.cat([other[:5], final[5:]])
    patched = replace(trace, shown=torch.stack([half, other, final, final, final]))
    assert settle(patched) == (0.6, 0.6)
    assert settle(patched, same_place(lambda ids: slice(len(ids) - 2, None))) == (0.2, 0.6)
    assert settle(patched, same_answer(lambda ids: int(ids[-1]))) == (0.2, 0.6)
    assert settle(replace(patched, region=torch.arange(7) >= 5)) == (0.2, 0.6)


def test_emergence_is_the_share_of_rows() -> None:
    traces = record(Toy(scale=4.0), prompts(20), TopK("chance"))
    settled = [settle(trace) for trace in traces]
    assert all(row.first <= row.stable for row in settled)
    table = emergence(settled, at=(0.5, 1.0))
    assert table[1] == (1.0, (1.0, 1.0))
    assert table[0] == (0.5, (sum(r.first <= 0.5 for r in settled) / 20, sum(r.stable <= 0.5 for r in settled) / 20))
