"""--cache at the command line: what it costs, what it changes, and what a calibration says of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from masked.test_load import LLADA, llada_weights, write
from masked.tiny_bert import WORDS, call, save_bert, word_tokenizer, write_prompts
from masked.toy import Toy

from fewstep.cli.text import calibrate
from fewstep.cli.text import decode as decode_command
from fewstep.cli.text_measuring import evaluate
from fewstep.masked.caching import Cached, Dual
from fewstep.masked.calibration import Calibration, Decoding, boldest
from fewstep.masked.calibration import calibrate as find
from fewstep.masked.changes import count_changes
from fewstep.masked.choices import Compute, Text
from fewstep.masked.committing import Rule
from fewstep.masked.decoding import Decoded, decode
from fewstep.masked.early import EarlyCommit
from fewstep.masked.load import load_text
from fewstep.masked.prompts import read_prompts
from fewstep.masked.rules import Blockwise, Threshold, TopK
from fewstep.masked.schedule import Stairs
from fewstep.masked.settling import record
from fewstep.steering.accounting import ledger_models
from fewstep.steering.choices import Questioning

CONFIG = LLADA | {"mask_token_id": 1, "pad_token_id": 0, "eos_token_id": None, "max_sequence_length": 48}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of layers that say little, so that a cache changes some answers and not all."""
    weights = llada_weights(CONFIG)
    weights |= {name: 0.4 * value for name, value in weights.items() if ".blocks." in name and value.ndim == 2}
    folder = write(tmp_path_factory.mktemp("model"), CONFIG, weights)
    word_tokenizer(special=False).save_pretrained(folder)
    return folder


def rows(n: int, length: int) -> list[torch.Tensor]:
    """What `write_prompts` writes."""
    prompts = [" ".join(f"w{(7 * i + j) % 30}" for j in range(1 + i % 4)) for i in range(n)] + ["w1 w2"]
    return [torch.tensor([*(WORDS.index(word) for word in prompt.split()), *[1] * length]) for prompt in prompts]


def test_the_ledger_of_a_cache_is_of_the_cache_alone(model: Path, tmp_path: Path) -> None:
    """The same rule before and after; a cache moves no weights and reads no text otherwise."""
    prompts = read_prompts(write_prompts(tmp_path / "p.jsonl", 20))
    rows = [{"prompt": prompt["prompt"], "answer": "w1"} for prompt in prompts]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "t.txt").write_text("w1 w2 w3\nw4 w5\n")
    asked = Questioning(held=(tmp_path / "q.jsonl",), text=(tmp_path / "t.txt",), draws=2)
    found = ledger_models(
        str(model), str(model), tmp_path / "led", asked, text=Text(gen_length=12, cache="dual", refresh=3),
        rule=Rule("low-confidence", block_length=4), compute=Compute(batch=21),
    )  # fmt: skip
    lines = {line.name: line for line in found.ledger.lines}
    positions, calls = lines["positions an answer"], lines["calls an answer"]
    assert calls.before == calls.after == 12 and positions.after < 0.8 * positions.before
    assert lines["perplexity: t"].difference == (0, 0, 0) and {d.change for d in found.ledger.drift} == {0}
    assert 0 < found.asked[0].turned()["changed"] < 21


def test_what_a_cache_costs_and_changes(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, prompts = tmp_path / "o.jsonl", write_prompts(tmp_path / "p.jsonl", 20)
    options = {"file": prompts, "out": out, "gen_length": 12, "block_length": 4, "rule": "low-confidence", "batch": 21}
    network, rule = load_text(model), Blockwise(TopK(), 4)
    plain, found = (decode(p, rows(20, 12), rule, batch=21) for p in (network, Cached(network, Dual(4, refresh=3))))
    call(decode_command, model, cache="dual", refresh=3, compare=True, **options)
    told, said = json.loads((tmp_path / "o.jsonl.receipt.json").read_text()), capsys.readouterr().out
    ids = [int((a.ids != b.ids).sum()) for a, b in zip(found, plain, strict=True)]
    answers = sum(map(bool, ids))
    assert 0 < answers < 21 and f"against --cache none: {answers} of 21 answers changed" in said
    assert (told["changed"]["answers"], told["changed"]["ids"], told["changed"]["of"]) == (answers, sum(ids), 21 * 12)
    assert told["positions"] == sum(row.positions for row in found) < sum(row.positions for row in plain)
    assert (told["cache"], told["refresh"], told["around"]) == ("dual", 3, 0)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["nfe"] for line in lines] == [row.nfe for row in plain]
    call(decode_command, model, cache="prefix", refresh=1, compare=True, **options)
    assert "0 of 21 answers changed (0.0% [0.0%, 16.1%]), 0 of 252 tokens" in capsys.readouterr().out


