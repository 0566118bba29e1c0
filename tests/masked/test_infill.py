"""Templates with holes: what may stand where against all that there is, and texts that always parse."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from masked.test_reopening import Doubt
from masked.tiny_bert import call, save_bert
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from fewstep.cli.text import decode as decode_command
from fewstep.masked.choices import Compute, Text
from fewstep.masked.committing import Rule
from fewstep.masked.decoder import Decoder, open_decoder
from fewstep.masked.decoding import decode
from fewstep.masked.early import EarlyCommit
from fewstep.masked.fitting import calibrate_prompts
from fewstep.masked.infill import Automaton, Together
from fewstep.masked.rules import KLASS, Blockwise, Threshold, TopK
from fewstep.masked.schedule import Stairs
from fewstep.masked.step import CommitRule

WORDS = ["a", "b", "ab", "ba", "aab", "", "cb", "\N{REPLACEMENT CHARACTER}"]
FILLER = 5


@pytest.mark.parametrize("filler", [None, FILLER])
@pytest.mark.parametrize("pattern", ["(ab)*", "a*b?a", "(aa|bb)+", "[^c]*", "(a|b){4}", "abab|bb", "c?b+"])
def test_what_may_stand_is_what_some_text_of_all_matches(pattern: str, filler: int | None) -> None:
    """Against every text of three tokens, whatever is decided already."""
    texts = [word if word and word != WORDS[-1] else None for word in WORDS]
    automaton = Automaton(pattern, texts, texts, filler)

    def matches(tokens: tuple[int, ...]) -> bool:
        end = next((n for n, token in enumerate(tokens) if token == filler), len(tokens))
        words = [texts[token] for token in tokens[:end]]
        return (
            all(token == filler for token in tokens[end:])
            and None not in words
            and bool(re.fullmatch(pattern, "".join(map(str, words))))
        )

    right = [tokens for tokens in itertools.product(range(len(WORDS)), repeat=3) if matches(tokens)]
    for decided in itertools.product([None, 0, 1, FILLER], repeat=3):
        left = [t for t in right if all(d is None or d == token for d, token in zip(decided, t, strict=True))]
        found = automaton.allowed(decided)
        assert (found is None) == (not left)
        for place, allowed in enumerate(found or []):
            if decided[place] is None:
                assert allowed is not None
                assert set(allowed.nonzero()[0].tolist()) == {tokens[place] for tokens in left}
            else:
                assert allowed is None


def byte_model(folder: Path) -> Path:
    """A random BERT over bytes and a few longer tokens, as byte-level vocabularies have them."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("1", "2"), ("a", "b"), ("tr", "ue"), ("t", "r"), ("u", "e"), ('"', ","), ("\u0120", "a")]
    merges.sort(key=lambda pair: len("".join(pair)))
    pieces = [*letters, *("".join(pair) for pair in merges), "<pad>", "<mask>", "<end>"]
    made = Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, merges))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    names = {"mask_token": "<mask>", "pad_token": "<pad>", "eos_token": "<end>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **names)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(pieces), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=120, initializer_range=0.5, mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_model(tmp_path_factory.mktemp("bytes"))


TEMPLATE = r'{"name": "<<3:string>>", "age": <<3:integer>>, "is": <<4:boolean>>, "day": "<<4:\d-(ab|cd)+>>"}'
RULES: list[CommitRule] = [
    TopK(),
    Threshold(0.05),
    Blockwise(Threshold(0.05), 8),
    KLASS(0.2, 2.0, 1),
    EarlyCommit(TopK(), Stairs((0.0,), ())),
    Doubt(0.2, 0.9),
]


@pytest.fixture(scope="module")
def decoder(model: Path) -> Decoder:
    made = open_decoder(str(model), Text(infill=TEMPLATE), compute=Compute())
    made.network.double()
    return made


@pytest.mark.parametrize(
    ("rule", "temperature"), [*((rule, 0.0) for rule in RULES), (RULES[1], 2.0), (RULES[4], 2.0)], ids=repr
)
def test_what_is_generated_always_parses(rule: CommitRule, temperature: float, decoder: Decoder) -> None:
    assert decoder.template
    rows = decoder.rows([{"prompt": "who? " * n} for n in (1, 2, 3)])
    together = Together(rule, decoder.template, decoder.network.mask_id)
    found = decode(decoder.predictor, rows, together, temperature=temperature, batch=2)
    (alone,) = decode(decoder.predictor, rows[2:], together, temperature=temperature, seeds=[2])
    assert torch.equal(found[2].ids, alone.ids)
    kinds = set()
    for whole, row in zip(found, rows, strict=True):
        text = decoder.lead + decoder.tokenizer.decode(whole.tokens, skip_special_tokens=True)
        told: dict[str, Any] = json.loads(text)
        assert list(told) == ["name", "age", "is", "day"] and type(told["age"]) is int and type(told["is"]) is bool
        assert re.fullmatch(r"\d-(ab|cd)+", told["day"]) and len(whole.ids) == len(row)
        kinds.add(text)
    assert len(kinds) > 1


def test_many_tokens_at_a_step(model: Path) -> None:
    """What can stand together is committed together: digits do not depend on each other."""
    decoder = open_decoder(str(model), Text(infill="<<8:[0-9]{8}>> <<2>>"), Rule(confidence=0.0), compute=Compute())
    (found,) = decoder.answers([{"prompt": "a"}])
    assert re.fullmatch(r"[0-9]{8} .*", found["text"], re.DOTALL) and found["nfe"] == 1


def test_filling_in_at_the_command_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(decode_command, model, prompt="age?", infill='{"age": <<3:integer>>}')
    (line,) = capsys.readouterr().out.splitlines()
    assert list(json.loads(line)) == ["age"]
    call(decode_command, model, prompt="age?", infill='{"age": <<3:integer>>}', out=tmp_path / "o.jsonl")
    written = json.loads((tmp_path / "o.jsonl").read_text())
    receipt = json.loads((tmp_path / "o.jsonl.receipt.json").read_text())
    assert written["text"] == line and receipt["infill"] == '{"age": <<3:integer>>}'
    assert receipt["rule"]["rule"]["name"] == "Blockwise"


def test_words_with_spaces_between(tmp_path: Path) -> None:
    """A vocabulary of words: what a text decodes to has spaces that no token holds."""
    decoder = open_decoder(str(save_bert(tmp_path)), Text(infill="w1 <<3:w2( w[34])+>> answer"), compute=Compute())
    for entry in decoder.answers([{"prompt": "w5"}, {"prompt": "w6 w7"}]):
        assert re.fullmatch(r"w1 ?w2( w[34])+ answer", entry["text"])


@pytest.mark.parametrize(
    ("infill", "sentence"),
    [
        ("no hole", "there is no hole in this text"),
        ("<<0:string>>", "has no tokens"),
        ("<<2:(a>>", "no regular expression that a hole can keep to"),
        ("<<2:[0-9]{40}>>", "no 2 tokens of this model make a text that matches"),
        ("x" * 130 + "<<3>>", "130 tokens|more than the 120"),
    ],
)
def test_templates_that_cannot_be(infill: str, sentence: str, model: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        open_decoder(str(model), Text(infill=infill), compute=Compute()).rows([{"prompt": "a"}])


def test_what_goes_with_no_template(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave --suffix and --gen-length out"):
        Text(infill="<<3>>", suffix="is")
    with pytest.raises(ValueError, match="the prompt has mask tokens, and so has --infill"):
        open_decoder(str(model), Text(infill="<<3>>"), compute=Compute()).rows([{"prompt": "a <mask>"}])
    with pytest.raises(ValueError, match="only fewstep decode takes --infill"):
        calibrate_prompts(str(model), tmp_path / "p.jsonl", tmp_path / "c.json", text=Text(infill="<<3>>"))
    with pytest.raises(ValueError, match="no calibration covers --infill"):
        open_decoder(str(model), Text(infill="<<3>>"), calibration=tmp_path / "c.json")
