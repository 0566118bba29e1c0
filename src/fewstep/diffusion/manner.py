"""Reads from the first steps of a stock pipeline how it calls its network and how its guidance works."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .calling import Calling, time_name
from .cond import LENGTH, Cond
from .recording import Call, Step, record, shifted

Kind = Literal["rows", "list", "each", "shared"]
COUNT = 3  # samples in a recording: hardly any other dimension is 3 by chance
SCALE = 5.0  # guidance scale of the recording
CLOSE = 1e-4  # relative tolerance for float32


@dataclass(frozen=True)
class Guide:
    """Classifier-free guidance as a pipeline does it.

    Attributes:
        name: name of the argument for the scale.
        needs_negative: whether a negative prompt is needed as well.
        null: which half of the rows, or which of two calls, has the null condition: 0 or 1.
        plus: what the pipeline adds to the scale in f_null + scale·(f_cond − f_null).
        keeps_norm: whether the guided output is scaled to the norm of the conditional one, along the last axis.
    """

    name: str
    needs_negative: bool
    null: int
    plus: float = 0.0
    keeps_norm: bool = False


@dataclass(frozen=True)
class Manner:
    """How a pipeline calls its network.

    Attributes:
        calling: the form of the call.
        shape: shape of one sample in the scheduler.
        kinds: kind of each argument: rows, a list of rows, one equal entry per sample ("each"), or shared.
        masks: dtypes of the masks, which a pipeline may leave out if nothing is masked.
        off: the arguments that switch guidance off.
        guide: how guidance works; None if there is none.
        mu: shift of the scheduler's levels for samples of this size; None if there is none.
        sigmas: the levels that the pipeline gives its scheduler for COUNT + 1 steps; None if it gives none.
        first, null: conditions of COUNT samples, and their null conditions.
    """

    calling: Calling
    shape: tuple[int, ...]
    kinds: Mapping[str, Kind]
    masks: Mapping[str, torch.dtype]
    off: Mapping[str, object]
    guide: Guide | None
    mu: float | None
    sigmas: tuple[float, ...] | None
    first: Cond
    null: Cond | None

    def on(self, guidance: float | None, count: int) -> dict[str, object]:
        """The guidance arguments for `count` samples; None is without guidance.

        Raises:
            ValueError: this pipeline has no guidance.
        """
        if guidance is None:
            return dict(self.off)
        if self.guide is None:
            raise ValueError("this pipeline has no classifier-free guidance; leave --guidance out")
        negative = {"negative_prompt": [""] * count} if self.guide.needs_negative else {}
        return {self.guide.name: guidance, **negative}

    def cond(self, call: Call, part: slice = slice(None)) -> Cond:
        """The conditions in some rows of a call, on the CPU."""
        rows: dict[str, Tensor] = {}
        shared: dict[str, object] = {}
        for name, value in call.others.items():
            kind = self.kinds.get(name, "shared")
            if kind == "rows":
                rows[name] = value[part].cpu()
            elif kind == "list":
                each = value[part]
                rows[name] = nn.utils.rnn.pad_sequence([row.cpu() for row in each], batch_first=True)
                rows[name + LENGTH] = torch.tensor([len(row) for row in each])
            else:
                shared[name] = value[:1] if kind == "each" else _fixed(value)
        for name in self.masks.keys() - rows.keys():
            shape = next(value.shape[:2] for other, value in rows.items() if value.ndim > 2)
            rows[name] = torch.ones(shape, dtype=self.masks[name])
        return Cond(rows, shared)


def halves(step: Step, count: int) -> list[tuple[Call, slice]]:
    """The conditional and unconditional parts of a guided step: two halves of one call, or two calls.

    Raises:
        ValueError: the step has another form.
    """
    rows = [len(call.x) for call in step.calls]
    if rows == [2 * count]:
        return [(step.calls[0], slice(0, count)), (step.calls[0], slice(count, None))]
    if rows == [count, count]:
        return [(call, slice(None)) for call in step.calls]
    raise ValueError(
        f"for {count} samples this pipeline calls its network with {rows} rows a step, which fewstep cannot read"
    )


def learn(pipeline: Any, network: nn.Module, told: Mapping[str, object]) -> Manner:
    """Reads how `pipeline` calls `network`.

    Args:
        pipeline: a pipeline of diffusers.
        network: its denoising network.
        told: arguments for COUNT samples with prompts of different lengths, without those of guidance.

    Raises:
        ValueError: the pipeline calls its network in a way that fewstep does not support.
    """
    parameters = inspect.signature(pipeline.__call__).parameters
    name = next((each for each in ("true_cfg_scale", "guidance_scale") if each in parameters), None)
    negative = name == "true_cfg_scale" and "negative_prompt" in parameters
    off: dict[str, object] = {}
    guided = None
    if name:
        on: dict[str, object] = {name: SCALE} | ({"negative_prompt": [""] * COUNT} if negative else {})
        guided = record(pipeline, network, dict(told) | on)[0]
        if [len(call.x) for call in guided.calls] == [COUNT]:  # the scale is an argument of the network
            guided = None
        else:
            off = {name: _off(pipeline, network, told, name)}
    with shifted(pipeline.scheduler) as shift:
        steps = record(pipeline, network, dict(told) | off, steps=COUNT)
    if any([len(call.x) for call in step.calls] != [COUNT] for step in steps):
        raise ValueError(f"{type(pipeline).__name__} calls its network several times a step, even without guidance")
    calling, kinds = _calling(steps, network), _kinds(steps[0].calls[0].others)
    masks = {
        each: value.dtype
        for each, value in steps[0].calls[0].others.items()
        if kinds[each] == "rows" and isinstance(value, Tensor) and value.ndim == 2 and "mask" in each
    }
    plain = Manner(calling, tuple(steps[0].state.shape[1:]), kinds, masks, off, None, shift.mu, shift.sigmas, Cond(), None)
    first = plain.cond(steps[0].calls[0])
    if guided is None or name is None:
        return replace(plain, first=first)
    sides = halves(guided, COUNT)
    null = 0 if _apart(plain.cond(*sides[0]), first) > _apart(plain.cond(*sides[1]), first) else 1
    plus, keeps_norm = _formula(guided, calling, sides[1 - null], sides[null])
    guide, nothing = Guide(name, negative, null, plus, keeps_norm), plain.cond(*sides[null])
    check_shared(nothing, first)
    return replace(plain, first=first, guide=guide, null=nothing)


def check_shared(cond: Cond, first: Cond) -> None:
    """Raises ValueError if the shared arguments of `cond` differ from those of `first`."""
    for name in sorted(cond.shared.keys() | first.shared.keys()):
        if not _same(cond.shared.get(name), first.shared.get(name)):
            raise ValueError(
                f"this pipeline gives its network another {name} for other prompts, and not row by row, which fewstep does "
                "not support"
            )


def _off(pipeline: Any, network: nn.Module, told: Mapping[str, object], name: str) -> float:
    """The scale at which guidance is switched off: 1, or 0 where the pipeline adds 1."""
    for scale in (1.0, 0.0):
        step = record(pipeline, network, dict(told) | {name: scale})[0]
        if [len(call.x) for call in step.calls] == [COUNT]:
            return scale
    raise ValueError(f"{type(pipeline).__name__} cannot be run without guidance by any {name}, which fewstep needs")


def _calling(steps: Sequence[Step], network: nn.Module) -> Calling:
    """Reads the form of the call from steps without guidance."""
    step, call = steps[0], steps[0].calls[0]
    if call.x.numel() != step.state.numel():
        raise ValueError(
            f"its network sees {_times(call.x.shape[1:])}, more than the noisy sample of {_times(step.state.shape[1:])}; "
            "fewstep does not tune pipelines that are given a picture as well"
        )
    told = [each.calls[0].time.double().flatten() for each in steps]
    if any(bool((each != each[0]).any()) for each in told):
        raise ValueError("its network gets several times per sample, which fewstep does not support")
    factor, offset = _line([each.time for each in steps], [float(each[0]) for each in told])
    places = tuple(call.time.shape[1:])
    shape = None if call.x.shape == step.state.shape else tuple(call.x.shape[1:])
    plain = Calling(time_name(type(network)), factor, offset, places, shape, call.listed)
    shown, kept = call.x.double().flatten(), step.state.double().flatten()
    if not _close(shown, kept * (shown @ kept / (kept @ kept))):
        raise ValueError("its network sees something other than the scaled noisy sample, which fewstep does not support")
    read, output = plain.read(call.answer, step.state).double().flatten(), step.output.double().flatten()
    sign = float((read @ output) / (read @ read)) if read.shape == output.shape else 0.0
    if not (abs(abs(sign) - 1) < CLOSE and _close(read * sign, output)):
        raise ValueError("the pipeline changes the output of its network in a way that fewstep does not support")
    return Calling(plain.time, factor, offset, places, shape, call.listed, round(sign))


def _line(times: Sequence[float], told: Sequence[float]) -> tuple[float, float]:
    """The factor and offset with told = offset + factor·time."""
    factor = (told[1] - told[0]) / (times[1] - times[0])
    factor = float(f"{factor:.5g}")  # both are rounded to float32 on their way
    offset = round(told[0] - factor * times[0], 4)
    size = max(map(abs, told))
    if any(abs(offset + factor * time - said) > CLOSE * size for time, said in zip(times, told, strict=True)):
        raise ValueError(f"its network gets the times {told} for the scheduler's {times}, which is not linear")
    return factor, offset


def _kinds(others: Mapping[str, object]) -> dict[str, Kind]:
    return {name: _kind(value) for name, value in others.items()}


def _kind(value: object) -> Kind:
    if isinstance(value, Tensor):
        return "rows" if value.ndim and len(value) == COUNT else "shared"
    if isinstance(value, list) and len(value) == COUNT:
        if all(isinstance(each, Tensor) for each in value):
            return "list"
        return "each" if all(each == value[0] for each in value) else "shared"
    return "shared"


def _fixed(value: object) -> object:
    """A shared argument on the CPU. Lists become tuples, because a list means one entry per sample."""
    if isinstance(value, list | tuple):
        return tuple(map(_fixed, value))
    return value.cpu() if isinstance(value, Tensor) else value


def _formula(step: Step, calling: Calling, cond: tuple[Call, slice], null: tuple[Call, slice]) -> tuple[float, bool]:
    """`plus` and `keeps_norm` of a guided step."""
    state, output = step.state[:COUNT], step.output[:COUNT].double()
    with_it, without = (calling.read(call.answer[part], state).double() for call, part in (cond, null))
    for keeps_norm in (False, True):
        for plus in (0.0, 1.0):
            if _close(guided_by(with_it, without, SCALE + plus, keeps_norm), output):
                return plus, keeps_norm
    raise ValueError("the guidance of this pipeline has a formula that fewstep does not know")


def guided_by(cond: Tensor, null: Tensor, scale: float, keeps_norm: bool) -> Tensor:
    """f_null + scale·(f_cond − f_null), scaled to the norm of f_cond along the last axis if `keeps_norm`."""
    guided = null + scale * (cond - null)
    if not keeps_norm:
        return guided
    kept: Tensor = guided * (cond.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
    return kept


def _same(a: object, b: object) -> bool:
    """Whether two shared arguments are equal: numbers, texts, tensors, and lists or tuples of them."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and a == b


def _apart(a: Cond, b: Cond) -> float:
    """The distance of two conditions: the absolute difference of their rows, and of their sizes where shapes differ."""
    both = [(a.rows[name], b.rows[name]) for name in a.rows.keys() & b.rows.keys()]
    return sum(
        float((x.double() - y.double()).abs().sum()) if x.shape == y.shape else 1.0 + abs(x.numel() - y.numel())
        for x, y in both
    )


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and float((a - b).norm()) <= CLOSE * float(b.norm())


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
