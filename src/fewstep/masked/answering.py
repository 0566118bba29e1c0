"""Prompts in, answers out: all that `fewstep decode`, `calibrate` and `settle-text` do."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..core.files import atomic_file, writable_file
from ..core.nfe import count_nfe
from ..core.receipt import receipt
from .calibration import Calibration, calibrate, calibrated
from .changes import Changes, count_changes
from .choices import Compute, Early, Prophet, Rule, Text, comparable
from .decoding import Decoded, decode, stream, tell, walk
from .early import EarlyCommit
from .predictor import MaskPredictor, NetworkPredictor
from .prompts import StopStrings, read_prompts, text_of, token_ids
from .schedule import Suffix
from .settling import Settled, Trace, emergence, record, same_place, settle
from .step import CommitRule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Prompt = dict[str, Any]  # {"prompt": a text or a conversation} or {"messages": a conversation}, and what else its line says


@dataclass(frozen=True)
class Decoder:
    """A masked model that answers prompts; `open_decoder` makes one.

    Attributes:
        model: its name.
        predictor: the model as it is asked, with guidance and a cache, and without the tokens that are never said.
        exact: the same without a cache.
        network: the model itself.
        tokenizer: of the model.
        rule: how much is decided at a step, and whether it stops early.
        text, compute: what is generated, and how it is computed.
    """

    model: str
    predictor: MaskPredictor
    exact: MaskPredictor
    network: NetworkPredictor
    tokenizer: PreTrainedTokenizerBase
    rule: CommitRule
    text: Text
    compute: Compute

    def rows(self, items: Sequence[Prompt]) -> list[Tensor]:
        """The canvas of each prompt."""
        return self.text.rows(items, self.network, self.tokenizer)

    def stream(self, item: Prompt, *, stop: tuple[str, ...] = ()) -> Iterator[tuple[str, Decoded | None]]:
        """The text of one answer as it becomes final, piece by piece; the last piece comes with the whole row.

        What may turn out to belong to a stop string or half a letter is held back.
        """
        rows, tokens, shown = self.rows([item]), [], 0
        held = max((len(string) - 1 for string in stop), default=0)
        for _, new, end in stream(
            walk(self.predictor, rows, self.rule, seeds=self.compute.seeds(1), **self._options(stop))
        ):
            tokens += new
            whole = text_of(self.tokenizer, tokens, end.given, stop) if end else text_of(self.tokenizer, tokens)
            until = max(shown, len(whole) if end else len(whole.rstrip("\N{REPLACEMENT CHARACTER}")) - held)
            yield whole[shown:until], end
            shown = until

    def answers(self, items: Sequence[Prompt], *, stop: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
        """An entry a prompt, in order: what its line says, and text, tokens, nfe, positions, seconds and batch.

        `seconds` run from when it entered the batch to the step that finished it.

        Raises:
            ValueError: a prompt that is no canvas, at once.
        """
        return (entry for entry, _ in self._answered(items, self.rows(items), stop))

    def compared(self, items: Sequence[Prompt], found: Sequence[Decoded], *, stop: tuple[str, ...] = ()) -> Changes:
        """What the cache has changed in the answers that were `found`; decodes all once more, without it."""
        rows = self.rows(items)
        options = {"seeds": self.compute.seeds(len(rows)), "batch": self.compute.batch, **self._options(stop)}
        return count_changes(found, decode(self.exact, rows, self.rule, **options))

    def save(
        self,
        items: Sequence[Prompt],
        out: Path,
        *,
        stop: tuple[str, ...] = (),
        file: Path | None = None,
        compare: bool = False,
    ) -> Changes | None:
        """Writes the answers into a .jsonl, with a receipt beside it that says from which `file` the prompts were read.

        With `compare` the receipt also says what the cache has changed, which is returned.

        Raises:
            ValueError: a comparison where there is no cache, or what `answers` raises.
        """
        comparable(self.text, compare)
        answers, found = self._answered(items, self.rows(items), stop), []
        facts = self.text.settings(self.model, self.compute)
        facts |= {"rule": self.rule, "stop": stop, "file": file, "seed": self.compute.seed}
        with (
            receipt(receipt_of(out), **facts) as entries,
            atomic_file(out) as handle,
            count_nfe(self.network.network) as cost,
        ):
            for answer, row in answers:
                handle.write((json.dumps(answer, ensure_ascii=False) + "\n").encode())
                found.append(row)
            entries |= {"calls": cost.calls, "nfe": cost.rows, "positions": cost.positions}
            told = self.compared(items, found, stop=stop) if compare else None
            if told:
                entries["changed"] = told.as_dict()
        return told

    def _options(self, stop: tuple[str, ...]) -> dict[str, Any]:
        found = StopStrings(self.tokenizer, stop) if stop else None
        return {"stop": found, "steps": self.text.steps, "temperature": self.text.temperature}

    def _answered(
        self, items: Sequence[Prompt], rows: list[Tensor], stop: tuple[str, ...]
    ) -> Iterator[tuple[dict[str, Any], Decoded]]:
        begin = now = time.perf_counter()
        batch, generated, told = min(self.compute.batch, len(rows)), 0, 0
        entered: dict[int, float] = {}
        done: dict[int, tuple[Decoded, float]] = {}
        seeds, options = self.compute.seeds(len(rows)), self._options(stop)
        walks = walk(self.predictor, rows, self.rule, seeds=seeds, batch=batch, **options)
        for walked in tell(walks, rows, self.predictor.mask_id):
            for progress in walked.progress:
                entered.setdefault(progress.number, now)
            now = time.perf_counter()
            done |= {number: (row, now - entered[number]) for number, row in walked.finished.items()}
            while told in done:
                row, seconds = done.pop(told)
                generated += len(row.tokens)
                entry = items[told] | {
                    "text": text_of(self.tokenizer, row.tokens, row.given, stop), "tokens": len(row.tokens),
                    "nfe": row.nfe, "positions": round(row.positions, 2), "seconds": round(seconds, 4), "batch": batch,
                }  # fmt: skip
                yield entry, row
                told += 1
        seconds = time.perf_counter() - begin
        logger.info("%.2f texts and %.1f generated tokens a second", len(rows) / seconds, generated / seconds)


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
        compute: how; a prompt gets the same text at any batch size.
        calibration: a rule with a guarantee, in place of `rule` and `early`.

    Raises:
        ValueError: the model cannot be loaded, the rule cannot be, or the calibration is of other settings.
    """
    if calibration and (rule, early) != (Rule(), Early()):
        raise ValueError("a --calibration brings its own rule; leave --rule, --early and their options out")
    found = calibrated(calibration, text.settings(model, compute)) if calibration else None
    tokenizer = compute.tokenizer(model)
    if tokenizer.chat_template and not text.raw:
        logger.info("prompts of plain text stand in the model's chat template; --raw leaves them as they are")
    rule.made(tokenizer)  # what is wrong with it is said before anything large is read
    never = token_ids(tokenizer, text.suppress)
    network = compute.open(model, tokenizer)
    made = found or early.around(rule.made(tokenizer, network.block), answer_follows=bool(text.suffix))
    predictor = text.around_network(network, never, made)
    exact = predictor if text.cache == "none" else text.without_cache().around_network(network, never, made)
    return Decoder(model, predictor, exact, network, tokenizer, made, text, compute)


