"""Rules that are learned and calibrated by the command line, and what an engine is told, on a tiny BERT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from masked.tiny_bert import call, save_bert, write_prompts

from fewstep.cli.text import calibrate, learn_rule
from fewstep.cli.text import decode as decode_command
from fewstep.core import parts
from fewstep.masked import fitting
from fewstep.masked.calibration import Calibration
from fewstep.masked.choices import Text
from fewstep.masked.committing import Rule
from fewstep.masked.decoder import open_decoder
from fewstep.masked.decoding import decode
from fewstep.masked.fitting import learn_rule as learn
from fewstep.masked.learned import Learned
from fewstep.masked.learning import Lesson
from fewstep.masked.prompts import read_prompts
from fewstep.masked.rules import Blockwise, Threshold, TopK
from fewstep.masked.serving import check_engine, write_engine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("model"))


def test_learn_calibrate_decode(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts, rule, out = write_prompts(tmp_path / "p.jsonl", 30), tmp_path / "r.safetensors", tmp_path / "c.json"
    others = tmp_path / "others.jsonl"
    others.write_text("\n".join(json.dumps(f"w{k} w{29 - k} w7") for k in range(30)))
    call(learn_rule, model, file=others, out=rule, gen_length=6, block_length=3)
    assert f"{rule}: learned from" in capsys.readouterr().out
    told = json.loads((tmp_path / "r.safetensors.receipt.json").read_text())
    assert told["block_length"] == 3 and told["gen_length"] == 6 and 1500 < told["parameters"] < 2500
    options: dict[str, Any] = {"gen_length": 6}
    asked = options | {"rule": "learned", "learned": rule, "block_length": 3}
    call(calibrate, model, file=prompts, out=out, of="rule", epsilon=0.2, **asked)
    found, said = Calibration.load(out), capsys.readouterr().out
    others.write_text(prompts.read_text() + others.read_text().partition("\n")[0])
    for of in ("rule", "early"):
        with pytest.raises(ValueError, match=r"r\.safetensors was learned from 1 of these 32 prompts"):
            call(calibrate, model, file=others, out=tmp_path / "no.json", of=of, epsilon=0.2, **asked)
    assert found.full_steps == 6 and found.n == 31 and str(out) in said
    assert ("sure enough" in said) == (found.factor is not None)
    results = tmp_path / "o.jsonl"
    call(decode_command, model, file=prompts, out=results, calibration=out, **options)
    nfe = [json.loads(line)["nfe"] for line in results.read_text().splitlines()]
    assert sum(nfe) / 31 == pytest.approx(found.early_steps)
    capsys.readouterr()
    call(decode_command, model, prompt="w1", confidence=0.7, **asked)
    decoder = open_decoder(str(model), Text(gen_length=6), Rule("learned", 3, 0.7, learned=rule))
    assert decoder.rule == Blockwise(Learned.read(rule, 0.7), 3)
    assert capsys.readouterr().out.split() == next(decoder.answers([{"prompt": "w1"}]))["text"].split()


def test_the_same_prompts_and_seed_give_the_same_file(model: Path, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "p.jsonl", 8)
    for name in ("a", "b"):
        learn(
            str(model), prompts, tmp_path / f"{name}.safetensors", text=Text(gen_length=5), lesson=Lesson((0.5,), 30, 16)
        )  # fmt: skip
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    with pytest.raises(ValueError, match="leave --temperature out"):
        learn(str(model), prompts, tmp_path / "c.safetensors", text=Text(temperature=1.0))
    with pytest.raises(ValueError, match=r"is a \.safetensors file"):
        learn(str(model), prompts, tmp_path / "c.json")


def test_calibrating_a_rule_is_decoding_by_it(model: Path, tmp_path: Path) -> None:
    prompts, out = write_prompts(tmp_path / "p.jsonl", 30), tmp_path / "c.json"
    call(calibrate, model, file=prompts, out=out, of="rule", rule="threshold", gen_length=4, epsilon=0.3, block_length=4)
    found, text = Calibration.load(out), Text(gen_length=4)
    decoder = open_decoder(str(model), text)
    rows = decoder.rows(read_prompts(prompts))
    whole = decode(decoder.predictor, rows, Blockwise(TopK(), 4))
    done = decode(decoder.predictor, rows, found.rule)
    changed = sum(a.tokens != b.tokens for a, b in zip(done, whole, strict=True))
    assert changed == found.changed and sum(row.nfe for row in done) / len(rows) == pytest.approx(found.early_steps)
    assert found.factor is None or found.rule == Blockwise(Threshold(found.factor), 4)


def test_calibrating_a_rule_goes_on_where_it_was_stopped(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And takes nothing that other settings have left."""
    prompts, decodes = write_prompts(tmp_path / "p.jsonl", 30), fitting.answers
    asked: dict[str, Any] = {"of": "rule", "rule": "threshold", "gen_length": 4, "epsilon": 0.9, "batch": 2}
    call(calibrate, model, file=prompts, out=tmp_path / "whole.json", **asked)
    made: list[object] = []

    def stopped(predictor: Any, rows: Any, rule: Any, decoding: Any) -> Any:
        if len(made) == 5:
            raise RuntimeError("out of power")
        made.append(rule)
        return decodes(predictor, rows, rule, decoding)

    monkeypatch.setattr(parts, "KEPT_AFTER", 0.0)
    monkeypatch.setattr(fitting, "answers", stopped)
    with pytest.raises(RuntimeError, match="out of power"):
        call(calibrate, model, file=prompts, out=tmp_path / "c.json", **asked)
    monkeypatch.setattr(fitting, "answers", decodes)
    with pytest.raises(ValueError, match="was made with gen_length = 4, not 5; delete it"):
        call(calibrate, model, file=prompts, out=tmp_path / "c.json", **asked | {"gen_length": 5})
    call(calibrate, model, file=prompts, out=tmp_path / "c.json", **asked)
    assert (tmp_path / "c.json").read_text() == (tmp_path / "whole.json").read_text()
    assert made[-1] != made[0], "it was stopped after full decoding"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"of": "early", "write": ("sglang", Path("s.yaml"))}, "engines have no early commit.*--of rule"),
        ({"of": "rule", "rule": "low-confidence"}, "a TopK has no confidence to choose; calibrate threshold"),
        ({"of": "rule", "rule": "wino"}, "a WINO has no confidence to choose"),
        ({"of": "rule", "levels": (3.0, 2.0, 1.0)}, "without prophet; leave out prophet's options"),
        ({"of": "rule", "write": ("vllm", Path("s.yaml"))}, "vLLM .* has no setting for a calibrated threshold"),
        ({"of": "rule", "write": ("sglang", Path("s.yaml"))}, "trained on blocks, and this one was not"),
        ({"of": "rule", "rule": "learned"}, "--rule learned and --learned FILE belong together"),
        ({"of": "rule", "learned": Path("x")}, "--rule learned and --learned FILE belong together"),
    ],
)
def test_what_cannot_be(model: Path, tmp_path: Path, options: dict[str, Any], error: str) -> None:
    prompts = write_prompts(tmp_path / "p.jsonl", 70)
    with pytest.raises(ValueError, match=error):
        call(calibrate, model, file=prompts, out=tmp_path / "c.json", gen_length=4, **options)
    assert {path.name for path in tmp_path.iterdir()} == {"p.jsonl"}


