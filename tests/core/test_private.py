"""Each private part of a library that fewstep uses does what it is used for; an upgrade that changes one ends here."""

from __future__ import annotations

import inspect
import platform
from pathlib import Path
from typing import Literal

import pytest
import torch
import tyro
from tiny_lm import tiny_lm
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    DiffusionGemmaForBlockDiffusion,
    GenerationConfig,
    LlamaConfig,
    LogitsProcessorList,
    StoppingCriteriaList,
    T5Config,
    Trainer,
    TrainingArguments,
)

from fewstep.core.private import (
    Misread,
    around_checkpoints,
    builds,
    canvas_stopping,
    cpu_multiplies_bfloat16,
    decoding_loop,
    on_misread,
)


@pytest.mark.skipif(platform.machine() != "x86_64" or platform.system() != "Linux", reason="asks Linux about an x86 CPU")
def test_the_cpu_is_what_linux_says() -> None:
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    assert cpu_multiplies_bfloat16() == ("avx512_bf16" in flags)


def test_auto_classes_know_their_kinds() -> None:
    assert builds(AutoModelForMaskedLM, BertConfig()) and not builds(AutoModelForMaskedLM, LlamaConfig())
    assert builds(AutoModelForCausalLM, LlamaConfig()) and not builds(AutoModelForCausalLM, T5Config())


@pytest.mark.parametrize("beams", [1, 3])
def test_the_loops_are_those_of_generate(beams: int) -> None:
    model, ids = tiny_lm(), torch.tensor([[5, 6, 7]])
    told = {"max_new_tokens": 5, "do_sample": False, "num_beams": beams}
    wanted = model.generate(ids, **told)

    def ours(model, input_ids, logits_processor, stopping_criteria, generation_config, **inputs):
        assert isinstance(logits_processor, LogitsProcessorList) and isinstance(stopping_criteria, StoppingCriteriaList)
        assert isinstance(generation_config, GenerationConfig) and "attention_mask" in inputs
        loop = decoding_loop(model, beams=beams > 1)
        return loop(input_ids, logits_processor, stopping_criteria, generation_config, **inputs)

    assert torch.equal(model.generate(ids, custom_generate=ours, **told), wanted)


def test_a_canvas_is_stopped_by_what_its_own_hook_gives() -> None:
    """generate() asks this method for its criterion; tests/masked/test_ecosystem.py runs it whole."""
    given = inspect.signature(DiffusionGemmaForBlockDiffusion._prepare_diffusion_stopping_criteria).parameters
    assert list(given) == ["self", "generation_config"]
    model, criterion = object.__new__(DiffusionGemmaForBlockDiffusion), object()
    torch.nn.Module.__init__(model)
    with canvas_stopping(model, criterion):
        assert model._prepare_diffusion_stopping_criteria(GenerationConfig()) is criterion
    assert "_prepare_diffusion_stopping_criteria" not in vars(model)


class Line(torch.nn.Linear):
    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (super().forward(x) - labels).square().mean()}


def test_a_trainer_writes_its_checkpoints_through_us(tmp_path) -> None:
    items = [{"x": torch.ones(2), "labels": torch.zeros(1)}] * 4
    options = {"save_strategy": "steps", "save_steps": 2, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    arguments = TrainingArguments(str(tmp_path), per_device_train_batch_size=1, num_train_epochs=1, **options)
    trainer, there = Trainer(Line(2, 1), arguments, train_dataset=items), []

    def save(write) -> None:
        before = len(list(tmp_path.glob("checkpoint-*")))
        if before == 0:
            write()
        there.append((before, len(list(tmp_path.glob("checkpoint-*")))))

    around_checkpoints(trainer, save)
    trainer.train()
    assert there == [(0, 1), (1, 1)]  # the second was kept from being written


def command(
    model: tyro.conf.Positional[str], /, *, out_of: Path, k: int | None = None, of: Literal["a", "b"] = "a"
) -> None:
    """Takes one argument of each kind."""


class Heard(Exception):
    pass


def heard(*words: str) -> Misread:
    def refuse(misread: Misread) -> None:
        raise Heard(misread)

    with pytest.raises(Heard) as error, on_misread(refuse):
        tyro.cli(command, args=words)
    return error.value.args[0]


def test_what_tyro_cannot_read_is_heard() -> None:
    assert heard() == Misread(missing=("MODEL", "--out-of"))
    assert heard("x", "--out", "y") == Misread(unknown=("--out", "y"), missing=("--out-of",))
    assert heard("x", "y", "--out-of", "o") == Misread(unknown=("y",))
    assert heard("x", "--out-of", "o", "--k", "z") == Misread(argument="--k", takes="{None}|INT")
    assert heard("x", "--out-of", "o", "--of", "z") == Misread(argument="--of", takes="{a,b}")
    assert heard("x", "--out-of") == Misread(argument="--out-of", takes="PATH")


def test_a_tyro_built_otherwise_speaks_for_itself(monkeypatch, capsys) -> None:
    from tyro import _arguments, _errors

    def never(misread: Misread) -> None:
        pytest.fail(f"heard {misread}")

    for place, name in ((_arguments.ArgumentDefinition, "display_name"), (_errors, "on_parse_error")):
        monkeypatch.delattr(place, name)
        with pytest.raises(SystemExit, match="2"), on_misread(never):
            tyro.cli(command, args=["x"])
        assert "--out-of" in capsys.readouterr().err
