"""LoRA students of stock pipelines: the folder of a run is what `load_lora_weights` takes, whatever the family."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import pytest
import torch
from tiny_pipelines import CALLS, FAMILIES, tiny_pipeline
from torch import nn

from fewstep.diffusion.formats.exporting_adapters import export_adapter
from fewstep.diffusion.formats.folder import load, save
from fewstep.diffusion.lora import LoRA, adapt, layers_of
from fewstep.diffusion.model import Model
from fewstep.diffusion.two_times import TwoTimes
from fewstep.diffusion.using import sample_checkpoint
from fewstep.diffusion.walk import Segments, sample

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries alone
LOADS = ("stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3", "flux", "sana", "qwen_image", "z_image", "wan")
FUSED = ("pixart", "dit", "ldm", "audio_ldm")  # into which stock diffusers loads no adapter


def speaking(model: Model, base: Path, *, any_steps: bool = False) -> Model:
    """A student with an adapter, and perhaps a second time, that say something."""
    denoiser = TwoTimes(model.denoiser) if any_steps else model.denoiser
    adapt(denoiser, LoRA(2), base=str(base))
    for layer in layers_of(denoiser.network).values():
        nn.init.normal_(layer.lora_B["fewstep"].weight, std=0.3)
    for end in denoiser.embeddings() if isinstance(denoiser, TwoTimes) else ():
        nn.init.normal_(end.linear_2.weight, std=0.1)
    return Model(denoiser.eval(), Segments(2), {}, model.pipeline)


def asked(model: Model) -> list[str] | list[int]:
    return ["a red boot", "a small house"] if model.pipeline and model.pipeline.prompted else [3, 7]


@pytest.mark.parametrize("family", LOADS + FUSED)
def test_the_folder_of_a_run_is_an_adapter_of_the_pipeline(tmp_path, family: str) -> None:
    base = tiny_pipeline(family, tmp_path)
    call = CALLS.get(family, {})
    student = speaking(load(base, call=call), base)
    said = student.pipeline.latents(asked(student), [0, 1], steps=2)
    save(student, tmp_path / "run")
    again = load(tmp_path / "run")
    assert torch.equal(again.pipeline.latents(asked(again), [0, 1], steps=2), said)
    teacher = load(base, call=call)
    before = teacher.pipeline.latents(asked(teacher), [0, 1], steps=2)
    assert (before - said).abs().max() > 1e-3 * said.abs().max()
    bare = student.at(0)
    assert torch.equal(bare.pipeline.latents(asked(bare), [0, 1], steps=2), before)
    if family in FUSED:
        with pytest.raises(ValueError, match="stock diffusers loads no adapters into"):
            export_adapter(student, tmp_path / "adapter")
        return
    teacher.pipeline.stock.load_lora_weights(str(tmp_path / "run"))
    theirs = teacher.pipeline.latents(asked(teacher), [0, 1], steps=2)
    assert (theirs - said).abs().max() < 1e-5 * said.abs().max()


@pytest.mark.usefixtures("stock_here")
@pytest.mark.parametrize("family", [family for family in LOADS if family != "z_image"])  # whose time is made otherwise
def test_an_any_step_student_becomes_an_adapter_of_the_pipeline(tmp_path, family: str) -> None:
    base = tiny_pipeline(family, tmp_path)
    student = speaking(load(base, call=CALLS.get(family, {})), base, any_steps=True)
    likeness = export_adapter(student, tmp_path / "adapter", walk=Segments(4))
    assert likeness.largest <= likeness.allowed < 1e-3
    again = load(tmp_path / "adapter")
    assert type(again.denoiser) is not TwoTimes and again.walk == Segments(4)
    cond = student.pipeline.conditions(asked(student))[0]
    ours = sample(student.denoiser, [0, 1], Segments(4), cond)
    assert (sample(again.denoiser, [0, 1], Segments(4), cond) - ours).abs().max() < 1e-5 * ours.abs().max()
    stock = load(base, call=CALLS.get(family, {})).pipeline
    stock.stock.load_lora_weights(str(tmp_path / "adapter"))
    kind = json.loads((tmp_path / "adapter/scheduler/scheduler_config.json").read_text())["_class_name"]
    stock.stock.scheduler = getattr(diffusers, kind).from_pretrained(tmp_path / "adapter", subfolder="scheduler")
    theirs = stock.latents(asked(student), [0, 1], steps=4)
    assert (theirs - ours).abs().max() < 1e-4 * ours.abs().max()
    readme = (tmp_path / "adapter/README.md").read_text()
    assert f'pipeline.scheduler = {kind}.from_pretrained("adapter"' in readme and "num_inference_steps=4" in readme


def test_every_family_is_tried_or_has_no_attention_by_its_names(tmp_path) -> None:
    assert {*LOADS, *FUSED} == FAMILIES.keys() - {"dance_diffusion"}
    with pytest.raises(ValueError, match="no layer of this UNet1DModel has a name that ends in to_q"):
        adapt(load(tiny_pipeline("dance_diffusion", tmp_path)).denoiser, LoRA(2))


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_the_calls_of_a_student_at_a_strength_are_counted(tmp_path, strength: float) -> None:
    base = tiny_pipeline("stable_diffusion", tmp_path)
    save(speaking(load(base), base), tmp_path / "run")
    drawn = sample_checkpoint(str(tmp_path / "run"), tmp_path / "out", prompt="a red boot", strength=strength)
    assert (drawn.count, drawn.calls) == (1, 2)
