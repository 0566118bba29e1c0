"""The image commands on tiny models, from training to export."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata

import numpy as np
import pytest
import torch
from conftest import begun, fewstep, noise_images, tiny
from diffusers import DDPMScheduler
from pictures import png, put
from PIL import Image

from fewstep.core.nfe import count_nfe
from fewstep.core.seeds import generators
from fewstep.diffusion import runs
from fewstep.diffusion.data import Images, Paths, Rows, load_images, save_images
from fewstep.diffusion.denoiser import vp
from fewstep.diffusion.formats.folder import load, save
from fewstep.diffusion.model import Model
from fewstep.diffusion.noise import LogNormal
from fewstep.diffusion.prediction import v_prediction
from fewstep.diffusion.teaching import load_made, teacher_paths
from fewstep.diffusion.walk import Consistency, Heun, Segments, prior


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
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # of a processor, and as a ratio, for others work on this machine: python starts in .02 s and the help takes .3 s
    python = min(seconds([sys.executable, "-c", "import argparse, json, logging, typing"]) for _ in range(3))
    assert min(seconds([sys.executable, "-m", name, "--help"]) for name in ("fewstep", "fewstep.cli")) < 12 * python


@pytest.mark.usefixtures("stock_here")
def test_from_training_to_export(place, monkeypatch, capsys) -> None:
    tune = "tune run0/model --data data.npz --out run --batch 8 --q 4 --images "
    fewstep(monkeypatch, "train data.npz --out run0 --images 16 --batch 8 --widths 8 16")
    fewstep(monkeypatch, tune + "16")
    fewstep(monkeypatch, tune + "32 --resume")
    fewstep(monkeypatch, "sample run/model --out samples --n 5 --seed 7")
    measure = "measure run/model --teacher run0/model --data data.npz --out scores --n 20 --steps 1 2 --teacher-calls 1 21"
    fewstep(monkeypatch, measure)
    fewstep(monkeypatch, "export run/model --out exported --measured scores/measure.json")
    fewstep(monkeypatch, "report scores run -o both.html")

    receipt = json.loads((place / "run" / "receipt.json").read_text())
    assert receipt["images"] == 32 and receipt["resumed"] and receipt["teacher"] == "run0/model"
    assert receipt["recipe"]["gap"] == {"name": "ECTGap", "q": 4.0, "stages": 1, "k": 8.0, "b": 1.0}
    assert (receipt["recipe"]["hop"], receipt["recipe"]["segments"]) == ("from_data", 1)
    rows = Rows(noise_images(40), LogNormal(P_mean=0.4, P_std=1.7), seed=0)
    inside = sum(float(rows[k][2]) > math.log(5 / 3) for k in range(32))  # lower down this gap ends at r = 0
    assert receipt["network_rows"] == {"student": 32 + inside}  # of both parts; at an edge a sample takes one call
    assert receipt["versions"]["torch"] == metadata.version("torch")
    assert sorted(p.name for p in (place / "samples").glob("0*.png")) == [f"{k:06d}.png" for k in range(7, 12)]
    sampled = json.loads((place / "samples" / "receipt.json").read_text())
    assert (sampled["nfe_per_sample"], sampled["n"], sampled["label"]) == (2, 5, None)
    scores = json.loads((place / "scores" / "measure.json").read_text())
    assert [(p["name"], p["nfe"]) for p in scores["points"]] == [
        ("teacher", 1),
        ("teacher", 21),
        ("student", 1),
        ("student", 2),
    ]
    assert {"quality.png", "samples.png"} <= set(os.listdir(place / "scores"))
    page = (place / "both.html").read_text()
    assert page.count('<li><img src="data:image/png') == 4 * 12 and "The run saw 32 images in 4 steps" in page
    card = (place / "exported" / "README.md").read_text()
    assert "run0/model" in card and "Fréchet distance" in card
    assert load(place / "exported").denoiser.prediction is v_prediction
    assert "is verified" in capsys.readouterr().out


def test_sample_k_is_the_same_in_any_batch(place, monkeypatch) -> None:
    for out, more in (("a", "--n 6"), ("b", "--n 6 --batch 2"), ("c", "--n 1 --seed 4")):
        fewstep(monkeypatch, f"sample teacher --out {out} --steps 4 {more}")
    pictures = [np.asarray(Image.open(place / out / "000004.png")).astype(int) for out in "abc"]
    assert all(abs(picture - pictures[0]).max() <= 1 for picture in pictures)  # float rounding may cross one grey level


@pytest.mark.usefixtures("stock_here")
def test_paths_learned_by_heart(place, monkeypatch, capsys) -> None:
    paths = "tune teacher --data paths --paths 6 --batch 8 --images "
    fewstep(monkeypatch, paths + "16 --out two --segments 2")
    fewstep(monkeypatch, paths + "24 --out two --segments 2 --resume")
    fewstep(monkeypatch, paths + "8 --out one")
    recipes = [json.loads((place / name / "receipt.json").read_text())["recipe"] for name in ("one", "two")]
    assert [recipe["gap"] for recipe in recipes] == [{"name": "FullGap"}] * 2
    assert [len(recipe["noise"]["levels"]) for recipe in recipes] == [2, 2]
    assert [recipe["margin"] for recipe in recipes] == [0.0, 0.1]  # only where no call sees what an earlier one drew
    assert [load(place / name / "model").walk for name in ("one", "two")] == [Consistency(), Segments(2)]
    learned = load_made(
        Paths, place / "two" / "paths.safetensors", teacher="teacher", count=6, segments=2, seed=0, whole=False,
        precision=None,
    )  # fmt: skip
    asked = prior(load(place / "teacher").denoiser, generators(range(6)))
    assert all((learned.state(k, 0) - x).abs().max() > 1 for k in range(6) for x in asked)  # no score on what was learned
    fewstep(monkeypatch, "export two --out exported")
    assert "is verified" in capsys.readouterr().out


def test_tuning_without_data(place, monkeypatch, capsys) -> None:
    """The teacher makes its own training images, once."""
    fewstep(monkeypatch, "tune teacher --data teacher --teacher-images 8 --out run --images 8 --batch 8")
    file = place / "run" / "images.safetensors"
    made = load_made(Images, file, teacher="teacher", count=8, seed=0, precision=None).pixels
    assert made.shape == (8, 1, 28, 28) and made.float().std() > 0
    assert (place / "run" / "model" / "model_index.json").exists()
    with pytest.raises(SystemExit):
        fewstep(monkeypatch, "tune teacher --data teacher --teacher-images 9 --out run --images 16 --batch 8 --resume")
    assert "was made with" in capsys.readouterr().err


def test_what_another_teacher_made_is_not_learned(place, monkeypatch, capsys) -> None:
    """Also where the run that had it made came to nothing."""
    shutil.copytree(place / "teacher", place / "other")
    tune = "--data teacher --teacher-images 8 --out run --images 16 --batch 8 --rate 1e30"
    for checkpoint, sentence in {"teacher": "lower the learning rate", "other": "made with {'teacher': 'teacher'"}.items():
        with pytest.raises(SystemExit):
            fewstep(monkeypatch, f"tune {checkpoint} {tune}")
        assert sentence in capsys.readouterr().err
    assert not (place / "run" / "model").exists()


def test_pictures_of_several_segments_have_a_margin(place, monkeypatch) -> None:
    """Not where a call sees what an earlier one drew: one segment, and a diffusion model."""
    tune = "tune teacher --data data.npz --images 8 --batch 8 --out "
    for out, flags, margin in (("a", "", 0.0), ("b", "--segments 2", 0.1), ("c", "--segments 2 --gap full", 0.0)):
        fewstep(monkeypatch, f"{tune}{out} {flags}")
        assert json.loads((place / out / "receipt.json").read_text())["recipe"]["margin"] == margin


@pytest.mark.usefixtures("stock_here")
def test_multistep_distillation_from_paths_to_the_dial(place, monkeypatch, capsys) -> None:
    """Path regression, then distillation in two segments, interrupted between the stages; no data anywhere."""
    tune = "tune teacher --data teacher --teacher-images 8 --out run --batch 8 --segments 2 --hop heun --margin .2"
    midtrain = " --gap cosine --grid 8 16 --midtrain 32 --paths 6 --images "
    fewstep(monkeypatch, tune + midtrain + "8")
    receipt = json.loads((place / "run" / "receipt.json").read_text())
    assert receipt["recipe"]["hop"] == {"name": "Heun"} and receipt["recipe"]["segments"] == 2
    assert receipt["recipe"]["margin"] == 0.2
    assert receipt["recipe"]["gap"] == {"name": "CosineGap", "first": 8, "last": 16, "anneal": 1.0}
    first = json.loads((place / "run" / "midtrain" / "receipt.json").read_text())
    assert first["recipe"]["gap"] == {"name": "FullGap"} and first["images"] == 32
    for part in ("model", "state.pt", "receipt.json", "midtrain/receipt.json"):  # as if killed after the first stage
        path = place / "run" / part
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(SystemExit):
        fewstep(monkeypatch, tune + midtrain.replace("--midtrain 32", "--midtrain 64") + "8 --resume")
    assert "began with 32 images" in capsys.readouterr().err
    fewstep(monkeypatch, tune + midtrain + "8 --resume")
    fewstep(monkeypatch, tune + midtrain + "16 --resume")
    fewstep(
        monkeypatch, "tune teacher --data data.npz --out one --images 8 --batch 8 --hop addim --weight output --huber .1"
    )

    onwards = " --teacher teacher --data data.npz --out joined --images 16 --batch 8 --hop heun "
    onwards += "--rate .002 --warmup 1 --power .5 --average .9 .99"
    with pytest.raises(SystemExit):
        fewstep(monkeypatch, "tune run" + onwards)
    assert "was tuned with a margin" in capsys.readouterr().err
    fewstep(monkeypatch, "tune one" + onwards)
    joined = json.loads((place / "joined" / "receipt.json").read_text())
    assert (joined["checkpoint"], joined["teacher"], joined["recipe"]["margin"]) == ("one", "teacher", 0.0)
    assert joined["recipe"]["rate"] == {"name": "Cosine", "rate": 0.002, "warmup": 1}  # the recipe's, to another peak
    assert joined["recipe"]["weight"] == {"name": "InverseGap", "power": 0.5}
    kept = [load(place / "joined" / name).denoiser for name in ("model", "model-0.99")]
    assert not torch.equal(*(model.network.conv_in.weight for model in kept))

    fewstep(monkeypatch, "sample run --out samples --n 2")
    assert json.loads((place / "samples" / "receipt.json").read_text())["nfe_per_sample"] == 2
    dial = (
        "dial run one/model --teacher teacher --data data.npz --n 20 --steps 1 --teacher-calls 1 3 --within 5% --out dial"
    )
    fewstep(monkeypatch, dial)
    scores = json.loads((place / "dial" / "measure.json").read_text())
    assert [(p["name"], p["sampler"], p["nfe"]) for p in scores["points"]] == [
        ("teacher", "DDIM", 1), ("teacher", "DDIM", 3), ("run", "Segments", 2), ("one", "Consistency", 1),
    ]  # fmt: skip
    assert scores["within"] == 0.05 and "within 5%" in scores["recommendation"]
    fewstep(monkeypatch, "export run --out exported")
    out = capsys.readouterr().out
    assert scores["recommendation"] in out and "is verified" in out
    assert json.loads((place / "exported" / "model_index.json").read_text())["_class_name"] == "DDIMPipeline"
    fewstep(monkeypatch, "sample exported --out again --n 2")  # an exported folder knows its segments, too
    for name in ("000000.png", "000001.png"):
        assert (place / "again" / name).read_bytes() == (place / "samples" / name).read_bytes()


@pytest.mark.usefixtures("stock_here")
def test_one_student_for_any_number_of_calls(place, monkeypatch, capsys) -> None:
    tune = "tune teacher --data data.npz --out run --batch 8 --segments any --images "
    fewstep(monkeypatch, tune + "16")
    fewstep(monkeypatch, tune + "24 --resume")
    receipt = json.loads((place / "run" / "receipt.json").read_text())
    assert (receipt["recipe_name"], receipt["recipe"]["segments"]) == ("any_step", [1, 1, 1, 2, 2, 3, 4, 6, 8, 16, 32])
    assert receipt["recipe"]["hop"] == {"name": "Heun"} and receipt["images"] == 24
    fewstep(monkeypatch, "measure run --data data.npz --n 20 --steps 1 3 --out scores")
    scores = json.loads((place / "scores" / "measure.json").read_text())
    assert [(p["sampler"], p["nfe"]) for p in scores["points"]] == [("Segments", 1), ("Segments", 3)]
    fewstep(monkeypatch, "export run --out dial --steps 1 4")
    assert capsys.readouterr().out.count("is verified") == 2
    for steps in (1, 4):
        index = json.loads((place / "dial" / f"{steps}-step" / "model_index.json").read_text())
        assert index["_class_name"] == "DDIMPipeline"
        fewstep(monkeypatch, f"sample run --steps {steps} --n 1 --out ours-{steps}")
        fewstep(monkeypatch, f"sample dial/{steps}-step --n 1 --out theirs-{steps}")
        ours, theirs = (np.asarray(Image.open(place / f"{who}-{steps}" / "000000.png"), int) for who in ("ours", "theirs"))
        assert np.abs(ours - theirs).max() <= 1
    fewstep(monkeypatch, "tune run --teacher teacher --data data.npz --out more --batch 8 --images 8 --segments any")
    fewstep(monkeypatch, "tune run --hop data --data data.npz --out alone --batch 8 --images 8 --segments any")
    receipts = [json.loads((place / name / "receipt.json").read_text()) for name in ("more", "alone")]
    assert [receipt["teacher"] for receipt in receipts] == ["teacher", None]
    fewstep(monkeypatch, "sample alone --n 1 --out s")
    assert capsys.readouterr().out.endswith("next: fewstep measure alone --data data.npz --out scores\n")
    for wrong, sentence in {
        "tune run --data data.npz --out other --images 8": "tune it with --segments any",
        "sample dial/4-step --steps 2 --out s": "takes no other number",
        "measure run --data missing.npz --steps 1 1500 --out late": "too few for 1500 steps",
        "tune teacher --data paths --segments any --out other": "cut for one number of segments",
        "tune teacher --data data.npz --midtrain 8 --segments any --out other": "cut for one number of segments",
        "tune teacher --data data.npz --gap full --segments any --out other": "which has no segments",
        "tune teacher --data data.npz --recipe any_step --out other": "add --segments any",
        "sample run --sampler heun --out s": "takes --sampler ddim or consistency",
        "export run --steps 1 2000 --out several": "too few for 2000 steps",
        "sample run --out run": "there is a run in run",
    }.items():
        with pytest.raises(SystemExit):
            fewstep(monkeypatch, wrong)
        assert sentence in capsys.readouterr().err
    assert not (place / "several").exists()  # all of them or none


# Holds the lock of a folder as another process would.
HOLDER = """
import fcntl, sys, time
lock = open(sys.argv[1] + "/.lock", "ab+")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def test_two_commands_do_not_share_a_folder(place, monkeypatch, capsys) -> None:
    (place / "run").mkdir()
    with subprocess.Popen([sys.executable, "-c", HOLDER, place / "run"], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        for command in (
            "train data.npz --images 8 --batch 8 --widths 8 16",
            "tune teacher --data data.npz --images 8 --batch 8",
            "tune teacher --data teacher --teacher-images 8",
            "train-text --items 8",
            "demo",
        ):
            with pytest.raises(SystemExit) as stop:
                fewstep(monkeypatch, command + " --out run")
            assert stop.value.code == 2 and "another process is writing into run" in capsys.readouterr().err
        holder.kill()
    assert set(os.listdir(place / "run")) == {".lock"}


STOPPED = re.compile(r"^fewstep: stopped after \d+ images; the state is saved, continue with --resume$", re.MULTILINE)


def test_a_command_that_is_told_to_stop_saves_before_it_leaves(place) -> None:
    """In a process of its own, which says how to go on."""
    command = "tune teacher --data data.npz --out run --images 800000 --batch 8"
    with begun(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as tune:
        while not (place / "run" / ".lock").exists():
            assert tune.poll() is None, tune.stderr.read()
            time.sleep(0.01)
        tune.send_signal(signal.SIGTERM)
        said = tune.stderr.read()
        assert tune.wait() == 143 and STOPPED.search(said), said
    left = set(os.listdir(place / "run"))  # the first look at the samples may come before the signal
    assert left - {"watch", "watch.jsonl"} == {"state.pt"}


def test_ctrl_c_saves_as_well(place, monkeypatch, capsys) -> None:
    begin = runs.tune
    monkeypatch.setattr(runs, "tune", lambda *a, **o: (os.kill(os.getpid(), signal.SIGINT), begin(*a, **o))[1])
    with pytest.raises(SystemExit) as stop:
        fewstep(monkeypatch, "tune teacher --data data.npz --out run --images 80 --batch 8")
    assert stop.value.code == 130 and STOPPED.search(capsys.readouterr().err)
    assert os.listdir(place / "run") == ["state.pt"]


def test_the_receipt_counts_what_the_teacher_made(place, monkeypatch) -> None:
    """Heun's 18 steps take 35 calls an image; the last of a path ends at 0 and takes one call less to reach."""
    fewstep(monkeypatch, "tune teacher --data teacher --teacher-images 8 --out a --images 16 --batch 8 --hop euler")
    fewstep(monkeypatch, "tune teacher --data paths --paths 6 --out b --images 8 --batch 8 --segments 2")
    a, b = (json.loads((place / name / "receipt.json").read_text()) for name in ("a", "b"))
    assert a["network_calls"]["teacher"] == 2 and a["network_rows"]["teacher"] == 16
    assert a["network_calls"]["teacher, for images"] == 35 and a["network_rows"]["teacher, for images"] == 35 * 8
    assert b["network_rows"]["student"] == 8 and "teacher" not in b["network_rows"]
    with count_nfe((denoiser := load(place / "teacher").denoiser).network) as nfe:
        teacher_paths(denoiser, 6, segments=2, levels=denoiser.schedule.grid(2).tolist(), whole=False)
    assert b["network_rows"]["teacher, for paths"] == nfe.rows > 6 * 35


def test_scratch_starts_from_new_weights(place, monkeypatch) -> None:
    fewstep(
        monkeypatch,
        "tune teacher --data data.npz --out run --images 8 --batch 8 --rate 1e-9 --scratch --gap karras --seed 3",
    )
    ours, theirs = (load(place / name).denoiser for name in ("run/model", "teacher"))
    assert {p.shape for p in ours.parameters()} == {p.shape for p in theirs.parameters()}
    a, b = (torch.cat([p.detach().flatten() for p in model.parameters()]) for model in (ours, theirs))
    assert (a - b).norm() > 0.5 * b.norm()
    fewstep(monkeypatch, "tune teacher --data data.npz --out one --images 8 --batch 8")
    averages = [json.loads((place / name / "receipt.json").read_text())["recipe"]["average"] for name in ("run", "one")]
    assert [(each["decay"], each["warmup"]) for (each,) in averages] == [(0.995, True), (0.995, False)]


def test_settling(place, monkeypatch, capsys) -> None:
    fewstep(monkeypatch, "settle teacher --out settle --n 6 --steps 5")
    found = json.loads((place / "settle" / "settle.json").read_text())
    assert (found["n"], found["label"], found["precision"]) == (6, None, "no")
    assert found["nfe_per_sample"] == 5 and len(found["settled_after_calls"]) == 6
    assert found["quantiles"]["0.5"][-1] == 0
    assert found["sentence"] in capsys.readouterr().out and (place / "settle" / "settle.png").exists()


def test_midtraining_has_the_precision_of_the_run(place, monkeypatch) -> None:
    fewstep(
        monkeypatch,
        "tune teacher --data data.npz --out run --images 8 --batch 8 --midtrain 8 --paths 2 --precision no --accumulate 2",
    )
    receipts = [json.loads((place / "run" / part / "receipt.json").read_text()) for part in ("midtrain", "")]
    assert [receipt["precision"] for receipt in receipts] == ["no", "no"]
    assert [receipt["recipe"]["batch"] for receipt in receipts] == [8, 8]


def test_conditional_models_train_tune_sample_and_score(place, monkeypatch, capsys) -> None:
    save_images(noise_images(40, size=28, labels=True), place / "labelled.npz")
    fewstep(monkeypatch, "train labelled.npz --out run0 --conditional --images 8 --batch 8 --widths 8 16")
    fewstep(monkeypatch, "tune run0/model --data labelled.npz --out run --images 8 --batch 8")
    fewstep(monkeypatch, "sample run/model --out samples --n 2 --label 1")
    fewstep(monkeypatch, "measure run/model --data labelled.npz --out scores --n 20 --steps 1")
    for command in ("sample run/model --out samples", "measure run/model --data data.npz --out scores --n 20 --steps 1"):
        with pytest.raises(SystemExit):
            fewstep(monkeypatch, command)
    said = capsys.readouterr().err
    assert "needs a --label" in said and "the data have no labels" in said
    save_images(Images(noise_images(40, size=28).pixels, torch.arange(40)), place / "many.npz")
    for command in (
        "sample run --out samples --label 3",
        "settle run0 --out settle --label 9",
        "measure run --data many.npz --out scores --n 20 --steps 1",
        "tune run0 --data many.npz --out more --images 8 --batch 8",
    ):
        with pytest.raises(SystemExit):
            fewstep(monkeypatch, command)
        assert "knows the labels 0 to 2" in capsys.readouterr().err


def test_own_pictures_are_scored_without_naming_features(place, monkeypatch, capsys) -> None:
    """In colour and of any size; what was taken is said, and what is better known."""
    save(Model(tiny(channels=3, size=16), Heun()), place / "own")
    save(Model(tiny(channels=3, size=16), Consistency()), place / "student")
    save_images(noise_images(40, channels=3, size=16), place / "own.npz")
    fewstep(monkeypatch, "measure student --data own.npz --out scores --n 20 --steps 1")
    fewstep(monkeypatch, "dial student --teacher own --data own.npz --out dial --n 20 --steps 1 --teacher-calls 1 2")
    fewstep(monkeypatch, "settle own --out settle --n 2 --steps 2")
    said = capsys.readouterr().out
    assert said.count("--features was left out, so untrained (random) ones were taken") == 3
    assert "next: fewstep export student --steps 1 --out few-step --measured dial/measure.json" in said
    receipts = [json.loads((place / file).read_text()) for file in ("scores/measure.json", "settle/settle.json")]
    assert [receipt["features"] for receipt in receipts] == ["random", "random"]
    assert list(receipts[0]["points"][0]["frechet"]) == ["random", "pixels"]


def test_only_bundled_images_are_compared_with_the_bundled_reference(place, monkeypatch, capsys) -> None:
    """Noise against noise is nearer than noise against clothes, of which a few stand for all."""
    some = load_images("bundled", channels=1, size=28)
    some = Images(some.pixels[:100], some.labels[:100])

    def taken(data: str, **options) -> Images:
        return some if data == "bundled" else load_images(data, **options)

    monkeypatch.setattr("fewstep.diffusion.measuring.load_images", taken)
    far = []
    for data in ("data.npz", "bundled"):
        fewstep(monkeypatch, f"measure teacher --data {data} --out scores --n 20 --steps 1 --features fashion")
        far.append(json.loads((place / "scores" / "measure.json").read_text())["points"][0]["frechet"]["fashion"]["value"])
    assert 2 * far[0] < far[1]
    assert "was left out" not in capsys.readouterr().out
    fewstep(monkeypatch, "measure teacher --data bundled --out scores --n 20 --steps 1")
    assert json.loads((place / "scores" / "measure.json").read_text())["features"] == "fashion"


def test_a_table_is_used_like_the_data_it_was_made_of(place, monkeypatch, capsys) -> None:
    """It is tuned on, and scores are the same: the same pictures in the same order of chance."""
    fewstep(monkeypatch, "table data.npz --like teacher --out table")
    said = capsys.readouterr().out
    assert "40 rows of 1x28x28 in table" in said and "next: fewstep tune teacher --data table --out student" in said
    points = []
    for data in ("data.npz", "table"):
        fewstep(monkeypatch, f"tune teacher --data {data} --out by-{data} --images 16 --batch 8 --precision no")
        fewstep(monkeypatch, f"measure by-{data} --data {data} --out scores-{data} --n 20 --steps 1 --features random")
        points.append(json.loads((place / f"scores-{data}" / "measure.json").read_text())["points"])
        for point in points[-1]:
            del point["seconds"], point["images_per_second"]
    assert points[0] == points[1]
    fewstep(monkeypatch, "table data.npz --channels 1 --size 28 --out other")
    assert "next: fewstep train other --channels 1 --size 28 --out teacher" in capsys.readouterr().out


def test_pictures_take_the_form_of_an_oblong_model(place, monkeypatch, capsys) -> None:
    network = tiny(channels=3).network
    network.register_to_config(sample_size=(8, 16))
    save(Model(vp(network, DDPMScheduler()), Heun()), place / "oblong")
    put(place / "pictures", {f"{k}.png": png((k, 0, 0)) for k in range(20)})
    fewstep(monkeypatch, "table pictures --like oblong --out table")
    fewstep(monkeypatch, "table pictures --size 8 16 --out table2")
    assert capsys.readouterr().out.count("20 rows of 3x8x16 in table") == 2
    fewstep(monkeypatch, "tune oblong --data pictures --out run --images 8 --batch 8")
    for data in ("table", "pictures"):
        fewstep(monkeypatch, f"measure run --data {data} --out scores-{data} --n 20 --steps 1")
        real = json.loads((place / f"scores-{data}" / "measure.json").read_text())["real"]
        looks = {"grey": 9.5 / 3, "contrast": 9.5 * (2 / 9 * 384 / 383) ** 0.5, "sharpness": 0, "saturation": 9.5}
        assert real == pytest.approx(looks, rel=1e-4)


def test_what_makes_no_table_is_one_sentence(place, monkeypatch, capsys) -> None:
    fewstep(monkeypatch, "table data.npz --like teacher --out table")
    for command, sentence in {
        "table data.npz --out new": "give either --like with a checkpoint",
        "table data.npz --out new --like teacher --size 28": "give either --like with a checkpoint",
        "table data.npz --out new --like teacher --channels 1": "leave --channels out",
        "table data.npz --out new --size 0": "--size starts at 1",
        "table data.npz --out new --size 8 8 8": "give either --like with a checkpoint",
        "table data.npz --out new --channels 3 --size 28": "holds samples of 1x28x28, the model takes 3x28x28",
        "table data.npz --out table --like teacher": "table is already there; choose another folder",
        "table table --out new --like teacher": "table is a table already; give it to --data",
        "table nowhere --out new --like teacher": "there is no image folder, .zip, .tar, .npz, .parquet or table at",
    }.items():
        with pytest.raises(SystemExit) as stopped:
            fewstep(monkeypatch, command)
        assert stopped.value.code == 2 and sentence in capsys.readouterr().err, command
    assert not (place / "new").exists()
