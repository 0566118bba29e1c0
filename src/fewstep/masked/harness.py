"""Masked diffusion language models in the LM Evaluation Harness (the extra `evaluate`): all three kinds of request.

Pass an instance to the harness: `lm_eval.simple_evaluate(model=HarnessLM(predictor, tokenizer), tasks=[…])`, for chats
with `HarnessLM(…, chat=True)` and `apply_chat_template=True`. The model reads the same tokens as in `fewstep decode`.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs

from ..core.parts import Works
from ..core.progress import track
from .changes import Changed, Changes, changes_of
from .decoding import decode
from .likelihood import is_greedy, log_likelihood, rolling
from .predictor import MaskPredictor, Suppressed
from .prompts import GEN_LENGTH, StopStrings, bare, canvas_row, encode, in_template, leading, text_of
from .rules import DEFAULT
from .step import CommitRule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class HarnessLM(LM):  # type: ignore[misc, unused-ignore]
    """A mask predictor as the harness's language model.

    Args:
        predictor: the model, guided or not.
        tokenizer: its tokenizer.
        rule: for generation.
        gen_length: tokens to generate if a task does not set `max_gen_toks`; at most the model's room after the context,
            or half of the model's room if that is more.
        steps: in all, for rules that keep to a schedule; None is one a token.
        draws: network calls for a log-likelihood, of which a lower bound is reported.
        max_length: longest canvas; longer contexts lose their beginning.
        batch: rows at once.
        seed: of everything random.
        suppress: ids of tokens that are never generated.
        exact: the predictor without its cache, which also generates each text, to count the cache's changes.
        chat: whether contexts are in the tokenizer's chat template, which has its own special tokens.
        works: keeps answers on the disk and shares them among all processes of a command; by default in memory.

    Attributes:
        nfe: network calls of each text generated so far.
        positions: token ids that the network computed for each text.
    """

    def __init__(
        self,
        predictor: MaskPredictor,
        tokenizer: PreTrainedTokenizerBase,
        *,
        rule: CommitRule = DEFAULT,
        gen_length: int = GEN_LENGTH,
        steps: int | None = None,
        draws: int = 128,
        max_length: int = 1024,
        batch: int = 16,
        seed: int = 0,
        suppress: Sequence[int] = (),
        chat: bool = False,
        exact: MaskPredictor | None = None,
        works: Works | None = None,
    ) -> None:
        super().__init__()
        self.predictor = predictor
        self.speaker = Suppressed(predictor, suppress) if suppress else predictor
        self.exact = Suppressed(exact, suppress) if exact and suppress else exact
        self.works = works or Works()
        self.changes: list[Changed] = []
        self.tokenizer = tokenizer
        self.rule = rule
        self.gen_length = gen_length
        self.steps = steps
        self.draws = draws
        self.max_length = max_length
        self.batch = batch
        self.seed = seed
        self.chat = chat
        self.lead = [] if chat else leading(tokenizer)
        self.nfe: list[float] = []
        self.positions: list[float] = []
        self._device = next((p.device for network in predictor.networks for p in network.parameters()), torch.device("cpu"))

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(lower bound of ln p(continuation | context), whether greedy decoding gives the continuation), per request."""
        texts = [self._split(*request.args) for request in requests]
        options: dict[str, Any] = {"batch": self.batch, "device": self._device}

        def answer(part: range) -> list[tuple[float, bool]]:
            some, seeds = texts[part.start : part.stop], [self.seed + number for number in part]
            bounds = log_likelihood(self.predictor, some, draws=self.draws, seeds=seeds, **options)
            greedy = is_greedy(self.predictor, some, **options)
            return [(bound.value, same) for bound, same in zip(bounds, greedy, strict=True)]

        return [(value, same) for value, same in self.works.answers("likelihoods", texts, self.batch, answer)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """A lower bound of ln p(text), in windows of `max_length` that do not see each other, per request."""
        texts = [bare(self.tokenizer, request.args[0]) for request in requests]

        def answer(part: range) -> list[float]:
            return [
                rolling(
                    self.predictor, text, window=self.max_length - len(self.lead), prompt=self.lead, draws=self.draws,
                    seed=self.seed, batch=self.batch, device=self._device,
                ).value if text else 0.0  # the product over no token is 1
                for text in track(texts[part.start : part.stop], "texts")
            ]  # fmt: skip

        return self.works.answers("texts", texts, self.batch, answer)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The generated texts, each up to the first of its task's stop strings."""
        asked = [request.args for request in requests]
        found = self.works.answers("generations", asked, self.batch, lambda part: self._generated(asked, part))
        for text in found:
            self.nfe.append(text["nfe"])
            self.positions.append(text["positions"])
            self.changes += [Changed(*text["changed"])] if text["changed"] else []
        return [text["text"] for text in found]

    def _generated(self, requests: Sequence[tuple[str, dict[str, Any]]], part: range) -> list[dict[str, Any]]:
        """The texts of a part of the requests, with their costs and the changes by the cache."""
        rows: dict[int, torch.Tensor] = {}
        alike: dict[tuple[tuple[str, ...], float], list[int]] = defaultdict(list)
        for number in part:
            context, wishes = requests[number]
            until, length, temperature = self._generation(wishes)
            rows[number] = self._canvas(self._encode(context), length)
            alike[until, temperature].append(number)
        texts: dict[int, dict[str, Any]] = {}
        for (until, temperature), numbers in alike.items():
            options: dict[str, Any] = {
                "steps": self.steps, "temperature": temperature, "seeds": [self.seed + number for number in numbers],
                "stop": StopStrings(self.tokenizer, until) if until else None, "batch": self.batch,
            }  # fmt: skip
            asked_for = [rows[number] for number in numbers]
            decoded = decode(self.speaker, asked_for, self.rule, **options)
            exact = decode(self.exact, asked_for, self.rule, **options) if self.exact is not None else None
            for place, (number, row) in enumerate(zip(numbers, decoded, strict=True)):
                text = text_of(self.tokenizer, row.tokens, row.given, until)
                changed = None if exact is None else Changed.between(row, exact[place])
                texts[number] = {"text": text, "nfe": row.nfe, "positions": row.positions, "changed": changed}
        return [texts[number] for number in part]

    @property
    def changed(self) -> Changes | None:
        """The cache's changes in the texts generated so far."""
        return changes_of(self.changes) if self.changes else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation in the tokenizer's own format; without a generation prompt its last turn stays open.

        Raises:
            ValueError: `chat` is off, so special tokens would come before the template's own.
        """
        if not self.chat:
            raise ValueError("the harness asks for a chat template; make the model with HarnessLM(…, chat=True)")
        return in_template(self.tokenizer, chat_history, open=not add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The chat template, or "" if none is asked for."""
        return str(self.tokenizer.chat_template or "") if chat_template else ""

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name in the harness's caches."""
        template = hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest()[:8]
        return f"{self.tokenizer.name_or_path.replace('/', '__')}-{template}"

    def _encode(self, context: str) -> list[int]:
        return bare(self.tokenizer, context) if self.chat else encode(self.tokenizer, context)

    def _cut(self, ids: list[int], room: int) -> list[int]:
        """A context cut to `room`: its leading special tokens and its end."""
        if len(ids) <= room:
            return ids
        lead = self.lead[:room]
        return [*lead, *ids[len(ids) - (room - len(lead)) :]]

    def _canvas(self, ids: list[int], asked: int) -> torch.Tensor:
        length = min(asked, max(self.max_length - len(ids), self.max_length // 2))
        context = self._cut(ids, self.max_length - length)
        return canvas_row(context, length, self.predictor.mask_id).to(self._device)

    def _split(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Token ids of both, tokenised together; a space between them belongs to the continuation."""
        before = context.rstrip()
        prompt = self._encode(before)
        whole = self._encode(context + continuation)
        apart = whole[: len(prompt)] != prompt
        answer = bare(self.tokenizer, context[len(before) :] + continuation) if apart else whole[len(prompt) :]
        return self._cut(prompt, max(self.max_length - len(answer), 0)), answer

    def _generation(self, options: dict[str, Any]) -> tuple[tuple[str, ...], int, float]:
        found = normalize_gen_kwargs(options, self.gen_length)
        sampled, until = bool(found["do_sample"]), found["until"]
        unknown = set(found) - {"until", "max_gen_toks", "do_sample", "temperature"}
        if sampled and unknown:
            raise ValueError(
                f"sampling does not support {', '.join(sorted(unknown))}; leave it out of the task's gen_kwargs"
            )
        temperature = float(found.get("temperature", 1.0)) if sampled else 0.0
        # every text holds the empty string
        return tuple(string for string in until if string), int(found["max_gen_toks"]), temperature
