"""Records how a stock pipeline calls its network. The network is replaced by one that returns noise.

The recording shows the arguments of each call, and how the pipeline changes an output before its scheduler gets it: a sign,
a half that is dropped, the formula of guidance.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from .calling import time_name

OURS = {"return_dict"}  # arguments that say nothing about the sample


class _Enough(Exception):  # noqa: N818  it is no error
    """Ends the call of a pipeline early."""


@dataclass(frozen=True)
class Call:
    """One call of a network.

    Attributes:
        x: the samples, (B, *).
        listed: whether they came as a list.
        time: the time, as it was given.
        others: the other arguments that differ from the defaults; those in dictionaries have dotted names.
        answer: the noise that was returned, (B, *).
    """

    x: Tensor
    listed: bool
    time: Tensor
    others: Mapping[str, Any]
    answer: Tensor


@dataclass(frozen=True)
class Step:
    """The arguments of a scheduler's step, and the calls of the network before it."""

    calls: Sequence[Call]
    output: Tensor
    time: float
    state: Tensor


def record(pipeline: Any, network: nn.Module, told: Mapping[str, object], *, steps: int = 1) -> list[Step]:
    """Records the first `steps` steps of `pipeline(**told)` and then ends the call.

    Args:
        pipeline: a pipeline of diffusers around `network`.
        network: the network; it computes nothing.
        told: arguments of the pipeline.

    Raises:
        ValueError: the pipeline fails with these arguments, or ends after fewer steps.
    """
    calls: list[Call] = []
    seen: list[Step] = []

    def see(output: Tensor, time: Any, state: Tensor) -> None:
        seen.append(Step(tuple(calls), output, float(time), state))
        calls.clear()
        if len(seen) == steps:
            raise _Enough

    with _answering(network, calls), watched(pipeline.scheduler, see):
        leave_early(pipeline, told)
    if len(seen) < steps:
        raise ValueError(f"{type(pipeline).__name__} does not call its scheduler once a step, so fewstep cannot read it")
    return seen


def leave_early(pipeline: Any, told: Mapping[str, object]) -> Any:
    """The result of `pipeline(**told)`; None if the call was ended early.

    Raises:
        ValueError: the pipeline raised an error; the message holds it.
    """
    pipeline.set_progress_bar_config(disable=True)
    try:
        with torch.no_grad():
            return pipeline(**told)
    except _Enough:
        return None
    except (KeyboardInterrupt, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # pipelines raise anything for arguments that they do not support
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{type(pipeline).__name__} cannot be called with {', '.join(told)}: {said}") from error


@contextmanager
def watched(scheduler: Any, see: Callable[[Tensor, object, Tensor], Tensor | None]) -> Iterator[None]:
    """In this context each step of `scheduler` calls see(output, time, state). A tensor it returns replaces the result."""
    from diffusers.schedulers.scheduling_utils import SchedulerOutput

    original = scheduler.step
    parameters = inspect.signature(original)

    @wraps(original)
    def step(*args: Any, **named: Any) -> Any:
        given = parameters.bind(*args, **named).arguments
        output, time, state = list(given.values())[:3]
        instead = see(output, time, state)
        return original(*args, **named) if instead is None else SchedulerOutput(prev_sample=instead)

    with replaced(scheduler, "step", step):
        yield


def run(pipeline: Any, told: Mapping[str, object]) -> Tensor:
    """Runs the pipeline to the end of its scheduler and returns the last state, (B, *), without decoding it."""
    ends: list[Tensor] = []
    original = pipeline.scheduler.step

    @wraps(original)
    def step(*args: Any, **named: Any) -> Any:
        made = original(*args, **named)
        ends.append(made[0] if isinstance(made, tuple) else made.prev_sample)
        if len(ends) == len(pipeline.scheduler.timesteps):
            raise _Enough
        return made

    with replaced(pipeline.scheduler, "step", step):
        leave_early(pipeline, told)
    return ends[-1]


@dataclass
class SetUp:
    """The arguments with which a pipeline set up its scheduler."""

    mu: float | None = None
    sigmas: tuple[float, ...] | None = None


@contextmanager
def shifted(scheduler: Any) -> Iterator[SetUp]:
    """Yields a `SetUp` that is filled in when a pipeline sets up the scheduler."""
    original, found = scheduler.set_timesteps, SetUp()

    @wraps(original)
    def set_timesteps(*args: Any, **named: Any) -> Any:
        found.mu = None if named.get("mu") is None else float(named["mu"])
        found.sigmas = None if named.get("sigmas") is None else tuple(map(float, named["sigmas"]))
        return original(*args, **named)

    with replaced(scheduler, "set_timesteps", set_timesteps):
        yield found


@contextmanager
def caught(part: Any, name: str) -> Iterator[list[Tensor]]:
    """In this context a call of part.name ends the pipeline, and its argument is appended to the yielded list."""
    given: list[Tensor] = []

    def catch(x: Tensor, *args: Any, **named: Any) -> Any:
        given.append(x)
        raise _Enough

    with replaced(part, name, catch):
        yield given


@contextmanager
def replaced(thing: Any, name: str, value: object) -> Iterator[None]:
    """In this context the attribute `name` of the object `thing` is `value`."""
    before = vars(thing).get(name, _Enough)
    object.__setattr__(thing, name, value)
    try:
        yield
    finally:
        if before is _Enough:
            object.__delattr__(thing, name)
        else:
            object.__setattr__(thing, name, before)


@contextmanager
def _answering(network: nn.Module, calls: list[Call]) -> Iterator[None]:
    """In this context `network` returns noise, and each call is appended to `calls`."""
    with replaced(network, "forward", answering(network, calls.append)):
        yield


def answering(network: nn.Module, see: Callable[[Call], None]) -> Callable[..., Any]:
    """A function in place of the forward of `network` that returns noise and passes each call to `see`."""
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    signature = inspect.signature(type(network).forward)
    when = time_name(type(network))
    rng = torch.Generator().manual_seed(0)

    def answer(*args: Any, **named: Any) -> Any:
        given = signature.bind(network, *args, **named).arguments
        names = list(given)
        x, time = given[names[1]], given[when]
        batch = torch.stack(list(x)) if isinstance(x, list | tuple) else x
        out = torch.randn(_answered(network, batch), generator=rng).to(batch)
        call = Call(batch, batch is not x, torch.as_tensor(time), _others(signature, given, (names[1], when)), out)
        see(call)
        said = list(out) if call.listed else out
        return Transformer2DModelOutput(sample=said) if given.get("return_dict", True) else (said,)

    return answer


def _answered(network: nn.Module, x: Tensor) -> tuple[int, ...]:
    """The shape of the output for `x`: twice the channels if the network has a learned variance."""
    config: Mapping[str, Any] = getattr(network, "config", {})
    channels, outputs = config.get("in_channels"), config.get("out_channels")
    doubled = channels == x.shape[1] and outputs == 2 * channels
    return (len(x), x.shape[1] * (2 if doubled else 1), *x.shape[2:])


def _others(signature: inspect.Signature, given: Mapping[str, Any], known: Sequence[str]) -> dict[str, object]:
    """All arguments but the sample and the time that differ from their defaults, as a flat dictionary."""
    rest: dict[str, object] = {}
    for name, value in list(given.items())[1:]:
        parameter = signature.parameters[name]
        if name in OURS or name in known or value is parameter.default:
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            rest |= value
        elif isinstance(value, dict):
            rest |= {f"{name}.{inner}": entry for inner, entry in value.items()}
        else:
            rest[name] = value
    return rest
