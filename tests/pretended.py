"""A pretended device: it computes as the CPU does, has no float64, and counts how often the host waits for it.

Forward passes only: autograd and torch's own entry points look for a real device's driver, so the few that do are answered
here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("xla:0")  # a name that torch knows and this build has no driver for
METHODS = {Tensor.item, Tensor.tolist, Tensor.__float__, Tensor.__int__, Tensor.__bool__, Tensor.__index__, Tensor.numpy}
READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default, torch.ops.aten.is_nonzero.default}
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


def _nonzero(tensor: Tensor, *, as_tuple: bool = False) -> Any:
    """The host waits: it makes room for as many places as there are."""
    Pretended.reads += 1
    found = torch.ops.aten.nonzero.default(tensor)
    return found.unbind(1) if as_tuple else found


INNER = {  # methods of tensors that look for a driver, and what they call
    Tensor.contiguous: torch.ops.aten.contiguous.default,
    Tensor.__invert__: torch.ops.aten.bitwise_not.default,
    Tensor.nonzero: _nonzero,
}


class Held(Tensor):
    """A tensor of the pretended device; `content` is where it really is."""

    content: Tensor

    @staticmethod
    def __new__(cls, content: Tensor) -> Held:
        if content.dtype == torch.float64:
            raise TypeError("this device has no float64")
        made: Held = Tensor._make_wrapper_subclass(
            cls, content.shape, content.stride(), content.storage_offset(), dtype=content.dtype, device=DEVICE
        )
        made.content = content.detach()
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Held({self.content})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func in METHODS:
                Pretended.reads += 1
                return func(args[0].content, *args[1:], **(kwargs or {}))
            if func in (Tensor.__getitem__, Tensor.__setitem__):
                out = func(*_contents(args))
                return out if out is None else Held(out)
            return INNER.get(func, func)(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError("the pretended device exists inside `with Pretended()` only")


class _Made(TorchFunctionMode):
    """Tensors made of numbers of the host: torch asks a real device's driver for them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu").type == DEVICE.type:
            return Held(torch.tensor(*args, **kwargs | {"device": "cpu"}))
        return func(*args, **kwargs)


class Pretended(TorchDispatchMode):
    """Inside it the device exists.

    Attributes:
        reads: how often the host waited for it since then: for a value, or for a copy.
    """

    reads = 0

    def __enter__(self) -> Pretended:
        Pretended.reads = 0
        super().__enter__()
        self.made = _Made().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.made.__exit__(*error)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        flat, _ = tree_flatten((args, kwargs))
        held = [each for each in flat if isinstance(each, Held)]
        asked = kwargs.get("device")
        there = bool(held) if asked is None else torch.device(asked).type == DEVICE.type
        if held and (func in READS or not there):
            Pretended.reads += 1
        if held and func not in COPIES:
            strangers = [each for each in flat if isinstance(each, Tensor) and not isinstance(each, Held) and each.ndim]
            assert not strangers, f"{func}: tensors of two devices"
        if asked is not None:
            kwargs["device"] = torch.device("cpu")
        args, kwargs = _contents((args, kwargs))
        out = func(*args, **kwargs)
        if not there or func in READS:
            return out
        if func._schema.is_mutable:  # an operation in place returns what it was given
            known = {id(each.content): each for each in held}
            return tree_map(lambda each: known.get(id(each), each) if isinstance(each, Tensor) else each, out)
        return tree_map(lambda each: Held(each) if isinstance(each, Tensor) else each, out)


def _contents(tree: Any) -> Any:
    return tree_map(lambda each: each.content if isinstance(each, Held) else each, tree)
