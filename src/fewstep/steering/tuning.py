"""Proxy-tuning: a small tuned model and its untuned version steer a large model, whose weights stay unchanged."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.private import decoding_loop
from .combine import combined
from .reader import Pair, adapter_of, learned_positions

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel
    from transformers.generation.streamers import BaseStreamer

AlphaRule = Callable[[int, Tensor, Tensor], "float | Tensor"]
MODES = ("greedy_search", "sample", "beam_search", "beam_sample")


class ProxyTuning:
    """logits = base + α·(expert − antiexpert), as a logits processor of transformers.

        model.generate(**inputs, logits_processor=[ProxyTuning(expert, antiexpert)])

    The small models keep their own keys and values and follow beams. If the ids continue those of the last call by one
    token a row, the same run goes on and its step is counted up; else a new run starts. Call `reset` after a change of
    weights. The result is log-probabilities, so that beams add up normalised scores.

    transformers' generate applies its own processors first: with a repetition penalty the formula gets the penalised base.
    A processor does not see the attention mask either, so prompts that look padded are refused. The function `generate`
    below has neither limit.

    Steering is as good as its expert. An expert that knows less than the base can make the base worse; `gap_closed` shows
    this.

    Args:
        expert: the small tuned model, in eval mode; a peft model with a LoRA adapter if `antiexpert` is None.
        antiexpert: the same small model untuned; None for the expert without its adapter, in one batch with the expert.
        alpha: α: a number; or a sequence with one number for each new token, whose last one holds for all later tokens; or
            a rule, called as rule(step, base, shift) with the count of tokens since the prompt, the base's
            log-probabilities (B, V) and expert − antiexpert (B, V), which returns a number or one for each row, (B,).
        common: from this id on the base has tokens that the small models lack, see `same_tokens`; None if there are none.
            They are never generated, and a text with such a token is refused.

    Where the sizes of the tables differ, ids that not all models have get −inf.

    Raises:
        ValueError: a small model has an encoder, `alpha` is empty or not finite, or there is neither an antiexpert nor a
            plain LoRA adapter.

    Reference: Liu et al. 2024, Tuning Language Models by Proxy.
    """

    def __init__(
        self,
        expert: nn.Module,
        antiexpert: nn.Module | None = None,
        alpha: float | Sequence[float] | AlphaRule = 1.0,
        common: int | None = None,
    ) -> None:
        if antiexpert is None:
            adapter_of(expert)
        for small in (expert, antiexpert):
            if small is not None and small.config.is_encoder_decoder:  # type: ignore[union-attr]
                raise ValueError(f"{type(small).__name__} has an encoder; experts must be decoder-only language models")
        if not callable(alpha) and not isinstance(alpha, (int, float)):
            alpha = tuple(float(value) for value in alpha)
            if not alpha:
                raise ValueError("alpha needs at least one value")
        if not callable(alpha) and not all(map(math.isfinite, alpha if isinstance(alpha, tuple) else (alpha,))):
            raise ValueError(f"alpha must be a finite number, got {alpha}")
        self.expert, self.antiexpert, self.alpha, self.common = expert, antiexpert, alpha, common
        self._run: Run | None = None

    def reset(self) -> None:
        """Forgets the last run and frees its keys and values."""
        self._run = None

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Steered log-probabilities of the next token, (B, V), from the base's `scores` (B, V) and `input_ids` (B, L)."""
        if not input_ids.shape[1]:
            raise ValueError("the small models read ids; give input_ids to generate instead of inputs_embeds")
        if self._run is None or not self._run.continues(input_ids):
            if self._run is not None and self._run.rolled_back(input_ids):
                raise ValueError(
                    "the text lost tokens since the last call: assisted and speculative decoding cannot be proxy-tuned, so "
                    "leave them out. For a new text that begins like the last one call reset() first"
                )
            self._refuse_padding(input_ids)
            self._run = Run(self, normalise=True)
        return self._run(input_ids, scores)

    def combine(self, step: int, base: Tensor, expert: Tensor, antiexpert: Tensor) -> Tensor:
        """base + α·(expert − antiexpert), (B, V) each, with the α of this step; see `combined`."""

        def alpha(common: Tensor, shift: Tensor) -> float | Tensor:
            if isinstance(self.alpha, tuple):
                return self.alpha[min(step, len(self.alpha) - 1)]
            if not callable(self.alpha):
                return self.alpha
            found = self.alpha(step, common.log_softmax(-1), shift)
            return found.to(common)[:, None] if isinstance(found, Tensor) and found.ndim else found

        return combined(base, expert, antiexpert, alpha, self.common)

    def _refuse_padding(self, ids: Tensor) -> None:
        """Refuses left padding as far as ids show it: a row starts with pad or end twice, or where other rows do not."""
        configs = [c for c in (self.expert.config, getattr(self.expert, "generation_config", None)) if c is not None]
        bos = {getattr(config, "bos_token_id", None) for config in configs}
        fill: set[int] = set()
        for config in configs:
            for name in ("pad_token_id", "eos_token_id"):
                value = getattr(config, name, None)
                fill |= set(value) if isinstance(value, list) else {value} if value is not None else set()
        starts = torch.isin(ids[:, 0], torch.tensor(sorted(fill), dtype=ids.dtype, device=ids.device))
        twice = starts & (ids[:, 0] == ids[:, min(1, ids.shape[1] - 1)]) & (ids.shape[1] > 1)
        real = starts.all() and set(ids[:, 0].tolist()) <= bos
        if twice.any() or (starts.any() and not real):
            row = int((twice if twice.any() else starts).nonzero()[0])
            raise ValueError(
                f"prompt {row} starts with token {int(ids[row, 0])}, which looks like padding, and a logits processor "
                "cannot see the attention mask; use fewstep.steering.tuning.generate(model, proxy, **inputs)"
            )