def calibrate_prompts(
    model: str,
    file: Path,
    out: Path,
    *,
    epsilon: float = 0.05,
    delta: float = 0.05,
    text: Text = Text(),
    rule: Rule = Rule(),
    prophet: Prophet = Prophet(),
    compute: Compute = Compute(),
) -> Calibration:
    """`calibrate` on the prompts in a .jsonl; writes the calibration, and a receipt beside it.

    Where `rule` is not the default, what that costs is found as well. Full decoding is without a cache.

    Args:
        model, text, rule, compute: as for `open_decoder`.
        file: the prompts, like those that will be decoded.
        out: the .json to write.
        epsilon: allowed share of changed answers.
        delta: allowed probability that the guarantee is wrong.
        prophet: when decoding stops early; the common factor of its levels is found.

    Raises:
        ValueError: no such prompts, or what `open_decoder` raises.
    """
    _check_apart(file, out)
    items = read_prompts(file)
    decoder = open_decoder(model, text, rule, Early("prophet", prophet), compute)
    early, settings = decoder.rule, text.settings(model, compute)
    assert isinstance(early, EarlyCommit)  # prophet is one
    default = Rule().made(decoder.tokenizer, decoder.network.block)
    with receipt(receipt_of(out), **settings, file=file, seed=compute.seed):
        found = calibrate(
            decoder.predictor, decoder.rows(items), early, epsilon=epsilon, delta=delta, steps=text.steps,
            temperature=text.temperature, seeds=compute.seeds(len(items)), batch=compute.batch,
            beside=None if early.rule == default else default,
            exact=None if text.cache == "none" else decoder.exact,
        )  # fmt: skip
        found = replace(found, settings=settings)
        found.save(out)
    return found


