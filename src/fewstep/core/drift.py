"""Weight drift: how far each layer of a network was moved by a change to its checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Drift(NamedTuple):
    """A layer's name, and the norm of the change of its weights divided by their norm before."""

    layer: str
    change: float


@torch.no_grad()
def moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor], layers: Iterable[str]) -> list[Drift]:
    """How far each layer was moved, in the order of `layers`. Layers without weights of their own are left out.

    Args:
        before, after: weights by name, such as "layers.0.mlp.weight", whose layer is "layers.0.mlp".
        layers: names, such as `met` gives.

    Raises:
        ValueError: the networks differ in the names or shapes of their weights.
    """
    if {name: w.shape for name, w in before.items()} != {name: w.shape for name, w in after.items()}:
        raise ValueError("the two networks are not of the same form, so their layers cannot be compared")
    found = []
    for layer in layers:
        names = [name for name in before if name.rpartition(".")[0] == layer]
        if names:
            change = sum(float((after[name].cpu().double() - before[name].cpu().double()).square().sum()) for name in names)
            length = sum(float(before[name].double().square().sum()) for name in names)
            found.append(Drift(layer, (change / max(length, 1e-300)) ** 0.5))
    return found


def met(network: nn.Module, run: Callable[[], object]) -> list[str]:
    """The names of the layers of a network in the order of their first call in `run`; those not called come last."""
    names, found = dict(network.named_modules()), dict[str, None]()
    with ExitStack() as stack, torch.no_grad():
        for name, module in names.items():
            if any(True for _ in module.parameters(recurse=False)):
                hook = module.register_forward_pre_hook(lambda _, __, name=name: found.setdefault(name))
                stack.callback(hook.remove)
        run()
    return [*found, *(name for name in names if name not in found)]
