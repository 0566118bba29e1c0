"""What float32 alone does to a model's samples, measured on the model: no other difference is an error of the format."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

STEP = 2.0**-23  # from a float32 to the next, in parts of it


@contextmanager
def one_step_off(denoiser: nn.Module) -> Iterator[None]:
    """Inside the block every call of `denoiser` gets its state rounded to float32, and its noise level one step higher.

    A network answers such a call as another one would that rounds differently. So its samples move as far as rounding
    moves them, at this noise level, prediction and number of calls.

    Args:
        denoiser: called with x (B, *) and sigma (B,), both float64, and whatever else.
    """

    def move(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        x, sigma, *rest = given
        assert isinstance(x, Tensor)
        return x.float().to(x.dtype), sigma * (1 + STEP), *rest

    handle = denoiser.register_forward_pre_hook(move)
    try:
        yield
    finally:
        handle.remove()
