"""Each private part of a library that fewstep uses does what it is used for; an upgrade that changes one ends here."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch
from tiny_lm import tiny_lm
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    GenerationConfig,
    LlamaConfig,
    LogitsProcessorList,
    StoppingCriteriaList,
    T5Config,
    Trainer,
    TrainingArguments,
)

from fewstep.core.private import around_checkpoints, builds, cpu_multiplies_bfloat16, decoding_loop


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