@pytest.mark.parametrize(
    ("rule", "text", "error"),
    [
        (Rule("klass"), Text(), "sglang has --rule threshold alone.*not klass"),
        (Rule(last=("w1",)), Text(), "without --last"),
        (Rule(), Text(temperature=1.0, suffix="is"), "would not decode with --temperature, --suffix"),
        (Rule(), Text(cache="prefix"), "would not decode with --cache"),
        (Rule(block_length=2), Text(), "in its blocks of 4; leave --block-length out"),
    ],
)
def test_an_engine_is_told_nothing_that_it_would_not_do(rule: Rule, text: Text, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        check_engine("sglang", rule, text, 4)
    check_engine("sglang", Rule(), Text(), 4)
    check_engine("sglang", Rule(block_length=4, confidence=0.8), Text(), 4)


@pytest.mark.parametrize(("inner", "threshold"), [(Threshold(0.93), 0.93), (TopK(), 1.0)])
def test_the_threshold_in_the_words_of_sglang(inner: Threshold | TopK, threshold: float, tmp_path: Path) -> None:
    """Above a threshold of 1 nothing is, so that the best position alone is decided, as in full decoding."""
    rule = Blockwise(inner, 4, aligned=True)
    write_engine(Calibration(rule, None, 0.05, 0.1, 200, 3, 0.04, 24.0, 9.0), tmp_path / "s.yaml")
    text = (tmp_path / "s.yaml").read_text()
    assert yaml.safe_load(text) == {"threshold": threshold, "block_size": 4}
    assert "confidence 0.9, at most 0.05 of answers" in text and "the 200 of the calibration" in text
