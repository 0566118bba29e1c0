"""The interface of a language model for a ledger, and a masked model with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..core.drift import met
from ..core.parts import Works
from .decoder import Decoder, as_slice
from .decoding import Walked, tell, walk
from .grading import Question
from .likelihood import log_likelihood
from .lines import Answer, Loss
from .predictor import MaskPredictor
from .prompts import StopStrings, as_asked, bare, encode, leading, text_of

WINDOW = 512  # tokens of a window in which a long text is scored, unless the model takes fewer


class Speaker(Protocol):
    """A language model that generates answers, chooses options, and scores texts.

    Attributes:
        network: the network, for the drift of its weights.
        reads: the object that scores texts; if it is the same before and after, so are the scores.
    """

    @property
    def network(self) -> nn.Module: ...

    @property
    def reads(self) -> object: ...

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        """The generated answer to each question."""
        ...

    def chooses(self, questions: Sequence[Question]) -> list[Answer]:
        """The likeliest option of each question."""
        ...

    def losses(self, documents: Sequence[str]) -> list[Loss]:
        """The negative log-likelihood of each text."""
        ...

    def layers(self) -> list[str]:
        """The names of the network's layers, from the input to the output."""
        ...


@dataclass(frozen=True)
class MaskedSpeaker:
    """A masked model.

    Args:
        decoder: generates.
        reader: the model without a cache, for bounds of likelihoods.
        stop: strings that end an answer.
        draws: network calls of a bound.
        works: keeps answers on the disk and shares them among all processes of a command; by default in memory.
    """

    decoder: Decoder
    reader: MaskPredictor
    stop: tuple[str, ...] = ()
    draws: int = 32
    works: Works = field(default_factory=Works)

    @property
    def network(self) -> nn.Module:
        return self.decoder.network.network

    @property
    def networks(self) -> list[nn.Module]:
        """All networks that compute the answers."""
        return [self.network]

    @property
    def reads(self) -> object:
        return self.reader

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        found = self.works.answers("answers", questions, self._batch, lambda part: self._answered(questions, part))
        return [as_answer(each) for each in found]

    def chooses(self, questions: Sequence[Question]) -> list[Answer]:
        found = self.works.answers("choices", questions, self._batch, lambda part: self._chosen(questions, part))
        return [as_answer(each) for each in found]

    def losses(self, documents: Sequence[str]) -> list[Loss]:
        tokenizer, most = self.decoder.tokenizer, self.decoder.network.max_length
        most = WINDOW if most is None else min(WINDOW, most - len(leading(tokenizer)))
        seen = [windows(bare(tokenizer, text), most) for text in documents]
        found = self.works.answers("texts", documents, self._batch, lambda part: self._lost(seen, part))
        return [Loss(*each) for each in found]

    def layers(self) -> list[str]:
        one = torch.tensor([[self.reader.mask_id]], device=self.decoder.network.device)
        return met(self.network, partial(self.network, one))

    @property
    def _batch(self) -> int:
        return self.decoder.compute.batch

    def _answered(self, questions: Sequence[Question], part: range) -> list[Answer]:
        decoder = self.decoder
        rows = decoder.rows([{"prompt": question.prompt} for question in questions[as_slice(part)]])
        stop = StopStrings(decoder.tokenizer, self.stop) if self.stop else None
        options: dict[str, Any] = {"steps": decoder.text.steps, "temperature": decoder.text.temperature}
        seeds = decoder.compute.seeds(part.stop)[as_slice(part)]
        walks = walk(decoder.predictor, rows, decoder.rule, seeds=seeds, batch=self._batch, stop=stop, **options)
        found: dict[int, Answer] = {}
        sure: dict[int, Tensor] = {}
        for walked in tell(walks, rows, decoder.predictor.mask_id):
            _note(walked, sure)
            for number, row in walked.finished.items():
                text = text_of(decoder.tokenizer, row.tokens, row.given, self.stop)
                made = sure.pop(number)[: len(row.ids)]
                chosen = made[row.committed_at.cpu() >= 0]
                found[number] = Answer(text, tuple(row.tokens), float(chosen.log().mean().exp()), row.nfe, row.positions)
        return [found[number] for number in range(len(rows))]

    def _chosen(self, questions: Sequence[Question], part: range) -> list[Answer]:
        decoder, some = self.decoder, questions[as_slice(part)]
        pairs = []
        for question in some:
            turns = question.prompt
            turns = turns if decoder.text.raw else as_asked(turns, decoder.tokenizer, self.reader.mask_id)
            ids = encode(decoder.tokenizer, turns)
            pairs += [(ids, option_ids(decoder.tokenizer, turns, option)) for option in question.options]
        seeds = [k for k, question in zip(part, some, strict=True) for _ in question.options]
        return likeliest(some, [bound.value for bound in self._bounds(pairs, seeds)])

    def _lost(self, texts: Sequence[Sequence[Sequence[int]]], part: range) -> list[Loss]:
        """Losses of the texts in `part`, which are given as windows of token ids."""
        lead, first = leading(self.decoder.tokenizer), sum(map(len, texts[: part.start]))
        some = texts[as_slice(part)]
        pairs = [(lead, window) for text in some for window in text]
        bounds = iter(self._bounds(pairs, range(first, first + len(pairs))))  # the k-th window of all texts has seed k
        return [Loss(-sum(next(bounds).value for _ in text), sum(map(len, text))) for text in some]

    def _bounds(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], seeds: Sequence[int]) -> Any:
        device = self.decoder.network.device
        return log_likelihood(self.reader, pairs, draws=self.draws, seeds=seeds, batch=self._batch, device=device)


