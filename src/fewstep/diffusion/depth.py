"""A network by depth: its blocks, those that do not train, and how what they take of the memory is less."""

from __future__ import annotations

from typing import Any

import torch
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


def hold_in_bfloat16(network: nn.Module) -> None:
    """Holds the weights that do not train of linear layers and convolutions in bfloat16.

    Autocast rounds them at each call anyway, so the numbers are the same bit by bit, from half the memory. Without
    autocast the network can no longer be called. Its first weight stays in float32, because diffusers takes its type for
    that of all weights.
    """
    first = next(network.parameters())
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            for weight in layer.parameters(recurse=False):
                if not weight.requires_grad and weight is not first:
                    weight.data = weight.data.to(torch.bfloat16)


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
