"""What a GPU must not be asked for while it decodes: float64, and numbers back more often than a step needs them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from masked.test_load import CASES, write
from masked.tiny_bert import save_bert
from masked.toy import Toy, masks
from pretended import DEVICE, Pretended

from fewstep.core import device
from fewstep.masked.caching import Cached, Dual, Prefix
from fewstep.masked.decoding import decode
from fewstep.masked.early import EarlyCommit
from fewstep.masked.likelihood import log_likelihood
from fewstep.masked.load import load_text
from fewstep.masked.predictor import Guided
from fewstep.masked.rules import KLASS, WINO, Blockwise, Credit, EntropyBound, Factor, Hierarchical, Threshold, TopK
from fewstep.masked.schedule import Stairs
from fewstep.masked.step import CommitRule

ROWS = [masks("12" + "_" * n) for n in (9, 5, 7)]
RULES = [
    TopK(), TopK("chance"), Blockwise(Threshold(0.4), 3), Factor(1.0), EntropyBound(1.0), Blockwise(KLASS(0.2, 2.0, 1), 4),
    EarlyCommit(TopK()), Hierarchical(0.5, 0.2), Blockwise(WINO(0.2, 0.7), 6), Blockwise(Credit(0.5), 4),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "WITHOUT_FLOAT64", {DEVICE.type})


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_decoding_needs_no_float64_and_few_numbers_back(rule: CommitRule, temperature: float) -> None:
    """Texts are those of the CPU. A step waits once, to learn how far the rows are; the toy once more, to learn where to
    look; four times for noise and once for a lottery, which are drawn on the host where there is no float64."""
    toy = Toy().float()
    expected = decode(toy, ROWS, rule, temperature=temperature)
    with Pretended() as asked:
        found = decode(toy.to(DEVICE), [row.to(DEVICE) for row in ROWS], rule, temperature=temperature)
        a_step = 2 + 4 * (temperature > 0) + (rule == TopK("chance"))
        assert asked.reads <= a_step * max(row.nfe for row in expected) + 12  # to begin, and where rows leave
        assert [row.ids.tolist() for row in found] == [row.ids.tolist() for row in expected]
    assert [(row.nfe, row.positions) for row in found] == [(row.nfe, row.positions) for row in expected]


def test_guidance_and_likelihoods_need_no_float64() -> None:
    toy, texts = Toy().float(), [([1, 2], [3, 4, 5]), ([], [6, 7])]
    expected = decode(Guided(toy, 2.0), ROWS, TopK()), log_likelihood(toy, texts, draws=4)
    with Pretended():
        there = toy.to(DEVICE)
        found = decode(Guided(there, 2.0), [row.to(DEVICE) for row in ROWS], TopK())
        assert [row.ids.tolist() for row in found] == [row.ids.tolist() for row in expected[0]]
        for ours, theirs in zip(log_likelihood(there, texts, draws=4, device=DEVICE), expected[1], strict=True):
            torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-5, atol=1e-5)


def test_a_network_of_transformers_needs_no_float64(tmp_path: Path) -> None:
    """Where rows are padded transformers itself waits once a step."""
    predictor, rows = load_text(save_bert(tmp_path)), [torch.tensor([8, 9] + [1] * n) for n in (5, 3)]
    expected = decode(predictor, rows, TopK())
    with Pretended() as asked:
        found = decode(predictor.requires_grad_(False).to(DEVICE), [row.to(DEVICE) for row in rows], TopK())
        assert asked.reads <= 2 * expected[0].nfe + 12
        assert [row.ids.tolist() for row in found] == [row.ids.tolist() for row in expected]


@pytest.mark.parametrize("cache", [None, Prefix(4), Dual(4), Dual(4, refresh=2)], ids=repr)
@pytest.mark.parametrize("name", ["llada", "dream"])
def test_one_wait_a_step(name: str, cache: Prefix | Dual | None, tmp_path: Path) -> None:
    """Whatever is kept, with rows of several lengths. What is more is asked once: what the rows are, as they enter."""
    config, weights, _ = CASES[name]
    predictor = load_text(write(tmp_path, config, weights(config))).requires_grad_(False)
    rule = EarlyCommit(Blockwise(TopK(), 4), Stairs((1e9,), ()))
    rows = [torch.tensor([1, 2] + [38] * n) for n in (5, 12, 8)]
    made = Cached(predictor, cache) if cache else predictor
    expected = decode(made, rows, rule)
    with Pretended() as asked:
        predictor.to(DEVICE)
        found = decode(made, [row.to(DEVICE) for row in rows], rule)
        assert asked.reads <= max(row.nfe for row in expected) + 2 * len(rows) + 2
        assert [row.ids.tolist() for row in found] == [row.ids.tolist() for row in expected]
