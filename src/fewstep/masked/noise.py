"""Random numbers as a function of their place (row seed, step, column, token), and of nothing else.

So a sample depends neither on its batch nor on the positions that a rule looks at, on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # as signed 64-bit integers, which wrap around
MIX_1, MIX_2 = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


def uniform(seed: Tensor, *place: Tensor | int) -> Tensor:
    """Uniform numbers in (0, 1), float64, of the shape that `seed` and `place` (long) broadcast to.

    splitmix64 is applied once a coordinate.

    Reference: Steele, Lea and Flood 2014, Fast Splittable Pseudorandom Number Generators.
    """
    bits = mix(seed + GOLDEN)
    for coordinate in place:
        bits = mix(bits + torch.as_tensor(coordinate + 1, device=seed.device) * GOLDEN)
    return (_shift(bits, 12).double() + 0.5) * 2.0**-52


def mix(bits: Tensor) -> Tensor:
    """The finaliser of splitmix64: a bijection of 64-bit integers in which every input bit affects every output bit."""
    bits = (bits ^ _shift(bits, 30)) * MIX_1
    bits = (bits ^ _shift(bits, 27)) * MIX_2
    return bits ^ _shift(bits, 31)


def gumbel(seed: Tensor | int, step: Tensor | int, column: Tensor, size: int) -> Tensor:
    """Standard Gumbel noise for one row at the columns (n,), float64, shape (n, size)."""
    token = torch.arange(size, device=column.device)
    u = uniform((torch.zeros_like(column) + seed)[:, None], step, column[:, None], token)
    return u.log_().neg_().log_().neg_()


def _shift(bits: Tensor, by: int) -> Tensor:
    return bits >> by & (1 << 64 - by) - 1  # a shift without sign extension
