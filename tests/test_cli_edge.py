"""What happens at the edge of the command line, around every command: before it, after it, and while it takes long."""

from __future__ import annotations

import ast
import errno
import logging
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import fewstep, noise_images
from safetensors.torch import load_file, save_file

from fewstep import cli
from fewstep.cli import main
from fewstep.cli.after import after_exporting, after_measuring
from fewstep.cli.text import _told
from fewstep.core import progress
from fewstep.core.source import ASSETS
from fewstep.diffusion.data import save_images
from fewstep.diffusion.formats.folder import load
from fewstep.diffusion.walk import Segments
from fewstep.masked.calibration import Calibration
from fewstep.masked.rules import TopK

README = Path(__file__).parent.parent / "README.md"


PROGRAM = """
import sys
from fewstep import cli
from fewstep.cli import main
from fewstep.cli.after import after_exporting, after_measuring
from fewstep.cli.text import _told
for line in sys.argv[1:]:
    sys.argv = ["fewstep", *line.split()]
    main()
"""


def run(*commands: str) -> subprocess.CompletedProcess[str]:
    """One command after another in a fresh process, where the libraries load anew and may say what they like."""
    quiet = {name: value for name, value in os.environ.items() if not name.endswith("_VERBOSITY")}
    program = [sys.executable, "-c", PROGRAM, *commands]
    return subprocess.run(program, check=False, capture_output=True, text=True, env=quiet)


def test_other_libraries_are_not_heard(place) -> None:
    """diffusers calls a missing safetensors file an error and reads the .bin; transformers reports spare weights."""
    weights = place / "teacher" / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    shutil.copytree(ASSETS / "text", place / "text")
    more = load_file(place / "text" / "model.safetensors") | {"pooler.weight": torch.zeros(3)}
    save_file(more, place / "text" / "model.safetensors", metadata={"format": "pt"})
    done = run("sample teacher --out samples --n 1", "decode text --gen-length 4 --prompt tom")
    assert done.returncode == 0
    assert done.stderr.splitlines()[:-1] == [] and "network calls" in done.stderr


def test_version() -> None:
    assert run("--version").stdout.strip() == metadata.version("fewstep")


def next_of(capsys) -> str:
    """The command that the last line recommends."""
    out = capsys.readouterr().out.splitlines()
    assert out[-1].startswith("next: ") and [line.startswith("next: ") for line in out].count(True) == 1, out
    return out[-1].removeprefix("next: ")


@pytest.mark.usefixtures("stock_here")
def test_every_command_leads_to_the_next_and_that_works(place, monkeypatch, capsys) -> None:
    """From data to stock diffusers by following the last line, only with less to do."""
    less = {
        "tune": "--images 8 --batch 8",
        "sample": "--n 2",
        "measure": "--n 20 --steps 1 --teacher-calls 1",
        "export": "",
    }
    fewstep(monkeypatch, "train data.npz --out run0 --images 8 --batch 8 --widths 8 16")
    seen = []
    while (words := shlex.split(next_of(capsys)))[0] == "fewstep":
        seen.append(words[1])
        fewstep(monkeypatch, " ".join([*words[1:], less[words[1]]]))
    assert seen == ["tune", "sample", "measure", "export"]
    assert words[:2] == ["python", "-c"]
    exec(compile(ast.parse(words[2]), "next", "exec"), {})
    assert (place / "sample.png").exists()


def test_what_is_next_without_data_and_with_classes(place, monkeypatch, capsys) -> None:
    fewstep(monkeypatch, "sample teacher --n 1 --out samples")
    assert next_of(capsys) == "fewstep tune teacher --data teacher --out student"
    fewstep(monkeypatch, "settle teacher --out settle --n 2 --steps 2")
    assert next_of(capsys) == "fewstep tune teacher --data teacher --out student"
    fewstep(monkeypatch, "tune teacher --data teacher --teacher-images 8 --images 8 --batch 8 --out run")
    assert next_of(capsys) == "fewstep sample run --out samples"
    fewstep(monkeypatch, "sample run --n 1 --out samples")
    assert next_of(capsys) == "fewstep export run --out few-step"

    save_images(noise_images(40, size=28, labels=True), place / "with labels.npz")
    train = "fewstep train 'with labels.npz' --conditional --out run0 --images 8 --batch 8 --widths 8 16"
    monkeypatch.setattr(sys, "argv", shlex.split(train))
    main()
    assert next_of(capsys) == "fewstep tune run0 --data 'with labels.npz' --out student"
    fewstep(monkeypatch, "tune run0 --data teacher --teacher-images 8 --images 8 --batch 8 --out student")
    assert next_of(capsys) == "fewstep sample student --out samples --label 0"
    fewstep(monkeypatch, "sample student --out samples --n 1 --label 0")
    assert "next: " not in capsys.readouterr().out  # nothing is known to compare with, and no stock pipeline takes classes


