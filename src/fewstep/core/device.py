"""Where to compute, and in which precision."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from .private import cpu_multiplies_bfloat16
from .spread import together

if TYPE_CHECKING:
    from accelerate import Accelerator

Module = TypeVar("Module", bound=nn.Module)
WITHOUT_FLOAT64 = {"mps"}  # device types


def best_device() -> torch.device:
    """A CUDA GPU if there is one, else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def on_device(module: Module) -> Module:
    """`module` on the best device."""
    return module.to(best_device())


def fast_precision() -> str:
    """bfloat16 where the best device computes it, else float32; float32 on Apple's GPU, where nobody has compared them."""
    kind = best_device().type
    fast = (kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)) or (
        kind == "cpu" and cpu_multiplies_bfloat16()
    )
    return "bf16" if fast else "no"


def at_least_float32(tensor: Tensor) -> Tensor:
    """`tensor` in float32, or unchanged if its type is wider: sums of logits lose too much in bfloat16."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def default_accelerator(precision: str | None = None, accumulate: int = 1) -> Accelerator:
    """The default for training: the best device, all launched processes, the fast precision.

    Args:
        precision: "no" (float32) or "bf16". None takes that of the first Accelerator of this process, as accelerate allows
            only one; if there is none, bfloat16 where the hardware computes it.
        accumulate: micro-batches a step.
    """
    from accelerate import Accelerator  # seconds to import
    from accelerate.state import is_initialized

    if precision is None and not is_initialized():
        precision = fast_precision()
    return Accelerator(cpu=best_device().type == "cpu", mixed_precision=precision, gradient_accumulation_steps=accumulate)


def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 on devices without float64, such as Apple's GPU."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def with_float64(device: torch.device) -> torch.device:
    """`device`, or the CPU where it has no float64."""
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device


def wide(x: Tensor) -> Tensor:
    """`x` in the `widest` numbers of its device."""
    return x.to(widest(x.device))


def finite(module: nn.Module) -> bool:
    """Whether all weights are finite; the host waits for the device."""
    return math.isfinite(norm_of(module))


def norm_of(module: nn.Module) -> Tensor:
    """The norm of all weights. If they are spread over processes, every process has to call this."""
    return together(get_total_norm([p.detach() for p in module.parameters()]))
