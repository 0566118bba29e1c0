"""When answers emerge, by the command, against full decodings that were watched; on a tiny BERT of random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from masked.tiny_bert import WORDS, call, save_bert

from fewstep.cli.text_measuring import settle_text
from fewstep.masked.early import EarlyCommit
from fewstep.masked.load import load_text
from fewstep.masked.prompts import canvas_row
from fewstep.masked.rules import TopK
from fewstep.masked.schedule import Suffix
from fewstep.masked.settling import emergence, record, same_place, settle


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("suffix", ["", "answer is"])
def test_settle_counts_right_and_wrong(
    model: Path, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictor, prompts = load_text(model), [f"w{n}" for n in range(6)]
    fixed = {5: [WORDS.index("answer"), WORDS.index("is")]} if suffix else {}
    rows = [canvas_row([WORDS.index(p)], 10, 1, fixed=fixed) for p in prompts]
    traces = record(predictor, rows, EarlyCommit(TopK("chance"), region=Suffix() if suffix else None), seeds=range(4, 10))
    items: list[dict[str, str]] = []
    for n, (prompt, trace) in enumerate(zip(prompts, traces, strict=True)):
        last = WORDS[int(trace.final.ids[-1])]
        items.append({"prompt": prompt, "answer": last if n < 4 else "is is is is"})
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(item) for item in items))
    call(
        settle_text, model, file=tmp_path / "p.jsonl", out=tmp_path / "s.json", rule="random", gen_length=10,
        block_length=10, suffix=suffix, answer_length=3, at=(0.5, 1.0), seed=4,
    )  # fmt: skip
    told = json.loads((tmp_path / "s.json").read_text())
    found = told["emergence"]
    assert told["curves"]["right"][9] == {"share": 0.5} | found["right"]["by"]["0.5"]
    assert (found["all"]["n"], found["right"]["n"], found["wrong"]["n"]) == (6, 4, 2)
    last_token = same_place(lambda ids: slice(len(ids) - 1, None))
    expected = [settle(trace, None if suffix else last_token) for trace in traces[:4]]
    assert found["right"]["by"]["0.5"] == emergence(expected, (0.5,))[0][1]._asdict()
    assert found["wrong"]["by"]["1"] == {"first": 1.0, "stable": 1.0}
    assert "right (4): by 50% of the steps" in capsys.readouterr().out
