from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import fewstep
from PIL import Image
from tiny_pipelines import CALLS, tiny_pipeline

from fewstep.diffusion.drawing import Wanted, arguments
from fewstep.diffusion.formats.folder import load, save
from fewstep.diffusion.model import Model
from fewstep.diffusion.using import sample_checkpoint
from fewstep.diffusion.walk import DDIM, Segments, sample

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries alone


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    return tiny_pipeline("stable_diffusion", tmp_path_factory.mktemp("sd"))


def picture(file) -> np.ndarray:
    return np.asarray(Image.open(file))


def test_a_teacher_draws_as_its_own_pipeline(sd, tmp_path, monkeypatch, capsys) -> None:
    """The pictures of the command are those that the stock pipeline makes from the same noise under the same guidance."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a red boot\n\na large tree\n")
    fewstep(monkeypatch, f"sample {sd} --prompts prompts.txt --guidance 3 --steps 2 --seed 5 --out out")
    pipeline = load(sd).pipeline
    theirs = pipeline.decode(pipeline.latents(["a red boot", "a large tree"], [5, 6], steps=2, guidance=3.0))
    for k in (5, 6):
        assert (picture(tmp_path / "out" / f"{k:06d}.png") == theirs[k - 5].permute(1, 2, 0).numpy()).all()
    receipt = json.loads((tmp_path / "out" / "receipt.json").read_text())
    assert receipt["asked"] == ["a red boot", "a large tree"] and receipt["nfe_per_sample"] == 4
    said = capsys.readouterr().out
    assert "2 samples in out, 4 network calls each" in said
    assert said.endswith(f"next: fewstep tune {sd} --data teacher --prompts prompts.txt --guidance 3 --out student\n")
    fewstep(monkeypatch, f"sample {sd} --prompt boot --steps 2 --n 1 --out one")
    assert "write prompts like those it will be used with into prompts.txt" in capsys.readouterr().out


def test_a_student_draws_along_its_walk(sd, tmp_path) -> None:
    model = load(sd)
    save(Model(model.denoiser, Segments(2), pipeline=model.pipeline), tmp_path / "student")
    sampled = sample_checkpoint(str(tmp_path / "student"), tmp_path / "out", prompt="a red boot", n=2, seed=3)
    assert (sampled.count, sampled.calls) == (2, 2)
    cond, _ = model.pipeline.conditions(["a red boot"] * 2)
    ours = model.sample([3, 4], cond, walk=Segments(2))
    assert (picture(tmp_path / "out" / "000004.png") == ours[1].permute(1, 2, 0).numpy()).all()
    with pytest.raises(ValueError, match="a student has its guidance built in"):
        sample_checkpoint(str(tmp_path / "student"), tmp_path / "more", prompt="a", guidance=2.0)


@pytest.mark.parametrize(("family", "ending"), [("wan", "png"), ("audio_ldm", "wav"), ("dit", "png"), ("ldm", "png")])
def test_videos_sounds_and_classes(tmp_path, family: str, ending: str) -> None:
    folder = tiny_pipeline(family, tmp_path)
    asked = {"dit": {"label": 3}, "ldm": {}}.get(family, {"prompt": "a tree"})
    call = [f"{name}={json.dumps(value)}" for name, value in CALLS.get(family, {}).items()]
    sampled = sample_checkpoint(str(folder), tmp_path / "out", n=1, steps=2, call=call, **asked)
    made = tmp_path / "out" / f"000000.{ending}"
    assert made.stat().st_size > 0 and sampled.calls == 2
    if family == "wan":
        assert Image.open(made).n_frames == 5


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({}, "takes prompts; give --prompt"),
        ({"label": 1}, "give --prompt instead of --label"),
        ({"prompt": "a", "label": 1}, "one of them"),
        ({"prompt": "a", "middle": 0.8, "steps": 2}, "take --sampler consistency"),
        ({"prompt": "a", "call": ["256"]}, "such as height=256, not '256'"),
        ({"prompt": "a", "call": ["heigth=256"]}, "takes no heigth"),
    ],
)
def test_what_is_asked_wrongly_says_so(sd, tmp_path, asked, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        sample_checkpoint(str(sd), tmp_path / "out", **{"n": 1, "steps": 1} | asked)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "label", "sentence"), [("dit", 1000, "0 to 999, not 1000"), ("ldm", 0, "leave --label out")]
)
def test_a_class_that_a_pipeline_does_not_know_says_so(folders, tmp_path, family: str, label: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        sample_checkpoint(str(folders(family)), tmp_path / "out", n=1, steps=1, label=label)


def test_a_teacher_draws_under_guidance_along_another_walk(sd, tmp_path) -> None:
    model = load(sd)
    sample_checkpoint(str(sd), tmp_path / "out", prompt="a boot", n=1, steps=2, sampler="ddim", guidance=3.0)
    cond, null = model.pipeline.conditions(["a boot"])
    x0 = sample(model.pipeline.guided(model.denoiser, 3.0, null), [0], DDIM(2), cond)
    assert (picture(tmp_path / "out" / "000000.png") == model.pipeline.decode(x0)[0].permute(1, 2, 0).numpy()).all()


def test_a_checkpoint_without_a_pipeline_takes_no_prompt(place, tmp_path) -> None:
    with pytest.raises(ValueError, match="this checkpoint has no pipeline"):
        sample_checkpoint("teacher", tmp_path / "out", prompt="a")


def test_arguments_are_json_or_words() -> None:
    assert arguments(["height=256", "mode=fast", "sizes=[1, 2]"]) == {"height": 256, "mode": "fast", "sizes": [1, 2]}
    assert not Wanted(label=3).is_any and Wanted(guidance=1.0).is_any