class Run:
    """One call of generate: a logits processor with the prompts' mask and the expert's own prompts.

    Args:
        proxy: the models and α.
        mask: attention mask of the prompts, (B, L); None if there is no padding.
        own: ids and mask of the expert's own prompts, (B, L') each.
        each: how many neighbouring rows share a prompt, as beams do.
        normalise: return log-probabilities instead of logits.
    """

    def __init__(
        self,
        proxy: ProxyTuning,
        *,
        mask: Tensor | None = None,
        own: tuple[Tensor, Tensor | None] | None = None,
        each: int | None = None,
        normalise: bool,
    ) -> None:
        self.proxy, self.mask, self.own, self.each, self.normalise = proxy, mask, own, each, normalise
        self.pair = Pair(proxy.expert, proxy.antiexpert, proxy.common)
        self.seen: Tensor | None = None  # (B, L)
        self.step = 0

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Steered scores of the next token, (B, V), from the base's `scores` (B, V) after `input_ids` (B, L)."""
        if self.seen is None:
            own, own_mask = self.own or (input_ids, self.mask)
            expert, antiexpert = self.pair.read(own, own_mask, input_ids, self.mask)
        else:
            rows = continued(self.seen, input_ids, self.each)
            assert rows is not None, "each row continues one of the last step"
            if not torch.equal(rows, torch.arange(len(rows), device=rows.device)):
                self.pair.reorder(rows)
            last = input_ids[:, -1:]
            expert, antiexpert = self.pair.read(last, None, last, None)
            self.step += 1
        self.seen = input_ids
        combined = self.proxy.combine(self.step, scores, expert[:, -1], antiexpert[:, -1])
        return combined.log_softmax(-1) if self.normalise else combined

    def continues(self, ids: Tensor) -> bool:
        """Whether each row of `ids` is a row of the last step with one more token."""
        return self.seen is not None and continued(self.seen, ids, self.each) is not None

    def rolled_back(self, ids: Tensor) -> bool:
        """Whether `ids` (1, L) dropped tokens that this run generated, as after rejected speculation."""
        if self.seen is None or len(ids) != 1 or len(self.seen) != 1:
            return False
        new, prompt = ids.shape[1], self.seen.shape[1] - self.step
        return prompt < new <= self.seen.shape[1] and torch.equal(ids[:, :-1], self.seen[:, : new - 1])


def continued(seen: Tensor, ids: Tensor, each: int | None = None) -> Tensor | None:
    """For each row of `ids` (B, L + 1) the row of `seen` (B, L) that it continues, (B,); None if some row continues none.

    Of several rows with the same ids the first is taken: among the `each` rows that share a prompt, or among all if None.
    """
    if ids.shape != (seen.shape[0], seen.shape[1] + 1):
        return None
    place = torch.arange(len(ids), device=ids.device)
    if torch.equal(ids[:, :-1], seen):
        return place
    matches = (ids[:, None, :-1] == seen[None]).all(-1)  # (B, B)
    if each is not None:
        matches &= place[:, None] // each == place[None] // each
    return matches.int().argmax(1) if bool(matches.any(1).all()) else None


