"""A network by depth: its blocks, those that do not train, and what is computed again for the gradient."""

from __future__ import annotations

from typing import Any

from torch import nn


def blocks_of(network: nn.Module) -> list[str]:
    """The names of a network's blocks in the order of depth: the down blocks of a UNet, all blocks of a transformer."""
    lists = {name: part for name, part in network.named_children() if isinstance(part, nn.ModuleList)}
    chosen = ["down_blocks"] if "down_blocks" in lists else list(lists)
    return [f"{name}.{k}" for name in chosen for k in range(len(lists[name]))]


def freeze(network: nn.Module, blocks: int) -> None:
    """The first `blocks` of the network do not train.

    Raises:
        ValueError: it has not so many.
    """
    names = blocks_of(network)
    if blocks > len(names):
        raise ValueError(f"--freeze {blocks} is more than the {len(names)} blocks of this {type(network).__name__}")
    for name in names[:blocks]:
        network.get_submodule(name).requires_grad_(False)


def checkpointing(network: Any) -> None:
    """The activations of the network's blocks are computed again for the gradient.

    Raises:
        ValueError: it cannot do that.
    """
    try:
        network.enable_gradient_checkpointing()
    except (AttributeError, ValueError) as error:
        kind = type(network).__name__
        raise ValueError(f"a {kind} keeps its activations for the gradient; leave --checkpointing out") from error
