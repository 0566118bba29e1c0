"""What a GPU must not be asked for while it decodes: float64, and numbers back more often than a step needs them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from masked.tiny_bert import save_bert
from masked.toy import Toy, masks
from pretended import DEVICE, Pretended

from fewstep.core import device
from fewstep.masked.decoding import decode
from fewstep.masked.early import EarlyCommit
from fewstep.masked.likelihood import log_likelihood
from fewstep.masked.load import load_text
from fewstep.masked.predictor import Guided
from fewstep.masked.rules import KLASS, Blockwise, EntropyBound, Factor, Hierarchical, Threshold, TopK
from fewstep.masked.step import CommitRule

ROWS = [masks("12" + "_" * n) for n in (9, 5, 7)]
RULES = [
    TopK(), TopK("chance"), Blockwise(Threshold(0.4), 3), Factor(1.0), EntropyBound(1.0), Blockwise(KLASS(0.2, 2.0, 1), 4),
    EarlyCommit(TopK()), Hierarchical(0.5, 0.2),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "WITHOUT_FLOAT64", {DEVICE.type})


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_decoding_needs_no_float64_and_few_numbers_back(rule: CommitRule, temperature: float) -> None:
    """Texts are those of the CPU. A step waits to learn where to look, whether the logits are numbers, how far the rows are
    and what to tell of it; four times more for noise, which is drawn on the host, and once for a lottery there."""
    toy = Toy().float()
    expected = decode(toy, ROWS, rule, temperature=temperature)
    with Pretended() as asked:
        found = decode(toy.to(DEVICE), [row.to(DEVICE) for row in ROWS], rule, temperature=temperature)
        a_step = 4 + 4 * (temperature > 0) + (rule == TopK("chance"))
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
    """It waits once more a step, to learn whether anything is padded, and transformers perhaps as often."""
    predictor, rows = load_text(save_bert(tmp_path)), [torch.tensor([8, 9] + [1] * n) for n in (5, 3)]
    expected = decode(predictor, rows, TopK())
    with Pretended() as asked:
        found = decode(predictor.requires_grad_(False).to(DEVICE), [row.to(DEVICE) for row in rows], TopK())
        assert asked.reads <= 6 * expected[0].nfe + 12
        assert [row.ids.tolist() for row in found] == [row.ids.tolist() for row in expected]
