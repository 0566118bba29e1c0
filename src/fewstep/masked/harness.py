"""Masked diffusion language models in the LM Evaluation Harness (`pip install lm_eval`): all three kinds of request.

Pass an instance to the harness: `lm_eval.simple_evaluate(model=HarnessLM(predictor, tokenizer), tasks=[…])`.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.model import LM  # type: ignore[import-not-found, unused-ignore]
from lm_eval.models.utils import normalize_gen_kwargs  # type: ignore[import-not-found, unused-ignore]

from .decoding import StopStrings, decode, text_of
from .likelihood import is_greedy, log_likelihood, rolling
from .predictor import MaskPredictor, canvas_row
from .rules import Blockwise, CommitRule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class HarnessLM(LM):  # type: ignore[misc, unused-ignore]
    """A mask predictor as the harness's language model.

    Args:
        predictor: the model, guided or not.
        tokenizer: its tokenizer.
        rule: for generation.
        gen_length: tokens to generate where a task does not say `max_gen_toks`.
        steps: in all, for rules that keep to a schedule; None is one a token.
        draws: network calls for a log-likelihood; what is reported is a lower bound of it.
        max_length: longest canvas; longer contexts lose their beginning.
        batch: rows at once.
        seed: of everything random.

    Attributes:
        nfe: network calls of each text generated so far.
    """

    def __init__(
        self,
        predictor: MaskPredictor,
        tokenizer: PreTrainedTokenizerBase,
        *,
        rule: CommitRule = Blockwise(),
        gen_length: int = 128,
        steps: int | None = None,
        draws: int = 128,
        max_length: int = 1024,
        batch: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.predictor = predictor
        self.tokenizer = tokenizer
        self.rule = rule
        self.gen_length = gen_length
        self.steps = steps
        self.draws = draws
        self.max_length = max_length
        self.batch = batch
        self.seed = seed
        self.nfe: list[float] = []
        self._device = next((p.device for network in predictor.networks for p in network.parameters()), torch.device("cpu"))

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(lower bound of ln p(continuation | context), whether greedy decoding gives the continuation), per request."""
        texts = [self._split(*request.args) for request in requests]
        options: dict[str, Any] = {"batch": self.batch, "device": self._device}
        seeds = range(self.seed, self.seed + len(texts))
        bounds = log_likelihood(self.predictor, texts, draws=self.draws, seeds=seeds, **options)
        greedy = is_greedy(self.predictor, texts, **options)
        return [(bound.value, same) for bound, same in zip(bounds, greedy, strict=True)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """A lower bound of ln p(text), in windows of `max_length` that do not see each other, per request."""
        texts = [self._encode(request.args[0]) for request in requests]
        return [
            rolling(
                self.predictor, text, window=self.max_length, draws=self.draws, seed=self.seed, batch=self.batch,
                device=self._device,
            ).value if text else 0.0  # the product over no token is 1
            for text in texts
        ]  # fmt: skip

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The generated texts, each up to the first of its task's stop strings."""
        alike: dict[tuple[tuple[str, ...], int, float], list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            alike[self._generation(request.args[1])].append(number)
        texts = [""] * len(requests)
        for (until, length, temperature), numbers in alike.items():
            rows = []
            for number in numbers:
                context = self._encode(requests[number].args[0])[-max(self.max_length - length, 1) :]
                rows.append(canvas_row(context, length, self.predictor.mask_id).to(self._device))
            seeds = [self.seed + number for number in numbers]
            stop = StopStrings(self.tokenizer, until) if until else None
            decoded = decode(
                self.predictor, rows, self.rule, steps=self.steps, temperature=temperature, seeds=seeds, stop=stop,
                batch=self.batch,
            )  # fmt: skip
            for number, row in zip(numbers, decoded, strict=True):
                texts[number] = text_of(self.tokenizer, row.tokens, row.given, until)
                self.nfe.append(row.nfe)
        return texts

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation in the tokenizer's own format."""
        text: str = self.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return text

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template that `apply_chat_template` follows."""
        return str(self.tokenizer.chat_template or "") if chat_template else ""

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's caches."""
        template = hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest()[:8]
        return f"{self.tokenizer.name_or_path.replace('/', '__')}-{template}"

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _split(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Both as token ids, tokenised together; a space between them belongs to the continuation."""
        bare = context.rstrip()
        prompt = self._encode(bare)
        whole = self._encode(context + continuation)
        answer = (
            whole[len(prompt) :] if whole[: len(prompt)] == prompt else self._encode(context[len(bare) :] + continuation)
        )
        room = max(self.max_length - len(answer), 0)
        return prompt[max(len(prompt) - room, 0) :], answer

    def _generation(self, options: dict[str, Any]) -> tuple[tuple[str, ...], int, float]:
        found = normalize_gen_kwargs(options, self.gen_length)
        sampled, until = bool(found["do_sample"]), found["until"]
        unknown = set(found) - {"until", "max_gen_toks", "do_sample", "temperature"}
        if sampled and unknown:
            raise ValueError(
                f"{', '.join(sorted(unknown))} cannot be followed in sampling; leave it out of the task's gen_kwargs"
            )
        temperature = float(found.get("temperature", 1.0)) if sampled else 0.0
        # every text holds the empty string
        return tuple(string for string in until if string), int(found["max_gen_toks"]), temperature
