"""Settings of early commit: thresholds over the progress of decoding, and the place of an answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Schedule(Protocol):
    """A threshold as a function of the share of steps done: (B,) in [0, 1] -> (B,)."""

    def __call__(self, progress: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Stairs:
    """levels[k] from progress at[k − 1] on. One level is a constant.

    The defaults are Prophet's; its paper takes 8, 5, 3.5 for GSM8K and GPQA, and 7.5, 5, 4.5 for code.

    Reference: Li et al. 2025, Diffusion Language Models Know the Answer Before Decoding.
    """

    levels: tuple[float, ...] = (7.5, 5.0, 2.5)
    at: tuple[float, ...] = (0.33, 0.67)

    def __post_init__(self) -> None:
        if len(self.levels) != len(self.at) + 1 or list(self.at) != sorted(self.at):
            raise ValueError(f"n levels need n − 1 rising places, got {self.levels} at {self.at}")

    def __call__(self, progress: Tensor) -> Tensor:
        edges = torch.tensor(self.at, dtype=progress.dtype, device=progress.device)
        levels = torch.tensor(self.levels, dtype=progress.dtype, device=progress.device)
        return levels[(progress[:, None] >= edges).sum(1)]


@dataclass(frozen=True)
class Linear:
    """start + (end − start)·p."""

    start: float = 7.5
    end: float = 2.5

    def __call__(self, progress: Tensor) -> Tensor:
        return self.start + (self.end - self.start) * progress


@dataclass(frozen=True)
class Cosine:
    """end + (start − end)·(1 + cos πp)/2."""

    start: float = 7.5
    end: float = 2.5

    def __call__(self, progress: Tensor) -> Tensor:
        return self.end + (self.start - self.end) * (1 + (math.pi * progress).cos()) / 2


@dataclass(frozen=True)
class Exponential:
    """end + (start − end)·exp(−rate·p)."""

    start: float = 7.5
    end: float = 2.5
    rate: float = 4.0

    def __call__(self, progress: Tensor) -> Tensor:
        return self.end + (self.start - self.end) * (-self.rate * progress).exp()


@dataclass(frozen=True)
class Scaled:
    """factor·schedule(p)."""

    schedule: Schedule
    factor: float

    def __call__(self, progress: Tensor) -> Tensor:
        return self.factor * self.schedule(progress)


class Region(Protocol):
    """The place of the answer: the positions open at the start, (B, L) bool -> some of them, (B, L) bool."""

    def __call__(self, open: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Span:
    """Places start to stop of the generation; negative ones count from its end, None is the end."""

    start: int = 0
    stop: int | None = None

    def __call__(self, open: Tensor) -> Tensor:
        column = torch.arange(open.shape[1], device=open.device)
        first = open.to(torch.uint8).argmax(1, keepdim=True)
        end = (column * open).amax(1, keepdim=True) + 1
        bounds = [(end if place < 0 else first) + place for place in (self.start, self.stop or 0)]
        stop = end if self.stop is None else bounds[1]
        return open & (column >= bounds[0]) & (column < stop)


@dataclass(frozen=True)
class Suffix:
    """The open positions after the last given text before an open position, e.g. "The answer is"; at most `length`.

    If no text is given inside the generation, that text is the prompt, so the region is the whole generation.
    """

    length: int | None = None

    def __call__(self, open: Tensor) -> Tensor:
        column = torch.arange(open.shape[1], device=open.device)
        last = (column * open).amax(1, keepdim=True)
        given = (column.expand_as(open) + 1).masked_fill(open | (column > last), 0).amax(1, keepdim=True)
        return open & (column >= given) & (column < given + (open.shape[1] if self.length is None else self.length))
