"""What users do wrong with the image commands: one sentence, exit code 2, nothing half-written, nothing lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from conftest import fewstep, noise_images, tiny

from fewstep.core.files import save_state
from fewstep.diffusion.data import save_images
from fewstep.diffusion.formats.folder import save
from fewstep.diffusion.model import Model
from fewstep.diffusion.walk import Heun, Segments


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("tune teacher --data data.npz --out run --gap cosine --grid 0 16", "at least one step"),
        ("tune teacher --data paths --out run --hop heun", "leave --hop"),
        ("tune teacher --data paths --out run --mirror", "leave --hop"),
        ("tune teacher --data data.npz --out run --recipe ect_cifar10 --warmup 9", "cosine rate"),
        ("tune student --data paths --out run", "name its diffusion checkpoint with --teacher"),
        ("tune teacher --data data.npz --out run --weight output --power 1", "--power belongs to the gap's weight"),
        ("tune teacher --data paths --out run --guidance 2", "guidance needs a conditional checkpoint"),
        ("tune teacher --data data.npz --out run --hop heun --guidance 2", "guidance needs a conditional checkpoint"),
        (
            "tune teacher --data teacher --prompts teacher --out run",
            "is a folder; give a text file with one prompt per line",
        ),
        ("tune teacher --data teacher --prompts data.npz --out run", "is no text"),
        ("tune teacher --data teacher --prompts missing.txt --out run", "missing.txt is no file"),
        (
            "tune teacher --data data.npz --out run --hop heun --guidance 2 --null-label 3",
            "guidance needs a conditional checkpoint",
        ),
        ("tune student --data data.npz --out run --hop heun", "name its diffusion checkpoint with --teacher"),
        ("tune teacher --data bundled-text --out run", "the bundled clothes are 3x32x32, the model takes 1x28x28"),
        ("train data.npz --conditional --out run", "no labels"),
        ("check teacher --call height=8", "--call is for pipelines"),
        ("play teacher --call height=8", "--call is for pipelines"),
        ("measure teacher --data data.npz --out m --match clothes", "give --prompts as well"),
        ("export student --out e --measured data.npz", "is not what fewstep measure or dial wrote"),
        ("dial teacher --teacher teacher --data data.npz --out m --within much", "5% or .05"),
        ("dial teacher --teacher teacher --data data.npz --out m --within 5", "at most 100%, not '5'"),
        ("dial teacher teacher --teacher teacher --data data.npz --out m", "given twice"),
        ("settle teacher --out m --label 1", "takes no --label"),
        ("tune missing --data data.npz --out run", "missing is not a folder"),
        ("tune data.npz --data data.npz --out run", "data.npz is not a folder"),
        ("tune teacher --data missing.npz --out run", "there is no file missing.npz"),
        ("tune teacher --data small.npz --out run", "1x8x8, the model takes 1x28x28"),
        ("tune teacher --data data.npz --out run --q 0.5", "q > 1"),
        ("sample teacher --out s --label 3", "takes no --label"),
        ("sample teacher --out s --middle 0.8 --sampler consistency", "middle timestep"),
        ("sample teacher --out s --middle 0.8", "second of two consistency steps"),
        ("measure teacher --data small28.npz --out m --n 20", "at least 20 real images"),
        ("settle student --out m", "student is a student"),
        ("measure teacher --teacher student --data data.npz --out m", "student is a student"),
        ("dial student --teacher student --data data.npz --out m", "student is a student"),
        ("export teacher --out e", "is a diffusion model"),
        ("export student --out full", "no earlier export"),
        ("tune teacher --data data.npz --out run --segments 1500", "too few for 1500"),
        ("tune small --data data.npz --teacher teacher --hop euler --out run", "name the teacher it came from"),
        ("tune edm --data paths --teacher teacher --segments 3 --out run", "paths need a teacher with the noise levels"),
        ("tune teacher --data data.npz --teacher student --hop euler --out run", "student is a student"),
        ("measure teacher --data missing.npz --out m --features ./nowhere", "neither an extractor"),
        ("measure teacher --data missing.npz --out m --features nosuchname", "neither an extractor"),
        ("measure rgb --data missing.npz --out m --features fashion", "use --features random"),
        ("settle rgb --out m --features fashion", "use --features random"),
        ("tune teacher --data data.npz --out run --images 8 --batch 8 --rate 1e30", "lower the learning rate"),
    ],
)
def test_what_users_do_wrong(place, monkeypatch, capsys, arguments: str, sentence: str) -> None:
    save_images(noise_images(4), place / "small.npz")
    save_images(noise_images(4, size=28), place / "small28.npz")
    (place / "full").mkdir()
    (place / "full" / "thesis.txt").write_text("years")
    if "student" in arguments:
        save(Model(tiny(size=28), Segments(2)), place / "student")
    if "tune small" in arguments:
        save(Model(tiny(), Heun()), place / "small")
    if " rgb " in arguments:
        save(Model(tiny(channels=3), Heun()), place / "rgb")
    if "tune edm" in arguments:
        save(Model(tiny(size=28, parametrisation="edm"), Heun()), place / "edm")
    if "1e30" in arguments:
        arguments = arguments.replace("--images 8", "--images 64")
    with pytest.raises(SystemExit) as stop:
        fewstep(monkeypatch, arguments)
    said = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert said.startswith("fewstep: ") and sentence in said
    left = {path.name for path in place.rglob("*") if path.is_file()}
    assert not [path for path in place.rglob("*") if path.is_dir() and not any(path.iterdir())]
    assert (
        not {name for name in left if name.startswith(".")}
        and not (place / "run" / "model").exists()
        and not (place / "e").exists()
    )


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        (
            "train missing.npz --out run",
            {
                "--images -5": "starts at 1, got -5",
                "--batch 0": "",
                "--rate 0": "above 0, got 0",
                "--seed -1": "starts at 0",
                "--widths 12": "multiples of 8",
                "--size 30 --widths 8 8 8": "must be a multiple of",
                "--channels 0": "starts at 1",
                "--size 0": "starts at 1",
                "--workers -1": "starts at 0",
                "--save-every nan": "--save-every starts at 0, got nan",
            },
        ),
        (
            "tune missing --data missing.npz --out run",
            {
                "--images -5": "starts at 1, got -5",
                "--batch 0": "",
                "--segments 0": "--segments starts at 1, got 0",
                "--guidance 2": "--hop euler",
                "--null-label 3": "belongs to --guidance",
                "--dropout 1": "below 1",
                "--margin .1": "0 with one segment",
                "--batch 12 --accumulate 7": "multiple of 7",
                "--gap full --q 4": "ect gap",
                "--average 1": "decay",
                "--huber -1": "pseudo-Huber",
                "--midtrain -1": "starts at 0",
                "--paths 0": "starts at 1",
                "--rate nan": "learning rate",
                "--power inf": "power",
                "--grid 8 16": "cosine and karras",
                "--segments 2 --margin -1": "--margin starts at 0, got -1",
                "--save-every -1": "--save-every starts at 0, got -1",
                "--batch 8 --accumulate 0": "--accumulate starts at 1, got 0",
                "--warmup -1": "0 or more steps",
                "--rate -1": "0 or more, got -1",
                "--clip -1": "--clip must be above 0, got -1",
                "--seed -1": "--seed starts at 0, got -1",
                "--teacher-images 0": "--teacher-images starts at 1, got 0",
                "--teacher-images 9": "--teacher-images is for --data teacher",
                "--teacher-steps 9": "--teacher-steps is for --data teacher",
                "--prompts prompts.txt": "--prompts is for --data teacher",
                "--paths 9": "--paths is for --midtrain and --data paths",
                "--teacher missing": "leave --teacher out",
                "--dropped 1": "--dropped must be below 1",
                "--look-score 50 --look-every 0": "--look-every 0",
            },
        ),
        (
            "sample missing --out s",
            {
                "--n -5": "starts at 1, got -5",
                "--seed 9223372036854775808": "must be below 2^62",
                "--steps 0": "",
                "--batch 0": "",
                "--seed -1": "starts at 0",
                "--label -1": "",
                "--sampler heun --middle .8": "consistency steps",
                "--steps 1 --middle .8": "consistency steps",
            },
        ),
        (
            "measure missing --data missing.npz --out m",
            {
                "--n 19": "starts at 20, got 19",
                "--steps 1 0": "starts at 1, got 0",
                "--teacher-calls 0": "",
                "--batch 0": "",
                "--seed -1": "starts at 0",
            },
        ),
        (
            "dial missing --teacher missing --data missing.npz --out m",
            {
                "--n 19": "starts at 20, got 19",
                "--within -5%": "5% or .05",
                "--steps -3": "starts at 1, got -3",
                "--teacher-calls 2 0": "",
                "--batch -1": "starts at 1, got -1",
            },
        ),
        (
            "settle missing --out m",
            {
                "--n 1": "starts at 2, got 1",
                "--steps 1": "starts at 2",
                "--within 0": "above 0",
                "--batch 0": "",
                "--label -1": "starts at 0",
            },
        ),
        (
            "export missing --out e",
            {
                "--steps 0": "starts at 1, got 0",
                "--steps 1 --middle .8": "second of two",
                "--out .": "no earlier export",
                "--out data.npz/e": "cannot write",
                "--measured missing.json": "there is no missing.json",
            },
        ),
        (
            "demo --out demo",
            {
                "--images -5": "starts at 1, got -5",
                "--n 10": "starts at 20",
                "--seed -1": "",
                "--out data.npz": "cannot write",
            },
        ),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_flags_are_checked_before_anything_is_read(place, monkeypatch, capsys, command: str, wrong: dict[str, str]) -> None:
    """What they are about is not even there, and the first word is about the flag."""
    for flags, sentence in wrong.items():
        with pytest.raises(SystemExit) as stop:
            fewstep(monkeypatch, f"{command} {flags}")
        said = capsys.readouterr().err
        assert stop.value.code == 2 and said.startswith("fewstep: ") and sentence in said, (flags, said)
        assert "missing" not in said.replace("missing.json", "") and "Traceback" not in said, (flags, said)


def test_a_folder_that_takes_no_files_is_told_before_anything_is_read(place, monkeypatch, capsys) -> None:
    for command in (
        "train missing.npz",
        "tune missing --data missing.npz",
        "sample missing",
        "measure missing --data missing.npz",
        "dial missing --teacher missing --data missing.npz",
        "settle missing",
    ):
        with pytest.raises(SystemExit):
            fewstep(monkeypatch, f"{command} --out data.npz/out")
        assert "cannot write to data.npz/out" in capsys.readouterr().err


def test_a_run_is_not_overwritten(place, monkeypatch, capsys) -> None:
    fewstep(monkeypatch, "tune teacher --data data.npz --out run --images 8 --batch 8")
    for command in ("tune missing --data missing.npz", "train missing.npz"):
        with pytest.raises(SystemExit):
            fewstep(monkeypatch, command + " --out run")
        assert "--resume" in capsys.readouterr().err


def test_a_run_goes_on_with_its_own_recipe(place, monkeypatch, capsys) -> None:
    """But for what helps a run that diverged, when told so."""
    command = "tune teacher --data data.npz --out run --batch 8"
    fewstep(monkeypatch, command + " --images 8 --rate 1e-3 --clip 5")
    for changed, sentence in (("--power .5 --rate 1e-3 --clip 5", "began with weight"), ("--rate .5", "max_grad_norm = 5")):
        with pytest.raises(SystemExit):
            fewstep(monkeypatch, f"{command} --images 16 --resume {changed}")
        assert sentence in capsys.readouterr().err
    with pytest.raises(SystemExit):
        fewstep(monkeypatch, command + " --images 16 --resume --rate 1e30 --clip 5")
    assert "continue with --resume and a lower --rate or a --clip" in capsys.readouterr().err
    fewstep(monkeypatch, command + " --images 16 --resume --warmup 2 --clip 1")
    (change,) = json.loads((place / "run" / "receipt.json").read_text())["changes"]
    assert change == {"step": 1, "rate": {"name": "Cosine", "rate": 1e-3, "warmup": 0}, "max_grad_norm": 5.0}


def test_a_run_goes_on_with_its_own_network_and_data(place, monkeypatch, capsys) -> None:
    command = "train data.npz --out run --batch 8 --images "
    fewstep(monkeypatch, command + "8 --widths 8 16")
    for flags in ("--widths 8 8", "--widths 8 16 --parametrisation edm"):
        with pytest.raises(SystemExit):
            fewstep(monkeypatch, f"{command} 16 --resume {flags}")
        assert "this run began with" in capsys.readouterr().err
    shutil.copy(place / "data.npz", place / "other.npz")
    with pytest.raises(SystemExit):
        fewstep(monkeypatch, "train other.npz --out run --batch 8 --images 16 --resume --widths 8 16")
    assert "began with source" in capsys.readouterr().err
    save_images(noise_images(39, size=28), place / "data.npz")  # in another order
    with pytest.raises(SystemExit):
        fewstep(monkeypatch, command + "16 --resume --widths 8 16")
    assert "began with examples = 40" in capsys.readouterr().err


def test_a_state_of_another_time_is_refused(place, monkeypatch, capsys) -> None:
    (place / "run").mkdir()
    save_state(place / "run" / "state.pt", {"recipe": "{}", "step": 1})
    with pytest.raises(SystemExit):
        fewstep(monkeypatch, "tune teacher --data data.npz --out run --images 8 --batch 8 --resume")
    assert "older fewstep" in capsys.readouterr().err


def test_unknown_flags_exit_with_2() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fewstep.cli", "sample", "x", "--bogus", "1"], check=False, capture_output=True
    )
    assert done.returncode == 2
