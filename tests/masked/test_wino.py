"""WINO against a plain reading of the published algorithm: one row at a time, with its layout of masks and positions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from masked.test_load import CASES, write
from masked.tiny_bert import call, save_bert
from torch import Tensor
from transformers import ModernBertConfig, ModernBertForMaskedLM, RobertaConfig, RobertaForMaskedLM

from fewstep.cli.text import decode as decode_command
from fewstep.masked import WINO, Blockwise, Canvas, EarlyCommit, LeaveOneOut, Suppressed, Threshold, decode, load_text
from fewstep.masked.predictor import NetworkPredictor


@pytest.fixture(scope="module", params=["bert", "llada"])
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> NetworkPredictor:
    folder = tmp_path_factory.mktemp("model")
    if request.param == "bert":
        return load_text(save_bert(folder)).double()
    config, weights, _ = CASES["llada"]
    return load_text(write(folder, config, weights(config))).double()


def judged(network: NetworkPredictor, ids: Tensor, here: list[int]) -> Tensor:
    """Probabilities of all positions, and behind them of those `here` by a mask token that does not see them."""
    n, masks = len(ids), torch.full((len(here),), network.mask_id)
    sees = torch.zeros(n + len(here), n + len(here), dtype=torch.bool)
    for query in range(len(sees)):
        for key in range(len(sees)):
            sees[query, key] = key < n if query < n else key >= n or key != here[query - n]
    logits = network.network(
        torch.cat([ids, masks])[None], attention_mask=sees[None, None], position_ids=torch.tensor([[*range(n), *here]])
    ).logits[0]
    logits[:, network.mask_id] = -torch.inf
    return logits.softmax(-1)


@torch.no_grad()
def published(network: NetworkPredictor, row: Tensor, start: int, block: int, rule: WINO) -> tuple[list[int], int, int]:
    """Ids, forwards, and how many tokens were taken back."""
    ids, calls, back, mask, length = row.clone(), 0, 0, network.mask_id, len(row)
    for first in range(start, length, block):
        here, last = list(range(first, min(first + block, length))), 30
        while masked := [i for i in here if ids[i] == mask]:
            p = judged(network, ids, here)
            most = min(max(int(0.7 * len(masked)), 5), 20)
            best = sorted(masked, key=lambda i: -float(p[i].max()))
            drafted = [i for i in best if p[i].max() > rule.draft][:most] or best[:1]
            support = {i: float(p[length + i - first, ids[i]]) for i in here if ids[i] != mask}
            doubted = sorted((i for i in support if support[i] < rule.verify), key=support.__getitem__)
            doubted = [] if len(drafted) < 2 else doubted if len(doubted) < last else doubted[: last - 1]
            ids[drafted] = p[drafted].argmax(-1)
            ids[doubted] = mask
            last, calls, back = len(drafted), calls + 1, back + len(doubted)
    return ids.tolist(), calls, back


@pytest.mark.parametrize("rule", [WINO(), WINO(0.2, 0.7), WINO(0.1, 0.3), WINO(0.0, 0.9)], ids=repr)
@pytest.mark.parametrize("block", [10, 24])
def test_it_is_the_published_algorithm(network: NetworkPredictor, rule: WINO, block: int) -> None:
    """In a batch of rows of several lengths, each with as many calls and tokens taken back."""
    rows = [torch.tensor([*range(7, 9 + n), *[network.mask_id] * (9 + 3 * n)]) for n in range(4)]
    taken_back = 0
    found = decode(LeaveOneOut(network), rows, Blockwise(rule, block), steps=1000, eos=False, batch=3)
    for n, (row, ours) in enumerate(zip(rows, found, strict=True)):
        ids, calls, back = published(network, row, 2 + n, block, rule)
        assert (ours.ids.tolist(), ours.nfe) == (ids, calls)
        taken_back += back
    assert taken_back or rule.verify < 0.9


def test_a_decided_token_is_not_known_to_who_judges_it(network: NetworkPredictor) -> None:
    """The layout is the published one, and what is said of positions that are undecided is what it was."""
    ids = torch.tensor([[7, 8, 9, network.mask_id, 10, 11]])
    every = torch.ones_like(ids, dtype=torch.bool)
    canvas, wanted = Canvas(ids, every, every), ids == network.mask_id
    decided = wanted | (ids == 10)
    with torch.no_grad():
        both = LeaveOneOut(network)(canvas, decided)
        torch.testing.assert_close(both[:1], network(canvas, wanted))
        p = judged(network, ids[0], [3, 4])
    assert torch.equal(both[1].argmax(), p[7].argmax())
    torch.testing.assert_close(LeaveOneOut(network)(canvas, wanted), network(canvas, wanted))


def test_it_wraps_and_ends_as_other_rules_do(network: NetworkPredictor) -> None:
    rows = [torch.tensor([7, 8, *[network.mask_id] * n]) for n in (5, 9)]
    predictor = Suppressed(LeaveOneOut(network), (9,))
    for rule in (WINO(0.1, 1.0), EarlyCommit(Blockwise(WINO(0.1, 1.0), 4)), Blockwise(EarlyCommit(WINO(0.0, 1.0)), 3)):
        for row, found in zip(rows, decode(predictor, rows, rule, eos=False), strict=True):
            n = len(row) - 2
            assert found.nfe < 2 * n and network.mask_id not in found.ids and 9 not in found.ids[2:]


def test_it_is_a_rule_of_the_command_line(tmp_path: Path) -> None:
    folder, out = save_bert(tmp_path / "bert"), tmp_path / "o.jsonl"
    call(decode_command, folder, prompt="w2", rule="wino", draft=0.2, verify=0.7, gen_length=20, out=out)
    row = torch.tensor([7, *[1] * 20])
    (found,) = decode(LeaveOneOut(load_text(folder)), [row], Blockwise(WINO(0.2, 0.7)))
    said = json.loads(out.read_text())
    assert (said["nfe"], said["positions"]) == (found.nfe, found.positions) and found.positions > 21 * found.nfe


def test_what_cannot_verify_is_refused(tmp_path: Path) -> None:
    config, weights, _ = CASES["dream"]
    with pytest.raises(ValueError, match="stand one place early"):
        LeaveOneOut(load_text(write(tmp_path / "dream", config, weights(config))))
    torch.manual_seed(0)
    numbers: dict[str, Any] = {
        "vocab_size": 40,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "initializer_range": 0.5,
    }
    counts_otherwise = RobertaForMaskedLM(RobertaConfig(**numbers, max_position_embeddings=300, pad_token_id=1))
    sees_neighbours = ModernBertForMaskedLM(ModernBertConfig(**numbers, local_attention=16, pad_token_id=0))
    for deaf in (counts_otherwise, sees_neighbours):
        with pytest.raises(ValueError, match="ignores masks or positions"):
            LeaveOneOut(NetworkPredictor(deaf.eval(), mask_id=9, pad_id=1, max_length=298))
    folder = save_bert(tmp_path / "bert")
    for options, sentence in (
        ({"cache": "dual"}, "which a cache does not compute; leave one of them out"),
        ({"draft": 2}, "a confidence is a probability"),
        ({"confidence": 0.5}, "--confidence belongs to --rule threshold, klass, credit, hierarchical, not to wino"),
    ):
        with pytest.raises(ValueError, match=sentence):
            call(decode_command, folder, prompt="w1", rule="wino", gen_length=4, **options)
    assert not Threshold().reopens() and WINO().reopens()
