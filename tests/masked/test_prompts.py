"""What a model reads, against transformers' own tokenization and templates; every command gives it the same."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from masked.tiny_bert import CHAT, WORDS, call, save_bert, word_tokenizer
from torch import Tensor

from fewstep.cli.text import calibrate
from fewstep.cli.text import decode as decode_command
from fewstep.cli.text_measuring import evaluate, settle_text
from fewstep.masked.choices import Text
from fewstep.masked.decoder import open_decoder
from fewstep.masked.load import load_text
from fewstep.masked.predictor import Canvas, NetworkPredictor
from fewstep.masked.prompts import canvas, encode, in_template

PLAIN, SPECIAL = (word_tokenizer(special=special) for special in (False, True))
USER = {"role": "user", "content": "w3 w4"}
BEGUN = {"role": "assistant", "content": "w5"}


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("model"), special=True)


def test_texts_stand_behind_their_leading_special_tokens() -> None:
    for text in ("w3 w4", "w3 [MASK] w4", ""):
        assert encode(PLAIN, text) == PLAIN(text)["input_ids"] == ids(text)
        assert encode(SPECIAL, text) == SPECIAL(text)["input_ids"][:-1] == ids(f"[CLS] {text}")
    assert encode(SPECIAL, "[CLS] w3") == ids("[CLS] w3")


def test_conversations_are_what_transformers_makes_of_them() -> None:
    for turns, options in (
        ([USER], {"add_generation_prompt": True}),
        ([USER, BEGUN, USER], {"add_generation_prompt": True}),
        ([USER, BEGUN], {"continue_final_message": True}),
    ):
        expected = SPECIAL.apply_chat_template(turns, tokenize=True, return_dict=True, **options)["input_ids"]
        assert encode(SPECIAL, turns) == expected
    assert encode(SPECIAL, [USER, BEGUN]) == ids("w28 w3 w4 [SEP] w29 w5")  # not closed
    with pytest.raises(ValueError, match="refuses this conversation: no system"):
        in_template(SPECIAL, [{"role": "system", "content": "w1"}], open=False)
    with pytest.raises(ValueError, match="no chat template; give it plain text"):
        encode(PLAIN, [USER])


def test_a_canvas_fits_its_model(model: Path) -> None:
    """It takes 40 positions."""
    network, mask = load_text(model), WORDS.index("[MASK]")
    assert canvas("w3 w4", SPECIAL, network).tolist() == [*ids("[CLS] w3 w4"), *[mask] * 37]
    assert canvas("w3", SPECIAL, network, gen_length=4).tolist() == [*ids("[CLS] w3"), *[mask] * 4]
    assert canvas("", SPECIAL, network, gen_length=5, suffix="answer is", answer_length=1).tolist() == ids(
        "[CLS] [MASK] [MASK] answer is [MASK]"
    )
    assert canvas("[MASK]", PLAIN, network, gen_length=0).tolist() == [mask]
    assert len(canvas(" ".join(["w1"] * 38), SPECIAL, network)) == 40
    network.max_length = None
    assert len(canvas("w3", SPECIAL, network)) == 2 + 128
    network.max_length = 40
    for prompt, sentence in ((" ".join(["w1"] * 39), "fills the 40 positions"), ("", "is empty"), (" \n", "is empty")):
        with pytest.raises(ValueError, match=sentence):
            canvas(prompt, SPECIAL, network)
    with pytest.raises(ValueError, match="is empty"):
        canvas([], SPECIAL, network)


def read(command: Any, model: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[int]:
    """The first row that the model of `command` reads."""
    seen: list[Tensor] = []
    forward = NetworkPredictor.forward

    def spy(self: NetworkPredictor, canvas: Canvas, wanted: Tensor) -> Tensor:
        seen.append(canvas.ids[0].clone())
        return forward(self, canvas, wanted)

    with monkeypatch.context() as patch:
        patch.setattr(NetworkPredictor, "forward", spy)
        call(command, model, **options)
    row: list[int] = seen[0].tolist()
    return row


@pytest.mark.filterwarnings("ignore")  # of the harness and what it imports
@pytest.mark.parametrize(
    ("chat", "begun", "key", "expected"),
    [
        (False, "", "prompt", "[CLS] w3 w4"),
        (True, "", "prompt", "w28 w3 w4 [SEP] w29"),
        (True, "w5", "prompt", "w28 w3 w4 [SEP] w29 w5"),
        (True, "w5", "messages", "w28 w3 w4 [SEP] w29 w5"),
    ],
)
def test_every_command_gives_the_model_the_same(
    chat: bool, begun: str, key: str, expected: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    prompt = [USER, BEGUN] if begun else USER["content"]
    (tmp_path / "p.jsonl").write_text("\n".join([json.dumps({key: prompt})] * 60))
    (tmp_path / "data.jsonl").write_text(json.dumps({"q": USER["content"]}))
    (tmp_path / "task.yaml").write_text(
        f"task: ours\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path / 'data.jsonl'}\n"
        "output_type: generate_until\ntest_split: test\ndoc_to_text: '{{q}}'\ndoc_to_target: w1\n"
        + f"gen_prefix: {begun}\n" * bool(begun)
        + "generation_kwargs:\n  until: []\nmetric_list:\n  - metric: exact_match\n"
    )
    asked = {"tasks": "ours", "include": tmp_path, "gen_length": 6} | ({"chat": True} if chat else {})
    files = {"file": tmp_path / "p.jsonl", "out": tmp_path / "o.json", "gen_length": 6} | ({} if chat else {"raw": True})
    row = [*ids(expected), *[WORDS.index("[MASK]")] * 6]
    for command in (decode_command, calibrate, settle_text):
        assert read(command, model, monkeypatch, **files) == row, command
    assert read(evaluate, model, monkeypatch, out=tmp_path / "e.json", **asked) == row


def test_a_template_is_the_default_where_there_is_one(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Texts stand in it as a user's turn and masks in a prompt do not; it is said once, however many prompts there are."""
    caplog.set_level(logging.INFO)
    mask, items = WORDS.index("[MASK]"), [{"prompt": "w3 w4"}, {"prompt": "w3 [MASK]"}, {"messages": [USER, BEGUN, USER]}]
    talk = "w28 w3 w4 [SEP] w29 w5 [SEP] w28 w3 w4 [SEP] w29"
    for raw, first in ((False, "w28 w3 w4 [SEP] w29"), (True, "[CLS] w3 w4")):
        caplog.clear()
        decoder = open_decoder(str(model), Text(gen_length=3, raw=raw))
        found = [row.tolist() for row in decoder.rows(items)]
        assert found == [[*ids(text), *[mask] * 3] for text in (first, "[CLS] w3 [MASK]", talk)]
        assert [answer.get("messages") for answer in decoder.answers(items)] == [None, None, [USER, BEGUN, USER]]
        assert caplog.text.count("are put into the model's chat template; --raw") == (not raw)
    word_tokenizer(special=False).save_pretrained(save_bert(tmp_path))
    decoder = open_decoder(str(tmp_path), Text(gen_length=3))
    assert decoder.rows(items[:1])[0].tolist() == [*ids("w3 w4"), *[mask] * 3]
    with pytest.raises(ValueError, match="prompt 3: this model's tokenizer has no chat template; give it plain text"):
        decoder.rows(items)


def test_a_system_prompt_is_the_templates(model: Path) -> None:
    tokenizer = word_tokenizer(special=True)
    tokenizer.chat_template = CHAT.replace("{{ raise_exception('no system') }}", "{{ 'w27 ' }}")
    turns = [{"role": "system", "content": "w1"}, USER]
    assert Text(gen_length=2).rows([{"messages": turns}], load_text(model), tokenizer)[0].tolist() == [
        *tokenizer.apply_chat_template(turns, return_dict=True, add_generation_prompt=True)["input_ids"],
        *[WORDS.index("[MASK]")] * 2,
    ]


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{% if %}", "{{ ''.__class__.__mro__ }}", "{{ range(10 ** 9) }}"])
def test_a_template_that_fails_is_one_sentence(template: str) -> None:
    tokenizer = word_tokenizer(special=True)
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match="chat template refuses this conversation"):
        in_template(tokenizer, [{"role": "user", "content": "a"}], open=False)
