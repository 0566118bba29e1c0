"""Measures the effect of float32 rounding on a model's samples, to tell it from errors of an export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

STEP = 2.0**-23  # relative distance of a float32 to the next


@contextmanager
def one_step_off(denoiser: nn.Module) -> Iterator[None]:
    """In this context each call of `denoiser` gets x rounded to float32, and sigma one float32 step higher.

    The samples then differ as much as by other rounding, for this walk and prediction.

    Args:
        denoiser: called with x (B, *) and sigma (B,), both float64, and further arguments.
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
