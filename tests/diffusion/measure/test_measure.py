from __future__ import annotations

import dataclasses
import io
import sys
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import noise_images, tiny
from PIL import Image
from rich.console import Console
from scipy.ndimage import correlate
from transformers import Dinov2Config, Dinov2Model

from fewstep.core.intervals import Estimate, jackknife
from fewstep.diffusion.data import Images, load_images
from fewstep.diffusion.measure.dial import Looks, Point, difference, ratio, recommend, score
from fewstep.diffusion.measure.features import FashionFeatures, RandomFeatures, View, extract, extractor, reference, views
from fewstep.diffusion.measure.scores import Reference, coverage, frechet, sliced
from fewstep.diffusion.measure.seen import Setting
from fewstep.diffusion.measure.settings import diffusion_settings, student_settings
from fewstep.diffusion.measure.settling import Settling, settled
from fewstep.diffusion.model import Model
from fewstep.diffusion.report import keep_pictures, table
from fewstep.diffusion.walk import Consistency


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
    real = reference(network, Images(fashion.pixels[:100]), bundled=True)
    assert (real.n, real.features.shape) == (60_000, (100, 128))
    own = reference(network, Images(fashion.pixels[:100]))  # of anybody else's images it knows what it is shown
    assert own.n == 100 and np.allclose(own.mean, extract(network, fashion.pixels[:100]).mean(0))
    upright, turned = (extract(network, pixels) for pixels in (fashion.pixels[:400], fashion.pixels[:400].flip(-2)))
    assert 10 * frechet(upright, real) < frechet(turned, real)


def test_a_data_set_is_looked_at_some_at_a_time(fashion) -> None:
    asked = []

    class Asked(Images):
        def raw(self, rows):
            asked.append(len(rows))
            return super().raw(rows)

    images = Asked(fashion.pixels[:601])
    assert np.allclose(Looks.over(images), Looks.of(images.pixels), rtol=1e-5)
    (view, _) = views("pixels", images)
    assert view.real.n == 601 and np.allclose(view.real.features, extract(view.network, images.pixels))
    assert sum(asked) == 3 * 601 and max(asked) == 250


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
    with pytest.raises(
        (ValueError, ModuleNotFoundError), match=r"nowhere is neither an extractor|pip install .fewstep.inception"
    ):
        extractor(name)


