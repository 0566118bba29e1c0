"""Two processes against one: the same figures and files, to the last digit; and what a killed command left is kept.

All commands run in one launch of two processes, as each takes seconds to begin.
"""

from __future__ import annotations

import json
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import fewstep, launch, noise_images, tiny
from masked.tiny_bert import save_bert, write_prompts

from fewstep.diffusion.data import save_images
from fewstep.diffusion.formats.folder import save
from fewstep.diffusion.model import Model
from fewstep.diffusion.walk import Heun

TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: prompts.jsonl
test_split: test
doc_to_text: '{{{{prompt}}}}'
"""
CHOICE = """output_type: multiple_choice
doc_to_choice: ['w8', 'w9 w10']
doc_to_target: '{{id % 2}}'
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WRITTEN = """output_type: generate_until
doc_to_target: w8
generation_kwargs: {until: [w3], max_gen_toks: 4}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
TEXT = "bert --file prompts.jsonl --gen-length 8 --block-length 4 --batch 2"
DECODE = f"decode {TEXT} --out answers.jsonl --stop w3"
LEARN = f"learn-rule {TEXT} --out rule.safetensors"
CALIBRATE = f"calibrate {TEXT} --out rule.json --epsilon .3 --delta .3 --rule low-confidence"
SETTLE = f"settle-text {TEXT} --out settled.json"
EVALUATE = "evaluate bert --tasks choice written --include tasks --out exam.json --batch 2 --draws 4 --limit 40"
STEERED = "evaluate bundled --expert bundled --antiexpert bundled --tasks choice --include tasks --out steered.json"
MEASURE = "measure teacher --data data.npz --n 50 --batch 20 --steps 1 3 --out scores"
ASKED = "--held questions.jsonl choices.jsonl --text prose.txt --batch 2"
LEDGER_TEXT = f"ledger-text bert bert --rule low-confidence --gen-length 8 --block-length 4 --draws 4 {ASKED} --out decoded"
LEDGER_STEERED = (
    f"ledger-text bundled bundled --expert bundled --antiexpert bundled --gen-length 4 {ASKED} --n 18 --out steered"
)
LEDGER = "ledger teacher other --data data.npz --n 50 --batch 20 --teacher-calls 3 --out ledger"
SAMPLE = "sample teacher --n 5 --batch 2 --steps 2 --out samples"
WALK = "settle teacher --n 5 --batch 2 --steps 3 --out settle"
KILLED = DECODE.replace("answers", "killed")
KILLED_MEASURE = MEASURE.replace("scores", "killed")
KILLED_SAMPLE = SAMPLE.replace("samples", "killed-samples")
KILLED_WALK = WALK.replace("--out settle", "--out killed-settle")
KILLED_LEARN = LEARN.replace("rule.", "killed.")
KILLED_LEDGER = LEDGER_TEXT.replace("decoded", "killed-decoded")
WRONG = DECODE.replace("bert", "nobody")
FAILING = DECODE.replace("answers", "failing")
BEGUN = [KILLED, KILLED_LEARN, KILLED_LEDGER, KILLED_MEASURE, KILLED_SAMPLE, KILLED_WALK]
WELL = [DECODE, CALIBRATE, LEARN, SETTLE, EVALUATE, STEERED, LEDGER_TEXT, LEDGER_STEERED, MEASURE, LEDGER, SAMPLE, WALK]


class Run:
    """What two processes and one left, each in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.one, self.two = folder / "one", folder / "two"
        self.commands = [*BEGUN, *WELL, WRONG, FAILING]

    @cached_property
    def ended(self) -> dict[str, list[list[Any]]]:
        """How each command ended in both processes: exit code, what was printed, errors, parts made."""
        found = [json.loads((self.two / f"ended-{rank}.json").read_text()) for rank in range(2)]
        return dict(zip(self.commands, map(list, zip(*found, strict=True)), strict=True))

    def same(self, name: str) -> bytes:
        one, two = ((folder / name).read_bytes() for folder in (self.one, self.two))
        assert one == two, name
        return one


