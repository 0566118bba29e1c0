"""A masked model that answers prompts, with all settings of its decoding."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from ..core.parts import of_texts
from ..core.weights import mark
from .calibration import calibrated
from .choices import Compute, Text
from .committing import Early, Rule
from .decoding import Decoded, stream, tell, walk
from .infill import Kept, Template, Together
from .predictor import MaskPredictor, NetworkPredictor
from .prompts import StopStrings, text_of, token_ids
from .step import CommitRule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# {"prompt": a text or a conversation} or {"messages": a conversation}, with the line's other entries
Prompt = dict[str, Any]


@dataclass(frozen=True)
class Decoder:
    """A masked model that answers prompts; `open_decoder` makes one.

    Attributes:
        model: its name.
        predictor: the model with guidance and a cache, without the tokens that are never generated.
        exact: the same predictor without a cache.
        network: the model itself.
        tokenizer: of the model.
        rule: how much is decided at a step, and whether it stops early.
        text, compute: what is generated, and how it is computed.
        template: the fixed text with holes that is generated, if there is one.
    """

    model: str
    predictor: MaskPredictor
    exact: MaskPredictor
    network: NetworkPredictor
    tokenizer: PreTrainedTokenizerBase
    rule: CommitRule
    text: Text
    compute: Compute
    template: Template | None = None

    @property
    def lead(self) -> str:
        """The fixed text with which every answer begins."""
        return self.template.lead if self.template else ""

    def rows(self, items: Sequence[Prompt]) -> list[Tensor]:
        """The canvas of each prompt."""
        return self.text.rows(items, self.network, self.tokenizer, self.template)

    def stream(self, item: Prompt, *, stop: tuple[str, ...] = ()) -> Iterator[tuple[str, Decoded | None]]:
        """The text of one answer as it becomes final, piece by piece; the last piece comes with the whole row.

        Text is held back while it may be the beginning of a stop string, or a part of a character.
        """
        rows, tokens, shown = self.rows([item]), [], 0
        held = max((len(string) - 1 for string in stop), default=0)
        if self.lead:
            yield self.lead, None
        for _, new, end in stream(walk(self.predictor, rows, self.rule, seeds=self.compute.seeds(1), **self.options(stop))):
            tokens += new
            whole = text_of(self.tokenizer, tokens, end.given, stop) if end else text_of(self.tokenizer, tokens)
            until = max(shown, len(whole) if end else len(whole.rstrip("\N{REPLACEMENT CHARACTER}")) - held)
            yield whole[shown:until], end
            shown = until

    def answers(self, items: Sequence[Prompt], *, stop: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
        """An entry a prompt, in order: the entries of its line, and text, tokens, nfe, positions and batch.

        Raises:
            ValueError: a prompt cannot be decoded; raised before the first is.
        """
        return self._entries(items, self.rows(items), stop)

    def _entries(self, items: Sequence[Prompt], rows: list[Tensor], stop: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        begin, tokens = time.perf_counter(), 0
        for part in of_texts(len(rows), self.compute.batch):
            for answered in self.answered(items, rows, part, stop):
                tokens += len(answered.row.tokens)
                yield answered.entry
        tell_speed(len(rows), tokens, time.perf_counter() - begin)

    def answered(
        self, items: Sequence[Prompt], rows: list[Tensor], part: range, stop: tuple[str, ...]
    ) -> Iterator[Answered]:
        """The answers of a part of the prompts, in order; `items` and `rows` are those of all prompts."""
        now = time.perf_counter()
        batch, told = min(self.compute.batch, len(rows)), 0
        entered: dict[int, float] = {}
        done: dict[int, tuple[Decoded, float]] = {}
        seeds, options, some = self.compute.seeds(len(rows))[as_slice(part)], self.options(stop), rows[as_slice(part)]
        walks = walk(self.predictor, some, self.rule, seeds=seeds, batch=batch, **options)
        for walked in tell(walks, some, self.predictor.mask_id):
            for progress in walked.progress:
                entered.setdefault(progress.number, now)
            now = time.perf_counter()
            done |= {number: (row, now - entered[number]) for number, row in walked.finished.items()}
            while told in done:
                row, seconds = done.pop(told)
                entry = items[part[told]] | {
                    "text": self.lead + text_of(self.tokenizer, row.tokens, row.given, stop), "tokens": len(row.tokens),
                    "nfe": row.nfe, "positions": round(row.positions, 2), "batch": batch,
                }  # fmt: skip
                yield Answered(entry, row, round(seconds, 4))
                told += 1

    def decided_by(self, items: Sequence[Prompt]) -> dict[str, Any]:
        """Further facts that decide the answers of a work in parts: prompts, weights and batch size."""
        asked = hashlib.sha256(json.dumps(list(items), sort_keys=True).encode()).hexdigest()
        return {"prompts": asked, "weights": mark(self.network.network.state_dict()), "batch": self.compute.batch}

    def options(self, stop: tuple[str, ...]) -> dict[str, Any]:
        """Arguments of `walk` and `decode` besides rows, rule and seeds."""
        found = StopStrings(self.tokenizer, stop) if stop else None
        return {"stop": found, "steps": self.text.steps, "temperature": self.text.temperature}


class Answered(NamedTuple):
    """An answer as it is written, its decoded row, and the seconds that it was in the batch."""

    entry: dict[str, Any]
    row: Decoded
    seconds: float


def open_decoder(
    model: str,
    text: Text = Text(),
    rule: Rule = Rule(),
    early: Early = Early(),
    compute: Compute = Compute(),
    *,
    calibration: Path | None = None,
) -> Decoder:
    """Loads a masked diffusion language model as a decoder, on the best device.

    Args:
        model: folder or hub id of a LLaDA, a Dream or any masked language model of transformers, or `bundled`.
        text: what is generated.
        rule: how much is decided at a step.
        early: whether decoding may stop early.
        compute: how it is computed; a prompt gets the same text at any batch size.
        calibration: a rule with a guarantee, instead of `rule` and `early`.

    Raises:
        ValueError: the model cannot be loaded, the settings contradict each other, or the calibration is for others.
    """
    if calibration and (rule, early) != (Rule(), Early()):
        raise ValueError("a --calibration brings its own rule; leave --rule, --early and their options out")
    if calibration and text.infill:
        raise ValueError("no calibration covers --infill; leave one of them out")
    found = calibrated(calibration, text.settings(model, compute)) if calibration else None
    tokenizer = compute.tokenizer(model)
    if tokenizer.chat_template and not text.raw:
        logger.info("prompts of plain text are put into the model's chat template; --raw leaves them as they are")
    rule.made(tokenizer)  # its errors come before anything large is read
    never = token_ids(tokenizer, text.suppress)
    network = compute.open(model, tokenizer)
    made = found or early.around(rule.made(tokenizer, network.block), answer_follows=bool(text.suffix))
    template = text.template(network, tokenizer, never)
    predictor = text.around_network(network, never, made)
    exact = predictor if text.cache == "none" else text.without_cache().around_network(network, never, made)
    if template:
        predictor, exact = Kept(predictor, template), Kept(exact, template)
        made = Together(made, template, network.mask_id)
    return Decoder(model, predictor, exact, network, tokenizer, made, text, compute, template)


def tell_speed(texts: int, tokens: int, seconds: float) -> None:
    """Logs the speed of one process, over all texts."""
    logger.info("%.2f texts and %.1f generated tokens a second", texts / seconds, tokens / seconds)


def as_slice(part: range) -> slice:
    """The slice of a list with the places of a range."""
    return slice(part.start, part.stop)


def check_open(text: Text) -> None:
    """Raises ValueError if --infill is set, which only `fewstep decode` takes."""
    if text.infill:
        raise ValueError("only fewstep decode takes --infill; leave it out")
