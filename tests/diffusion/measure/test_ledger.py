"""A ledger of models that are known exactly: what is damaged is found in its line, and nothing else is made up."""

from __future__ import annotations

import copy
import io
import json
import math
from dataclasses import replace
from functools import partial
from html import unescape
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import fewstep, noise_images, tiny
from matplotlib.figure import Figure
from rich.console import Console
from torch import nn

from fewstep import write_report
from fewstep.core.drift import Drift
from fewstep.core.intervals import Estimate
from fewstep.core.ledger import Ledger, Line, paired, shares
from fewstep.core.showing import ledger_table, show_drift
from fewstep.diffusion.cond import CLASS, NOTHING, Classes, labelled
from fewstep.diffusion.data import Images, load_images
from fewstep.diffusion.denoiser import Denoiser, Guided
from fewstep.diffusion.formats.folder import load, save
from fewstep.diffusion.lora import LoRA, adapt, factors_of, fused
from fewstep.diffusion.measure.accounting import GUIDED, _classes, lines_of, made_to_denoise, take_stock
from fewstep.diffusion.measure.comparing import Telling, compare
from fewstep.diffusion.measure.denoising import errors, levels_of
from fewstep.diffusion.measure.dial import score
from fewstep.diffusion.measure.drift import drift
from fewstep.diffusion.measure.features import View, views
from fewstep.diffusion.measure.lines import Pair, apart, matching
from fewstep.diffusion.measure.seen import Setting
from fewstep.diffusion.model import Model
from fewstep.diffusion.prediction import clean
from fewstep.diffusion.report import plot_ledger
from fewstep.diffusion.schedule import Karras
from fewstep.diffusion.space import Pixels
from fewstep.diffusion.two_times import TwoTimes
from fewstep.diffusion.walk import DDIM, Consistency, Heun, sample

SHAPE, SPREAD, N, WALK = (3, 6, 6), 0.12, 100, Heun(16)


def templates() -> torch.Tensor:
    """Four coloured pictures in [−0.6, 0.6], (4, *SHAPE)."""
    coarse = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(3))
    return nn.functional.interpolate(coarse, SHAPE[1:], mode="bilinear").tanh() * 0.6


class Mixture(nn.Module):
    """The exact posterior mean of a mixture of Gaussians around templates, as a network of EDM's input and time."""

    def __init__(self, means: torch.Tensor, spread: float = SPREAD) -> None:
        super().__init__()
        self.means, self.weights = nn.Parameter(means.clone()), nn.Parameter(torch.zeros(len(means)))
        self.spread = spread

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        sigma = (4 * timestep.double()).exp().view(-1, 1, 1, 1)
        x, means = sample.double() * (sigma**2 + 0.25).sqrt(), self.means.double()
        variance = self.spread**2 + sigma**2
        far = (x[:, None] - means).square().flatten(2).sum(2)
        share = (self.weights.double() - far / 2 / variance.view(-1, 1)).softmax(1)
        pulled = means + self.spread**2 / variance[:, None] * (x[:, None] - means)
        return (share[:, :, None, None, None] * pulled).sum(1).to(sample.dtype)


def mixture(means: torch.Tensor | None = None, spread: float = SPREAD) -> Denoiser:
    network = Mixture(templates() if means is None else means, spread)
    return Denoiser(network, Karras(sigma_data=0.5, time_scale=0.25), clean, space=Pixels(SHAPE), takes={})


