"""Gathers tensors that FSDP2 has spread over processes, and spreads whole tensors again.

Tensors that are not spread are returned unchanged, so callers need not check. Every process has to call these functions.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn


def is_spread(tensor: object) -> bool:
    """Whether this process holds only a part of the tensor."""
    from torch.distributed.tensor import DTensor  # takes a while to import

    return isinstance(tensor, DTensor)


def together(tensor: Tensor) -> Tensor:
    """The whole `tensor`, on the device of its parts."""
    return cast(Any, tensor).full_tensor() if is_spread(tensor) else tensor


def whole(content: Any) -> Any:
    """`content` with every spread tensor whole and on the CPU; `content` is a tensor, or dicts and lists of tensors."""
    if isinstance(content, dict):
        return {name: whole(each) for name, each in content.items()}
    if isinstance(content, list):
        return [whole(each) for each in content]
    if not is_spread(content):
        return content
    full = together(content.detach()).cpu()
    return nn.Parameter(full, content.requires_grad) if isinstance(content, nn.Parameter) else full


def spread_as(tensor: Any, other: Tensor) -> Any:
    """This process's part of `tensor`, which is whole on each process, if it is spread as `other` is.

    Content of another shape, such as an optimizer's counter, is returned unchanged.
    """
    if not (is_spread(other) and isinstance(tensor, Tensor) and tensor.shape == other.shape):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    place = cast(Any, other)
    return distribute_tensor(tensor.to(other.device), place.device_mesh, place.placements, src_data_rank=None)
