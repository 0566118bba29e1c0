"""A real masked language model that somebody else trained, on chemical reactions: read, decoded; `make reactions`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AlbertConfig, AlbertForMaskedLM, PreTrainedTokenizerBase

from fewstep.core.weights import read_weights
from fewstep.masked.choices import Text
from fewstep.masked.decoder import open_decoder
from fewstep.masked.decoding import decode
from fewstep.masked.load import load_text, load_tokenizer
from fewstep.masked.predictor import NetworkPredictor, pad
from fewstep.masked.prompts import canvas
from fewstep.masked.rules import Threshold

TESTS = next(parent for parent in Path(__file__).parents if parent.name == "tests")
FETCHED = TESTS.parent / ".cache" / "reactions"
MODEL = FETCHED / "model"
pytestmark = pytest.mark.skipif(not (FETCHED / "test.jsonl").exists(), reason="`make reactions` fetches it")


@pytest.fixture(scope="module")
def network() -> NetworkPredictor:
    return load_text(MODEL)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(MODEL)


def items(name: str, n: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FETCHED / f"{name}.jsonl").read_text().splitlines()][:n]


def rows(asked: list[dict[str, Any]], network: NetworkPredictor, tokenizer: PreTrainedTokenizerBase) -> list[Tensor]:
    return [canvas(item["prompt"], tokenizer, network, gen_length=0) for item in asked]


def test_its_tokenizer_finds_atoms_and_bonds_and_gives_texts_back(tokenizer: PreTrainedTokenizerBase) -> None:
    reactions = [line for line in (TESTS / "reactions.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(reactions) == len(set(reactions)) == 480
    vocabulary = tokenizer.get_vocab()
    for reaction in reactions:
        words = re.findall(r"\[[^\]]+]|Br|Cl|>>|%\d\d|.", reaction)
        ids = tokenizer(reaction)["input_ids"]
        assert ids == [vocabulary[word] for word in ("[CLS]", *words, "[SEP]")]
        assert tokenizer.decode(ids, skip_special_tokens=True) == reaction
    asked = [item["answer"] for name in ("learning", "calibration", "test") for item in items(name, 480)]
    assert asked == reactions, "each stands in one of the sets"


def test_it_computes_what_transformers_computes(network: NetworkPredictor, tokenizer: PreTrainedTokenizerBase) -> None:
    plain = AlbertForMaskedLM(AlbertConfig.from_json_file(MODEL / "config.json")).eval()
    weights = {name: value for name, value in read_weights(MODEL).items() if not name.startswith("albert.pooler")}
    plain.load_state_dict(weights)
    seen = pad(rows(items("test", 3), network, tokenizer), network.mask_id)
    with torch.no_grad():
        found = network(seen, seen.open)
        wanted = plain(seen.ids, attention_mask=seen.valid.long()).logits[seen.open]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_it_fills_in_what_is_hidden(network: NetworkPredictor, tokenizer: PreTrainedTokenizerBase) -> None:
    """Of 50 others it got 40 right at this threshold, and 26 in one step."""
    asked = items("test", 24)
    right = {}
    for confidence in (0.9, 0.0):
        done = decode(network, rows(asked, network, tokenizer), Threshold(confidence))
        texts = [tokenizer.decode(row.ids.tolist(), skip_special_tokens=True) for row in done]
        right[confidence] = sum(text == item["answer"] for text, item in zip(texts, asked, strict=True))
    assert right[0.9] >= 13 and right[0.9] > right[0.0]


def test_it_has_no_keys_and_values_to_keep() -> None:
    with pytest.raises(ValueError, match=r"AlbertForMaskedLM takes no keys and values back.*leave --cache out"):
        open_decoder(str(MODEL), Text(gen_length=0, cache="dual"))