def test_changes_are_counted_behind_the_last_given_text() -> None:
    def row(tokens: list[int], given: list[int]) -> Decoded:
        at = torch.tensor([-1 if place in given else 3 for place in range(len(tokens))])
        return Decoded(torch.tensor(tokens), 1, at, 1.0, 1.0)

    found = [row([9, 1, 5, 2, 3], [0, 2]), row([9, 1, 2], [0]), row([9, 4, 4, 4], [0])]
    exact = [row([9, 7, 5, 2, 3], [0, 2]), row([9, 1, 2, 3], [0]), row([9, 5, 4, 5], [0])]
    told = count_changes(found, exact)
    assert (told.answers, told.n, told.ids, told.of) == (2, 3, 1 + 2, 2 + 3 + 3)
    assert told.ids_share.value == 3 / 8 and 0 <= told.ids_share.low < 3 / 8 < told.ids_share.high <= 1
    assert count_changes(found[:1], exact[:1]).ids_share == (0, 0, 1)
    with pytest.raises(ValueError, match="same rows twice, got 3 and 2"):
        count_changes(found, exact[:2])


def test_rule_and_cache_are_calibrated_together(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An answer counts as kept where the early rule with its cache says what full decoding without one says."""
    network, early = load_text(model), EarlyCommit(Blockwise(TopK(), 4), Stairs((1.0,), ()), statistic="minimum")
    cached, n = Cached(network, Dual(4)), 70
    options: dict[str, Any] = {"epsilon": 0.6, "delta": 0.1}
    found = find(cached, rows(n - 1, 8), early, Decoding(exact=network), **options)
    full = decode(network, rows(n - 1, 8), early.rule)
    quick = decode(cached, rows(n - 1, 8), found.rule)
    assert found.factor is not None and found.changed == sum(a.tokens != b.tokens for a, b in zip(full, quick, strict=True))
    assert found.early_steps == pytest.approx(sum(row.nfe for row in quick) / n)
    alone = sum(a.tokens != b.tokens for a, b in zip(full, decode(cached, rows(n - 1, 8), early.rule), strict=True))
    assert 0 < alone <= found.changed
    traces = [
        trace.against(row) for trace, row in zip(record(cached, rows(n - 1, 8), early), full, strict=True)
    ]  # fmt: skip
    only = boldest(traces, early, factors=(1e-9,), **options)  # early at once, which keeps no answer
    assert (only.rule, only.factor, only.changed) == (early.rule, None, alone) and only.bound is not None
    with pytest.raises(ValueError, match=f"the cache alone changes {alone} of {n}; refresh it more often"):
        boldest(traces, early, epsilon=0.05)

    prompts, out = write_prompts(tmp_path / "p.jsonl", n - 1), tmp_path / "c.json"
    flags = {"file": prompts, "gen_length": 8, "cache": "dual"}
    call(calibrate, model, out=out, rule="low-confidence", block_length=4, levels=(1.0, 1.0, 1.0), **flags, **options)
    assert "answers changed" in capsys.readouterr().out and Calibration.load(out).settings["cache"] == "dual"
    call(decode_command, model, calibration=out, out=tmp_path / "o.jsonl", **flags)
    receipt = json.loads((tmp_path / "o.jsonl.receipt.json").read_text())
    with pytest.raises(ValueError, match="made with --cache dual; give --cache dual, for its guarantee"):
        call(decode_command, model, calibration=out, **flags | {"cache": "none"})
    with pytest.raises(ValueError, match="made without --refresh; leave it out, for its guarantee"):
        call(decode_command, model, calibration=out, refresh=2, **flags)
    content = json.loads(out.read_text())
    del content["settings"]["cache"], content["settings"]["refresh"]
    out.write_text(json.dumps(content))
    call(decode_command, model, calibration=out, **flags | {"cache": "none"})
    with pytest.raises(ValueError, match="made with --cache none; give --cache none, for its guarantee"):
        call(decode_command, model, calibration=out, **flags)
    assert receipt["positions"] < 0.8 * n * 10 * 8 and receipt["calls"] > 0
    with pytest.raises(ValueError, match="the cache alone changes"):
        call(calibrate, model, out=tmp_path / "no.json", rule="low-confidence", block_length=4, **flags)
    assert not (tmp_path / "no.json").exists()


@pytest.mark.filterwarnings("ignore")  # of the harness and what it imports
def test_evaluation_says_what_a_cache_changes(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (tmp_path / "task.yaml").write_text(
        f"task: ours\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path / 'data.jsonl'}\n"
        "output_type: generate_until\ntest_split: test\ndoc_to_text: '{{q}}'\ndoc_to_target: w1\n"
        "generation_kwargs:\n  until: []\nmetric_list:\n  - metric: exact_match\n"
    )
    prompts = [json.loads(line)["prompt"] for line in write_prompts(tmp_path / "p.jsonl", 20).read_text().split("\n")[:20]]
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps({"q": prompt}) for prompt in prompts))
    options = {"tasks": "ours", "include": tmp_path, "gen_length": 12, "rule": "low-confidence", "block_length": 4}
    call(evaluate, model, out=tmp_path / "e.json", cache="dual", compare=True, **options)
    told = json.loads((tmp_path / "e.json").read_text())
    network = load_text(model)
    plain, found = (
        decode(p, rows(20, 12)[:20], Blockwise(TopK(), 4)) for p in (network, Cached(network, Dual(4)))
    )  # fmt: skip
    assert told["changed"]["answers"] == sum(a.tokens != b.tokens for a, b in zip(plain, found, strict=True)) > 0
    assert told["changed"]["n"] == 20 and told["cache"] == "dual"
    assert told["positions_per_text"] == pytest.approx(sum(row.positions for row in found) / 20, rel=0.1)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--refresh 2", "--refresh needs --cache prefix or dual; give one of them, or leave --refresh out"),
        ("--cache dual --refresh 0", "--refresh starts at 1, got 0"),
        ("--cache prefix --around 2", "--around needs --cache dual; give it too, or leave --around out"),
        (
            "--compare --out o.jsonl",
            "--compare counts the changes by a cache; choose one with --cache, or leave --compare out",
        ),
        ("--compare --cache dual", "--compare writes its counts into the receipt; give --out as well"),
        ("--seed -1", "--seed starts at 0, got -1"),
        (
            "--cache dual",
            "a BertForMaskedLM takes no keys and values back, so it cannot be decoded with a cache; leave --cache out",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(
    flags: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fewstep.cli import main

    bert = save_bert(tmp_path / "bert")
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fewstep", "decode", str(bert), "--prompt", "w1", *flags.split()])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert (stopped.value.code, capsys.readouterr().err) == (2, f"fewstep: {sentence}\n")
    assert not (tmp_path / "o.jsonl").exists()


def test_the_package_is_the_command() -> None:
    told = [subprocess.run([sys.executable, "-m", name, "--version"], capture_output=True, text=True, check=True).stdout
            for name in ("fewstep", "fewstep.cli")]  # fmt: skip
    assert told[0] == told[1] and told[0].strip()


def test_exact_decoding_is_calibrated_as_ever() -> None:
    """What no cache changes passes first, so thresholds are tested as they were without that."""
    early, given = EarlyCommit(TopK(), Stairs((4.0,), ()), statistic="minimum"), rows(60, 6)
    toy_rows = [torch.cat([row[row != 1] % 10, torch.full((6,), 11)]) for row in given]
    toy = Toy(scale=4.0)
    assert find(toy, toy_rows, early) == find(toy, toy_rows, early, Decoding(exact=toy))
    assert decode(toy, toy_rows[:3], Threshold(0.5))[0].nfe > 0
