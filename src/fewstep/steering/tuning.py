"""Proxy-tuning: a small tuned model and its untuned self steer a large one, whose weights nobody touches."""

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

    The small models keep keys and values of their own, follow beams, and start afresh when the ids do not continue those
    of the last call by one token a row. Ids that continue those of the last call belong to the same run, and its step
    goes on; after a change
    of weights call `reset`. What comes back are log-probabilities, so that beams add up normalised scores.

    transformers' generate calls its own processors first, and this one gets what they left: with a repetition penalty the
    result is the formula with the penalised base. Nor does a processor see the attention mask, so prompts that look padded
    are refused. The function `generate` below has neither limit: it puts proxy-tuning before all else.

    Steering is as good as its expert: one that knows less than the base can make it worse, which `gap_closed` shows.

    Args:
        expert: the small tuned model, in eval mode; a peft model with a LoRA adapter if `antiexpert` is None.
        antiexpert: the same small model untuned; None for the expert's own weights without the adapter, which then reads
            in one batch with the expert.
        alpha: α. A number. Or a sequence with one number for each new token, whose last one holds for all later tokens.
            Or a rule, called as rule(step, base, shift): the count of tokens since the prompt, the base's
            log-probabilities (B, V) and expert − antiexpert (B, V). It returns a number, or one for each row, (B,).

        common: from this id on the base has tokens that the small models have not, as `same_tokens` says; None: none. They
            are never said, and a text that holds one is refused, as the small models could not read it.

    Where the sizes of the tables differ, ids that not all models have get −inf.

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
        """Scores of the next token, (B, V), after `input_ids` (B, L), as log-probabilities (B, V)."""
        if not input_ids.shape[1]:
            raise ValueError("the small models read ids; give generate input_ids instead of inputs_embeds")
        if self._run is None or not self._run.continues(input_ids):
            if self._run is not None and self._run.rolled_back(input_ids):
                raise ValueError(
                    "the text went back by some tokens: assisted and speculative decoding cannot be proxy-tuned, generate "
                    "without them; for a new text that starts inside the last one call reset() first"
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
        """Left padding, as far as ids can tell: a row that starts with pad or end, where others do not or twice."""
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
    """One call of generate: a logits processor that knows its prompts' masks and the expert's own prompts.

    Args:
        proxy: the models and α.
        mask: attention mask of the prompts, (B, L); None if all counts.
        own: ids and mask of the expert's own prompts, (B, L') each.
        each: rows that share a prompt, as beams do; they stand together.
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
        """Scores of the next token, (B, V), after `input_ids` (B, L), combined: (B, V)."""
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
        """Whether each row of `ids` is a row of the last step and one token more."""
        return self.seen is not None and continued(self.seen, ids, self.each) is not None

    def rolled_back(self, ids: Tensor) -> bool:
        """Whether `ids` (1, L) went back inside what this run generated, as rejected speculation does."""
        if self.seen is None or len(ids) != 1 or len(self.seen) != 1:
            return False
        new, prompt = ids.shape[1], self.seen.shape[1] - self.step
        return prompt < new <= self.seen.shape[1] and torch.equal(ids[:, :-1], self.seen[:, : new - 1])


def continued(seen: Tensor, ids: Tensor, each: int | None = None) -> Tensor | None:
    """For each row of `ids` (B, L + 1) a row of `seen` (B, L) that it continues, (B,); None if there is not one for all.

    Rows with the same ids are as good as each other within `each` rows that share a prompt, or anywhere if that is None.
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
    """`base.generate`, whose logits are base + α·(expert − antiexpert).

    Greedy decoding, sampling and beams, with every processor, warper, stopping criterion and cache of transformers.

    Args:
        base: the large model.
        proxy: the small models and α.
        input_ids: prompts, (B, L), padded on the left.
        attention_mask: 0 at padding, (B, L); by default what `base.generate` makes of the ids.
        expert_inputs: the expert's own prompts, as a tokenizer or its chat template returns them: `input_ids` (B, L') and
            `attention_mask` (B, L'), padded on the left. By default the expert sees what the base sees.
        streamer: gets the tokens as they come.
        tokenizer: for `stop_strings`.
        stop_strings: a text ends after any of these.
        stopping_criteria: of transformers.
        options: everything else that `base.generate` takes.

    Returns:
        What `base.generate` returns.

    Raises:
        ValueError: for assisted (speculative) decoding, guidance, and modes that need code from the hub; or where a model
            has learned positions, as GPT-2, and too few of them.
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
    # a custom loop is the one place where the expanded prompts, the final mask and the order of processors are known
    loop = partial(_decoded, proxy, own, streamer)
    return base.generate(input_ids, streamer=streamer, stopping_criteria=criteria, custom_generate=loop, **options)


def _refuse(base: PreTrainedModel, options: dict[str, Any]) -> None:
    """Raises ValueError for what cannot be steered, as far as that is known before generation begins."""
    if base.config.is_encoder_decoder:
        raise ValueError(f"{type(base).__name__} has an encoder; only decoder-only language models can be proxy-tuned")
    if options.get("cache_implementation") == "paged":
        raise ValueError("continuous batching takes no logits processors; leave cache_implementation='paged' out")
    if options.pop("assistant_model", None) is not None:
        raise ValueError("assisted (speculative) decoding cannot be proxy-tuned; leave assistant_model out")
    if "custom_generate" in options:
        raise ValueError("a custom_generate cannot be proxy-tuned; leave it out, or give it proxy as a logits processor")


def _refuse_length(models: Sequence[nn.Module | None], prompt: int, options: dict[str, Any]) -> None:
    """Raises ValueError where a model has fewer learned positions than what is asked for would take."""
    new = options.get("max_new_tokens")
    for model in filter(None, models):
        room = learned_positions(model)
        if room is not None and isinstance(new, int) and prompt + new - 1 > room:  # the last token is not read
            raise ValueError(
                f"a prompt of {prompt} tokens and {new} new ones are more than the {room} positions that this "
                f"{type(model).__name__} has learned; shorten the prompt, or generate fewer"
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

    `own` are ids and mask of the expert's own prompts; what comes behind the streamer is what transformers hands its loops.
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
    # beam search adds up log-probabilities; the other modes hand out logits, as the base alone would
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
