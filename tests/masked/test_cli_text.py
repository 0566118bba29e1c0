"""The commands, called as functions, on a tiny BERT of random weights."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro
from masked.tiny_bert import WORDS, call, save_bert, write_prompts

from fewstep.cli.text import _told, calibrate
from fewstep.cli.text import decode as decode_command
from fewstep.cli.text_measuring import evaluate, settle_text
from fewstep.masked.calibration import Calibration, read_rule
from fewstep.masked.decoding import decode
from fewstep.masked.early import EarlyCommit
from fewstep.masked.load import load_text
from fewstep.masked.predictor import pad
from fewstep.masked.rules import (
    DEFAULT,
    KLASS,
    Blockwise,
    Threshold,
    TopK,
)
from fewstep.masked.step import CommitRule
from fewstep.toys.tasks import WordProblems


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("model"))


def plain(model: Path, prompt: str, rule: Any, gen_length: int, **options: Any) -> Any:
    predictor = load_text(model)
    row = torch.tensor([*(WORDS.index(word) for word in prompt.split()), *[1] * gen_length])
    return decode(predictor, [row], rule, **options)[0]


def said(tokens: list[int]) -> list[str]:
    return [WORDS[token] for token in tokens if token > WORDS.index("[UNK]")]


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({}, Blockwise(Threshold(0.99), 5)),
        ({"rule": "low-confidence", "early": "prophet"}, EarlyCommit(Blockwise(TopK(), 5), statistic="minimum")),
        ({"early": "prophet", "statistic": "mean", "rule": "klass", "confidence": 0.5},
         EarlyCommit(Blockwise(KLASS(0.5), 5))),
        ({"rule": "margin", "schedule": "dream"}, Blockwise(TopK("margin", "dream"), 5)),
    ],
)  # fmt: skip
def test_a_file_of_prompts(model: Path, tmp_path: Path, options: dict[str, Any], rule: CommitRule) -> None:
    out, prompts = tmp_path / "out" / "results.jsonl", write_prompts(tmp_path / "p.jsonl")
    call(decode_command, model, file=prompts, out=out, gen_length=10, block_length=5, batch=4, **options)
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r.get("id") for r in results] == [0, 1, 2, 3, 4, None] and {r["batch"] for r in results} == {4}
    told = json.loads((tmp_path / "out" / "results.jsonl.receipt.json").read_text())
    assert told["nfe"] == sum(result["nfe"] for result in results) > told["calls"] and told["seconds_per_text"] > 0
    assert told["positions"] == pytest.approx(sum(result["positions"] for result in results), abs=0.1)
    for result in results:
        row = plain(model, result["prompt"], rule, 10)
        assert result["nfe"] == row.nfe <= 10 and result["tokens"] == 10
        assert result["text"].split() == said(row.tokens)


def test_masks_in_a_prompt_are_filled(model: Path, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('"w3 [MASK] w4 [MASK] [MASK] w5"\n')
    call(decode_command, model, file=tmp_path / "p.jsonl", out=tmp_path / "o.jsonl", rule="low-confidence", gen_length=0)
    row = decode(load_text(model), [torch.tensor([8, 1, 9, 1, 1, 10])], TopK())[0]
    (result,) = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert result["text"].split() == said(row.tokens) and result["nfe"] == 3 and result["tokens"] == 5


def test_results_go_to_the_terminal_without_a_file(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(decode_command, model, file=write_prompts(tmp_path / "p.jsonl"), gen_length=4, rule="threshold")
    assert len([json.loads(line) for line in capsys.readouterr().out.splitlines()]) == 6


def test_one_prompt_streams_what_decode_returns(
    model: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    row = plain(model, "w3 w4", Blockwise(TopK(), 4), 12)
    words = said(row.tokens)
    call(decode_command, model, prompt="w3 w4", rule="low-confidence", gen_length=12, block_length=4)
    assert capsys.readouterr().out.split() == words
    assert "12 tokens in 12 network calls" in caplog.text
    call(decode_command, model, prompt="w3 w4", rule="low-confidence", gen_length=12, block_length=1, stop=("w",))
    assert capsys.readouterr().out.strip() == ""


def test_a_suffix_stands_where_it_belongs(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(decode_command, model, prompt="w3", gen_length=9, block_length=9, suffix="answer is", answer_length=3)
    words = capsys.readouterr().out.split()
    assert len(words) == 9 and words[4:6] == ["answer", "is"]


def test_a_stop_string_ends_the_text(model: Path, tmp_path: Path) -> None:
    words = [WORDS[token] for token in plain(model, "w5", Blockwise(TopK(), 1), 10).tokens]
    out = tmp_path / "r.jsonl"
    (tmp_path / "p.jsonl").write_text('"w5"')
    call(
        decode_command, model, file=tmp_path / "p.jsonl", out=out, rule="low-confidence", gen_length=10, block_length=1,
        stop=(words[4],),
    )  # fmt: skip
    result = json.loads(out.read_text())
    first = words.index(words[4])
    assert result["text"].split() == words[:first] and result["nfe"] == first + 1


def test_a_stop_string_inside_given_text_ends_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What decoding looks for behind the suffix only, reading looks for there only."""
    options = {"gen_length": 10, "suffix": "answer is", "answer_length": 3}
    call(decode_command, model, prompt="w1", **options)
    whole = capsys.readouterr().out.strip()
    before, behind = whole.split("answer is")
    for stop in ("answer", before.split()[0]):
        assert stop not in behind
        call(decode_command, model, prompt="w1", stop=stop, **options)
        assert capsys.readouterr().out.strip() == whole
        call(decode_command, model, prompt="w1", stop=stop, out=tmp_path / "o.jsonl", **options)
        assert json.loads((tmp_path / "o.jsonl").read_text())["text"] == whole
        capsys.readouterr()


