"""A device without float64 which nobody may ask for a number, pretended: the loss, a tuning step's forward, the walks."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from conftest import noise_images, tiny
from pretended import DEVICE, Held, Pretended
from torch import Tensor

from fewstep.core import device
from fewstep.diffusion.hop import ADDIM, Euler
from fewstep.diffusion.hop import Heun as HeunHop
from fewstep.diffusion.loss import consistency_loss, from_data
from fewstep.diffusion.noise import CosineGap, ECTGap, KarrasGap, Levels
from fewstep.diffusion.tuning import tune
from fewstep.diffusion.walk import DDIM, Consistency, Heun, Segments, sample


@pytest.fixture(autouse=True)
def _without_float64(monkeypatch) -> None:
    monkeypatch.setattr(device, "WITHOUT_FLOAT64", {DEVICE.type})


def test_the_pretended_device_refuses_and_counts() -> None:
    """Else nothing below could fail."""
    with Pretended() as asked:
        there = torch.ones(3).to(DEVICE)
        assert there.device == DEVICE and isinstance(there + 1, Held)
        with pytest.raises(TypeError, match="no float64"):
            there.double()
        with pytest.raises(AssertionError, match="two devices"):
            there + torch.ones(3)
        assert asked.reads == 0
        assert float(there.sum()) == 3 and bool((there > 0).all()) and there.cpu().tolist() == [1, 1, 1]
        assert asked.reads == 3


@pytest.mark.parametrize("parametrisation", ["vp", "edm"])
@pytest.mark.parametrize("hop", [None, Euler, HeunHop, ADDIM])
def test_the_loss_needs_neither_float64_nor_a_number_back(parametrisation: str, hop) -> None:
    """And is what it is on the CPU, up to float32's rounding, with rows inside and at an edge."""
    x0, eps, t = torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8), torch.tensor([2.0, 3.0, 0.5, 4.0])
    r, lo = torch.tensor([1.0, 0.5, 0.2, 2.5]), torch.tensor([0.0, 1.0, 0.0, 2.0])

    def loss(place: torch.device) -> Tensor:
        student, teacher = (tiny(parametrisation).requires_grad_(False).to(place) for _ in range(2))
        chosen = from_data if hop is None else hop(teacher)
        return consistency_loss(student, x0.to(place), eps.to(place), t, r, lo, hop=chosen)

    with Pretended() as asked:
        there = loss(DEVICE)
        assert asked.reads == 0
        found = there.cpu()
    torch.testing.assert_close(found, loss(torch.device("cpu")), rtol=1e-3, atol=1e-4)


class ForwardDone(Exception):
    """Raised in place of the backward pass, which a pretended device has not."""


@pytest.mark.parametrize("gap", [ECTGap(q=4, stages=1), CosineGap(), KarrasGap()])
@pytest.mark.parametrize("noise", [None, Levels((0.5, 2.0, 10.0))])
def test_a_tuning_step_asks_for_nothing_before_its_backward_pass(gap, noise) -> None:
    seen = []

    def backward(loss: Tensor) -> None:
        seen.append((loss, asked.reads))
        raise ForwardDone

    accelerator = SimpleNamespace(
        device=DEVICE, process_index=0, num_processes=1, gradient_accumulation_steps=1, mixed_precision="no",
        state=None, prepare=lambda student, update: (student.to(DEVICE), update), accumulate=nullcontext,
        autocast=nullcontext, backward=backward,
    )  # fmt: skip
    settings = {"gap": gap, "segments": 3, "images": 8, "batch": 8} | ({} if noise is None else {"noise": noise})
    with Pretended() as asked, pytest.raises(ForwardDone):
        for _ in tune(
            tiny().requires_grad_(False), noise_images(), accelerator=accelerator,
            optimizer=lambda _: SimpleNamespace(param_groups=[]), **settings,
        ):  # fmt: skip
            pass
    ((loss, reads),) = seen
    assert isinstance(loss, Held) and loss.content.isfinite()
    assert reads == 1  # whether the student is finite to start from; of one that does not train there is no average


@pytest.mark.parametrize(
    ("parametrisation", "walk"),
    [("vp", DDIM(3)), ("edm", Heun(3)), ("vp", Consistency(2)), ("edm", Consistency(3)), ("vp", Segments(2))],
)
def test_a_walk_needs_no_float64_and_one_copy_back(parametrisation: str, walk) -> None:
    """Samples are those of the CPU, up to float32's rounding over the walk."""
    expected = sample(tiny(parametrisation), [3, 4], walk)
    with Pretended() as asked:
        found = sample(tiny(parametrisation).requires_grad_(False).to(DEVICE), [3, 4], walk)
        assert asked.reads == 1
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