def write_questions(folder: Path, n: int = 20) -> None:
    """To be answered, to be chosen from, and texts."""
    asked = [{"prompt": f"w{k} w{(3 * k) % 7}", "answer": f"w{k % 5}"} for k in range(n)]
    options = [{"options": [f"w{k % 5}", f"w{k % 5 + 1} w{k % 7}"]} for k in range(n)]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, asked)))
    (folder / "choices.jsonl").write_text("\n".join(json.dumps(a | o) for a, o in zip(asked, options, strict=True)))
    (folder / "prose.txt").write_text(
        "\n".join(" ".join(f"w{(k * j) % 30}" for j in range(2, 9 + k % 50)) for k in range(n))
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    pytest.importorskip("lm_eval")
    run = Run(tmp_path_factory.mktemp("many"))
    run.one.mkdir()
    save_bert(run.one / "bert")
    write_prompts(run.one / "prompts.jsonl", 40)
    lines = [line for line in (run.one / "prompts.jsonl").read_text().splitlines() if line.startswith("{")]
    (run.one / "prompts.jsonl").write_text("\n".join(lines))
    write_questions(run.one)
    (run.one / "tasks").mkdir()
    for name, kind in (("choice", CHOICE), ("written", WRITTEN)):
        (run.one / "tasks" / f"{name}.yaml").write_text(TASK.format(name=name) + kind)
    other = tiny(size=28)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.1)
    save(Model(tiny(size=28), Heun()), run.one / "teacher")
    save(Model(other, Heun()), run.one / "other")
    save_images(noise_images(60, size=28), run.one / "data.npz")
    shutil.copytree(run.one, run.two)
    asked = {"killed": BEGUN, "failing": [FAILING], "commands": [*WELL, WRONG]}
    split = {kind: [command.split() for command in commands] for kind, commands in asked.items()}
    (run.two / "commands.json").write_text(json.dumps(split))
    with pytest.MonkeyPatch.context() as patch:
        launch("many_worker", run.two, 2)
        patch.chdir(run.one)
        for command in WELL:
            fewstep(patch, command)
    return run


def receipts(run: Run, name: str) -> list[dict[str, Any]]:
    """Those of both, without what is another in each run."""
    found = [json.loads((folder / name).read_text()) for folder in (run.one, run.two)]
    for receipt in found:
        for own in ("command", "started", "wall_seconds", "seconds_per_text", "git_commit"):
            receipt.pop(own, None)
        for point in receipt.get("points", []):
            del point["seconds"], point["images_per_second"]
    return found


pytestmark = pytest.mark.filterwarnings("ignore")  # of the harness and what it imports


def test_two_processes_end_well_and_one_speaks(run: Run) -> None:
    for command in BEGUN + WELL:
        (code, said, errors, _), (other, nothing, unsaid, _) = run.ended[command]
        assert (code, other) == (0, 0), (code, errors)
        assert said and nothing == "" and (unsaid == "" or "evaluate" in command), command  # the harness has bars


def test_texts_are_the_same_files(run: Run) -> None:
    lines = run.same("answers.jsonl").splitlines()
    assert len(lines) == 40 and len({json.loads(line)["text"] for line in lines}) > 5
    run.same("rule.json")
    for name in ("answers.jsonl.receipt.json", "rule.json.receipt.json", "settled.json", "exam.json", "steered.json"):
        one, two = receipts(run, name)
        assert one == two, name
    assert 0 < one["results"]["choice"]["acc,none"] < 1
    assert [made for *_, made in run.ended[DECODE]] == [[0, 2], [1, 3]]


def test_ledgers_of_language_models_are_the_same_files(run: Run) -> None:
    """Of a masked model, also where one process was killed and two went on, and of a steered one."""
    for out in ("decoded", "steered"):
        one, two = receipts(run, f"{out}/ledger.json")
        assert one == two and {line["group"] for line in one["lines"]} >= {"knowledge", "text", "confidence"}
        assert len(run.same(f"{out}/answers.jsonl").splitlines()) == 40 - 4 * (out == "steered")
        run.same(f"{out}/ledger.png")
        assert not list((run.two / out).glob(".*"))
    killed, whole = (run.two / "killed-decoded", run.two / "decoded")
    assert (killed / "answers.jsonl").read_bytes() == (whole / "answers.jsonl").read_bytes()
    figures = [json.loads((folder / "ledger.json").read_text())["lines"] for folder in (killed, whole)]
    assert figures[0] == figures[1]
    assert any(line["before"] != line["after"] for line in figures[0])


