"""What a teacher makes: on the exact denoiser its paths are known."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from conftest import noise_images, tiny
from diffusers import DDPMScheduler
from oracle import GaussianOracle, OracleNetwork
from torch import nn

from fewstep.diffusion.cond import labelled
from fewstep.diffusion.data import Images, Paths, Rows
from fewstep.diffusion.denoiser import Denoiser, Guided, vp
from fewstep.diffusion.loss import consistency_loss, ddim
from fewstep.diffusion.noise import FullGap, Levels
from fewstep.diffusion.recipes import path_regression
from fewstep.diffusion.space import to_uint8
from fewstep.diffusion.teaching import load_made, save_made, teacher_images, teacher_paths
from fewstep.diffusion.tuning import lower_edges, tune
from fewstep.diffusion.walk import Heun, sample

ORACLE = GaussianOracle()


class Config(dict):
    """What a diffusers network says of itself."""


@pytest.fixture
def exact() -> Denoiser:
    """The exact denoiser of Gaussian data as a VP checkpoint that predicts epsilon."""
    scheduler = DDPMScheduler(clip_sample=False)
    sigmas = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).double().sqrt()

    def to_sigma(time):
        below = time.double().floor().long().clamp(0, 998)
        return (sigmas[below].log().lerp(sigmas[below + 1].log(), time.double() - below)).exp()

    network: nn.Module = OracleNetwork(
        to_sigma, lambda z, s: z.double() * (1 + s**2).sqrt(), lambda x, x0, s: ((x - x0) / s).to(x.dtype)
    )
    network.config = Config(sample_size=4, in_channels=1)
    return vp(network, scheduler)


@pytest.mark.parametrize("segments", [1, 3])
def test_rows_of_paths_lie_on_the_exact_ode(exact, segments: int, monkeypatch) -> None:
    """x0 + t·eps is on the path, and a DDIM step towards x0 from there meets the exact path at the segment's edge."""
    monkeypatch.setattr("fewstep.diffusion.teaching.fast_precision", lambda: "no")
    paths = teacher_paths(exact, 6, segments=segments, steps=60, batch=4)
    assert len(paths) == 6 and paths.shape == (1, 4, 4)
    edges = lower_edges(exact, segments)
    for index in range(6):
        for t in (0.3, 2.0, 70.0):
            x0, eps, level = paths.point(index, torch.tensor(t), torch.zeros(()))
            assert abs(float(level) / t - 1) < 0.2  # the nearest level
            x_t = (x0 + level * eps)[None].double()
            lo = float(edges[edges < level].max())
            end = ddim(x_t, x0[None].double(), level[None].double(), torch.tensor([lo]).double())
            shrink = ((ORACLE.std**2 + lo**2) / (ORACLE.std**2 + float(level) ** 2)) ** 0.5
            expected = ORACLE.mean + shrink * (x_t - ORACLE.mean)
            torch.testing.assert_close(end, expected, rtol=2e-2, atol=2e-2)


def test_path_regression_of_the_exact_consistency_function_has_no_loss(exact, monkeypatch) -> None:
    monkeypatch.setattr("fewstep.diffusion.teaching.fast_precision", lambda: "no")
    paths = teacher_paths(exact, 8, steps=60)
    points = (paths.point(k, torch.tensor(1.0), torch.zeros(())) for k in range(8))
    x0, eps, t = (torch.stack(part) for part in zip(*points, strict=True))
    zero = torch.zeros(8)
    losses = [
        consistency_loss(f, x0, eps, t, zero, zero, weight=lambda t, r: t * 0 + 1).mean()
        for f in (ORACLE.consistency, ORACLE)
    ]
    assert losses[0] < 0.02 * losses[1]  # the denoiser itself is far from the paths' ends


