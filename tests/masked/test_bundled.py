"""The language model that comes with the package, on items it was not trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from fewstep.cli.text import decode as decode_command
from fewstep.core.source import ASSETS
from fewstep.masked.choices import Text
from fewstep.masked.decoding import decode
from fewstep.masked.load import load_text, load_tokenizer
from fewstep.masked.rules import Threshold
from fewstep.toys.masked import canvas
from fewstep.toys.tasks import bundled_families
from fewstep.toys.tokens import EOS

TEXT = ASSETS / "text"


@pytest.mark.parametrize("name", list(bundled_families()))
def test_it_answers_held_out_items(name: str) -> None:
    family, predictor, tokenizer = bundled_families()[name], load_text("bundled"), load_tokenizer("bundled")
    items = [family.item(2_000_000 + k, held_out=True) for k in range(40)]
    rows = [canvas(item, tokenizer.get_vocab()) for item in items]
    right = 0
    for item, row in zip(items, decode(predictor, rows, Threshold(0.95), batch=40), strict=True):
        words = tokenizer.convert_ids_to_tokens(row.ids[len(item.prompt) :].tolist())
        right += family.right(item, [word for word in words if word != EOS])
    assert right >= 30  # of 40; with a true share of .9 that fails once in 600


def test_it_is_small_and_says_where_it_comes_from() -> None:
    assert sum(file.stat().st_size for file in TEXT.iterdir()) < 12e6
    with safe_open(TEXT / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(key).dtype for key in weights.keys()} == {torch.float16}  # noqa: SIM118
    assert {p.dtype for p in load_text("bundled").parameters()} == {torch.float32}
    made = json.loads((TEXT / "receipt.json").read_text())
    assert made["command"][:2] == ["fewstep", "train-text"] and made["parameters"] < 1.5e6


def test_the_command_line_knows_it_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    question = "tom has 7 apples . he finds 2 . he loses 3 . how many apples does tom have ?"
    decode_command("bundled", prompt=question, text=Text(gen_length=32))
    assert capsys.readouterr().out.strip() == "7 + 2 = 9 . 9 - 3 = 6 . the answer is 6"
