"""The private parts of libraries that fewstep uses. No other module asks a library for a name that begins with _.

`tests/core/test_private.py` tries each, so an upgrade that takes one away or changes it says so there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, Trainer


def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16, without which they are slower than float32's."""
    return torch.cpu._is_avx512_bf16_supported()


def builds(auto: Any, config: PreTrainedConfig) -> bool:
    """Whether `auto`, one of transformers' auto classes, has a network for a configuration of this kind."""
    return type(config) in auto._model_mapping


def decoding_loop(model: PreTrainedModel, *, beams: bool) -> Callable[..., Any]:
    """The loop that transformers' generate() runs: beam search, or drawing and greedy choice.

    It takes (input_ids, logits_processor, stopping_criteria, generation_config, streamer=…, **inputs of the model); beam
    search takes no streamer.
    """
    loop: Callable[..., Any] = model._beam_search if beams else model._sample
    return loop


def around_checkpoints(trainer: Trainer, save: Callable[[Callable[[], None]], None]) -> None:
    """Has `trainer` call `save(write)` instead of writing a checkpoint, which `write()` does."""
    write = trainer._save_checkpoint
    trainer._save_checkpoint = lambda *given: save(partial(write, *given))
