"""What users do wrong with the text commands: one sentence, and nothing written."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from masked.tiny_bert import call, save_bert, write_prompts

from fewstep.cli import main
from fewstep.cli.language import train_text
from fewstep.cli.text import calibrate
from fewstep.cli.text import decode as decode_command
from fewstep.cli.text_measuring import evaluate, settle_text
from fewstep.masked.committing import Early, Prophet


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "--prompt or a --file"),
        ({"prompt": "w1", "file": Path("x")}, "--prompt or a --file"),
        ({"file": Path("missing.jsonl")}, "there is no file missing.jsonl"),
        ({"prompt": "w1", "gen_length": 40}, "prompt of 1 tokens and 40 to generate are more than the 40"),
        ({"prompt": "w1", "gen_length": 0}, "nothing is left"),
        ({"prompt": ""}, "^the prompt is empty"),
        ({"prompt": " "}, "^the prompt is empty"),
        ({"prompt": "w1", "gen_length": 4, "suffix": "answer is", "answer_length": 3}, "do not fit into 4"),
        ({"prompt": "w1", "gen_length": 4, "block_length": 0}, "at least one position"),
        ({"prompt": "w1", "mask_id": 99}, "not in the model's vocabulary"),
        ({"prompt": "w1", "calibration": Path("missing.json")}, "make a calibration with fewstep calibrate"),
        ({"prompt": "w1", "gen_length": 4, "stop": ""}, "must not be empty"),
        ({"prompt": "w1", "confidence": 99}, "a confidence is a probability"),
        ({"prompt": "w1", "rule": "klass", "confidence": -1}, "a confidence is a probability"),
        ({"prompt": "w1", "rule": "factor", "factor": -1}, "factor must not be negative"),
        ({"prompt": "w1", "factor": 1.0}, "--factor belongs to --rule factor, not to threshold; leave one"),
        (
            {"prompt": "w1", "rule": "factor", "confidence": 0.5},
            "--confidence belongs to --rule threshold, klass, credit, hierarchical, not to factor",
        ),
        ({"prompt": "w1", "rule": "margin", "bound": 0.1}, "--bound belongs to --rule entropy-bound, not to margin"),
        (
            {"prompt": "w1", "rule": "klass", "schedule": "even"},
            "--schedule belongs to --rule low-confidence, margin, entropy, ran",
        ),
        ({"prompt": "w1", "suppress": "nobody"}, "vocabulary has no token nobody"),
        ({"prompt": "w1", "last": "nobody"}, "vocabulary has no token nobody"),
        ({"prompt": "w1", "out": Path("/")}, "/ is a folder"),
    ],
)
def test_mistakes_get_a_sentence(model: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call(decode_command, model, **options)


@pytest.mark.parametrize("early", [None, "sched", "stable"])
def test_what_is_prophets_alone_is_refused_elsewhere(early: Any) -> None:
    with pytest.raises(ValueError, match=r"^--levels, --first: only for --early prophet"):
        Early(early=early, prophet=Prophet(levels=(3, 2, 1), first=1))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"gen_length": -1}, "--gen-length must not be negative"),
        ({"batch": 0}, "--batch starts at 1"),
        ({"steps": 0}, "--steps starts at 1"),
        ({"temperature": -0.5}, "--temperature must not be negative"),
        ({"temperature": "nan"}, "--temperature must not be negative"),
        ({"guidance": "nan"}, "--guidance must be a finite number"),
    ],
)
def test_flags_that_several_commands_share(
    model: Path, options: dict[str, Any], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        call(decode_command, model, prompt="w1", **options)
    assert stopped.value.code == 2 and sentence in capsys.readouterr().err


def test_what_flags_refuse_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, sentence in (("--steps 0", "--steps starts at 1, got 0"), ("--batch 0", "--batch starts at 1, got 0")):
        monkeypatch.setattr(sys, "argv", ["fewstep", "decode", "missing", "--prompt", "w1", *flags.split()])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert (stopped.value.code, capsys.readouterr().err) == (2, f"fewstep: {sentence}\n")


@pytest.mark.parametrize("command", [calibrate, settle_text, evaluate])
def test_a_folder_in_place_of_a_file_is_refused_before_any_work(command: Callable[..., None], tmp_path: Path) -> None:
    needs: dict[str, Any] = {"tasks": "x"} if command is evaluate else {"file": tmp_path / "none.jsonl"}
    with pytest.raises(ValueError, match="give the name of a file"):
        call(command, tmp_path / "no model", out=tmp_path, **needs)


@pytest.mark.parametrize("at", [(0.0,), (0.5, 1.5)])
def test_shares_of_steps(at: tuple[float, ...], model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shares of the steps"):
        call(settle_text, model, file=write_prompts(tmp_path / "p.jsonl"), out=tmp_path / "s.json", at=at)
    assert not (tmp_path / "s.json").exists()


@pytest.mark.parametrize("name", ["items", "layers", "heads", "save_every", "rate"])
def test_training_numbers_that_make_no_sense(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} "):
        train_text(out=tmp_path / "run", **{name: -1})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "line 1 .* not JSON"),
        ('"a"\n[1]', "line 2 .* neither"),
        ('{"prompt": []}', "line 1 .* neither"),
        ('{"prompt": [{"role": "user"}]}', "line 1 .* neither"),
        ('{"messages": "w1"}', "line 1 .* neither"),
        ('{"messages": [{"role": "user", "content": [{"type": "text"}]}]}', "line 1 .* every content is a text"),
        ('{"prompt": "w1", "messages": []}', "line 1 .* leave one of them out"),
        ('"w1"\n{"messages": [{"role": "user", "content": "w1"}]}', "prompt 2: .* no chat template; give it plain text"),
        ('"w1"\n""', "prompt 2: the prompt is empty"),
        ("\n", "no prompt"),
    ],
)
def test_files_that_are_no_prompts(text: str, sentence: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        call(decode_command, model, file=tmp_path / "p.jsonl")


def test_a_file_in_another_encoding(model: Path, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes('"gr\u00fc\u00df"'.encode("latin-1"))
    with pytest.raises(ValueError, match="is not text in UTF-8"):
        call(decode_command, model, file=tmp_path / "p.jsonl")


def test_evaluation_says_what_is_missing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install .fewstep.evaluate"):
        call(evaluate, model, tasks=("x",), out=tmp_path / "e.json")