def test_long_work_says_how_far_it_is(place, monkeypatch, caplog) -> None:
    """Here everything counts as long."""
    monkeypatch.setattr(progress, "EVERY", 0.0)
    with caplog.at_level(logging.INFO):
        fewstep(monkeypatch, "sample teacher --n 4 --batch 2 --steps 3 --out samples")
    shares = [message for message in caplog.messages if message.startswith("sampling: ")]
    assert [line.split(",")[0] for line in shares] == [f"sampling: {10 * k} %" for k in range(1, 11)]  # 5 calls, 2 batches


@pytest.mark.filterwarnings("ignore")  # of the libraries alone
def test_what_is_next_for_a_pipeline(folders, tmp_path, capsys) -> None:
    """It learns from latents, so pictures are encoded first; its student is asked by a prompt."""
    model = load(folders("stable_diffusion"))
    after_measuring("sd", model, "my pictures", tmp_path)
    assert next_of(capsys) == "fewstep encode sd 'my pictures' --out latents"
    student = replace(model, walk=Segments(2))
    after_exporting(tmp_path / "out", SimpleNamespace(model=student, steps=2))
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(str(tmp_path / "out" / "README.md"))
    assert said[1] == f"next: fewstep sample {tmp_path / 'out'} --out samples --prompt 'a picture'"


def test_a_calibration_that_kept_nothing_says_so(tmp_path, monkeypatch, capsys) -> None:
    none = Calibration(TopK(), None, 0.05, 0.1, 40, 0, None, 12.0, 12.0)
    assert list(_told(none, tmp_path, "early")) == [
        f"no threshold keeps 95.0% of the answers: {tmp_path} holds --rule alone, 12.0 steps"
    ]
    (said,) = _told(replace(none, changed=3, bound=0.15), tmp_path, "rule")
    asked = []

    def found(*given: object, write: object, **_: object) -> Calibration:
        asked.append((*given, write))
        return none

    monkeypatch.setattr("fewstep.masked.fitting.calibrate_rule_prompts", found)
    fewstep(monkeypatch, "calibrate bundled --file p.jsonl --out rule.json --of rule --write sglang rule.yaml")
    assert asked == [("bundled", Path("p.jsonl"), Path("rule.json"), ("sglang", Path("rule.yaml")))]
    told = capsys.readouterr().out
    assert "sglang: rule.yaml\n" in told and "rule.json holds one token at a step" in told
    assert "holds one token at a step, 12.0 steps; 3 of 40 answers changed (at most 15.0%, with confidence 90%)" in said


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "out/model"),
            2,
            "fewstep: No space left on device (out/model); make",
        ),
        (OSError(errno.EIO, "Input/output error"), 2, "fewstep: Input/output error; make room"),
        (OSError("the file could not be fetched"), 2, "fewstep: the file could not be fetched\n"),
        (ModuleNotFoundError("this needs peft", name="peft"), 2, "fewstep: this needs peft, which is not installed"),
        (BrokenPipeError(), 1, ""),
    ],
    ids=str,
)
def test_what_goes_wrong_outside_ends_in_a_sentence(tmp_path, monkeypatch, capsys, error, code: int, said: str) -> None:
    def wrong() -> None:
        raise error

    monkeypatch.setitem(cli.COMMANDS, "wrong", wrong)
    with (tmp_path / "out").open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        with pytest.raises(SystemExit) as stop:
            fewstep(monkeypatch, "wrong")
    found = capsys.readouterr().err
    assert stop.value.code == code and found.startswith(said) and found.count("\n") == (said != "")


def test_a_module_that_no_extra_brings_is_a_mistake_of_ours(monkeypatch) -> None:
    def wrong() -> None:
        raise ModuleNotFoundError("No module named 'nobody'", name="nobody")

    monkeypatch.setitem(cli.COMMANDS, "wrong", wrong)
    with pytest.raises(ModuleNotFoundError):
        fewstep(monkeypatch, "wrong")


def test_flags_reach_what_takes_long_or_leaves_the_machine(monkeypatch, capsys) -> None:
    asked = []
    monkeypatch.setattr("fewstep.core.hub.push", lambda folder, name, *, private: f"https://hub/{folder}/{name}/{private}")
    monkeypatch.setattr("fewstep.demo_text.demo_text", lambda out, **options: asked.append((out, options)))
    fewstep(monkeypatch, "push model owner/name --private")
    assert capsys.readouterr().out == "https://hub/model/owner/name/True\n"
    fewstep(monkeypatch, "demo --text --out here")
    fewstep(monkeypatch, "demo --text --out here --images 64 --n 20 --seed 3")
    assert asked == [
        (Path("here"), {"images": 16_000, "n": 300, "seed": 0}), (Path("here"), {"images": 64, "n": 20, "seed": 3}),
    ]  # fmt: skip
