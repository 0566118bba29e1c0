"""A real consistency model that somebody else trained, imported, compared with onnxruntime and sampled; `make terrain`."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import fewstep
from fewstep.diffusion.cond import Cond

FETCHED = next(parent for parent in Path(__file__).parents if parent.name == "tests").parent / ".cache" / "terrain"
HIGHEST, UNIT = 22.16864, 0.1  # metres: its pictures are asinh(height / UNIT), the highest is white
pytestmark = pytest.mark.skipif(not (FETCHED / "reference.npz").exists(), reason="`make terrain` fetches it")


@pytest.fixture(scope="module")
def terrain(tmp_path_factory: pytest.TempPathFactory) -> fewstep.Model:
    out = tmp_path_factory.mktemp("terrain") / "model"
    fewstep.import_checkpoint(FETCHED / "terrain.safetensors", out, kind="consistency", head=32)
    return fewstep.load(out)


def test_it_computes_what_onnxruntime_computes(terrain: fewstep.Model) -> None:
    """Difference of at most 1e-4 in samples of ±1; the graph ends by cutting them off there."""
    fetched = np.load(FETCHED / "reference.npz")
    noisy, sigma, difficulty, wanted = (
        torch.from_numpy(fetched[name]) for name in ("noisy", "sigma", "difficulty", "denoised")
    )
    with torch.no_grad():
        found = terrain.denoiser(noisy, sigma, Cond({"number": difficulty})).clamp(-1, 1)
    assert float((found - wanted).abs().max()) < 1e-4
    assert float(wanted.std()) > 0.1, "and it is no constant"
    with torch.no_grad():
        other = terrain.denoiser(noisy, sigma, Cond({"number": 1 - difficulty})).clamp(-1, 1)
    assert float((other - wanted).abs().max()) > 0.05, "it listens to the difficulty"


def test_it_is_sampled_in_one_call_as_its_makers_sample_it(terrain: fewstep.Model) -> None:
    assert terrain.walk == fewstep.Consistency() and terrain.denoiser.identity == pytest.approx(0.002)
    with pytest.raises(ValueError, match="needs number"):
        terrain.sample(range(1))
    steepness = []
    for number in (0.0, 1.0):
        cond = Cond({"number": torch.full((2,), number)})
        pictures = terrain.sample(range(2), cond, walk=fewstep.Consistency(1)).float() / 255
        heights = (pictures * math.asinh(HIGHEST / UNIT)).sinh() * UNIT
        steepness.append(float(heights.diff(dim=-1).abs().mean()))
    assert steepness[1] > 3 * steepness[0], "terrains that are meant to be harder are steeper"
