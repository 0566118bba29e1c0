"""Counts network calls where they happen, never from an option."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class NFE:
    """Network function evaluations seen so far.

    Attributes:
        calls: forward passes of the network.
        rows: samples in all calls.
        positions: token ids in all calls, padding included; 0 if the network takes no token ids.
    """

    def __init__(self, network: nn.Module, told: Callable[[int], None] | None = None) -> None:
        self.calls = 0
        self.rows = 0
        self.positions = 0
        self._network = network
        self._told = told

    def _see(self, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: object) -> None:
        if module is not self._network:
            return  # a copy of the network, which has the hook too
        self.calls += 1
        sample = next(a for a in (*args, *named.values()) if isinstance(a, Tensor) and a.ndim)
        rows = len(sample)
        self.rows += rows
        self.positions += 0 if sample.is_floating_point() else sample.numel()
        if self._told:
            self._told(rows)


@contextmanager
def count_nfe(network: nn.Module, told: Callable[[int], None] | None = None) -> Iterator[NFE]:
    """Counts the forward passes of `network` inside the block, and calls `told(rows)` at each.

    Pass the network itself (`denoiser.network`), not a wrapper that may call it twice or not at all.
    """
    nfe = NFE(network, told)
    # kept out of compilation: a compiled network would guard on the count and compile anew at every call
    handle = network.register_forward_hook(torch.compiler.disable(nfe._see), with_kwargs=True)
    try:
        yield nfe
    finally:
        handle.remove()
