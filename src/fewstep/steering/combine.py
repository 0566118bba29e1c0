"""The formula of proxy-tuning, for generation, likelihoods, the evaluation harness and masked diffusion."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.device import at_least_float32

Alpha = float | Tensor | Callable[[Tensor, Tensor], float | Tensor]


def combined(base: Tensor, expert: Tensor, antiexpert: Tensor, alpha: Alpha, common: int | None = None) -> Tensor:
    """base + α·(expert − antiexpert), in float32, or in the models' own type if that is wider.

    Args:
        base, expert, antiexpert: logits, (…, V) each, of vocabularies that may differ in length.
        alpha: α: a number, a tensor that broadcasts, or a function of the base's logits and of expert − antiexpert, both
            without the ids that not all models have.
        common: from this id on the models have no tokens in common, even if their tables are longer.

    Returns:
        Logits (…, V), as wide as those of the base; −inf at ids that not all models have.

    Reference: Liu et al. 2024, Tuning Language Models by Proxy.
    """
    width = min(logits.shape[-1] for logits in (base, expert, antiexpert))
    width = width if common is None else min(width, common)
    both, up, down = (at_least_float32(logits[..., :width]) for logits in (base, expert, antiexpert))
    shift = up.to(both) - down.to(both)
    sum_ = both + (alpha(both, shift) if callable(alpha) else alpha) * shift
    return torch.nn.functional.pad(sum_, (0, base.shape[-1] - width), value=-torch.inf)