class Colours(nn.Module):
    """Features that know the templates: nearness to each, and the class of the nearest."""

    classes = ("first", "second", "third", "fourth")

    def __init__(self) -> None:
        super().__init__()
        self.means = nn.Parameter(templates().flatten(1))
        self.mixed = nn.Parameter(torch.randn(108, 8, generator=torch.Generator().manual_seed(5)) / 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(1).float() / 127.5 - 1
        return torch.cat([flat @ self.mixed, flat @ self.means.T / 4], 1)

    def classify(self, images: torch.Tensor) -> torch.Tensor:
        return -torch.cdist(images.flatten(1).float() / 127.5 - 1, self.means)


class Averages(nn.Module):
    """Features nobody chose: means of parts of the picture, (B, 12)."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(images.float() / 127.5 - 1, 3).flatten(1)


def pictures(count: int, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    means = templates()[torch.randint(0, 4, (count,), generator=rng)]
    x = means + SPREAD * torch.randn(count, *SHAPE, generator=rng)
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="module")
def world():
    images = Images(pictures(600, 7))
    return images, [View.of("colours", Colours(), images), View.of("averages", Averages(), images)]


def balance(world, after: Denoiser, *, denoises: bool = True, seed: int = 0, walk=WALK) -> Ledger:
    images, views = world
    settings = Setting("before", mixture(), WALK), Setting("after", after, walk)
    return take_stock(*settings, images, views, n=N, denoises=denoises, seed=seed)[0]


def said(ledger: Ledger, name: str) -> str:
    (verdict,) = (v.said for line, v in zip(ledger.lines, ledger.verdicts, strict=True) if line.name.startswith(name))
    return verdict


def test_an_undamaged_copy_shows_no_loss_at_ten_seeds(world) -> None:
    for seed in range(0, 10 * N, N):
        found = balance(world, mixture(), seed=seed)
        assert {verdict.said for verdict in found.verdicts} == {"kept"}
        assert all(line.difference == (0, 0, 0) for line in found.lines) and max(d.change for d in found.drift) == 0
        assert found.sentences() == [f"No loss was found in {len(found.lines)} lines."]


def test_a_class_that_is_dropped_is_missed(world) -> None:
    damaged = mixture()
    with torch.no_grad():
        damaged.network.weights[2] = -1e9
    found = balance(world, damaged)
    line = next(line for line in found.lines if line.name == "share of third")
    assert said(found, "share of third") == "lost" and line.after == 0 and line.difference.high < 0
    assert said(found, "Fréchet on colours") == said(found, "Fréchet on averages") == "lost"
    assert next(line for line in found.lines if line.name == "coverage").difference.high < 0
    assert "Some classes" in " ".join(found.sentences())
    assert "near to an image of the data, so nothing points to copying" in " ".join(found.notes)


def test_a_look_that_changed_is_seen(world) -> None:
    means = templates()
    pale = means.mean(1, keepdim=True) + 0.5 * (means - means.mean(1, keepdim=True))
    found = balance(world, mixture(pale))
    line = next(line for line in found.lines if line.name.startswith("saturation"))
    assert said(found, "saturation") == "lost" and line.difference.high < 0 and said(found, "grey") == "kept"


class Asked(nn.Module):
    """The mixture by class: the first two templates are 0, the others 1, and 2 is none."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds = nn.ModuleList(Mixture(templates()[some]) for some in ([0, 1], [2, 3], [0, 1, 2, 3]))

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor) -> torch.Tensor:
        return torch.stack([kind(sample, timestep) for kind in self.kinds])[class_labels, torch.arange(len(sample))]


def test_guidance_that_is_too_strong_is_seen(world) -> None:
    """It shows fewer different pictures of one class, and these further from real ones."""
    images, views = world
    labels = Colours().classify(images.pixels).argmax(1) // 2
    asked = Denoiser(Asked(), mixture().schedule, clean, space=Pixels(SHAPE), takes={CLASS: Classes(2, 2)})
    guided = Guided(asked, 6.0, labelled(torch.tensor([2])))
    settings = Setting("before", asked, WALK), Setting("after", guided, WALK)
    found = take_stock(*settings, Images(images.pixels, labels), views, n=N, denoises=True)[0]
    different = next(line for line in found.lines if line.name.startswith("Vendi"))
    assert lost_for_sure(found) >= {"Vendi, one condition", "MIND on colours", "MIND on averages"}
    assert different.difference.high < 0 and "lower the guidance" in " ".join(found.sentences())
    assert GUIDED in found.notes and {said(found, line.name) for line in found.lines if not line.asked} == {"another task"}


def test_memorised_images_are_found(world) -> None:
    images, _ = world
    learned = images.pixels[:40].float() / 127.5 - 1
    found = balance(world, mixture(learned, spread=0.002))
    line = next(line for line in found.lines if line.group == "copying")
    assert said(found, "nearer to data") == "lost" and line.difference.low > 0 and line.after > 0.9
    hits = round(line.after * line.n)
    assert f": {hits} of {line.n} samples, and 5 of 100 real images that were held out, lie" in found.notes[-1]
    assert "near to an image of the data, so it copies (p = " in found.notes[-1]
    assert said(balance(world, mixture()), "nearer to data") == "kept"


