from __future__ import annotations

import json
import os

import pytest
import torch
from conftest import tiny

from fewstep.diffusion.formats import exporting as module
from fewstep.diffusion.formats.exporting import TOLERANCE, export
from fewstep.diffusion.formats.folder import load


@pytest.mark.parametrize(("parametrisation", "steps"), [("vp", 2), ("edm", 3)])
def test_stock_diffusers_samples_the_same_images(tmp_path, parametrisation: str, steps: int) -> None:
    """In a fresh process with nothing of ours, from the same seeds."""
    denoiser = tiny(parametrisation)
    largest = export(denoiser, tmp_path / "out", steps=steps, card={"teacher": "random weights"})
    assert largest <= TOLERANCE
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: diffusers" in card and "random weights" in card and "largest difference" in card
    x, sigma = torch.randn(2, 1, 8, 8), torch.ones(2)
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "out")(x, sigma), denoiser(x, sigma))


@pytest.mark.parametrize("segments", [3, 4])
def test_multistep_students_walk_their_segments(tmp_path, segments: int) -> None:
    """A DDIMPipeline where the segments divide the timesteps, else a scheduler that takes the same steps."""
    assert export(tiny(), tmp_path / "out", segments=segments) <= TOLERANCE
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["_class_name"] == ("DDIMPipeline" if 1000 % segments == 0 else "DDPMPipeline")
    assert f"num_inference_steps={segments}" in (tmp_path / "out" / "README.md").read_text()


def test_no_pipeline_walks_the_segments_of_an_edm_student(tmp_path) -> None:
    with pytest.raises(ValueError, match="sample this one with fewstep"):
        export(tiny("edm"), tmp_path / "out", segments=2)


def test_other_images_mean_no_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "consistency", lambda *args, **cond: args[1] * 0)
    with pytest.raises(ValueError, match="nothing was exported"):
        export(tiny(), tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_what_stock_diffusers_cannot_load_is_no_export(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module.stock, "__file__", str(tmp_path / "missing.py"))
    with pytest.raises(ValueError, match="stock diffusers cannot"):
        export(tiny(), tmp_path / "out")
    assert os.listdir(tmp_path) == []