def test_wrong_size_for_the_bundled_features() -> None:
    with pytest.raises(ValueError, match="3x32x32"):
        extractor("fashion")(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize("name", ["random", "pixels"])
@pytest.mark.parametrize("shape", [(1, 5, 5), (1, 28, 28), (3, 33, 40)])
def test_untrained_features_take_images_of_any_size(name: str, shape) -> None:
    images = torch.randint(0, 256, (6, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = extract(extractor(name), images, batch=4)
    assert features.shape == (6, {"random": 128, "pixels": 64 * shape[0]}[name])
    assert np.isfinite(features).all() and np.linalg.matrix_rank(features) == 6
    np.testing.assert_allclose(extract(extractor(name), images), features, rtol=1e-4, atol=1e-4)  # another one, all at once


def test_random_features_are_plain_convolutions_of_fixed_weights() -> None:
    """The first two scales by scipy, from weights drawn here in the same order."""
    rng, image = torch.Generator().manual_seed(0), torch.randint(0, 256, (1, 1, 28, 28), dtype=torch.uint8)
    h, expected = np.repeat(image[0].double().numpy() / 127.5 - 1, 3, 0), []
    for inputs, groups in ((3, 1), (8, 4)):
        weight = torch.randn(32, inputs, 3, 3, generator=rng) * (2 / (9 * inputs)) ** 0.5
        weight[::2] -= weight[::2].mean((2, 3), keepdim=True)
        bias, each = 0.25 * torch.randn(32, generator=rng), np.split(h, groups)
        along = partial(correlate, mode="nearest")
        sums = [sum(map(along, each[k * groups // 32], weight[k].double().numpy())) for k in range(32)]
        h = np.maximum(np.stack(sums) + bias[:, None, None].numpy(), 0)
        expected.append(10 * h.mean((1, 2)))
        h = h.reshape(32, h.shape[1] // 2, 2, h.shape[2] // 2, 2).mean((2, 4))
    np.testing.assert_allclose(extract(RandomFeatures(), image)[0, :64], np.concatenate(expected), rtol=1e-4, atol=1e-4)


def test_untrained_features_see_what_trained_ones_overlook(fashion) -> None:
    """Eight grey levels darker: as good as real on the bundled features, far from it on random ones."""
    pixels = fashion.pixels[5000:6000]
    dark = (pixels.int() - 8).clamp(min=0).to(torch.uint8)
    for view, seen in zip(views("fashion", Images(fashion.pixels[:2000])), (False, True), strict=True):
        held, darker = (frechet(extract(view.network, images), view.real) for images in (pixels, dark))
        assert (darker > 2 * held) == seen, view.name


def test_every_figure_stands_in_two_representations(fashion) -> None:
    seen_by = {
        name: [view.name for view in views(name, Images(fashion.pixels[:20]))] for name in ("fashion", "random", "pixels")
    }
    assert seen_by == {"fashion": ["fashion", "random"], "random": ["random", "pixels"], "pixels": ["pixels", "random"]}


def test_looks_are_numpys() -> None:
    images = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    array = images.double().numpy()
    steps = (np.abs(np.diff(array, axis=2)).mean() + np.abs(np.diff(array, axis=3)).mean()) / 2
    contrast = array.reshape(5, -1).std(1, ddof=1).mean()
    assert Looks.of(images) == pytest.approx((array.mean(), contrast, steps, np.ptp(array, axis=1).mean()))


def test_a_point_counts_and_scores_and_leaves_pictures(fashion, tmp_path) -> None:
    denoiser = tiny(size=28)
    seen_by = views("fashion", Images(fashion.pixels[:40]))
    settings = diffusion_settings(denoiser, (1, 21)) + student_settings(Model(denoiser, Consistency()), (2,))
    points = [score(setting, range(40), seen_by) for setting in settings]
    assert [(p.name, p.sampler, p.nfe) for p in points] == [
        ("teacher", "DDIM", 1), ("teacher", "Heun", 21), ("student", "Consistency", 2),
    ]  # fmt: skip
    first = points[0]
    for view in seen_by:
        assert first.frechet[view.name].value == pytest.approx(frechet(extract(view.network, first.images), view.real))
        assert first.summary()["frechet"][view.name]["low"] < first.frechet[view.name].value
        zero = difference(first, first, view)
        assert zero.value == zero.low == zero.high == 0
        expected = sliced(first.features[view.name], view.real.features[: first.n])
        assert first.summary()["sliced"][view.name]["value"] == expected > 0
    assert first.summary()["grey"] == pytest.approx(float(first.images.float().mean()))
    said = keep_pictures(points, tmp_path, seed=5, asked=["a", "b"], count=3)
    assert (said["seeds"], said["asked"], said["width"], said["height"]) == ([5, 6, 7], ["a", "b", "a"], 28, 28)
    for point, file in zip(points, said["files"], strict=True):
        with Image.open(tmp_path / file) as strip:
            assert np.array_equal(np.asarray(strip), torch.cat(list(point.images[:3, 0]), -1).numpy())


def test_a_table_fits_eighty_columns(fashion) -> None:
    """Whole, with wide intervals and a folder as the view."""
    denoiser, (view, other) = tiny(size=28), views("fashion", Images(fashion.pixels[:40]))
    seen_by = [view._replace(name="/a/folder/far/away/dinov2-base"), other]
    points = [score(setting, range(20), seen_by) for setting in student_settings(Model(denoiser, Consistency()), (1, 16))]
    console = Console(width=80, file=io.StringIO())
    console.print(table(points, Looks.of(fashion.pixels[:40])))
    shown = console.file.getvalue()
    assert "…" not in shown and shown.count("Consistency") == 2 and "dinov2-base" in shown
    worst = dataclasses.replace(points[0], frechet={name: Estimate(1234.0, 0, 2345.0) for name in points[0].frechet})
    console.print(table([worst], Looks.of(fashion.pixels[:40])))
    assert "…" not in console.file.getvalue() and "1234 ± 1111" in console.file.getvalue()


def test_too_few_samples_for_an_interval(fashion) -> None:
    denoiser, seen_by = tiny(size=28), views("fashion", Images(fashion.pixels[:40]))
    with pytest.raises(ValueError, match="at least 20"):
        score(diffusion_settings(denoiser, (1,))[0], range(5), seen_by)


def made_up(name: str, nfe: int, *shifts: float, seen_by: list[View]) -> Point:
    """A point whose features are the reference's, shifted: a Fréchet distance of shift² or so, in each view."""
    features, frechets = {}, {}
    for view, shift in zip(seen_by, shifts, strict=True):
        rows = features[view.name] = view.real.features[:200] + shift / view.real.features.shape[1] ** 0.5
        frechets[view.name] = jackknife(lambda kept, rows=rows, view=view: frechet(rows[kept], view.real), 200)
    nothing = coverage(rows, view.real.features)
    return Point(
        name,
        "x",
        nfe,
        200,
        frechets,
        {},
        frechets[view.name],
        nothing,
        Looks(0, 0, 0, 0),
        1.0,
        "cpu",
        1,
        torch.zeros(0),
        features,
    )


def test_the_recommendation_is_the_fewest_calls_that_are_good_enough() -> None:
    """In every view: one that is good in the first only is not."""
    real = Reference.of(np.random.default_rng(0).normal(size=(200, 8)))
    seen_by = [View(name, torch.nn.Identity(), real) for name in ("a", "b")]
    made = partial(made_up, seen_by=seen_by)
    teacher = [made("teacher", 35, 1.0, 2.0), made("teacher", 4, 2.0, 4.0)]
    students = [made("good", 2, 1.01, 2.0), made("half", 1, 1.0, 3.0), made("worse", 2, 1.02, 2.0)]
    chosen, said = recommend(teacher + students, seen_by, within=0.05)
    assert chosen is students[0]
    assert "is good at 2 calls: 1.02" in said and "best (Fréchet distance 1.00 on a features, 35 calls)" in said
    assert "times it on a features and 1 [1, 1] times it on b features" in said
    assert "is half at 1 call: 1 [1, 1]" in recommend(teacher + students, seen_by, within=1.5).sentence
    near, said = recommend([*teacher, students[1]], seen_by, within=0.05)
    assert near is students[1] and "nearest is half at 1 call, 1 [1, 1] times it on a features and 2.2" in said
    assert "Nothing with fewer calls than" in recommend(teacher[:1], seen_by).sentence
    one = ratio(teacher[0], teacher[0], seen_by[0])
    assert one.value == one.low == one.high == 1


def test_settled_means_for_good() -> None:
    distances = np.array([[0.9, 0.05, 0.3, 0.05, 0.0], [0.01, 0.02, 0.01, 0.0, 0.0], [1.0, 1.0, 1.0, 0.5, 0.0]])
    found = Settling(torch.tensor([50.0, 10.0, 3.0, 1.0, 0.1]), distances, within=0.1, calls=5.0)
    assert found.settled_at().tolist() == [4, 1, 5]
    assert found.curve(0.5).tolist() == [0.9, 0.05, 0.3, 0.05, 0.0]
    assert "after 4 (σ = 1), nine in ten after 5 (σ = 0.1)" in found.sentence()


def test_trajectories_that_know_their_end_are_settled_at_once() -> None:
    """A denoiser of two images goes for the one that the noise leans to, from the first call on."""
    denoiser = tiny(size=28)
    picture = torch.linspace(0, 1, 28 * 28).view(1, 28, 28)
    denoiser.forward = lambda x, sigma, cond: x.mean((1, 2, 3), keepdim=True).sign() * picture.to(x)
    with settled(denoiser, range(8), FashionFeatures.bundled(), steps=3) as found:
        pass
    assert found.sigmas.tolist() == denoiser.schedule.grid(3).tolist()
    assert found.distances.max() < 1e-3 and found.settled_at().tolist() == [1] * 8
    denoiser.forward = lambda x, sigma, cond: picture.to(x).expand_as(x)
    same = pytest.raises(ValueError, match="all trajectories end in the same image")
    with same, settled(denoiser, range(4), FashionFeatures.bundled(), steps=3):
        pass


def test_numbers_that_cannot_be_are_refused_before_anything_is_walked() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        recommend([], [], within=-0.1)
    for seeds, options, said in (
        (range(1), {}, "two seeds"), (range(2), {"steps": 1}, "two steps"), (range(2), {"within": 0.0}, "above 0"),
        (range(2), {"batch": 0}, "at least 1"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said), settled(tiny(), seeds, RandomFeatures(), **options):
            pass


def test_a_score_that_took_long_is_told_at_once(monkeypatch, caplog) -> None:
    monkeypatch.setattr("fewstep.diffusion.measure.dial.SHORT", -1.0)
    images = noise_images(24)
    with caplog.at_level("INFO", "fewstep"):
        view = View.of("random", RandomFeatures(), images)
        point = score(Setting("student", tiny(), Consistency(1)), range(20), [view])
    assert f"student, 1 call: Fréchet distance {point.frechet['random']} (random)" in caplog.messages


@pytest.mark.parametrize("reached", [False, True])
def test_inception_is_given_colours_and_its_features_are_taken_as_they_are(monkeypatch, reached: bool) -> None:
    class Network(torch.nn.Module):
        def __init__(self, name: str, features: list[str]) -> None:
            super().__init__()
            assert (name, features) == ("inception-v3-compat", ["2048"])
            if not reached:
                raise OSError("no route to host")

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
            assert images.dtype == torch.uint8
            return (images.float().flatten(1),)

    for name in ("torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.FeatureExtractorInceptionV3 = Network
        monkeypatch.setitem(sys.modules, name, module)
    if reached:
        pixels = noise_images(2).pixels
        assert torch.equal(extractor("inception")(pixels), pixels.repeat(1, 3, 1, 1).float().flatten(1))
    else:
        with pytest.raises(ValueError, match=r"the Inception features could not be .*: no route to host"):
            extractor("inception")
