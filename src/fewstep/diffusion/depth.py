"""The blocks of a network in order of depth: freezing them, and saving memory in them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def blocks_of(network: nn.Module) -> list[str]:
    """Names of a network's blocks in order of depth: the down blocks of a UNet, all blocks of a transformer."""
    lists = {name: part for name, part in network.named_children() if isinstance(part, nn.ModuleList)}
    chosen = ["down_blocks"] if "down_blocks" in lists else list(lists)
    return [f"{name}.{k}" for name in chosen for k in range(len(lists[name]))]


def freeze(network: nn.Module, blocks: int) -> None:
    """Freezes the first `blocks` blocks of the network.

    Raises:
        ValueError: the network has fewer blocks.
    """
    names = blocks_of(network)
    if blocks > len(names):
        raise ValueError(f"--freeze {blocks} is more than the {len(names)} blocks of this {type(network).__name__}")
    for name in names[:blocks]:
        network.get_submodule(name).requires_grad_(False)


def hold_in_bfloat16(network: nn.Module) -> None:
    """Stores the frozen weights of linear layers and convolutions in bfloat16, which halves their memory.

    Autocast rounds them at each call anyway, so results are bit-equal. Without autocast the network can no longer be
    called. The first weight stays in float32, because diffusers takes its dtype as that of the network.
    """
    first = next(network.parameters())
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            for weight in layer.parameters(recurse=False):
                if not weight.requires_grad and weight is not first:
                    weight.data = weight.data.to(torch.bfloat16)


def checkpointing(network: Any) -> None:
    """Makes the network recompute the activations of its blocks in the backward pass.

    Raises:
        ValueError: the network does not support that.
    """
    try:
        network.enable_gradient_checkpointing()
    except (AttributeError, ValueError) as error:
        kind = type(network).__name__
        raise ValueError(f"a {kind} cannot recompute its activations; leave --checkpointing out") from error
