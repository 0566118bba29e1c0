"""Proxy-tuning in vLLM's server, as a logits processor over its whole batch (the interface of vLLM v1).

    vllm serve BASE --logits-processors fewstep.steering.served:ServedProxy \
        --additional-config '{"fewstep": {"expert": "EXPERT", "antiexpert": "SMALL", "alpha": 1.0}}'

"adapter", a LoRA adapter of the expert, may be given instead of "antiexpert". A request may set its own α, in `vllm_xargs`
as {"alpha": 0.5}. vLLM computes the base. The small models keep keys and values for each request, and read the new tokens
of one request after the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor, MoveDirectionality

from .load import load_adapter, load_causal, load_tokenizer
from .reader import Pair
from .tuning import ProxyTuning
from .vocabulary import same_tokens

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.sample.logits_processor import BatchUpdate

NAME = "fewstep"  # key of the settings in vLLM's additional_config
SETTINGS = ("expert", "antiexpert", "adapter", "alpha")


@dataclass
class _Request:
    """A text that vLLM is generating, and the small models' reading of it."""

    alpha: float
    prompt: list[int]
    output: list[int]  # vLLM's own list, which grows
    pair: Pair
    read: int = 0
    said: tuple[Tensor, Tensor] | None = None  # the small models' logits of the next token, (1, V) each

    def next(self) -> tuple[Tensor, Tensor]:
        """The small models' logits after all tokens so far; without a new token the last ones are returned."""
        ids = [*self.prompt, *self.output]
        if min(ids) < 0:
            raise ValueError("vLLM has not yet filled in its last tokens; serve without --async-scheduling")
        if self.said is None or len(ids) != self.read:
            new = torch.tensor([ids[self.read :]])
            expert, antiexpert = self.pair.read(new, None, new, None)
            self.said, self.read = (expert[:, -1], antiexpert[:, -1]), len(ids)
        return self.said


class ServedProxy(LogitsProcessor):  # type: ignore[misc, unused-ignore]
    """logits = base + α·(expert − antiexpert), for each request of vLLM's batch.

    Args:
        vllm_config: its `additional_config["fewstep"]` names the small models; see the head of this file.
        device: of the logits and of the small models.
        is_pin_memory: an argument of vLLM's interface, not used.

    Raises:
        ValueError: the settings name no pair of small models, or one cannot be loaded.

    Reference: Liu et al. 2024, Tuning Language Models by Proxy.
    """

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raises ValueError if a request's α is not a finite number."""
        _alpha(sampling_params, 0.0)

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        found = (vllm_config.additional_config or {}).get(NAME)
        if not isinstance(found, dict) or "expert" not in found or set(found) - set(SETTINGS):
            raise ValueError(
                f"vLLM's additional_config holds no {NAME!r} with an 'expert', an 'antiexpert' or 'adapter', "
                f"and optionally 'alpha'; got {found!r}"
            )
        self.proxy = _proxy(found, vllm_config.model_config.model, device)
        self.requests: dict[int, _Request] = {}

    def is_argmax_invariant(self) -> bool:
        """False, as steering changes the likeliest token."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Applies the removed, added and moved requests of vLLM's batch, in vLLM's order."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self.requests.pop(index, None)
        default = self.proxy.alpha
        assert isinstance(default, float), "_proxy makes it a float"
        for index, params, prompt, output in batch_update.added:
            if prompt is None:
                raise ValueError("the small models read ids; give prompts as text or ids, not as embeddings")
            pair = Pair(self.proxy.expert, self.proxy.antiexpert, self.proxy.common)
            self.requests[index] = _Request(_alpha(params, default), prompt, output, pair)
        for one, other, direction in batch_update.moved:
            there, here = self.requests.pop(one, None), self.requests.pop(other, None)
            if there is not None:
                self.requests[other] = there
            if here is not None and direction == MoveDirectionality.SWAP:
                self.requests[one] = here

    @torch.no_grad()
    def apply(self, logits: Tensor) -> Tensor:
        """Steers the logits (B, V) in place; row i belongs to the request at index i."""
        for index, request in self.requests.items():
            if request.alpha != 0 and index < len(logits):
                expert, antiexpert = (part.to(logits.device) for part in request.next())
                steered = ProxyTuning(self.proxy.expert, self.proxy.antiexpert, request.alpha, self.proxy.common)
                logits[index] = steered.combine(0, logits[index : index + 1], expert, antiexpert)[0]
        return logits


def _proxy(settings: dict[str, Any], base: str, device: torch.device) -> ProxyTuning:
    """The small models on the device. Raises ValueError if their vocabulary is not the base's."""
    expert, antiexpert, adapter = (settings.get(name) for name in SETTINGS[:3])
    if (antiexpert is None) == (adapter is None):
        raise ValueError("give either an 'antiexpert', the small model before tuning, or an 'adapter', its LoRA adapter")
    alpha = settings.get("alpha", 1.0)
    if not isinstance(alpha, (int, float)):
        raise ValueError(f"alpha must be a number, got {alpha!r}")
    others = [load_tokenizer(source) for source in (expert, antiexpert) if source is not None]
    common = same_tokens(load_tokenizer(base), *others)
    small = load_causal(str(expert)).to(device)
    if adapter is not None:
        return ProxyTuning(load_adapter(small, adapter), alpha=float(alpha), common=common)
    return ProxyTuning(small, load_causal(str(antiexpert)).to(device), float(alpha), common)


def _alpha(params: SamplingParams, default: float) -> float:
    """The α of a request, or the default."""
    found = (params.extra_args or {}).get("alpha", default)
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not math.isfinite(found):
        raise ValueError(f"alpha must be a finite number, got {found!r}")
    return float(found)
