from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from conftest import tiny
from diffusers import DDIMPipeline, DiffusionPipeline
from families import FAMILIES
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from fewstep.diffusion.average import Exponential
from fewstep.diffusion.cond import NOTHING, labelled
from fewstep.diffusion.denoiser import Denoiser, Guided
from fewstep.diffusion.formats.exporting import export
from fewstep.diffusion.formats.folder import load, save
from fewstep.diffusion.hop import Heun
from fewstep.diffusion.model import Model
from fewstep.diffusion.noise import ECTGap
from fewstep.diffusion.prediction import velocity
from fewstep.diffusion.schedule import Rectified
from fewstep.diffusion.space import Latents
from fewstep.diffusion.step import Step
from fewstep.diffusion.tuning import lower_edges, segment_ends, tune
from fewstep.diffusion.two_times import TwoTimes, baked
from fewstep.diffusion.walk import Consistency, Segments, sample


def told(denoiser: Denoiser, std: float = 0.3) -> TwoTimes:
    """A student whose second time says something."""
    student = TwoTimes(denoiser)
    for end in student.embeddings():
        nn.init.normal_(end.linear_2.weight, std=std)
        nn.init.normal_(end.linear_2.bias, std=std)
    return student.eval()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_at_the_start_it_is_the_checkpoint_and_each_walk_bakes(family: str) -> None:
    denoiser, cond = FAMILIES[family]()
    levels = denoiser.schedule.grid(4)
    lows = torch.cat([levels[1:], levels.new_zeros(1)]).float()
    x, t, cond = torch.randn(4, *denoiser.space.shape), levels.float(), cond.expand(4)
    before = denoiser(x, t, cond)
    assert torch.equal(TwoTimes(denoiser)(x, t, cond.until(lows)), before)
    student = told(denoiser)
    with_ends = student(x, t, cond.until(lows))
    assert not torch.allclose(with_ends, before, rtol=1e-3, atol=1e-3)
    plain = baked(student, levels, cond.part(slice(1)))
    assert type(plain) is Denoiser
    assert plain.network.state_dict().keys() == denoiser.network.state_dict().keys()
    scale = (t / (denoiser.schedule.sigma_data if family.endswith("EDM") else 1)).view(-1, *[1] * (x.ndim - 1))
    assert_close(plain(x, t, cond) / scale, with_ends / scale, rtol=1e-4, atol=1e-4)
    assert torch.equal(denoiser(x, t, cond), before)  # the student's own network is as it was


