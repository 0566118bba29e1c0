"""What a pipeline does that fewstep does not follow is said in one sentence; what it can follow is read as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import tiny
from diffusers import DDIMScheduler
from torch import Tensor, nn

from fewstep.diffusion.formats.folder import load
from fewstep.diffusion.manner import COUNT, SCALE, learn
from fewstep.diffusion.recording import record, replaced

TOLD = {"batch_size": COUNT, "num_inference_steps": COUNT + 1}


class Plain:
    """The plainest pipeline, which does one thing as no other does."""

    def __init__(self, odd: str = "", network: nn.Module | None = None) -> None:
        self.odd, self.network, self.scheduler = odd, network or tiny().network, DDIMScheduler()

    def set_progress_bar_config(self, **_: object) -> None: ...

    def __call__(self, batch_size: int, num_inference_steps: int) -> Tensor:
        return self.drawn(batch_size, num_inference_steps, 1.0)

    def drawn(self, count: int, steps: int, scale: float) -> Tensor:
        self.scheduler.set_timesteps(steps)
        x = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        for t in self.scheduler.timesteps if self.odd != "no scheduler" else []:
            x = self.scheduler.step(self.predicted(x, t, scale), t, x).prev_sample
        return x

    def predicted(self, x: Tensor, t: Tensor, scale: float) -> Tensor:
        match self.odd:
            case "twice":
                return self.network(self.network(x, t).sample, t).sample
            case "a picture":
                return self.network(torch.cat([x, x], 1), t).sample[:, :1]
            case "times":
                return self.network(x, torch.stack([t, t + 1, t])).sample
            case "no line":
                return self.network(x, t.float().square()).sample
            case "moved":
                return self.network(x + 1, t).sample
            case "changed":
                return self.network(x, t).sample.abs()
            case "shared":
                return self.network(x, t, class_labels=[7, (8, torch.ones(2))]).sample
            case "interrupted":
                raise KeyboardInterrupt
        return self.network(x, t).sample


class Steered(Plain):
    def __call__(self, batch_size: int, num_inference_steps: int, guidance_scale: float = 1.0) -> Tensor:
        return self.drawn(batch_size, num_inference_steps, guidance_scale)

    def predicted(self, x: Tensor, t: Tensor, scale: float) -> Tensor:
        if self.odd == "told" or (scale == 1 and self.odd != "any"):
            return self.network(x, t).sample
        if self.odd == "three":
            return self.network(torch.cat([x] * 3), t).sample.chunk(3)[0]
        cond, null = self.network(torch.cat([x] * 2), t).sample.chunk(2)
        return null + (scale**2 if self.odd == "formula" else scale) * (cond - null)


@pytest.mark.parametrize(
    ("pipeline", "sentence"),
    [
        (Plain("twice"), "Plain calls its network several times a step"),
        (Plain("no scheduler"), "Plain does not call its scheduler once a step"),
        (Plain("a picture"), "its network sees 2x8x8, more than the noisy sample of 1x8x8"),
        (Plain("times"), "several times per sample"),
        (Plain("no line"), "which is not linear"),
        (Plain("moved"), "something other than the scaled noisy sample"),
        (Plain("changed"), "changes the output of its network"),
        (Steered("any"), "Steered cannot be run without guidance by any guidance_scale"),
        (Steered("three"), r"for 3 samples this pipeline calls its network with \[9\] rows a step"),
        (Steered("formula"), "has a formula that fewstep does not know"),
    ],
    ids=lambda value: value.odd if isinstance(value, Plain) else "",
)
def test_what_cannot_be_followed_is_said(pipeline: Plain, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        learn(pipeline, pipeline.network, TOLD)


def test_what_can_be_followed_is_read() -> None:
    """A scale that the network itself is told is no guidance of the pipeline's; what is shared stays, lists as tuples."""
    guide = _learned(Steered()).guide
    assert guide is not None and (guide.name, guide.plus, guide.keeps_norm) == ("guidance_scale", 0, False) and SCALE > 1
    assert _learned(Steered("told")).guide is None and _learned(Plain()).calling.factor == 1
    first, (second, third) = _learned(Plain("shared")).first.shared["class_labels"]
    assert (first, second, third.tolist()) == (7, 8, [1, 1])


def _learned(pipeline: Plain) -> Any:
    return learn(pipeline, pipeline.network, TOLD)


def test_ctrl_c_in_a_pipeline_is_no_mistake_of_its() -> None:
    pipeline = Plain("interrupted")
    with pytest.raises(KeyboardInterrupt):
        record(pipeline, pipeline.network, TOLD)


def test_what_is_replaced_twice_comes_back_in_turn() -> None:
    thing = nn.Identity()
    with replaced(thing, "forward", 1):
        with replaced(thing, "forward", 2):
            assert vars(thing)["forward"] == 2
        assert vars(thing)["forward"] == 1
    assert "forward" not in vars(thing)


def test_arguments_without_names_of_their_own_are_recorded_by_those_that_they_are_given() -> None:
    class Open(nn.Module):
        def forward(self, sample: Tensor, timestep: Tensor, **more: object) -> None: ...

    class Telling(Plain):
        def predicted(self, x: Tensor, t: Tensor, scale: float) -> Tensor:
            return self.network(x, t, size=3, text=None).sample

    pipeline = Telling(network=Open())
    (step,) = record(pipeline, pipeline.network, TOLD)
    assert step.calls[0].others == {"size": 3, "text": None}


@pytest.mark.filterwarnings("ignore")  # of the libraries alone
def test_a_pipeline_that_makes_other_things_says_so(folders, monkeypatch) -> None:
    from diffusers import StableDiffusionPipeline

    sd, sound = load(folders("stable_diffusion")).pipeline, load(folders("dance_diffusion")).pipeline
    assert repr(sd) == f"Pipeline({str(folders('stable_diffusion'))!r})"
    with pytest.raises(ValueError, match="has a sampling_rate in its configuration"):
        sd.space_of(torch.zeros(1, 1, 4, dtype=torch.int16))
    with pytest.raises(ValueError, match="no part that encodes pictures"):
        sound.encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    tail = sd._tail
    monkeypatch.setattr(sd, "_tail", lambda latents: tail(latents.square()), raising=False)
    with pytest.raises(ValueError, match="changes its latents in a way that fewstep cannot invert"):
        sd.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    monkeypatch.setattr(StableDiffusionPipeline, "__call__", lambda self, prompt, image, strength: None)
    with pytest.raises(ValueError, match="a StableDiffusionPipeline needs image, strength for each sample"):
        _ = load(folders("stable_diffusion")).pipeline.stock