def test_a_consistency_function_is_not_judged_by_its_denoising(world) -> None:
    """At one call it answers with an end of a path: the error rises, and that is no loss."""
    ends = mixture(spread=SPREAD)

    class End(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = ends.network

        def forward(self, sample, timestep):
            sigma = (4 * timestep[0].double()).exp()
            x = sample.double() * (sigma**2 + 0.25).sqrt()
            levels = torch.tensor([float(sigma) * 0.6**k for k in range(12)], dtype=torch.float64)
            for here, lower in zip(levels, [*levels[1:], 0.0], strict=True):
                x0 = ends(x, here.expand(len(x)))
                x = x0 + lower / here * (x - x0)
            return x.to(sample.dtype)

    student = Denoiser(End(), ends.schedule, clean, space=Pixels(SHAPE), takes={})
    assert not made_to_denoise(Model(student, Consistency(1))) and made_to_denoise(Model(student, Heun(2)))
    found = balance(world, student, denoises=False, walk=Consistency(1))
    denoising = [line for line in found.lines if line.group == "denoising"]
    assert {said(found, line.name) for line in denoising} == {"another task"}
    assert any(line.chance < 1e-6 and line.after > line.before for line in denoising)
    assert {line.name for line in found.of("gained")} >= {
        "distance in pixels",
        "Fréchet on colours",
    }  # than one step of DDIM
    assert found.calls == (31, 1) and "takes 1 network call in place of 31" in " ".join(found.sentences())


def test_where_nothing_changed_a_ledger_is_wrong_in_one_of_twenty(world) -> None:
    """Two models that are the same, and unpaired at that: samples of other seeds."""
    images, views = world
    points = [score(Setting("same", mixture(), WALK), range(k * 60, k * 60 + 60), views) for k in range(30)]
    wrong = []
    for before, after in zip(points[::2], points[1::2], strict=True):
        lines, _ = lines_of(Pair(before, after, views), before, images, Telling(NOTHING, torch.arange(60)))
        judged = [line for line in lines if line.group != "agreement"]  # which is of the same seeds
        wrong.append(bool(Ledger(tuple(judged), 0.0).of("gained", "lost")))
    assert sum(wrong) <= 3  # of 15; more have a chance of 0.5 % where one in twenty is wrong


def test_false_alarms_of_a_family_of_lines_are_one_in_twenty() -> None:
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(200):
        before, after = rng.standard_normal((2, 8, 30))
        lines = [paired("looks", str(k), a, b, unit=1.0) for k, (a, b) in enumerate(zip(before, after, strict=True))]
        wrong += bool(Ledger(tuple(lines), 0.0).of("gained", "lost"))
    assert 4 <= wrong <= 17  # of 8 lines each; 95 % of Binomial(200, 0.05) is 4 to 16


def line(value: float, reach: float, *, unit: float = 1.0, best: float = 0.0, chance: float = 1e-6, n: int = 100) -> Line:
    return Line("looks", "it", 1.0, 1.0 + value, Estimate(value, value - reach, value + reach), chance, n, unit, best)


def test_verdicts_are_read_off_the_interval() -> None:
    def verdict(*each: Line) -> list[str]:
        return [v.said for v in Ledger(each, 0.1).verdicts]

    assert verdict(line(0.05, 0.04), line(0.05, 0.06, chance=0.1)) == ["kept", "not known"]
    assert verdict(line(0.5, 0.1), line(-0.5, 0.1), line(0.5, 0.1, best=math.inf)) == ["lost", "gained", "gained"]
    assert verdict(line(0.5, 0.1, best=1.0), line(0.5, 0.1, best=1.4)) == ["lost", "gained"]  # nearer to the real ones
    assert verdict(line(0.5, 0.6, chance=0.1), *[line(0, 0)] * 9) == ["not known"] + ["kept"] * 9


def test_so_many_more_samples_tell() -> None:
    """To keep a difference of 0 ± 0.2 within 0.1 takes four times the samples; to tell 0.5 ± 0.6 alone, 1.44 times."""
    (keep,), (tell,) = (Ledger((one,), 0.1).verdicts for one in (line(0.0, 0.2, chance=1), line(0.5, 0.6, chance=0.1)))
    assert (keep.more, tell.more) == (300, 44)
    assert str(keep) == "not known at this n: take about 300 more"


def test_shares_have_the_exact_test() -> None:
    before, after = np.array([1] * 9 + [0] * 11, bool), np.array([1] * 3 + [0] * 17, bool)
    found = shares("classes", "it", before, after, unit=0.5, best=0.5)
    assert (found.before, found.after, found.chance) == (0.45, 0.15, pytest.approx(2 / 2**6)) and not found.better


def test_the_drift_is_that_of_the_layer_that_was_reset() -> None:
    before = tiny()
    after = copy.deepcopy(before)
    layer = after.network.get_submodule("mid_block.resnets.0.conv1")
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    found = {each.layer: each.change for each in drift(before, after)}
    assert found.pop("mid_block.resnets.0.conv1") == pytest.approx(1) and set(found.values()) == {0}
    order = list(found)
    assert order.index("conv_in") < order.index("down_blocks.0.resnets.0.conv1") < order.index("conv_out") == len(order) - 1
    with pytest.raises(ValueError, match="not of the same form"):
        drift(before, tiny(channels=3))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("layers", "named"),
    [(["conv_in", "_mid.0", ""], ["conv_in", "mid", "network"]), ([f"part{k}" for k in range(80)], None), ([], None)],
)
def test_a_plot_of_whatever_names_warns_of_nothing(layers, named, tmp_path) -> None:
    errors = replace(line(0.1, 0.05), group="denoising", before=1.0, after=1.1, level=0.5)
    plot_ledger(Ledger((errors,), 0.1, tuple(Drift(name, 0.1) for name in layers)), tmp_path / "ledger.png")
    axes = Figure().subplots()
    show_drift(axes, [Drift(name, 0.1) for name in layers])
    legend = axes.get_legend()
    assert (legend and [text.get_text() for text in legend.get_texts()]) == named


