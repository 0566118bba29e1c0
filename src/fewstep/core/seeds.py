"""All randomness: one generator a seed, so that a sample never depends on its batch, process or device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

States = tuple[Tensor, ...]  # of torch's own generators


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


def generator_state(device: torch.device) -> States:
    """The states of torch's own generators of the CPU and of `device`, from which dropout draws."""
    return torch.get_rng_state(), *(own.get_rng_state(*place) for own, place in _generator_of(device))


@contextmanager
def drawn_from(start: int | States, device: torch.device) -> Iterator[None]:
    """Inside the block torch's own generators start at `start`, a seed or a `generator_state`; then they are as before."""
    before = generator_state(device)
    if isinstance(start, int):
        torch.manual_seed(start)
    else:
        _set_generators(start, device)
    try:
        yield
    finally:
        _set_generators(before, device)


def _set_generators(states: States, device: torch.device) -> None:
    first, *others = states
    torch.set_rng_state(first)
    for (own, place), state in zip(_generator_of(device), others, strict=True):
        own.set_rng_state(state, *place)


def _generator_of(device: torch.device) -> list[tuple[Any, tuple[torch.device, ...]]]:
    """torch's module with the generator of `device`, and the arguments of its functions; empty for the CPU."""
    own = getattr(torch, device.type, None)
    if not hasattr(own, "get_rng_state"):
        return []
    return [(own, () if device.type == "mps" else (device,))]  # there is only one Apple GPU
