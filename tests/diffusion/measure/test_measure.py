from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tiny
from transformers import Dinov2Config, Dinov2Model

from fewstep.core.intervals import jackknife
from fewstep.diffusion.data import load_images
from fewstep.diffusion.measure.dial import Point, difference, ratio, recommend, score
from fewstep.diffusion.measure.features import FashionFeatures, extract, extractor, reference
from fewstep.diffusion.measure.scores import Reference, coverage, frechet
from fewstep.diffusion.measure.settings import diffusion_settings, student_settings
from fewstep.diffusion.measure.settling import Settling, settle


@pytest.fixture(scope="module")
def fashion():
    return load_images("bundled", channels=1, size=28)


def test_bundled_features_classify(fashion) -> None:
    network = FashionFeatures.bundled()
    with torch.no_grad():
        hits = network.classify(fashion.pixels[:500]).argmax(1) == fashion.labels[:500]
    assert hits.float().mean() > 0.9


def test_bundled_reference_is_that_of_the_training_images(fashion) -> None:
    """Real images are far nearer to it than the same images upside down."""
    network = FashionFeatures.bundled()
    real = reference(network, fashion.pixels[:100])
    assert (real.n, real.features.shape) == (60_000, (100, 128))
    upright, turned = (extract(network, pixels) for pixels in (fashion.pixels[:1000], fashion.pixels[:1000].flip(-2)))
    assert 10 * frechet(upright, real) < frechet(turned, real)


def test_features_do_not_depend_on_the_batch(fashion) -> None:
    network = FashionFeatures.bundled()
    np.testing.assert_allclose(
        extract(network, fashion.pixels[:20], 7), extract(network, fashion.pixels[:20]), rtol=1e-4, atol=1e-5
    )


def test_dinov2_features_load_from_a_folder(tmp_path) -> None:
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=224, patch_size=56)
    Dinov2Model(config).save_pretrained(tmp_path)
    features = extract(extractor(str(tmp_path)), torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8))
    assert features.shape == (3, 16) and np.ptp(features[:, 0]) > 0


@pytest.mark.parametrize("name", ["./nowhere", "inception"])
def test_missing_extractors_say_what_to_do(name: str) -> None:
    with pytest.raises(ValueError, match=r"nowhere is no known extractor|pip install torch-fidelity"):
        extractor(name)


def test_wrong_size_for_the_bundled_features() -> None:
    with pytest.raises(ValueError, match="3x32x32"):
        extractor("fashion")(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_a_point_counts_and_scores(fashion) -> None:
    denoiser = tiny(size=28)
    network = FashionFeatures.bundled()
    real = reference(network, fashion.pixels[:40])
    settings = diffusion_settings(denoiser, (1, 21)) + student_settings(denoiser, (2,))
    points = [score(setting, range(40), (1, 28, 28), network, real) for setting in settings]
    assert [(p.name, p.sampler, p.nfe) for p in points] == [
        ("teacher", "ddim", 1), ("teacher", "heun", 21), ("student", "consistency", 2),
    ]  # fmt: skip
    assert points[0].frechet.value == pytest.approx(frechet(points[0].features, real))
    assert points[0].summary()["frechet"]["low"] < points[0].frechet.value
    zero = difference(points[0], points[0], real)
    assert zero.value == zero.low == zero.high == 0


def test_too_few_samples_for_an_interval(fashion) -> None:
    denoiser, network = tiny(size=28), FashionFeatures.bundled()
    real = reference(network, fashion.pixels[:40])
    with pytest.raises(ValueError, match="at least 20"):
        score(diffusion_settings(denoiser, (1,))[0], range(5), (1, 28, 28), network, real)


def made_up(name: str, nfe: int, shift: float, real) -> Point:
    """A point whose features are the reference's, shifted: a Fréchet distance of shift² or so."""
    features = real.features[:200] + shift / real.features.shape[1] ** 0.5
    estimate = jackknife(lambda rows: frechet(features[rows], real), 200)
    nothing = coverage(features, real.features)
    return Point(name, "x", nfe, 200, estimate, estimate, nothing, 1.0, "cpu", 1, torch.zeros(0), features)


def test_the_recommendation_is_the_fewest_calls_that_are_good_enough() -> None:
    real = Reference.of(np.random.default_rng(0).normal(size=(200, 8)))
    teacher = [made_up("teacher", 35, 1.0, real), made_up("teacher", 4, 2.0, real)]
    students = [made_up("a", 2, 1.01, real), made_up("b", 1, 1.5, real), made_up("c", 2, 1.02, real)]
    said = recommend(teacher + students, real, within=0.05)
    assert "are 2, by a: 1.02" in said and "best (Fréchet distance 1.00 at 35 calls)" in said
    assert "are 1, by b: 2.2" in recommend(teacher + students, real, within=1.5)
    assert "nearest is b at 1 calls, 2.2" in recommend([*teacher, students[1]], real, within=0.05)
    assert "Nothing with fewer calls than" in recommend(teacher[:1], real)
    one = ratio(teacher[0], teacher[0], real)
    assert one.value == one.low == one.high == 1


def test_settled_means_for_good() -> None:
    distances = np.array([[0.9, 0.05, 0.3, 0.05, 0.0], [0.01, 0.02, 0.01, 0.0, 0.0], [1.0, 1.0, 1.0, 0.5, 0.0]])
    found = Settling(torch.tensor([50.0, 10.0, 3.0, 1.0, 0.1]), distances, within=0.1)
    assert found.settled_at().tolist() == [4, 1, 5]
    assert found.curve(0.5).tolist() == [0.9, 0.05, 0.3, 0.05, 0.0]
    assert "after 4 (σ = 1), nine in ten after 5 (σ = 0.1)" in found.sentence()


def test_trajectories_that_know_their_end_are_settled_at_once() -> None:
    """A denoiser of two images goes for the one that the noise leans to, from the first call on."""
    denoiser = tiny(size=28)
    picture = torch.linspace(0, 1, 28 * 28).view(1, 28, 28)
    denoiser.forward = lambda x, sigma, **cond: x.mean((1, 2, 3), keepdim=True).sign() * picture.to(x)
    found = settle(denoiser, range(8), (1, 28, 28), FashionFeatures.bundled(), steps=3)
    assert found.sigmas.tolist() == denoiser.grid(3).tolist()
    assert found.distances.max() < 1e-3 and found.settled_at().tolist() == [1] * 8
    denoiser.forward = lambda x, sigma, **cond: picture.to(x).expand_as(x)
    with pytest.raises(ValueError, match="all trajectories end in the same image"):
        settle(denoiser, range(4), (1, 28, 28), FashionFeatures.bundled(), steps=3)
