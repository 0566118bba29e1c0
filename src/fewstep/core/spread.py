"""Tensors of which each process holds a part, as FSDP2 leaves a model's: whole, and back in their places.

What is not spread is left as it is, so callers need not know. Every process has to call.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn


def is_spread(tensor: object) -> bool:
    """Whether this process holds only a part of it."""
    from torch.distributed.tensor import DTensor  # takes a while to import

    return isinstance(tensor, DTensor)


def together(tensor: Tensor) -> Tensor:
    """All of `tensor`, where its parts are."""
    return cast(Any, tensor).full_tensor() if is_spread(tensor) else tensor


def whole(content: Any) -> Any:
    """`content`, a tensor or dicts and lists with tensors in them, with all of what is spread on the CPU."""
    if isinstance(content, dict):
        return {name: whole(each) for name, each in content.items()}
    if isinstance(content, list):
        return [whole(each) for each in content]
    if not is_spread(content):
        return content
    full = together(content.detach()).cpu()
    return nn.Parameter(full, content.requires_grad) if isinstance(content, nn.Parameter) else full


def spread_as(tensor: Any, other: Tensor) -> Any:
    """The part of `tensor`, which is whole on each process, that belongs beside that of `other`.

    What is not of its form, as a counter of an optimizer, is the same on each process.
    """
    if not (is_spread(other) and isinstance(tensor, Tensor) and tensor.shape == other.shape):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    place = cast(Any, other)
    return distribute_tensor(tensor.to(other.device), place.device_mesh, place.placements, src_data_rank=None)
