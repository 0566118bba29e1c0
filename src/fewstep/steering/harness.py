"""A proxy-tuned model as a model of the LM Evaluation Harness (lm_eval ≥ 0.4.13, the extra `evaluate`).

    lm_eval.simple_evaluate(model=ProxiedLM(base, ProxyTuning(expert, antiexpert), tokenizer), tasks=[…])

Tokens, truncation, templates, batches and caches are those of the harness's own class for transformers, so only
proxy-tuning makes a score differ from the base's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils_hf import stop_sequences_criteria
from torch import Tensor

from ..core.parts import Works
from ..core.processes import speaks
from .reader import Pair, Reader
from .tuning import ProxyTuning, generate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ProxiedLM(HFLM):  # type: ignore[misc, unused-ignore]
    """Log-likelihoods and generation under softmax(base + α·(expert − antiexpert)).

    Args:
        base: the large model, in eval mode.
        proxy: the small models and α, which must be a number.
        tokenizer: of the base.
        gen_length: tokens to generate if a task does not set `max_gen_toks`.
        batch: rows at once.
        works: keeps answers on the disk and shares them among all processes of a command; by default in memory.

    Raises:
        ValueError: α is a rule or a sequence: a text that is scored as a whole has no first new token to count from.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        proxy: ProxyTuning,
        tokenizer: PreTrainedTokenizerBase,
        *,
        gen_length: int = 128,
        batch: int = 16,
        works: Works | None = None,
    ) -> None:
        constant = isinstance(proxy.alpha, (int, float))
        if not constant:
            raise ValueError(f"the evaluation harness scores whole texts, so alpha must be one number, got {proxy.alpha}")
        super().__init__(pretrained=base, tokenizer=tokenizer, backend="causal", batch_size=batch)
        self.proxy = proxy
        self.gen_length = gen_length
        self.batch = batch
        self.works = works or Works()

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(ln p(continuation | context), whether greedy decoding gives the continuation), per request."""
        found = self._shared("likelihoods", requests, super().loglikelihood)
        return [(value, same) for value, same in found]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """ln p(text), per request."""
        return self._shared("texts", requests, super().loglikelihood_rolling)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The generated texts."""
        return self._shared("generations", requests, super().generate_until)

    def _shared(self, title: str, requests: Sequence[Any], answer: Callable[..., list[Any]]) -> list[Any]:
        """The answers of the harness's own class, made in parts; see `Works`."""
        asked = [request.args for request in requests]
        quiet = not speaks()
        return self.works.answers(
            title, asked, self.batch, lambda part: answer(requests[part.start : part.stop], disable_tqdm=quiet)
        )

    @property
    def max_gen_toks(self) -> int:
        """Tokens to generate if a task does not say."""
        return self.gen_length

    @torch.no_grad()
    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Combined logits (B, L, V) of texts (B, L), padded on the right, which a causal model does not see."""
        assert attn_mask is None and labels is None, "only for models with an encoder"
        options: dict[str, Any] = {"keep": inps.shape[1], "more": False}
        wide = Reader(self.model).read(inps, **options)
        small = Pair(self.proxy.expert, self.proxy.antiexpert, self.proxy.common).read(inps, None, inps, None, **options)
        return self.proxy.combine(0, wide, *small)

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        """Texts (B, L') that continue `context` (B, L), which is padded on the left."""
        if not options.get("temperature"):
            options = {name: value for name, value in options.items() if name != "temperature"} | {"do_sample": False}
        made: Tensor = generate(
            self.model, self.proxy, context, max_length=max_length, pad_token_id=self.tokenizer.pad_token_id,
            stopping_criteria=stop_sequences_criteria(self.tokenizer, stop, context.shape[1], context.shape[0]), **options,
        )  # fmt: skip
        return made