def test_where_no_weight_moved_a_sentence_stands_in_place_of_the_bars() -> None:
    for change in (0.0, 0.1):
        axes = Figure().subplots()
        show_drift(axes, [Drift("conv_in", change), Drift("conv_out", 0.0)])
        assert [text.get_text() for text in axes.texts] == ["No weight moved."] * (not change)
        assert bool(axes.patches) == bool(change)


def test_the_drift_of_an_adapter_is_what_it_makes_of_the_weights() -> None:
    before, after = tiny(), TwoTimes(tiny())
    adapt(after, LoRA(2, ("conv1",)))
    for name, factor in factors_of(after.network).items():
        factor.data.copy_(torch.randn(factor.shape, generator=torch.Generator().manual_seed(len(name))))
    found = {each.layer: each.change for each in drift(before, after)}
    place = "down_blocks.0.resnets.0.conv1"
    ours, theirs = (d.network.get_submodule(place) for d in (before, fused(after)))
    length = (ours.weight.square().sum() + ours.bias.square().sum()).sqrt()
    assert found[place] == pytest.approx(((theirs.weight - ours.weight).norm() / length).item(), rel=1e-5)
    assert found["conv_in"] == 0


def test_prompts_that_are_no_longer_matched_are_a_line() -> None:
    before, after = (SimpleNamespace(each={"match": match}) for match in (np.arange(40.0), np.arange(40.0) - 3))
    line = matching(Pair(before, after, ()))
    assert (line.before, line.after, line.difference) == (19.5, 16.5, (-3, -3, -3)) and line.best == math.inf