def test_more_levels_than_the_time_embedding_can_tell_apart() -> None:
    student = told(tiny())
    hidden = student.ends[0].linear_2.in_features
    baked(student, student.schedule.grid(hidden // 2))
    with pytest.raises(ValueError, match=f"too many for a time embedding of {hidden} hidden values"):
        baked(student, student.schedule.grid(4 * hidden))


def test_a_network_without_such_an_embedding() -> None:
    with pytest.raises(ValueError, match="a Conv2d has no time embedding"):
        TwoTimes(Denoiser(nn.Conv2d(1, 1, 1), Rectified(), velocity, space=Latents((1, 4, 4))))


def test_what_is_added_to_a_frozen_network_trains(vp) -> None:
    student = TwoTimes(vp.requires_grad_(False))
    assert all(weight.requires_grad == name.startswith("ends.") for name, weight in student.named_parameters())


def test_it_must_be_told_where_the_segment_ends(vp) -> None:
    with pytest.raises(ValueError, match="needs the end of its segment"):
        TwoTimes(vp)(torch.zeros(1, 1, 8, 8), torch.ones(1))


def test_the_end_reaches_guidance_and_both_its_halves() -> None:
    student = told(tiny(classes=3))
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([0.5, 2.0, 20.0])
    cond = labelled(torch.tensor([0, 1, 1])).until(t / 2)
    null = labelled(torch.tensor([2]))
    guided = Guided(student, 1.5, null)(x, t, cond)
    free = student(x, t, null.expand(3).until(t / 2))
    assert_close(guided, free + 1.5 * (student(x, t, cond) - free))


def settings(**more):
    return {"images": 48, "batch": 8, "gap": ECTGap(q=4, stages=2), "average": Exponential(0.5), "seed": 3} | more


def test_one_grid_and_a_silent_second_time_are_a_student_of_that_many_segments(images) -> None:
    plain, teacher = tiny(), tiny().requires_grad_(False)
    student = TwoTimes(tiny())
    student.ends.requires_grad_(False)
    ours = list(tune(student, images, segments=(4,), hop=Heun(teacher), **settings()))
    theirs = list(tune(plain, images, segments=4, hop=Heun(teacher), **settings()))
    assert [step.loss for step in ours] == [step.loss for step in theirs]
    for a, b in zip(student.network.parameters(), plain.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_each_row_ends_on_the_grid_that_chance_chose(vp) -> None:
    counts = (1, 2, 2, 7)
    t, u = vp.schedule.grid(1000).float().repeat(8), torch.rand(8000)
    lo = segment_ends(TwoTimes(vp), counts)(t, u)
    for share, count in zip((0.0, 0.25, 0.5, 0.75), counts, strict=True):
        rows = (u >= share) & (u < share + 0.25)
        edges = lower_edges(vp, count)
        expected = torch.stack([edges[edges < level].max() for level in t[rows]])
        assert torch.equal(lo[rows], expected)
    assert (lo < t).all()


def test_only_who_listens_learns_several_grids(vp, images) -> None:
    with pytest.raises(ValueError, match="only a TwoTimes"):
        next(tune(vp, images, segments=(1, 2), **settings()))
    with pytest.raises(ValueError, match="segments must hold at least one number"):
        next(tune(TwoTimes(vp), images, segments=(), **settings()))


def run_to_the_end(student: TwoTimes, images, **more) -> Step:
    return list(tune(student, images, segments=(1, 2, 4), **settings(**more)))[-1]


def test_it_learns_the_second_time_and_resumes_bit_equal(images) -> None:
    whole = run_to_the_end(TwoTimes(tiny()), images)
    steps = tune(TwoTimes(tiny()), images, segments=(1, 2, 4), **settings())
    state = copy.deepcopy([next(steps).state() for _ in range(3)][-1])
    resumed = run_to_the_end(TwoTimes(tiny()), images, state=state)
    assert all(weight.abs().sum() > 0 for weight in whole.ema.ends.state_dict().values())
    for name, weight in whole.ema.state_dict().items():
        assert torch.equal(weight, resumed.ema.state_dict()[name]), name


def test_rows_draw_about_as_often_as_asked(images) -> None:
    """Of many rows each grid gets its share, whatever the level."""
    ends = segment_ends(TwoTimes(tiny()), (1, 8))
    t = torch.full((4000,), 20.0)
    counted = Counter(ends(t, torch.rand(4000)).tolist())
    assert len(counted) == 2
    assert all(abs(count - 2000) < 5 * 1000**0.5 for count in counted.values())


@pytest.mark.parametrize("classes", [0, 3])
def test_save_and_load(tmp_path, classes: int) -> None:
    student = Model(told(tiny(classes=classes)), Segments(4))
    save(student, tmp_path / "model")
    drawn = torch.get_rng_state()
    back = load(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), drawn)
    assert back.is_student
    assert back.takes_any_steps
    assert back.walk == Segments(4)
    cond = labelled(torch.arange(2)) if classes else NOTHING
    for steps in (1, 3, 4):
        assert torch.equal(
            back.sample([0, 1], cond, walk=back.walk_in(steps)), student.sample([0, 1], cond, walk=Segments(steps))
        )
    with pytest.raises(ValueError, match="DiffusionPipeline"):  # which would sample it without its second time
        DiffusionPipeline.from_pretrained(tmp_path / "model")


def test_a_second_time_that_is_not_the_networks(tmp_path) -> None:
    save(Model(told(tiny()), Segments(4)), tmp_path / "model")
    file = tmp_path / "model" / "second_time.safetensors"
    ends = load_file(file)
    for wrong, sentence in {
        "of another shape": (ends | {"0.linear_2.bias": torch.zeros(3)}, "is not the second time of the network beside it"),
        "one too many": (ends | {"1.linear_2.bias": torch.zeros(32)}, "is not the second time of the network beside it"),
        "no real numbers": (
            ends | {"0.linear_2.bias": torch.zeros(32, dtype=torch.complex64)},
            "is not the second time of the network beside it",
        ),
        "not finite": (ends | {"0.linear_2.bias": torch.full((32,), torch.nan)}, "not finite"),
    }.values():
        save_file(wrong, file)
        with pytest.raises(ValueError, match=sentence):
            load(tmp_path / "model")
    (tmp_path / "model" / "fewstep.json").unlink()
    save_file(ends, file)
    with pytest.raises(ValueError, match=r"no fewstep\.json that says how it is sampled"):
        load(tmp_path / "model")
    file.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="no safetensors file"):
        load(tmp_path / "model")


@pytest.mark.usefixtures("stock_here")
def test_each_number_of_calls_is_a_stock_folder(tmp_path) -> None:
    student = Model(told(tiny()), Segments(4))
    for steps in (1, 3):
        export(student, tmp_path / str(steps), walk=Segments(steps))
        plain = load(tmp_path / str(steps))
        assert not plain.takes_any_steps
        assert_close(
            sample(plain.denoiser, [5, 6], plain.walk),
            sample(student.denoiser, [5, 6], Segments(steps)),
            atol=1e-4,
            rtol=1e-4,
        )
    pipeline = DDIMPipeline.from_pretrained(tmp_path / "1")
    assert type(pipeline.unet).__name__ == "UNet2DModel"


def test_only_a_student_of_any_number_of_calls_takes_another(vp) -> None:
    assert Model(TwoTimes(vp), Segments(4)).walk_in(7) == Segments(7)
    assert Model(vp, Consistency(2, 0.8)).walk_in(3) == Consistency(3, 0.8)
    assert Model(vp, Segments(4)).walk_in(4) == Segments(4)
    with pytest.raises(ValueError, match="tuned for 4 steps and takes no other number"):
        Model(vp, Segments(4)).walk_in(7)
    with pytest.raises(ValueError, match="leave it out for"):
        Model(TwoTimes(vp), Segments(4)).walk_in(2, middle=1.0)