def speaker_of(decoder: Decoder, *, stop: tuple[str, ...] = (), draws: int = 32) -> MaskedSpeaker:
    """The masked model of a decoder, for a ledger; likelihoods are without its cache and its suppressed tokens."""
    reader = decoder.text.without_cache().around_network(decoder.network, (), decoder.rule)
    return MaskedSpeaker(decoder, reader, stop, draws)


def _note(walked: Walked, sure: dict[int, Tensor]) -> None:
    """Keeps the probability of each token when it was decided, by the row's number."""
    now = walked.rows.ids != walked.canvas.ids
    values = torch.stack([now.to(walked.step.confidence), walked.step.confidence]).cpu().double()
    for row, progress in enumerate(walked.progress):
        known = sure.get(progress.number)
        known = torch.ones(values.shape[2], dtype=torch.float64) if known is None else known
        width = min(len(known), values.shape[2])
        known[:width] = torch.where(values[0, row, :width] > 0, values[1, row, :width].clamp(min=1e-300), known[:width])
        sure[progress.number] = known


def as_answer(kept: Sequence[Any]) -> Answer:
    """An answer from its JSON."""
    text, tokens, *rest = kept
    return Answer(text, tuple(tokens), *rest)


def option_ids(tokenizer: Any, prompt: object, option: str) -> list[int]:
    """Tokens of an option after a prompt: after a text with a space before it, in a conversation without."""
    spaced = isinstance(prompt, str) and not prompt[-1:].isspace()
    return bare(tokenizer, f" {option}" if spaced else option)


def likeliest(questions: Sequence[Question], scores: Sequence[float]) -> list[Answer]:
    """The option of each question with the highest log-likelihood, and its probability among the options."""
    found, left = [], list(scores)
    for question in questions:
        of, left = torch.tensor(left[: len(question.options)], dtype=torch.float64), left[len(question.options) :]
        best = int(of.argmax())
        found.append(Answer(question.options[best], (), float(of.softmax(0)[best])))
    return found


def windows(ids: Sequence[int], most: int) -> list[Sequence[int]]:
    """A text in parts of at most `most` tokens."""
    return [ids[start : start + most] for start in range(0, len(ids), most)]
