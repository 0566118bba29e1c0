"""Answers in a file: those of the decoder, and what each of their tokens says and when it was decided."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from masked.tiny_bert import save_bert

from fewstep.core.parts import of_texts
from fewstep.masked import Compute, Rule, Text, decode, open_decoder, save_answers


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_bert(tmp_path_factory.mktemp("model")))


def test_the_file_holds_the_answers_and_when_each_token_was_decided(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And how fast it was is said once, however many parts there are."""
    caplog.set_level(logging.INFO, "fewstep")
    decoder = open_decoder(model, Text(gen_length=6), Rule("random", block_length=3), compute=Compute(seed=4, batch=2))
    prompts = [{"prompt": " ".join(["w1"] * (1 + n % 3)), "number": n} for n in range(20)]
    assert save_answers(decoder, prompts, tmp_path / "a.jsonl") is None
    assert len(of_texts(20, 2)) > 1 and [record.message.split()[1:3] for record in caplog.records] == [["texts", "and"]]
    found = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    rows = decode(decoder.predictor, decoder.rows(prompts), decoder.rule, seeds=range(4, 24))
    for entry, answer, row in zip(found, decoder.answers(prompts), rows, strict=True):
        pieces, steps = entry.pop("pieces"), entry.pop("steps")
        words = [word for word in "".join(pieces).split() if not word.startswith("[")]  # without special tokens
        assert entry == answer and words == answer["text"].split() and len(pieces) == 6
        assert steps == row.committed_at[row.start :].tolist() and sorted(steps) == list(range(6)) and max(steps[:3]) == 2
    assert len({tuple(row.committed_at.tolist()) for row in rows}) > 5, "seeds decide"
    told = json.loads((tmp_path / "a.jsonl.receipt.json").read_text())
    assert told["nfe"] == sum(entry["nfe"] for entry in found) == 120 and not list(tmp_path.glob(".*"))
    with pytest.raises(ValueError, match="--compare counts the changes by a cache"):
        save_answers(decoder, prompts, tmp_path / "b.jsonl", compare=True)
