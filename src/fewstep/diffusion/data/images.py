"""Data sets in memory: images as uint8, latents, and whole sampling paths of a teacher."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """A data set in memory.

    Attributes:
        pixels: uint8 images or float32 latents, shape (N, C, H, W).
        labels: class of each, shape (N,) int64, or None.
        classes: names of class 0, 1, …, or None if they have none.
    """

    pixels: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.pixels.shape[1:])

    def shuffled(self) -> Images:
        """The same samples in an order of chance, always the same: data sets are often sorted by class."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))
        return Images(self.pixels[order], None if self.labels is None else self.labels[order], self.classes)

    def x0(self, index: int) -> Tensor:
        """Sample `index` as float32, images in [−1, 1], latents as they are."""
        pixels = self.pixels[index]
        return pixels.float() / 127.5 - 1 if pixels.dtype == torch.uint8 else pixels

    def point(self, index: int, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(x0, eps, t) of a training row: sample `index` with the noise that was drawn for it."""
        return self.x0(index), eps, t


@dataclass(frozen=True)
class Paths:
    """Whole sampling paths of a teacher, to regress each point of a path to its end.

    A row is (x0, eps, t) with x0 + t·eps on the path; x0 is the path's end. With several segments x0 is where the path's
    straight line through its point at the segment's lower edge ends, so that a DDIM step from x_t to that edge stays on
    the path. Plain denoising of such rows (r = lo) is path regression: the loss needs no case of its own.

    Attributes:
        states: the states at each level times 1/√(1 + σ²), float16, (N, K, C, H, W); the last is the clean sample.
        levels: noise levels, falling to 0, (K,) float32.
        edges: lower edges of the segments, a subset of `levels`, (S,).
        labels: class of each path, (N,) int64, or None.

    Reference: consistency mid-training, arXiv 2509.24526.
    """

    states: Tensor
    levels: Tensor
    edges: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.states)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.states.shape[2:])

    def state(self, index: int, level: int) -> Tensor:
        """x at a level of path `index`, float32."""
        return self.states[index, level].float() * (1 + self.levels[level] ** 2).sqrt()

    def point(self, index: int, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(x0, eps, t) at the level of path `index` nearest to t in its logarithm; the noise is the path's own."""
        level = int((self.levels[:-1].log() - t.log()).abs().argmin())
        sigma = self.levels[level]
        lo = self.edges[self.edges < sigma].max()
        x_t, x_lo = self.state(index, level), self.state(index, int((self.levels == lo).nonzero()))
        x0 = (x_lo - lo / sigma * x_t) / (1 - lo / sigma)
        return x0, (x_t - x0) / sigma, sigma
