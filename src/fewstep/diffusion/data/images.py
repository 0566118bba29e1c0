"""Data sets in memory: images as uint8, latents, and sampling paths of a teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..cond import CLASS
from .examples import Samples, Source


@dataclass(frozen=True)
class Images(Samples):
    """Samples in memory.

    Attributes:
        pixels: uint8 images or float32 latents, shape (N, C, H, W).
        labels: class of each sample, shape (N,) int64, or None.
        classes: names of class 0, 1, …, or None if classes have no names.
    """

    pixels: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.pixels.shape[1:])

    @property
    def label_range(self) -> tuple[int, int] | None:
        return _range(self.labels)

    def cond(self, k: int) -> Mapping[str, Tensor]:
        return {} if self.labels is None else {CLASS: self.labels[k].long()}

    def raw(self, rows: Sequence[int]) -> Tensor:
        return self.pixels[list(rows)]


@dataclass(frozen=True)
class Paths(Source):
    """Sampling paths of a teacher, for the regression of each point to its path's end.

    A row is (x0, eps, t) with x0 + t·eps on the path, and x0 is the path's end. With several segments x0 is the point for
    which a DDIM step from x_t ends on the path at the segment's lower edge. Plain denoising of such rows (r = lo) is path
    regression.

    Attributes:
        states: states at each level times 1/√(1 + σ²), float16, (N, K, C, H, W); the last is the clean sample.
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

    @property
    def classes(self) -> None:
        """None: a teacher's classes have no names."""

    @property
    def label_range(self) -> tuple[int, int] | None:
        return _range(self.labels)

    def cond(self, k: int) -> Mapping[str, Tensor]:
        return {} if self.labels is None else {CLASS: self.labels[k].long()}

    def state(self, index: int, level: int) -> Tensor:
        """The state x of path `index` at level number `level`, float32."""
        return self.states[index, level].float() * (1 + self.levels[level] ** 2).sqrt()

    def point(self, k: int, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The (x0, eps, t) of path `k` at its level nearest to t in the logarithm. The drawn noise is not used."""
        level = int((self.levels[:-1].log() - t.log()).abs().argmin())
        sigma = self.levels[level]
        lo = self.edges[self.edges < sigma].max()
        x_t, x_lo = self.state(k, level), self.state(k, int((self.levels == lo).nonzero()))
        x0 = (x_lo - lo / sigma * x_t) / (1 - lo / sigma)
        return x0, (x_t - x0) / sigma, sigma


def _range(labels: Tensor | None) -> tuple[int, int] | None:
    return None if labels is None else (int(labels.min()), int(labels.max()))


def channels_first(pixels: Tensor) -> Tensor:
    """Pictures (N, H, W), (N, H, W, C) or (N, C, H, W) as (N, C, H, W)."""
    if pixels.ndim == 3:
        return pixels[:, None]
    last = pixels.shape[-1] in (1, 3) and pixels.shape[1] not in (1, 3)
    return pixels.permute(0, 3, 1, 2) if last else pixels
