"""The first line that a Python user tries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny
from PIL import Image

import fewstep
from fewstep.diffusion.walk import DDIM, Heun


def test_load_and_sample(tmp_path) -> None:
    """The pictures are those that the command line writes; another walk gives others."""
    fewstep.save(fewstep.Model(tiny(classes=3), fewstep.Segments(2)), tmp_path / "student")
    model = fewstep.load(tmp_path / "student")
    labels = fewstep.labelled(torch.tensor([0, 1, 2]))
    pictures = model.sample(range(5, 8), labels)
    assert pictures.dtype == torch.uint8 and pictures.shape == (3, 1, 8, 8)
    assert torch.equal(model.sample(range(5, 8), labels, batch=2), pictures)
    assert not torch.equal(model.sample(range(5, 8), labels, walk=fewstep.Segments(3)), pictures)
    model.denoiser.space.save(pictures, tmp_path, ["a", "b", "c"])
    assert np.array_equal(np.asarray(Image.open(tmp_path / "b.png")), pictures[1, 0].numpy())
    with pytest.raises(ValueError, match="needs class_labels"):
        model.sample([0])


@pytest.mark.parametrize(
    ("walk", "student"), [(fewstep.Consistency(), True), (fewstep.Segments(4), True), (DDIM(4), False), (Heun(), False)]
)
def test_what_walks_like_a_student_is_one(walk, student: bool) -> None:
    assert fewstep.Model(tiny(), walk).is_student == student