def settle_prompts(
    model: str,
    file: Path,
    out: Path,
    *,
    at: Sequence[float] = (0.25, 0.5),
    text: Text = Text(),
    rule: Rule = Rule(),
    compute: Compute = Compute(),
) -> dict[str, dict[str, Any]]:
    """When full decoding first shows its final answer, and from when on it never changes again, over a .jsonl of prompts.

    The answer is what follows the suffix. Without one it is the prompt's "answer" where the finished text holds it, else
    the whole text.

    Args:
        model, text, rule, compute: as for `open_decoder`.
        file: the prompts, and in their objects an "answer" to tell right from wrong.
        out: the .json to write.
        at: shares of the steps to report, above 0 and up to 1.

    Returns:
        Of all prompts and, where their answers are known, of the right and the wrong ones: {"n": how many, "by": {share:
        {"first": the share of them that had shown their answer, "stable": for good}}}.

    Raises:
        ValueError: shares that are none, no such prompts, or what `open_decoder` raises.
    """
    if not at or not all(0 < share <= 1 for share in at):
        raise ValueError(f"--at takes shares of the steps, above 0 and up to 1, got {at}")
    _check_apart(file, out)
    items = read_prompts(file)
    decoder = open_decoder(model, text, rule, compute=compute)
    watched = EarlyCommit(decoder.rule, region=Suffix() if text.suffix else None)
    facts = text.settings(model, compute) | {"rule": watched.rule, "file": file, "seed": compute.seed}
    with receipt(out, **facts) as entries:
        traces = record(
            decoder.predictor, decoder.rows(items), watched, steps=text.steps, temperature=text.temperature,
            seeds=compute.seeds(len(items)), batch=compute.batch,
        )  # fmt: skip
        groups = _groups(traces, items, decoder)
        found = entries["emergence"] = {
            name: {"n": len(rows), "by": {f"{share:g}": row._asdict() for share, row in emergence(rows, at)}}
            for name, rows in groups.items()
            if rows
        }
    return found


def _check_apart(file: Path, out: Path) -> None:
    """Raises ValueError where nothing can be written, or it would replace the prompts."""
    writable_file(out)
    if out.exists() and file.exists() and out.samefile(file):
        raise ValueError(f"{out} holds the prompts; choose another file with --out")


def receipt_of(out: Path) -> Path:
    """Where the receipt of a file stands."""
    return out.with_name(out.name + ".receipt.json")


def _groups(traces: Sequence[Trace], items: Sequence[Prompt], decoder: Decoder) -> dict[str, list[Settled]]:
    """When each answer was there: of all prompts, and of those whose answer is right or wrong, as far as that is known."""
    groups: dict[str, list[Settled]] = {"all": [], "right": [], "wrong": []}
    for trace, item in zip(traces, items, strict=True):
        place, same = None, None
        if "answer" in item:
            place = _place(trace.final.ids.tolist(), trace.region.tolist(), str(item["answer"]), decoder.tokenizer)
            if place and not decoder.text.suffix:
                same = same_place(partial(_constant, place))
        hit = settle(trace, same)
        groups["all"].append(hit)
        if "answer" in item:
            groups["right" if place else "wrong"].append(hit)
    return groups


def _constant(place: slice, _: Tensor) -> slice:
    return place


def _place(ids: list[int], region: list[bool], answer: str, tokenizer: PreTrainedTokenizerBase) -> slice | None:
    """Where the answer stands in a finished row: its last place inside the region, with or without a space before."""
    for text in (answer, " " + answer):
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        for start in range(len(ids) - len(tokens), -1, -1):
            part = slice(start, start + len(tokens))
            if tokens and ids[part] == tokens and all(region[part]):
                return part
    return None
