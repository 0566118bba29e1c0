"""All that `fewstep tune` does, as a function: against the command, and what it says before anything is computed."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import fewstep, tiny
from safetensors.torch import load_file

from fewstep import Lessons, Loss, Run, Training, tune_checkpoint
from fewstep.diffusion.checkpoints import _renewed
from fewstep.diffusion.cond import labelled
from fewstep.diffusion.denoiser import Guided
from fewstep.diffusion.formats.folder import load, save
from fewstep.diffusion.lessons import paths_of, picture_of
from fewstep.diffusion.model import Model
from fewstep.diffusion.space import Latents
from fewstep.diffusion.two_times import TwoTimes
from fewstep.diffusion.walk import Heun, Segments


def test_the_function_does_what_the_command_does(place, monkeypatch) -> None:
    flags = "--images 8 --batch 8 --segments 2 --hop euler --huber .1 --midtrain 8 --paths 2 --seed 3"
    fewstep(monkeypatch, f"tune teacher --data data.npz --out a {flags}")
    model = tune_checkpoint(
        "teacher", Lessons("data.npz", paths=2), Run(Path("b")), loss=Loss(segments=2, hop="euler", huber=0.1),
        training=Training(images=8, batch=8, midtrain=8, seed=3),
    )  # fmt: skip
    ours, theirs = (load_file(place / name / "model/unet/diffusion_pytorch_model.safetensors") for name in "ba")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    weights = torch.cat([p.detach().flatten() for p in model.denoiser.parameters()])
    assert torch.equal(weights, torch.cat([p.detach().flatten() for p in load("a").denoiser.parameters()]))
    receipts = [json.loads((place / name / "receipt.json").read_text()) for name in "ab"]
    assert receipts[0]["recipe"] == receipts[1]["recipe"] and receipts[0].keys() == receipts[1].keys()


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        (lambda: Lessons("x", paths=0), "--paths starts at 1"),
        (lambda: Lessons("x", null_label=-1), "--null-label starts at 0"),
        (lambda: Loss(segments=0), "--segments starts at 1"),
        (lambda: Loss(gap="full", q=4.0), "ect gap"),
        (lambda: Loss(grid=(8, 16)), "cosine and karras"),
        (lambda: Loss(weight="output", power=1.0), "--power belongs"),
        (lambda: Loss(margin=0.1), "0 with one segment"),
        (lambda: Training(images=0), "--images starts at 1"),
        (lambda: Training(dropout=1.0), "below 1"),
        (lambda: Training(clip=0.0), "--clip must be above 0"),
        (lambda: Run(Path("run"), accumulate=0), "--accumulate starts at 1"),
        (lambda: Run(Path("run"), save_every=float("nan")), "--save-every starts at 0"),
    ],
)
def test_a_choice_that_cannot_be_is_refused_when_it_is_made(chosen, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        chosen()


@pytest.mark.parametrize(
    ("parametrisation", "classes", "loss", "sentence"),
    [
        ("edm", 0, Loss(segments=2), "only VP checkpoints of a UNet2DModel have a stock pipeline for several segments"),
        ("vp", 3, Loss(), "this conditional student has no stock pipeline"),
        ("vp", 0, Loss(segments=2), None),
        ("edm", 0, Loss(), None),
        ("edm", 0, Loss(segments=2, gap="full"), None),  # stays a diffusion model
    ],
)
def test_what_cannot_be_exported_is_said_before_it_is_tuned(
    tmp_path, caplog, parametrisation: str, classes: int, loss: Loss, sentence: str | None
) -> None:
    """It is no refusal: the data are looked for next."""
    save(Model(tiny(parametrisation, classes=classes), Heun()), tmp_path / "teacher")
    with caplog.at_level(logging.WARNING, "fewstep"), pytest.raises(ValueError, match=r"missing\.npz"):
        tune_checkpoint(str(tmp_path / "teacher"), Lessons("missing.npz"), Run(tmp_path / "run"), loss=loss)
    said = [message for message in caplog.messages if "cannot be exported" in message]
    assert [sentence in message for message in said] == ([] if sentence is None else [True])


def test_guidance_needs_to_know_what_stands_for_nothing() -> None:
    teacher, without = Model(tiny(classes=3), Heun()), Model(tiny(), Heun())
    assert Lessons("x").guided(teacher) is teacher.denoiser
    guided = Lessons("x", guidance=2.0, null_label=1).guided(teacher)
    x, sigma, labels = torch.randn(2, 1, 8, 8), torch.tensor([0.5, 3.0]), labelled(torch.tensor([0, 2]))
    with torch.no_grad():
        cond, null = (teacher.denoiser(x, sigma, each) for each in (labels, labelled(torch.tensor([1, 1]))))
        torch.testing.assert_close(guided(x, sigma, labels), null + 2 * (cond - null), rtol=1e-4, atol=1e-5)
    piped = dataclasses.replace(teacher, pipeline=SimpleNamespace())
    for lessons, model, said in (
        (Lessons("x", guidance=2.0), teacher, "needs --null-label"),
        (Lessons("x", guidance=2.0, null_label=1), without, "needs a conditional checkpoint"),
        (Lessons("x", guidance=2.0), piped, "encode them again"),
    ):
        with pytest.raises(ValueError, match=said):
            lessons.guided(model)


def test_guided_paths_are_kept_with_their_guidance(tmp_path) -> None:
    teacher = Guided(tiny(classes=3), 2.0, labelled(torch.tensor([1])))
    told = {"named": "a", "segments": 2, "seed": 0, "precision": "no", "whole": False}
    paths = paths_of(teacher, tmp_path, 4, **told)
    assert torch.equal(paths_of(teacher, tmp_path, 4, **told).states, paths.states)
    with pytest.raises(ValueError, match="guidance"):
        paths_of(Guided(teacher.denoiser, 3.0, teacher.null), tmp_path, 4, **told)


def test_a_student_of_any_number_of_calls_is_no_base_of_a_lora(tmp_path) -> None:
    """Its second time is in no folder of diffusers."""
    student = TwoTimes(tiny())
    with torch.no_grad():
        for weight in student.ends.parameters():
            weight.fill_(1.0)
    save(Model(student, Segments(2)), tmp_path / "any")
    with pytest.raises(ValueError, match="leave --lora out"):
        tune_checkpoint(
            str(tmp_path / "any"), Lessons("missing.npz"), Run(tmp_path / "run"), loss=Loss("any", hop="data"),
            training=Training(lora=2),
        )  # fmt: skip


@pytest.mark.parametrize("shape", [(4, 8), (3, 2, 8, 8)])
def test_data_sets_hold_pictures_and_latents_alone(shape) -> None:
    with pytest.raises(ValueError, match="use --data teacher"):
        picture_of(SimpleNamespace(space=Latents(shape)))


def test_a_start_from_new_weights_knows_nothing_of_the_second_time() -> None:
    student = TwoTimes(tiny())
    for weight in student.ends.parameters():
        torch.nn.init.constant_(weight, 7.0)
    fresh = _renewed(student, seed=1)
    assert isinstance(fresh, TwoTimes)
    assert all((shift == 0).all() for shift in fresh.shifts(torch.tensor([0.0, 1.0])))
    inner, first = fresh.ends[0].linear_1.weight, fresh.network.time_embedding.linear_1.weight
    assert torch.equal(inner, first) and not torch.equal(first, tiny().network.time_embedding.linear_1.weight)