def test_tokens_that_are_never_said(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(decode_command, model, prompt="w1", gen_length=6)
    first = capsys.readouterr().out.split()[0]
    call(decode_command, model, prompt="w1", gen_length=6, suppress=first)
    assert first not in capsys.readouterr().out.split()


def test_calibrate_then_decode(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    prompts, out = write_prompts(tmp_path / "p.jsonl", 70), tmp_path / "c.json"
    options: dict[str, Any] = {"gen_length": 8, "steps": 8}
    call(calibrate, model, file=prompts, out=out, block_length=8, rule="low-confidence", batch=71, **options)
    found = Calibration.load(out)
    line = capsys.readouterr().out
    assert str(out) in line and ("answers changed" in line) == (found.factor is not None)
    assert found.n == 71 and found.settings["gen_length"] == 8
    results = tmp_path / "r.jsonl"
    call(decode_command, model, file=prompts, out=results, calibration=out, **options)
    nfe = [json.loads(line)["nfe"] for line in results.read_text().splitlines()]
    assert sum(nfe) / 71 == pytest.approx(found.early_steps)
    with pytest.raises(ValueError, match="made with --gen-length 8; give --gen-length 8, for its guarantee"):
        call(decode_command, model, file=prompts, calibration=out, gen_length=9, steps=8)
    for own in ({"early": "prophet"}, {"confidence": 0.5}):
        with pytest.raises(ValueError, match="brings its own rule"):
            call(decode_command, model, file=prompts, calibration=out, **options, **own)
    with pytest.raises(ValueError, match="made with --precision no; give --precision no, for its guarantee"):
        call(decode_command, model, file=prompts, calibration=out, precision="bf16", **options)
    moved = shutil.copytree(model, tmp_path / "moved")
    call(decode_command, moved, file=prompts, out=results, calibration=out, **options)
    assert f"was made with {model}; its guarantee holds for that model" in caplog.text
    assert json.loads((tmp_path / "c.json.receipt.json").read_text())["gen_length"] == 8


def test_calibration_says_what_the_default_rule_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bundled model's word problems: the default rule takes a handful of steps where one a token takes 32."""
    family, out = WordProblems(), tmp_path / "c.json"
    prompts = [" ".join(family.item(k, held_out=True).prompt) for k in range(20)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    options = {"file": tmp_path / "p.jsonl", "gen_length": 32}
    call(decode_command, "bundled", out=tmp_path / "o.jsonl", **options)
    results = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    for result in results:
        assert "".join(result["pieces"]).removesuffix(" <eos>") == result["text"]
        assert max(result["steps"]) + 1 == result["nfe"] and len(result["steps"]) == len(result["pieces"])
    plain = sum(result["nfe"] for result in results) / 20
    capsys.readouterr()
    options["epsilon"] = 0.2  # of so few
    call(calibrate, "bundled", out=out, **options)
    found, said = Calibration.load(out), capsys.readouterr().out
    assert found.beside is None and found.full_steps == pytest.approx(plain) and found.early_steps <= plain
    assert f"{found.early_steps:.1f} steps, {plain:.1f} by --rule alone" in said
    call(calibrate, "bundled", out=out, rule="low-confidence", **options)
    found, said = Calibration.load(out), capsys.readouterr().out
    assert found.beside is not None and found.beside.steps == pytest.approx(plain) and found.full_steps > 5 * plain
    assert f"default rule on the same prompts: {plain:.1f} steps, {found.beside.changed} of 20 answers changed" in said
    for steps, bound, advice in ((1.0, 0.04, "is the cheaper one: decode without"), (1.0, 0.3, "is no cheaper way"),
                                 (99.0, 0.04, "is no cheaper way")):  # fmt: skip
        other = replace(found.beside, steps=steps, bound=bound)
        assert advice in "".join(_told(replace(found, beside=other), out, "early"))


@pytest.mark.filterwarnings("ignore")  # of the harness and what it imports
def test_one_default_rule(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (tmp_path / "task.yaml").write_text(
        f"task: ours\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path / 'data.jsonl'}\n"
        "output_type: generate_until\ntest_split: test\ndoc_to_text: w1\ndoc_to_target: w1\n"
        "generation_kwargs:\n  until: []\nmetric_list:\n  - metric: exact_match\n"
    )
    (tmp_path / "data.jsonl").write_text(json.dumps({"q": "w1"}))
    files = {"file": write_prompts(tmp_path / "p.jsonl", 60), "gen_length": 4}
    call(decode_command, model, out=tmp_path / "d.jsonl", **files)
    call(calibrate, model, out=tmp_path / "c.json", **files)
    call(settle_text, model, out=tmp_path / "s.json", **files)
    call(evaluate, model, out=tmp_path / "e.json", tasks="ours", include=tmp_path, gen_length=4)
    receipts = [json.loads((tmp_path / name).read_text()) for name in ("d.jsonl.receipt.json", "s.json", "e.json")]
    assert [read_rule(receipt["rule"]) for receipt in receipts] == [DEFAULT] * 3
    assert [(receipt["model"], receipt["gen_length"], receipt["precision"]) for receipt in receipts] == [
        (str(model), 4, "no")
    ] * 3
    assert [receipt["file"] for receipt in receipts[:2]] == [str(files["file"])] * 2
    assert (receipts[2]["tasks"], receipts[2]["limit"], receipts[2]["include"]) == (["ours"], None, str(tmp_path))
    for command in (calibrate, settle_text):
        before = files["file"].read_text()
        with pytest.raises(ValueError, match="holds the prompts"):
            call(command, model, out=files["file"], **files)
        assert files["file"].read_text() == before
    made = Calibration.load(tmp_path / "c.json").rule
    assert DEFAULT in (made, getattr(made, "rule", None))
    from fewstep.masked.harness import HarnessLM

    assert signature(HarnessLM).parameters["rule"].default == DEFAULT


def test_a_line_ends_where_json_lines_end(model: Path, tmp_path: Path) -> None:
    """U+2028 and its like separate lines elsewhere; in JSON they are letters, and stay as they are in our own results."""
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(json.dumps({"prompt": "w1", "note": "a\u2028b\u0085c"}, ensure_ascii=False) + '\r\n"w2"\n')
    for source, out in ((prompts, tmp_path / "once.jsonl"), (tmp_path / "once.jsonl", tmp_path / "twice.jsonl")):
        call(decode_command, model, file=source, out=out, gen_length=4)
    once, twice = ([json.loads(line) for line in (tmp_path / name).read_text().split("\n")[:-1]]
                   for name in ("once.jsonl", "twice.jsonl"))  # fmt: skip
    assert [r["prompt"] for r in once] == ["w1", "w2"] and once[0]["note"] == "a\u2028b\u0085c"
    assert [r["text"] for r in once] == [r["text"] for r in twice]


def test_a_single_prompt_into_a_file_with_its_receipt(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    call(decode_command, model, prompt="w1 w2", out=out, gen_length=6, seed=3)
    (result,) = [json.loads(line) for line in out.read_text().splitlines()]
    told = json.loads((tmp_path / "o.jsonl.receipt.json").read_text())
    assert result["prompt"] == "w1 w2" and result["tokens"] == 6
    assert (told["nfe"], told["seed"], told["gen_length"], told["model"]) == (result["nfe"], 3, 6, str(model))
    assert (
        told["calls"] == told["nfe"] and told["positions"] == result["positions"] == 8 * result["nfe"]
    )  # one row of 2 + 6
    assert told["rule"]["name"] == "Blockwise"


@pytest.mark.filterwarnings("ignore")  # of the harness and what it imports
def test_a_multiple_choice_of_our_own(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One-word answers, whose likelihood is exact: accuracy is how often the model itself prefers the right one."""
    pytest.importorskip("lm_eval")
    monkeypatch.chdir(tmp_path)  # where there is no repository, which git would tell
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    predictor = load_text(model)
    data = []
    for n in range(8):
        row = torch.tensor([5 + n, 5 + (3 * n) % 7, 1])
        logits = predictor(pad([row], 1), row[None] == 1)[0]
        preferred = 0 if logits[n + 13] > logits[n + 21] else 1
        label = preferred if n < 5 else 1 - preferred
        data.append({"q": f"w{n} w{(3 * n) % 7}", "a": f"w{n + 8}", "b": f"w{n + 16}", "label": label})
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(item) for item in data))
    (tmp_path / "task.yaml").write_text(
        f"task: ours\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path / 'data.jsonl'}\n"
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{[a, b]}}'\n"
        "doc_to_target: label\nmetric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
    )
    call(evaluate, model, tasks=("ours",), out=tmp_path / "e.json", include=tmp_path)
    assert json.loads((tmp_path / "e.json").read_text())["results"]["ours"]["acc,none"] == pytest.approx(5 / 8)
    assert "fatal" not in capfd.readouterr().err
    with pytest.raises(ValueError, match="no task theirs"):
        call(evaluate, model, tasks=("theirs",), out=tmp_path / "e.json", include=tmp_path)


def test_the_parameters_are_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    for command in (decode_command, calibrate, settle_text, evaluate):
        with pytest.raises(SystemExit) as stopped:
            tyro.cli(command, args=["--help"])
        assert stopped.value.code == 0
