from __future__ import annotations

import json

import pytest
import torch
from conftest import fewstep, tiny
from tiny_pipelines import CALLS, tiny_pipeline

from fewstep.diffusion.checking import _long, check_checkpoint, memory_of
from fewstep.diffusion.formats.folder import load, save
from fewstep.diffusion.lora import LoRA, adapt, factors_of
from fewstep.diffusion.model import Model
from fewstep.diffusion.walk import Consistency, Heun

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries alone


def test_a_pipeline_is_described(tmp_path, monkeypatch, capsys) -> None:
    folder = tiny_pipeline("flux", tmp_path)
    call = " ".join(f"{name}={value}" for name, value in CALLS["flux"].items())
    fewstep(monkeypatch, f"check {folder} --rank 2 --call {call}")
    said = capsys.readouterr().out
    for part in (
        "FluxPipeline", "FluxTransformer2DModel, ", "Rectified(shift=1.58", "velocity", "16x16", "by prompts",
        "by true_cfg_scale", "12x16", "T5EncoderModel", "FlowMatchLCMScheduler", "FlowMatchEulerDiscreteScheduler",
        "LoRA of rank 2, base in bfloat16",
    ):  # fmt: skip
        assert part in said, part


def test_a_checkpoint_without_a_pipeline_is_described(place) -> None:
    facts = dict(check_checkpoint("teacher").facts)
    assert (
        facts["a sample"] == "1x28x28" and facts["export Segments(steps=4)"] == "DDIMPipeline" and "pipeline" not in facts
    )


def predicts_samples(folder) -> None:
    save(Model(tiny(), Heun()), folder)
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prediction_type": "sample"}))


@pytest.mark.parametrize(
    ("made", "name", "said"),
    [
        (lambda folder: save(Model(tiny(classes=3), Heun()), folder), "told class_labels", "classes 0 to 2"),
        (lambda folder: save(Model(tiny(classes=3), Heun()), folder), "guidance", "taken with --guidance and --null-label"),
        (lambda folder: save(Model(tiny(), Heun()), folder), "guidance", "none: "),
        (lambda folder: save(Model(tiny(), Consistency(2)), folder), "guidance", "built in"),
        (predicts_samples, "methods", "none: it predicts the clean sample"),
    ],
)  # fmt: skip
def test_what_is_said_of_other_checkpoints(tmp_path, made, name: str, said: str) -> None:
    made(tmp_path / "model")
    found = dict(check_checkpoint(str(tmp_path / "model")).facts)
    assert found[name].startswith(said)


def test_what_is_closed_to_a_pipeline_says_why(folders) -> None:
    facts = dict(check_checkpoint(str(folders("dance_diffusion"))).facts)
    assert facts["export Segments(steps=4)"].startswith("not: no stock scheduler")
    assert "not --segments any: " in facts["methods"] or "not --lora: " in facts["methods"]


def test_a_network_without_layers_for_a_lora_is_tuned_in_full() -> None:
    adapted = tiny()
    adapt(adapted, LoRA(2))
    for network in (torch.nn.Embedding(3, 4), adapted.network):
        assert [way.name for way in memory_of(network, 2)] == ["full"]


def test_the_memory_is_counted_as_what_trains(tmp_path) -> None:
    """A full tuning holds five times the weights; a LoRA its factors five times, and the base once."""
    denoiser = load(tiny_pipeline("stable_diffusion", tmp_path)).denoiser
    total = sum(p.numel() for p in denoiser.network.parameters())
    full, lora, half = memory_of(denoiser.network, 3)
    adapt(denoiser, LoRA(3))
    trained = sum(factor.numel() for factor in factors_of(denoiser.network).values())
    assert full.total == 20 * total
    assert (lora.total, half.total) == (4 * total + 20 * trained, 2 * total + 20 * trained)


@pytest.mark.parametrize(
    ("seconds", "said"), [(8.72, "8.7 s"), (89, "89 s"), (110, "1.8 minutes"), (6900, "1.9 hours"), (86_400, "24 hours")]
)
def test_a_time_is_two_figures(seconds: float, said: str) -> None:
    assert _long(seconds) == said
