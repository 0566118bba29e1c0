"""Moving averages against their plain sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from fewstep.diffusion.average import Exponential, MovingAverage, PowerFunction, copied, form_of
from fewstep.diffusion.recipes import diffusion


def test_power_function_has_the_published_exponents() -> None:
    """EDM2: relative widths .05 and .10 are γ = 16.97 and 6.94."""
    assert PowerFunction(0.05).gamma == pytest.approx(16.97, abs=0.005)
    assert PowerFunction(0.10).gamma == pytest.approx(6.94, abs=0.005)


def test_power_function_averages_with_its_width() -> None:
    """The weights that the decays give to the steps of a run have the relative standard deviation asked for."""
    average, n = PowerFunction(0.1), 2000
    weights = np.zeros(n)
    for step in range(n):
        decay = average(step + 1)
        weights *= decay
        weights[step] = 1 - decay
    times = (np.arange(n) + 1) / n
    mean = (weights * times).sum()
    assert weights.sum() == pytest.approx(1)
    assert np.sqrt((weights * (times - mean) ** 2).sum()) == pytest.approx(0.1, rel=0.01)


def test_a_warmed_average_is_exponential_in_the_end() -> None:
    warmed = Exponential(0.999, warmup=True)
    assert [warmed(n) for n in (1, 8, 8989, 9000)] == pytest.approx([2 / 11, 9 / 18, 8990 / 8999, 0.999])
    assert [Exponential(0.999)(n) for n in (1, 9000)] == [0.999, 0.999]


def left_of_the_start(average, updates: int) -> float:
    """The share of the average that still is what it began with: the product of the decays."""
    return math.prod(average(n) for n in range(1, updates + 1))


def test_training_from_nothing_forgets_the_random_start() -> None:
    """30,000 images in batches of 64: without a warm-up .999^469 = 63 % of the average is noise."""
    assert left_of_the_start(Exponential(0.999), 469) == pytest.approx(0.6255, abs=1e-4)
    assert left_of_the_start(diffusion(30_000)["average"], 469) < 1e-12


@pytest.mark.parametrize("average", [Exponential(0.7), Exponential(0.9, warmup=True), PowerFunction(0.1)])
def test_an_average_is_its_plain_sum(average) -> None:
    """From the weights at the beginning on; buffers are the model's, frozen weights are not even copied."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2).requires_grad_(False))
    moving, expected = MovingAverage(model, average), [p.detach().clone() for p in model.parameters()]
    for n in range(1, 9):
        with torch.no_grad():
            for p in model[:2].parameters():
                p.add_(torch.randn_like(p))
        model(torch.randn(5, 3))
        moving.update(model)
        decay = average(n)
        expected = [decay * mean + (1 - decay) * p.detach() for mean, p in zip(expected, model.parameters(), strict=True)]
    averaged = moving.model(form_of(model), model)
    for mean, ours in zip(expected, averaged.parameters(), strict=True):
        torch.testing.assert_close(ours.detach(), mean, rtol=1e-6, atol=1e-6)
    assert torch.equal(averaged[1].running_mean, model[1].running_mean)
    assert averaged[1].running_mean is not model[1].running_mean and not averaged.training
    assert averaged[2].weight is model[2].weight and averaged[0].weight is not model[0].weight


def test_a_form_takes_no_memory_and_is_filled() -> None:
    """Tied weights stay tied, and what is named takes its place."""
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    form = form_of(model)
    assert all(tensor.is_meta for tensor in (*form.parameters(), *form.buffers()))
    filled = copied(form, {**dict(model.named_parameters()), **dict(model.named_buffers())})
    assert filled[2].weight is filled[0].weight is model[0].weight
    x = torch.randn(4, 3)
    assert torch.equal(filled.eval()(x), model.eval()(x))


def test_an_average_goes_on_from_its_state() -> None:
    """Its count of updates, too, on which the decay hangs."""
    model, average = nn.Linear(3, 2), PowerFunction(0.1)
    whole, first = MovingAverage(model, average), MovingAverage(model, average)
    rest = MovingAverage(nn.Linear(3, 2), average)
    for n in range(6):
        with torch.no_grad():
            model.weight.add_(1.0 + n)
        if n == 3:
            rest.load(first.state())
        for each in (whole, first if n < 3 else rest):
            each.update(model)
    assert torch.equal(rest.weights["weight"], whole.weights["weight"])


@pytest.mark.parametrize("bad", [lambda: Exponential(1.0), lambda: PowerFunction(0.3), lambda: PowerFunction(0.0)])
def test_impossible_averages_are_refused(bad) -> None:
    with pytest.raises(ValueError, match="average"):
        bad()