def test_a_rule_is_learned_from_the_same_examples(run: Run) -> None:
    assert (run.two / "killed.safetensors").read_bytes() == run.same("rule.safetensors")
    one, two = receipts(run, "rule.safetensors.receipt.json")
    assert one == two and one["examples"] > 100


def test_scores_are_the_same_figures(run: Run) -> None:
    one, two = receipts(run, "scores/measure.json")
    assert one == two and len(one["points"]) == 2 and one["points"][0]["n"] == 50
    assert [made for *_, made in run.ended[MEASURE]] == [[0, 2, 4], [1, 3, 5]]
    one, two = receipts(run, "ledger/ledger.json")
    assert one == two and {line["group"] for line in one["lines"]} >= {"denoising", "agreement", "quality", "looks"}
    for folder in ("scores", "ledger"):
        run.same(f"{folder}/samples.png")


def test_samples_are_the_same_files(run: Run) -> None:
    names = [*(f"{k:06d}.png" for k in range(5)), "receipt.json", "sheet.png"]
    assert sorted(file.name for file in (run.two / "samples").iterdir()) == names
    for name in names:
        if name != "receipt.json":
            assert run.same(f"samples/{name}") == (run.two / "killed-samples" / name).read_bytes()
    one, two = receipts(run, "samples/receipt.json")
    assert one == two and one["nfe_per_sample"] == 3 and one["network_calls"] == 9


def test_trajectories_are_the_same(run: Run) -> None:
    """Of one process, of two, and of one that was killed and two that went on."""
    assert [made for *_, made in run.ended[WALK]] == [[0, 2], [1]]
    one, two = receipts(run, "settle/settle.json")
    assert one == two and one["nfe_per_sample"] == 3 and one["quantiles"]["0.1"] != one["quantiles"]["0.9"]
    assert run.same("settle/settle.png") == (run.two / "killed-settle" / "settle.png").read_bytes()
    killed = json.loads((run.two / "killed-settle" / "settle.json").read_text())
    assert {name: killed[name] for name in one} == two


def test_what_was_made_before_it_was_killed_is_kept(run: Run) -> None:
    """By one process; two go on."""
    assert (run.two / "killed.jsonl").read_bytes() == run.same("answers.jsonl")
    for command, made in (
        (KILLED, [[1, 3], [2]]),
        (KILLED_LEARN, [[1, 3], [2]]),
        (KILLED_MEASURE, [[1, 3, 5], [2, 4]]),
        (KILLED_SAMPLE, [[1], [2]]),
        (KILLED_WALK, [[1], [2]]),
    ):
        assert [parts for *_, parts in run.ended[command]] == made
    killed, whole = (json.loads((run.two / name / "measure.json").read_text()) for name in ("killed", "scores"))
    assert [point["frechet"] for point in killed["points"]] == [point["frechet"] for point in whole["points"]]


def test_what_is_wrong_is_said_once(run: Run) -> None:
    """Whether all processes find it or one of them."""
    for command, sentence in ((WRONG, "nobody"), (FAILING, "fewstep: out of power\n")):
        (code, _, errors, _), (other, *silence, _) = run.ended[command]
        assert (code, other) == (2, 2), (code, other)
        assert sentence in errors and errors.count("\n") == 1 and silence == ["", ""]
    assert not (run.two / "failing.jsonl").exists()
    assert sorted(file.name for file in run.two.glob(".*")) == [".failing.jsonl.parts"]


def test_another_work_does_not_go_on_with_the_parts(run: Run, monkeypatch, capsys) -> None:
    monkeypatch.chdir(run.two)
    with pytest.raises(SystemExit):
        fewstep(monkeypatch, f"{FAILING} --seed 3")
    assert "was made with seed = 0, not 3; delete it or choose another folder" in capsys.readouterr().err