def test_a_student_learns_paths_where_it_is_sampled_and_nowhere_else() -> None:
    teacher = tiny()
    grid = teacher.schedule.grid(3)
    paths = teacher_paths(teacher, 6, segments=3, levels=[7.5], steps=4)
    assert 7.5 in paths.levels.tolist()
    few = teacher_paths(teacher, 6, segments=3, levels=grid.tolist(), steps=4, whole=False)
    assert few.levels.tolist() == [*grid.float().tolist(), 0]
    every = teacher_paths(teacher, 6, segments=3, levels=grid.tolist(), steps=4)
    assert torch.equal(few.states, every.states[:, torch.isin(every.levels, few.levels)])
    assert path_regression(grid.tolist())["noise"] == Levels(tuple(grid.tolist()))
    rows = Rows(paths, partial(Levels(tuple(grid.tolist())), sigma_max=teacher.schedule.sigma_max), seed=0)
    t = torch.stack([rows[k][2] for k in range(60)])
    counts = [int((t == level).sum()) for level in grid.float()]
    assert sum(counts) == 60 and min(counts) >= 10


def test_what_a_teacher_made_is_kept_with_what_decided_it(tmp_path) -> None:
    teacher, file = tiny(classes=3), tmp_path / "made.safetensors"
    paths = teacher_paths(teacher, 5, steps=3)
    assert paths.labels is not None and paths.labels.tolist() == [0, 1, 2, 0, 1]
    for made in (paths, teacher_images(teacher, 5, steps=3), teacher_images(tiny(), 2, steps=3)):
        save_made(made, file, count=5, seed=0)
        back = load_made(type(made), file, count=5, seed=0)
        for name, tensor in vars(made).items():
            assert torch.equal(getattr(back, name), tensor) if tensor is not None else getattr(back, name) is None, name
    with pytest.raises(ValueError, match="was made with"):
        load_made(Images, file, count=6, seed=0)
    with pytest.raises(ValueError, match="delete it"):
        load_made(Paths, file, count=5, seed=0)
    file.write_bytes(b"cut short")
    with pytest.raises(ValueError, match="holds no images or paths of a teacher"):
        load_made(Images, file, count=5, seed=0)


def test_a_path_is_a_function_of_its_seed() -> None:
    together, alone = teacher_paths(tiny(), 5, steps=3, batch=2), teacher_paths(tiny(), 1, steps=3, seed=3)
    torch.testing.assert_close(together.states[3], alone.states[0], rtol=2e-2, atol=2e-2)


def test_paths_are_only_regressed() -> None:
    paths = teacher_paths(tiny(), 4, steps=3)
    with pytest.raises(ValueError, match="FullGap"):
        next(tune(tiny(), paths, images=8, batch=8))
    step = next(tune(tiny(), paths, images=8, batch=8, gap=FullGap()))
    assert step.gap == 1.0


def test_images_of_a_conditional_teacher_have_its_classes() -> None:
    images = teacher_images(tiny(classes=3), 5, steps=2)
    assert images.labels is not None and images.labels.tolist() == [0, 1, 2, 0, 1]
    assert images.pixels.shape == (5, 1, 8, 8)


def test_a_guided_teacher_never_makes_its_null_class(monkeypatch) -> None:
    """Guided by 1 its samples are those of its labels, which skip the null class; guided by 3 they are others."""
    monkeypatch.setattr("fewstep.diffusion.teaching.fast_precision", lambda: "no")
    teacher = tiny(classes=3)
    guided, labels = (
        teacher_images(Guided(teacher, 1.0, labelled(torch.tensor([1]))), 4, steps=3),
        torch.tensor([0, 2, 0, 2]),
    )
    assert guided.labels is not None and torch.equal(guided.labels, labels)
    plain = sample(teacher.eval(), range(4), Heun(3), labelled(labels))
    assert (guided.pixels.int() - to_uint8(plain).int()).abs().max() <= 1
    paths = teacher_paths(Guided(teacher, 3.0, labelled(torch.tensor([1]))), 4, steps=3)
    assert paths.labels is not None and torch.equal(paths.labels, labels)
    assert (paths.states[:, -1].float() - plain).abs().max() > 0.05


def test_a_teacher_makes_something() -> None:
    assert teacher_paths(tiny(classes=3), 5, steps=2).label_range == (0, 2)
    for make in (teacher_images, teacher_paths):
        with pytest.raises(ValueError, match="at least one sample"):
            make(tiny(), 0, steps=2)


def test_rows_of_images_keep_their_noise() -> None:
    """Beside paths nothing changed: a row of an image has the noise level drawn for it."""
    rows = Rows(noise_images(), lambda z: z.exp(), seed=0)
    x0, eps, t, *_ = rows[5]
    assert x0.shape == eps.shape and t > 0 and t.shape == ()
