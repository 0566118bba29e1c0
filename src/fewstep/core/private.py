"""The private parts of libraries that fewstep uses. No other module asks a library for a name that begins with _.

`tests/core/test_private.py` tries each of them, and fails after an upgrade that removes or changes one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, Trainer


def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16; without them bfloat16 is slower than float32."""
    import torch  # late: the command line imports this module before it knows whether anything is computed

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
    """Makes `trainer` call `save(write)` where it would write a checkpoint; `write()` then writes it."""
    write = trainer._save_checkpoint
    trainer._save_checkpoint = lambda *given: save(partial(write, *given))


@contextmanager
def canvas_stopping(model: Any, criterion: object) -> Iterator[None]:
    """Inside the block generate() of a DiffusionGemma stops by `criterion`. Raises ValueError for other models."""
    name = "_prepare_diffusion_stopping_criteria"
    if not hasattr(model, name):
        raise ValueError(f"{type(model).__name__} does not denoise a canvas with adaptive stopping")
    object.__setattr__(model, name, lambda generation_config: criterion)
    try:
        yield
    finally:
        object.__delattr__(model, name)


@dataclass(frozen=True)
class Misread:
    """The part of a command line that tyro could not read. Arguments are as they are written: --images, CHECKPOINT."""

    unknown: tuple[str, ...] = ()  # words that no argument takes
    missing: tuple[str, ...] = ()  # required arguments
    argument: str = ""  # the argument whose value does not fit
    takes: str = ""  # the values that it takes, as in the help: {None}|INT


@contextmanager
def on_misread(refuse: Callable[[Misread], None]) -> Iterator[None]:
    """Inside the block `refuse` gets what tyro could not read, and raises. Another version of tyro may print it itself."""
    try:
        from tyro._errors import on_parse_error
    except ImportError:
        yield
        return

    def hook(event: Any) -> None:
        try:
            argument = getattr(event, "argument", None)
            misread = Misread(
                tuple(getattr(event, "unrecognized_tokens", ()) or getattr(event, "tokens", ())),
                tuple(_written(missing.arg) for missing in getattr(event, "missing_arguments", ())),
                *(() if argument is None else (_written(argument), str(argument.lowered.metavar))),
            )
        except AttributeError:
            return
        refuse(misread)

    with on_parse_error(hook):
        yield


def _written(argument: Any) -> str:
    name: str = argument.display_name()
    return name.upper().replace("-", "_") if argument.is_positional() else name
