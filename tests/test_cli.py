"""The commands on tiny models, and what users do wrong: one sentence, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise_images, tiny
from PIL import Image

from fewstep.checkpoints.folder import load, save
from fewstep.cli import main
from fewstep.data import save_images


def fewstep(monkeypatch, command: str) -> None:
    monkeypatch.setattr(sys, "argv", ["fewstep", *command.split()])
    main()


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with a tiny teacher and data that fits it."""
    save(tiny(size=28), tmp_path / "teacher")
    save_images(noise_images(40, size=28), tmp_path / "data.npz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    program = """
import sys
from fewstep.cli import main
try:
    main()
except SystemExit:
    print([name for name in ("torch", "numpy", "diffusers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")

    def seconds(command: list[str]) -> float:
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        return time.perf_counter() - start

    # a time means something only as a ratio: on a quiet machine python starts in .02 s and the help takes .3 s
    python = min(seconds([sys.executable, "-c", "import argparse, json, logging, typing"]) for _ in range(3))
    assert min(seconds([sys.executable, "-m", "fewstep.cli", "--help"]) for _ in range(3)) < 12 * python


def test_from_training_to_export(place, monkeypatch, capsys) -> None:
    tune = "tune run0/model --data data.npz --out run --batch 8 --q 4 --images "
    fewstep(monkeypatch, "train data.npz --out run0 --images 16 --batch 8 --widths 8 16")
    fewstep(monkeypatch, tune + "16")
    fewstep(monkeypatch, tune + "32 --resume")
    fewstep(monkeypatch, "sample run/model --out samples --n 5 --seed 7")
    measure = "measure run/model --teacher run0/model --data data.npz --out scores --n 40 --steps 1 2 --teacher-calls 1 21"
    fewstep(monkeypatch, measure)
    fewstep(monkeypatch, "export run/model --out exported --measured scores/measure.json")

    receipt = json.loads((place / "run" / "receipt.json").read_text())
    assert receipt["images"] == 32 and receipt["resumed"] and receipt["teacher"] == "run0/model"
    assert receipt["recipe"]["gap"] == {"name": "ECTGap", "q": 4.0, "stages": 1, "k": 8.0, "b": 1.0}
    assert receipt["network_rows"] == 2 * 16  # two calls a sample, of the resumed part
    assert receipt["versions"]["torch"] == torch.__version__
    assert sorted(p.name for p in (place / "samples").glob("0*.png")) == [f"{k:06d}.png" for k in range(7, 12)]
    assert json.loads((place / "samples" / "receipt.json").read_text())["nfe_per_sample"] == 2
    scores = json.loads((place / "scores" / "measure.json").read_text())
    assert [(p["name"], p["nfe"]) for p in scores["points"]] == [
        ("teacher", 1),
        ("teacher", 21),
        ("student", 1),
        ("student", 2),
    ]
    assert {"quality.png", "samples.png"} <= set(os.listdir(place / "scores"))
    card = (place / "exported" / "README.md").read_text()
    assert "run0/model" in card and "Fréchet distance" in card
    assert load(place / "exported").prediction == "v_prediction"
    assert "is verified" in capsys.readouterr().out


def test_sample_k_is_the_same_in_any_batch(place, monkeypatch) -> None:
    for out, more in (("a", "--n 6"), ("b", "--n 6 --batch 2"), ("c", "--n 1 --seed 4")):
        fewstep(monkeypatch, f"sample teacher --out {out} {more}")
    pictures = [np.asarray(Image.open(place / out / "000004.png")).astype(int) for out in "abc"]
    assert all(abs(picture - pictures[0]).max() <= 1 for picture in pictures)  # float rounding may cross one grey level


def test_tuning_without_data(place, monkeypatch) -> None:
    """The teacher makes its own training images, once."""
    fewstep(monkeypatch, "tune teacher --data teacher --teacher-images 8 --out run --images 8 --batch 8")
    with np.load(place / "run" / "teacher_images.npz") as made:
        assert made["images"].shape == (8, 1, 28, 28) and made["images"].std() > 0
    assert (place / "run" / "model" / "model_index.json").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
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
        ("sample teacher --out s --middle 0.8", "middle timestep"),
        ("measure teacher --data data.npz --out m --n 10", "at least 20 samples"),
        ("measure teacher --data data.npz --out m --features ./nowhere", "no known extractor"),
        ("export teacher --out e --measured missing.json", "there is no missing.json"),
        ("tune teacher --data data.npz --out run --images 8 --batch 8 --rate 1e30", "lower the learning rate"),
    ],
)
def test_what_users_do_wrong(place, monkeypatch, capsys, arguments: str, sentence: str) -> None:
    save_images(noise_images(4), place / "small.npz")
    if "1e30" in arguments:
        arguments = arguments.replace("--images 8", "--images 64")
    with pytest.raises(SystemExit) as stop:
        fewstep(monkeypatch, arguments)
    said = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert said.startswith("fewstep: ") and sentence in said
    left = {path.name for path in place.rglob("*") if path.is_file()} - {"data.npz", "small.npz"}
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


def test_conditional_models_train_tune_sample_and_score(place, monkeypatch, capsys) -> None:
    save_images(noise_images(40, size=28, labels=True), place / "labelled.npz")
    fewstep(monkeypatch, "train labelled.npz --out run0 --conditional --images 8 --batch 8 --widths 8 16")
    fewstep(monkeypatch, "tune run0/model --data labelled.npz --out run --images 8 --batch 8")
    fewstep(monkeypatch, "sample run/model --out samples --n 2 --label 1")
    fewstep(monkeypatch, "measure run/model --data labelled.npz --out scores --n 40 --steps 1")
    for command in ("sample run/model --out samples", "measure run/model --data data.npz --out scores --n 40 --steps 1"):
        with pytest.raises(SystemExit):
            fewstep(monkeypatch, command)
    said = capsys.readouterr().err
    assert "needs a --label" in said and "no labels to draw" in said


def test_unknown_flags_exit_with_2() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fewstep.cli", "sample", "x", "--bogus", "1"], check=False, capture_output=True
    )
    assert done.returncode == 2
