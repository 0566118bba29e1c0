"""A causal language model that answers the questions of a ledger, alone or steered by small models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core.drift import met
from ..core.nfe import count_nfe
from ..core.parts import Works
from ..core.progress import track
from ..masked.decoder import as_slice
from ..masked.grading import Question
from ..masked.lines import Answer, Loss
from ..masked.prompts import StopStrings, Turns, as_asked, bare, encode, leading, text_of
from ..masked.speaking import WINDOW, as_answer, likeliest, option_ids, windows
from .likelihood import read_texts
from .tuning import ProxyTuning, generate
from .writing import padded, up_to_end

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NO_MASK = -1  # causal models have no mask token
ROOM = 1 << 26  # log-probabilities in memory at once


@dataclass(frozen=True)
class CausalSpeaker:
    """A causal model.

    Args:
        network: the model, in eval mode; the large one if it is steered.
        tokenizer: of the network; pads on the left.
        proxy: steers the network.
        small_tokenizer: of the small models; the expert reads prompts in its chat template.
        tokens: maximum number of tokens to generate.
        stop: strings that end an answer.
        raw: whether plain prompts get no chat template.
        batch: texts at once.
        works: keeps answers on the disk and shares them among all processes of a command; by default in memory.
    """

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    proxy: ProxyTuning | None = None
    small_tokenizer: PreTrainedTokenizerBase | None = None
    tokens: int = 128
    stop: tuple[str, ...] = ()
    raw: bool = False
    batch: int = 16
    works: Works = field(default_factory=Works)

    @property
    def networks(self) -> list[nn.Module]:
        """All networks that compute the answers."""
        small = () if self.proxy is None else (self.proxy.expert, self.proxy.antiexpert)
        return [network for network in (self.network, *small) if network is not None]

    @property
    def reads(self) -> object:
        return self.network if self.proxy is None else self.proxy

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        found = self.works.answers("answers", questions, self.batch, lambda part: self._said(questions[as_slice(part)]))
        return [as_answer(each) for each in found]

    def chooses(self, questions: Sequence[Question]) -> list[Answer]:
        found = self.works.answers("choices", questions, self.batch, lambda part: self._chosen(questions[as_slice(part)]))
        return [as_answer(each) for each in found]

    def losses(self, documents: Sequence[str]) -> list[Loss]:
        found = self.works.answers("texts", documents, self.batch, lambda part: self._lost(documents[as_slice(part)]))
        return [Loss(*each) for each in found]

    def layers(self) -> list[str]:
        one = torch.tensor([[0]], device=self.network.device)
        return met(self.network, partial(self.network, one, use_cache=False))

    def _said(self, questions: Sequence[Question]) -> list[Answer]:
        found: list[Answer] = []
        for start in track(range(0, len(questions), self.batch), "answers"):
            found += self._answered(questions[start : start + self.batch])
        return found

    def _chosen(self, questions: Sequence[Question]) -> list[Answer]:
        pairs = [(question, option) for question in questions for option in question.options]
        ours, theirs = self._prompts([question for question, _ in pairs])
        options = [option_ids(self.tokenizer, question.prompt, option) for question, option in pairs]
        return likeliest(questions, [float(row.sum()) for row in self._read(ours, options, theirs)])

    def _lost(self, documents: Sequence[str]) -> list[Loss]:
        lead = leading(self.tokenizer)
        most = min(WINDOW, self._room() - max(len(lead), 1))
        prompts, parts, owners = [], [], []
        for number, text in enumerate(documents):
            ids = bare(self.tokenizer, text)
            rest = ids if lead else ids[1:]  # without a beginning token the first one has no probability
            for place, part in enumerate(windows(rest, most)):
                prompts.append(lead or [ids[place * most]])
                parts.append(part)
                owners.append(number)
        found = [Loss(0.0, 0)] * len(documents)
        for owner, row in zip(owners, self._read(prompts, parts, None), strict=True):
            nats, tokens = found[owner]
            found[owner] = Loss(nats - float(row.sum()), tokens + len(row))
        return found

    def _answered(self, questions: Sequence[Question]) -> list[Answer]:
        ours, theirs = self._prompts(questions)
        inputs = padded(ours, self.tokenizer.pad_token_id)
        made, calls = self._generated(inputs, theirs)
        ends = self.network.generation_config.eos_token_id
        texts = [self._cut(up_to_end(row, ends)) for row in made.tolist()]
        steps = max(made.shape[1], 1)
        sure = [float(row.mean().exp()) for row in self._read(ours, texts, theirs)]
        return [
            Answer(text_of(self.tokenizer, ids, 0, self.stop), tuple(ids), confidence, calls / steps * len(ids))
            for ids, confidence in zip(texts, sure, strict=True)
        ]

    def _generated(self, inputs: dict[str, Tensor], theirs: list[list[int]] | None) -> tuple[Tensor, int]:
        """New tokens of the batch, (B, T), and their network calls."""
        length = inputs["input_ids"].shape[1]
        tokens = min(self.tokens, self._room() - length)
        if tokens < 1:
            raise ValueError(f"a prompt of {length} tokens fills the {self._room()} positions of this model; shorten it")
        options: dict[str, Any] = {
            "max_new_tokens": tokens, "do_sample": False, "num_beams": 1, "pad_token_id": self.tokenizer.pad_token_id,
            "temperature": None, "top_p": None, "top_k": None,
            "stopping_criteria": [_Stops(StopStrings(self.tokenizer, self.stop), length)] if self.stop else [],
        }  # fmt: skip
        with ExitStack() as stack:
            counts = [stack.enter_context(count_nfe(network)) for network in self.networks]
            if self.proxy is None:
                made = self.network.generate(**inputs, **options)
            else:
                own = None if theirs is None else padded(theirs, self.tokenizer.pad_token_id)
                ids, mask = inputs["input_ids"], inputs["attention_mask"]
                made = generate(self.network, self.proxy, ids, attention_mask=mask, expert_inputs=own, **options)
        return made[:, length:], sum(count.calls for count in counts)

    def _cut(self, ids: list[int]) -> list[int]:
        """A text up to the token that completes a stop string, which is included."""
        stops = StopStrings(self.tokenizer, self.stop)
        return next((ids[:end] for end in range(1, len(ids)) if stops(ids[:end])), ids) if self.stop else ids

    def _prompts(self, questions: Sequence[Question]) -> tuple[list[list[int]], list[list[int]] | None]:
        """Ids of each prompt, and those for the expert if its tokenizer has another template, else None."""
        ours = [self._ids(self.tokenizer, question.prompt) for question in questions]
        if self.small_tokenizer is None:
            return ours, None
        theirs = [self._ids(self.small_tokenizer, question.prompt) for question in questions]
        return ours, None if theirs == ours else theirs

    def _ids(self, tokenizer: PreTrainedTokenizerBase, prompt: str | Turns) -> list[int]:
        ids = encode(tokenizer, prompt if self.raw else as_asked(prompt, tokenizer, NO_MASK))
        if not ids:
            raise ValueError("a prompt is empty; give each question some text")
        return ids

    def _read(
        self, prompts: Sequence[list[int]], texts: Sequence[Sequence[int]], theirs: list[list[int]] | None
    ) -> Iterator[Tensor]:
        """Log-probabilities of each text's tokens after its prompt, (T,) each on the CPU."""
        longest = max(map(len, texts), default=1) + 1
        width = self.network.get_input_embeddings().num_embeddings * longest
        batch = min(self.batch, max(1, ROOM // width))
        for chunk in read_texts(self.network, self.proxy, prompts, texts, expert_prompts=theirs, batch=batch):
            chosen = chunk.combined.gather(2, chunk.tokens[..., None]).squeeze(2).double().cpu()
            for row, length in zip(chosen, chunk.real.sum(1).tolist(), strict=True):
                yield row[:length]

    def _room(self) -> int:
        """The smallest number of positions of the networks."""
        sizes = [getattr(network.config, "max_position_embeddings", None) for network in self.networks]
        return min([size for size in sizes if isinstance(size, int) and size > 0], default=1 << 20)


class _Stops:
    """A stopping criterion: a row ends when its text holds a stop string."""

    def __init__(self, stops: StopStrings, start: int) -> None:
        self.stops, self.start = stops, start

    def __call__(self, ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        return torch.tensor([self.stops(row) for row in ids[:, self.start :].tolist()], device=ids.device)