def generate(
    base: PreTrainedModel,
    proxy: ProxyTuning,
    input_ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    expert_inputs: Mapping[str, Tensor] | None = None,
    streamer: BaseStreamer | None = None,
    tokenizer: Any = None,
    stop_strings: str | list[str] | None = None,
    stopping_criteria: Sequence[Any] = (),
    **options: Any,
) -> Any:
    """`base.generate` with the logits base + α·(expert − antiexpert).

    It takes greedy decoding, sampling and beams, and every processor, warper, stopping criterion and cache of transformers.

    Args:
        base: the large model.
        proxy: the small models and α.
        input_ids: prompts, (B, L), padded on the left.
        attention_mask: 0 at padding, (B, L); by default `base.generate` derives it from the ids.
        expert_inputs: the expert's own prompts, as a tokenizer or its chat template returns them: `input_ids` (B, L') and
            `attention_mask` (B, L'), padded on the left. By default the expert sees what the base sees.
        streamer: gets the tokens while they are generated.
        tokenizer: for `stop_strings`.
        stop_strings: a text ends after any of these.
        stopping_criteria: of transformers.
        options: everything else that `base.generate` takes.

    Returns:
        What `base.generate` returns.

    Raises:
        ValueError: assisted (speculative) decoding, guidance, or a mode that needs code from the hub is asked for; or a
            model with learned positions, such as GPT-2, has too few of them.
    """
    from transformers import StopStringCriteria

    _refuse(base, options)
    _refuse_length([base, proxy.expert, proxy.antiexpert], input_ids.shape[1], options)
    own = _expert_prompts(expert_inputs, len(input_ids)) if expert_inputs is not None else None
    criteria = list(stopping_criteria)
    if stop_strings is not None:
        if tokenizer is None:
            raise ValueError("stop_strings need the tokenizer; pass tokenizer=…")
        criteria.append(StopStringCriteria(tokenizer, stop_strings))
    if attention_mask is not None:
        options["attention_mask"] = attention_mask
    # only a custom loop knows the expanded prompts, the final mask and the order of processors
    loop = partial(_decoded, proxy, own, streamer)
    return base.generate(input_ids, streamer=streamer, stopping_criteria=criteria, custom_generate=loop, **options)


def _refuse(base: PreTrainedModel, options: dict[str, Any]) -> None:
    """Raises ValueError for options that cannot be steered, as far as they are known before generation."""
    if base.config.is_encoder_decoder:
        raise ValueError(f"{type(base).__name__} has an encoder; only decoder-only language models can be proxy-tuned")
    if options.get("cache_implementation") == "paged":
        raise ValueError("continuous batching takes no logits processors; leave cache_implementation='paged' out")
    if options.pop("assistant_model", None) is not None:
        raise ValueError("assisted (speculative) decoding cannot be proxy-tuned; leave assistant_model out")
    if "custom_generate" in options:
        raise ValueError("a custom_generate cannot be proxy-tuned; leave it out, or give it proxy as a logits processor")


def _refuse_length(models: Sequence[nn.Module | None], prompt: int, options: dict[str, Any]) -> None:
    """Raises ValueError if prompt and new tokens need more learned positions than a model has."""
    new = options.get("max_new_tokens")
    for model in filter(None, models):
        room = learned_positions(model)
        if room is not None and isinstance(new, int) and prompt + new - 1 > room:  # the last token is not read
            raise ValueError(
                f"a prompt of {prompt} tokens and {new} new ones need more than the {room} positions of this "
                f"{type(model).__name__}; shorten the prompt, or generate fewer"
            )


def _decoded(
    proxy: ProxyTuning,
    own: tuple[Tensor, Tensor] | None,
    streamer: BaseStreamer | None,
    model: Any,
    input_ids: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    **inputs: Any,
) -> Any:
    """The loop of transformers that `generation_config` asks for, steered before all other processors.

    `own` holds ids and mask of the expert's own prompts; the arguments after `streamer` are those of transformers' loops.
    """
    from transformers import LogitsProcessorList

    mode = generation_config.get_generation_mode().value
    if mode not in MODES:
        raise ValueError(f"{mode.replace('_', ' ')} cannot be proxy-tuned; decode greedily, sample or use beams")
    if generation_config.guidance_scale not in (None, 1):
        raise ValueError("guidance and proxy-tuning both rewrite the logits; leave guidance_scale out")
    beams = generation_config.num_beams > 1
    if beams and streamer is not None:
        raise ValueError("beams are only known at the end and cannot be streamed; leave the streamer out")
    each = max(generation_config.num_beams, generation_config.num_return_sequences)
    prompts = None if own is None else (own[0].repeat_interleave(each, 0), own[1].repeat_interleave(each, 0))
    # beam search adds up log-probabilities; the other modes return logits, like the base alone
    run = Run(proxy, mask=inputs.get("attention_mask"), own=prompts, each=each, normalise=beams)
    processors = LogitsProcessorList([run, *logits_processor])
    loop = decoding_loop(model, beams=beams)
    given = {} if streamer is None else {"streamer": streamer}
    return loop(input_ids, processors, stopping_criteria, generation_config, **given, **inputs)


def _expert_prompts(inputs: Mapping[str, Tensor], rows: int) -> tuple[Tensor, Tensor]:
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    if len(ids) != rows or mask.shape != ids.shape:
        raise ValueError(f"the expert needs a prompt for each of the {rows} rows, got ids {tuple(ids.shape)}")
    if not bool(mask[:, -1].all()):
        raise ValueError("the expert's prompts must be padded on the left; set padding_side='left' in its tokenizer")
    return ids, mask
