"""What a trained denoiser must satisfy, asked of one known exactly, of the bundled one, and of that when it is damaged."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fewstep
from oracle import GaussianOracle

import fewstep as library
from fewstep.diffusion.cond import NOTHING, Cond
from fewstep.diffusion.data import load_images
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.measure.claims import Answers, _share, asked_at, claims, filtered
from fewstep.diffusion.prediction import epsilon
from fewstep.diffusion.schedule import Karras

FETCHED = next(parent for parent in Path(__file__).parents if parent.name == "tests").parent / ".cache" / "terrain"
N = 8


@pytest.fixture(scope="module")
def real() -> torch.Tensor:
    images = load_images("bundled", channels=1, size=28).shuffled()
    return torch.stack([images.x0(k) for k in range(400)])


@pytest.fixture(scope="module")
def teacher() -> Denoiser:
    return library.load("bundled").denoiser.eval()


def asked(denoiser: Denoiser, real: torch.Tensor, start: int = 0) -> dict[str, tuple[bool, str]]:
    found, _ = claims(denoiser, real[start : start + N], NOTHING, real=real)
    return {claim.name: (claim.holds, claim.sentence) for claim in found}


def shuffled(denoiser: Denoiser, place: str) -> Denoiser:
    made = copy.deepcopy(denoiser)
    layer = made.network.get_submodule(place)
    order = torch.randperm(len(layer.weight), generator=torch.Generator().manual_seed(0))
    layer.weight.data = layer.weight.data[order]
    return made


def scheduled(denoiser: Denoiser, **betas: object) -> Denoiser:
    return Denoiser(denoiser.network, replace(denoiser.schedule, **betas), denoiser.prediction)


def test_the_bundled_model_is_what_it_claims_to_be_on_whatever_samples(teacher, real) -> None:
    for start in range(0, 2 * N, N):
        found = asked(teacher, real, start)
        assert list(found) == ["f(x, 0) = x", "finite", "denoises", "calibrated"]
        assert all(holds for holds, _ in found.values()), found
    assert found["denoises"][1].startswith("It denoises: at 12 levels from σ = 0.01 to 80 its error on 8 real samples")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda d: scheduled(d, beta_schedule="linear", beta_end=0.02), "another schedule"),
        (lambda d: scheduled(d, beta_end=0.02), "leaves nothing to take away"),
        (lambda d: Denoiser(d.network, Karras(sigma_data=1.0), d.prediction), "does not denoise"),  # another time and scale
        (lambda d: Denoiser(d.network, d.schedule, epsilon), "does not denoise"),
        (lambda d: shuffled(d, "conv_in"), "does not denoise"),
        (lambda d: shuffled(d, "up_blocks.2.resnets.1.conv2"), "its weights are broken"),
        (lambda d: shuffled(d, "up_blocks.2.resnets.0.conv1"), "its weights are broken"),
    ],
    ids=["linear betas", "other betas", "scale", "prediction", "first layer", "last layer", "late layer"],
)
def test_what_is_wrong_is_noticed(teacher, real, wrong, sentence) -> None:
    found = asked(wrong(teacher).eval(), real)
    assert any(not holds and sentence in said for holds, said in found.values()), found


def test_weights_that_are_no_numbers_are_noticed(teacher, real) -> None:
    broken = copy.deepcopy(teacher)
    broken.network.conv_out.bias.data[:] = math.nan
    found = asked(broken, real)
    assert list(found)[-1] == "finite" and "not finite at σ = 80" in found["finite"][1]


def test_shares_are_whole_percents_or_small_ones_in_tenths() -> None:
    found = Answers(torch.ones(3), np.ones((1, 3)), np.array([0.64, 0.004, 0.03]), np.array([0.05, 0.001, 0.1]), 0.0)
    assert [_share(found, k) for k in range(3)] == ["64 ± 10 %", "0.4 ± 0.2 %", "3 ± 20 %"]


class Believing:
    """The exact denoiser of a Gaussian, told `factor` times the level."""

    device = torch.device("cpu")

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, x, sigma, cond):
        return GaussianOracle(mean=0.0, std=0.4)(x, self.factor * sigma)


def test_of_the_exact_denoiser_nothing_is_left_and_of_one_that_believes_in_another_level_what_arithmetic_says() -> None:
    """Of variance v, told kσ: f = c·x with c = v/(v + k²σ²), which errs by (1 − c)²v + c²σ²; v·σ²/(v + σ²) is best."""
    real = 0.4 * torch.randn(400, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    levels, centre = torch.tensor([2.0, 0.4, 0.1], dtype=torch.float64), torch.zeros(3, 8, 8)
    best = filtered(real, real, levels)
    exact = asked_at(Believing(1.0), real, NOTHING, levels, centre=centre)
    assert exact.left.max() < 1e-3 and np.allclose(exact.errors, best, rtol=0.1)
    wrong = asked_at(Believing(2.0), real, NOTHING, levels, centre=centre)
    v, s = 0.16, levels.numpy() ** 2
    kept = v / (v + 4 * s)
    error = (1 - kept) ** 2 * v + kept**2 * s
    assert np.allclose(wrong.errors.mean(0), error, rtol=0.02)
    assert np.allclose(wrong.left, 1 - v * s / (v + s) / error, atol=0.01)
    assert (wrong.left > 5 * wrong.unsure).all()


@pytest.mark.skipif(not (FETCHED / "reference.npz").exists(), reason="`make terrain` fetches it")
def test_a_consistency_model_of_others_is_no_denoiser(tmp_path) -> None:
    """Even of what it makes itself a linear filter takes more noise away at σ = .5."""
    library.import_checkpoint(FETCHED / "terrain.safetensors", tmp_path / "model", kind="consistency", head=32)
    terrain = library.load(tmp_path / "model")
    number = Cond({"number": torch.full((2,), 0.5)})
    made = terrain.sample(range(2), number, walk=library.Consistency(1)).float() / 127.5 - 1
    found, _ = claims(
        terrain.denoiser.eval(), made, number, real=made, mean=False, levels=torch.tensor([0.5, 0.1], dtype=torch.float64)
    )
    (claim,) = (claim for claim in found if claim.name == "denoises")
    assert not claim.holds and "σ = 0.5 its error is" in claim.sentence and "it is no teacher" in claim.sentence


def test_the_check_of_a_checkpoint_tests_it_on_data(place, monkeypatch, capsys) -> None:
    fewstep(monkeypatch, "check teacher --data data.npz --n 8")  # random weights, noise for pictures
    said = capsys.readouterr().out
    assert "It does not denoise these data" in said and "At σ = 0 a sample is unchanged" in said
    assert "1,000 samples in 4 calls about" in said
