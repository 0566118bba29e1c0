from __future__ import annotations

import json
import os

import pytest
import torch
from conftest import tiny

from fewstep.diffusion.denoiser import edm, flow, vp
from fewstep.diffusion.formats import exporting as module
from fewstep.diffusion.formats.exporting import TOLERANCE, export
from fewstep.diffusion.formats.folder import load
from fewstep.diffusion.model import Model
from fewstep.diffusion.walk import Consistency, Heun, Segments


@pytest.mark.parametrize(("parametrisation", "steps"), [("vp", 2), ("edm", 3)])
def test_stock_diffusers_samples_the_same_images(tmp_path, parametrisation: str, steps: int) -> None:
    """In a fresh process with nothing of ours, from the same seeds."""
    denoiser = tiny(parametrisation)
    largest = export(Model(denoiser, Consistency(steps)), tmp_path / "out", card={"teacher": "random weights"})
    assert largest <= TOLERANCE
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: diffusers" in card and "random weights" in card and "largest difference" in card
    x, sigma = torch.randn(2, 1, 8, 8), torch.ones(2)
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "out").denoiser(x, sigma), denoiser(x, sigma))
    assert load(tmp_path / "out").walk == Consistency(steps)


@pytest.mark.parametrize("segments", [3, 4])
def test_multistep_students_walk_their_segments(tmp_path, segments: int) -> None:
    """A DDIMPipeline where the segments divide the timesteps, else a scheduler that takes the same steps."""
    assert export(Model(tiny(), Segments(segments)), tmp_path / "out") <= TOLERANCE
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["_class_name"] == ("DDIMPipeline" if 1000 % segments == 0 else "DDPMPipeline")
    assert f"num_inference_steps={segments}" in (tmp_path / "out" / "README.md").read_text()


def test_no_pipeline_walks_the_segments_of_an_edm_student(tmp_path) -> None:
    with pytest.raises(ValueError, match="sample this one with fewstep"):
        export(Model(tiny("edm"), Segments(2)), tmp_path / "out")


def test_other_images_mean_no_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "sample", lambda denoiser, seeds, walk, cond: torch.zeros(len(seeds), 1, 8, 8))
    with pytest.raises(ValueError, match="nothing was exported"):
        export(Model(tiny(), Consistency()), tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_what_stock_diffusers_cannot_load_is_no_export(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module.stock, "__file__", str(tmp_path / "missing.py"))
    with pytest.raises(ValueError, match="stock diffusers cannot"):
        export(Model(tiny(), Consistency()), tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_a_class_conditional_student_keeps_its_classes(tmp_path) -> None:
    """The stock consistency pipeline takes class_labels; each class gives the picture that ours gives."""
    model = Model(tiny("edm", classes=3), Consistency(2))
    assert export(model, tmp_path / "out") <= TOLERANCE
    assert "class_labels=0" in (tmp_path / "out" / "README.md").read_text()
    assert load(tmp_path / "out").denoiser.takes == model.denoiser.takes


def test_schedules_that_most_stock_schedulers_lack(tmp_path) -> None:
    """Their betas are written out; the cosine schedule's last level, σ = 20,291, is reached."""
    from diffusers import DDPMScheduler

    for betas, walk in (("sigmoid", Consistency(2)), ("sigmoid", Segments(3)), ("squaredcos_cap_v2", Segments(2))):
        model = Model(vp(tiny().network, DDPMScheduler(beta_schedule=betas, prediction_type="v_prediction")), walk)
        assert export(model, tmp_path / "out") <= TOLERANCE


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Model(tiny(), Heun()), "only few-step generators"),
        (Model(tiny(classes=3), Consistency()), "DDPMPipeline passes no class_labels"),
        (Model(tiny(classes=3), Segments(2)), "DDIMPipeline passes no class_labels"),
        (Model(edm(tiny().network, time_scale=0.25), Consistency()), "own time"),
        (Model(flow(tiny().network), Consistency()), "Rectified schedule"),
    ],
)
def test_what_has_no_stock_pipeline_says_so(tmp_path, model: Model, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / "out")
    assert os.listdir(tmp_path) == []
