"""All randomness: one generator a seed, so that a sample never depends on its batch, process or device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor


def derive(*path: int) -> int:
    """A seed for the place `path`, e.g. (run seed, row); different paths give unrelated streams."""
    return int(np.random.SeedSequence(path).generate_state(1, np.uint32)[0])


def generators(seeds: Iterable[int]) -> list[torch.Generator]:
    """One CPU generator a seed: the list that a stock diffusers pipeline takes as `generator`."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def normal(rngs: Sequence[torch.Generator], shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Standard normal noise (B, *shape), row i from generator i; the same on every device.

    Row i equals what diffusers' pipelines draw from the same generator.
    """
    return torch.stack([torch.randn(tuple(shape), generator=rng) for rng in rngs]).to(device)
