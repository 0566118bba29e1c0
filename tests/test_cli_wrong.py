"""What users do wrong with the image commands: one sentence, exit code 2, nothing half-written, nothing lost."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from conftest import fewstep, noise_images, tiny

from fewstep.core.files import save_state
from fewstep.diffusion.data import save_images
from fewstep.diffusion.formats.folder import save


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("tune teacher --data data.npz --out run --segments 0", "at least one network call"),
        ("tune teacher --data data.npz --out run --gap cosine --q 4", "belong to the ect gap"),
        ("tune teacher --data data.npz --out run --grid 8 16", "belongs to the cosine and karras gaps"),
        ("tune teacher --data data.npz --out run --gap cosine --grid 0 16", "at least one step"),
        ("tune teacher --data paths --out run --hop heun", "leave --hop"),
        ("tune teacher --data paths --out run --mirror", "leave --hop"),
        ("tune teacher --data data.npz --out run --segments 2 --margin -1", "at least 0"),
        ("tune teacher --data data.npz --out run --margin .1", "0 for one segment"),
        ("tune teacher --data data.npz --out run --recipe ect_cifar10 --warmup 9", "cosine rate"),
        ("tune student --data paths --out run", "name its diffusion checkpoint with --teacher"),
        ("tune teacher --data data.npz --out run --weight output --power 1", "--power belongs to the gap's weight"),
        ("tune teacher --data data.npz --out run --guidance 2", "--hop euler, heun or addim"),
        ("tune teacher --data paths --out run --guidance 2", "--null-label"),
        ("tune teacher --data data.npz --out run --hop heun --guidance 2", "--null-label"),
        ("tune teacher --data data.npz --out run --hop heun --guidance 2 --null-label 3", "conditional on classes"),
        ("tune student --data data.npz --out run --hop heun", "name its diffusion checkpoint with --teacher"),
        ("dial teacher --teacher teacher --data data.npz --out m --within much", "5% or .05"),
        ("dial teacher teacher --teacher teacher --data data.npz --out m", "named twice"),
        ("settle teacher --out m --n 1", "at least two seeds"),
        ("settle teacher --out m --label 1", "takes no --label"),
        ("tune missing --data data.npz --out run", "missing is not a folder"),
        ("tune data.npz --data data.npz --out run", "data.npz is not a folder"),
        ("tune teacher --data missing.npz --out run", "there is no file missing.npz"),
        ("tune teacher --data small.npz --out run", "1x8x8, the model takes 1x28x28"),
        ("tune teacher --data data.npz --out run --q 0.5", "q > 1"),
        ("tune teacher --data data.npz --out run --images 0", "at least 1"),
        ("tune teacher --data data.npz --out run --images 12 --accumulate 7", "multiple of 7"),
        ("tune teacher --data data.npz --out data.npz/run", "cannot write to data.npz/run"),
        ("tune teacher --data data.npz --out run --resume", "no saved state"),
        ("train data.npz --out run --size 28 --widths 8 8 8 8", "28 pixels do not divide so often"),
        ("train data.npz --out run --widths 5", "multiples of 8"),
        ("sample teacher --out s --label 3", "takes no --label"),
        ("sample teacher --out s --n 0", "at least one image"),
        ("sample teacher --out s --middle 0.8 --sampler consistency", "middle timestep"),
        ("sample teacher --out s --middle 0.8", "second of two consistency steps"),
        ("sample teacher --out s --batch 0", "at least one image at once"),
        ("measure teacher --data data.npz --out m --steps 0", "at least one network call"),
        ("measure teacher --data small28.npz --out m --n 20", "at least 20 real images"),
        ("dial teacher --teacher teacher --data data.npz --out m --within -5%", "5% or .05"),
        ("settle teacher --out m --within -1", "positive share"),
        ("settle student --out m", "student is a student"),
        ("measure teacher --teacher student --data data.npz --out m", "student is a student"),
        ("dial student --teacher student --data data.npz --out m", "student is a student"),
        ("export teacher --out e", "is a diffusion model"),
        ("export student --out full", "no earlier export"),
        ("tune teacher --data data.npz --out run --batch 0", "at least one sample"),
        ("tune teacher --data data.npz --out run --batch 8 --accumulate 0", "one micro-batch"),
        ("tune teacher --data data.npz --out run --warmup -1", "0 or more steps"),
        ("tune teacher --data data.npz --out run --rate -1", "0 or more, got -1"),
        ("tune teacher --data data.npz --out run --clip -1", "positive norm"),
        ("tune teacher --data data.npz --out run --seed -1", "the seed of a training"),
        ("tune teacher --data data.npz --out run --segments 1500", "too few for 1500"),
        ("tune teacher --data teacher --teacher-images 0 --out run", "at least one sample"),
        ("tune small --data data.npz --teacher teacher --hop euler --out run", "name the teacher it came from"),
        ("tune edm --data paths --teacher teacher --segments 3 --out run", "lead nowhere"),
        ("tune teacher --data data.npz --teacher student --hop euler --out run", "student is a student"),
        ("measure teacher --data data.npz --out m --n 10", "at least 20 samples"),
        ("measure teacher --data data.npz --out m --features ./nowhere", "no known extractor"),
        ("export teacher --out e --measured missing.json", "there is no missing.json"),
        ("tune teacher --data data.npz --out run --images 8 --batch 8 --rate 1e30", "lower the learning rate"),
    ],
)
def test_what_users_do_wrong(place, monkeypatch, capsys, arguments: str, sentence: str) -> None:
    save_images(noise_images(4), place / "small.npz")
    save_images(noise_images(4, size=28), place / "small28.npz")
    (place / "full").mkdir()
    (place / "full" / "thesis.txt").write_text("years")
    if "student" in arguments:
        save(tiny(size=28), place / "student", segments=2)
    if "tune small" in arguments:
        save(tiny(), place / "small")
    if "tune edm" in arguments:
        save(tiny(size=28, parametrisation="edm"), place / "edm")
    if "1e30" in arguments:
        arguments = arguments.replace("--images 8", "--images 64")
    with pytest.raises(SystemExit) as stop:
        fewstep(monkeypatch, arguments)
    said = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert said.startswith("fewstep: ") and sentence in said
    left = {path.name for path in place.rglob("*") if path.is_file()}
    assert (
        not {name for name in left if name.startswith(".")}
        and not (place / "run" / "model").exists()
        and not (place / "e").exists()
    )


def test_a_run_is_not_overwritten(place, monkeypatch, capsys) -> None:
    command = "tune teacher --data data.npz --out run --images 8 --batch 8"
    fewstep(monkeypatch, command)
    with pytest.raises(SystemExit):
        fewstep(monkeypatch, command)
    assert "--resume" in capsys.readouterr().err


def test_a_run_goes_on_with_its_own_recipe(place, monkeypatch, capsys) -> None:
    command = "tune teacher --data data.npz --out run --batch 8"
    fewstep(monkeypatch, command + " --images 8")
    with pytest.raises(SystemExit):
        fewstep(monkeypatch, command + " --images 16 --rate 0.5 --resume")
    assert "began with rate" in capsys.readouterr().err


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