def test_a_judge_of_prompts_has_its_line(world) -> None:
    """One that asks for light pictures by one prompt and for dark ones by the other is content with both alike."""
    images, views = world
    mean = {"light": 1.0, "dark": -1.0}

    def judge(pictures: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return pictures.float().mean((1, 2, 3)) * torch.tensor([mean[prompt] for prompt in prompts])

    settings = Setting("before", mixture(), WALK), Setting("after", mixture(), WALK)
    found, points = take_stock(*settings, images, views, n=N, denoises=True, prompts=[*mean], judge=judge)
    (line,) = [line for line in found.lines if line.name == "match"]
    sign = torch.tensor([1.0, -1.0]).repeat(N // 2)
    pixels = (sample(mixture(), range(N), WALK).clamp(-1, 1) + 1) * 127.5
    assert line.before == line.after == pytest.approx((pixels.mean((1, 2, 3)) * sign).mean().item(), abs=0.05)
    assert points[0].match is not None


def test_latents_are_nothing_to_compare_with(world, tmp_path) -> None:
    latents = Images(torch.zeros(30, 3, 6, 6))
    with pytest.raises(ValueError, match="latents"):
        compare([Setting("student", mixture(), WALK)], latents, tmp_path / "out", n=20, networks={"averages": Averages()})


@pytest.mark.parametrize(("count", "names"), [(3, ["class 0", "class 1", "class 2"]), (30, [])])
def test_classes_that_were_asked_for_are_scored_one_by_one(count: int, names: list[str]) -> None:
    """By the conditions where no classifier knows classes; of so many that each has but a few samples none."""
    data = Images(noise_images(120).pixels, torch.arange(120) % count)
    told = Telling(labelled(torch.arange(count)), torch.arange(120) % count)
    view = View.of("means", Averages(), Images(data.pixels.expand(-1, 3, -1, -1)[..., :6, :6]))
    points = [SimpleNamespace(each={}, features={"means": np.random.default_rng(k).normal(size=(120, 12))}) for k in (1, 2)]
    found = _classes(Pair(*points, [view]), data, told)
    assert [line.name for line in found] == [f"KID of {name}" for name in names]
    assert _classes(Pair(*points, [view]), noise_images(), told) == []


def test_a_network_that_returns_no_numbers_is_named_with_its_level(world) -> None:
    class Broken(Mixture):
        def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            far = (timestep > 0).view(-1, 1, 1, 1)  # above σ = 1
            return super().forward(sample, timestep).masked_fill(far, torch.nan)

    broken = Denoiser(Broken(templates()), Karras(sigma_data=0.5, time_scale=0.25), clean, space=Pixels(SHAPE), takes={})
    with pytest.raises(ValueError, match="not finite at σ = 2; its weights are broken"):
        errors(broken, torch.zeros(2, *SHAPE), NOTHING, torch.tensor([0.5, 2.0, 9.0]))


def test_a_student_of_any_number_of_calls_is_asked_just_below_the_level() -> None:
    """Its second time is silent at the start, so it errs exactly as its teacher; and a reset layer shows at every level."""
    teacher = tiny()
    x0 = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    levels = levels_of(teacher)
    ask = partial(errors, x0=x0, cond=NOTHING, levels=levels)
    own = ask(teacher)
    assert own.shape == (8, 12) and np.allclose(ask(TwoTimes(teacher)), own) and np.allclose(ask(teacher, batch=3), own)
    assert not np.allclose(ask(teacher, seed=1), own)


@pytest.fixture(scope="module")
def trained():
    """The bundled checkpoint, some of its images, and views of them."""
    images = Images(load_images("bundled", channels=1, size=28).shuffled().raw(range(200)))
    return load("bundled").denoiser.eval(), images, views("fashion", images)


def weigh(trained, after: Denoiser) -> Ledger:
    teacher, images, seen = trained
    settings = (Setting(name, denoiser, DDIM(3)) for name, denoiser in (("before", teacher), ("after", after)))
    return take_stock(*settings, images, seen, n=24, denoises=True)[0]


def lost_for_sure(ledger: Ledger) -> set[str]:
    """The lines that are lost, on whose intervals zero does not lie."""
    lines = ledger.of("lost")
    assert all(line.difference.low > 0 or line.difference.high < 0 for line in lines)
    return {line.name for line in lines}


def test_a_layer_of_a_trained_network_that_was_reset_is_missed(trained) -> None:
    damaged, place = copy.deepcopy(trained[0]), "up_blocks.2.resnets.1.conv2"
    weight = damaged.network.get_submodule(place).weight
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=torch.Generator().manual_seed(0))
    found = weigh(trained, damaged)
    low = {line.name for line in found.lines if line.group == "denoising" and line.level < 3}
    assert lost_for_sure(found) >= low | {"Fréchet on fashion", "Vendi, one condition"} and len(low) == 6
    assert {each.layer for each in found.drift if each.change} == {place}


def test_a_head_that_was_tuned_too_far_is_missed(trained) -> None:
    """Alone, on four images and at a rate of .03."""
    teacher, images, _ = trained
    damaged = copy.deepcopy(teacher).requires_grad_(False)
    head = damaged.network.conv_out.requires_grad_(True)
    optimizer, rng = torch.optim.Adam(head.parameters(), lr=0.03), torch.Generator().manual_seed(0)
    x0 = torch.stack([images.x0(k) for k in range(4)])
    for _ in range(20):
        sigma = (1.5 * torch.randn(4, generator=rng) - 0.5).exp()
        noisy = x0 + sigma.view(-1, 1, 1, 1) * torch.randn(x0.shape, generator=rng)
        optimizer.zero_grad()
        (damaged(noisy, sigma) - x0).square().mean().backward()
        optimizer.step()
    found = weigh(trained, damaged.requires_grad_(False))
    low = {line.name for line in found.lines if line.group == "denoising" and line.level < 3}
    assert lost_for_sure(found) >= low | {"distance in pixels"} and len(low) == 6
    assert {each.layer for each in found.drift if each.change} == {"conv_out"}


def test_a_table_of_eighty_columns(world) -> None:
    damaged = mixture()
    with torch.no_grad():
        damaged.network.weights[2] = -1e9
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(ledger_table(balance(world, damaged), folded="classes"))
    text = console.export_text()
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    assert "share of third" in text and "share of first" not in text


def test_the_widest_rows_of_a_table_fit_into_eighty_columns() -> None:
    """The longest name and verdict, an interval that is not even, and a count of lines that are not shown."""
    uneven = Estimate(-0.6, -0.733, -0.503)
    line = Line("agreement", "distance in fashion features", 0.5, -0.1, uneven, 1.0, 20, 1.0, asked=False)
    classes = [Line("classes", f"share {k}", 0.5, 0.6, Estimate(0.1, -0.733, 0.503), 1.0, 20, 1.0) for k in range(12)]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(ledger_table(Ledger((line, *classes), 0.1), folded="classes"))
    text = console.export_text()
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    assert "another task" in text and "0 kept, 12 ?" in text


def test_the_command_leaves_figures_and_says_what_to_do(place, monkeypatch, capsys) -> None:
    save(Model(tiny(size=28), Consistency(2)), place / "student")
    fewstep(monkeypatch, "ledger teacher student --data data.npz --out found --n 20 --teacher-calls 3 --features pixels")
    out = capsys.readouterr().out
    assert "Not known at this n" in out and "those lines inform" in out
    kept = json.loads((place / "found" / "ledger.json").read_text())
    assert {line["verdict"] for line in kept["lines"]} <= {"kept", "gained", "lost", "not known", "another task"}
    assert kept["calls"] == {"before": 3, "after": 2} and len(kept["points"]) == 3 and kept["drift"]
    page = unescape(write_report([place / "found"], place / "page.html").read_text())
    assert all(sentence in page for sentence in kept["sentences"]) and page.count("<tr class=") == len(kept["lines"])
    assert (place / "found" / "ledger.png").exists() and (place / "found" / "samples.png").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("student teacher", "student is a student and no diffusion model"),
        ("teacher teacher --steps 2", "--steps is for students"),
        ("teacher student --within 0", "--within must be above 0"),
    ],
)
def test_what_makes_no_ledger_is_one_sentence(place, monkeypatch, capsys, words, sentence) -> None:
    save(Model(tiny(size=28), Consistency(2)), place / "student")
    with pytest.raises(SystemExit, match="2"):
        fewstep(monkeypatch, f"ledger {words} --data data.npz --out found --n 20")
    assert sentence in capsys.readouterr().err and not (place / "found").exists()


def test_a_picture_alone_in_its_batch_has_no_other() -> None:
    pictures = torch.randint(0, 256, (4, 1, 3, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole, alone = (apart([each])[0]["another"] for each in (pictures, pictures[3:]))
    assert (whole > 0).all() and np.isnan(alone).all()
    assert whole[1] == np.linalg.norm(pictures[1].double() - pictures[0].double())
