"""Prompts in, answers out: all that `fewstep decode` and `settle-text` do."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from ..core.files import atomic_file, writable_file
from ..core.nfe import count_nfe
from ..core.parts import Parts, hidden, in_parts, of_texts
from ..core.processes import together
from ..core.receipt import receipt
from ..core.weights import mark
from .calibration import calibrated
from .changes import Changed, Changes, changes_of
from .choices import Compute, Early, Rule, Text, comparable
from .decoding import Decoded, decode, stream, tell, walk
from .early import EarlyCommit
from .infill import Kept, Template, Together
from .predictor import MaskPredictor, NetworkPredictor
from .prompts import StopStrings, pieces, read_prompts, text_of, token_ids
from .schedule import Suffix
from .settling import Settled, Trace, emergence, record, same_place, settle
from .step import CommitRule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

CURVE = tuple(k / 20 for k in range(1, 21))  # shares of the steps at which the curves are written
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
        template: the fixed text with holes that is generated, if it is one.
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
        """The fixed text that every answer begins with."""
        return self.template.lead if self.template else ""

    def rows(self, items: Sequence[Prompt]) -> list[Tensor]:
        """The canvas of each prompt."""
        return self.text.rows(items, self.network, self.tokenizer, self.template)

    def stream(self, item: Prompt, *, stop: tuple[str, ...] = ()) -> Iterator[tuple[str, Decoded | None]]:
        """The text of one answer as it becomes final, piece by piece; the last piece comes with the whole row.

        Text is held back while it may be the beginning of a stop string, or half a letter.
        """
        rows, tokens, shown = self.rows([item]), [], 0
        held = max((len(string) - 1 for string in stop), default=0)
        if self.lead:
            yield self.lead, None
        for _, new, end in stream(
            walk(self.predictor, rows, self.rule, seeds=self.compute.seeds(1), **self._options(stop))
        ):
            tokens += new
            whole = text_of(self.tokenizer, tokens, end.given, stop) if end else text_of(self.tokenizer, tokens)
            until = max(shown, len(whole) if end else len(whole.rstrip("\N{REPLACEMENT CHARACTER}")) - held)
            yield whole[shown:until], end
            shown = until

    def answers(self, items: Sequence[Prompt], *, stop: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
        """An entry a prompt, in order: what its line says, and text, tokens, nfe, positions and batch.

        Raises:
            ValueError: a prompt that is no canvas, at once.
        """
        rows = self.rows(items)
        parts = of_texts(len(rows), self.compute.batch)
        return (answered.entry for part in parts for answered in self._answered(items, rows, part, stop))

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

        Each has two entries more than `answers` gives: the `pieces` of text that its tokens are, and the `steps` at which
        they were decided, from 0; −1 is text that was given.

        All processes of the command share the prompts, and the file is the same at any number of them. Its parts stand
        beside it until it is complete, so the same call goes on where it was stopped. With `compare` the receipt also says
        what the cache has changed, which is returned.

        Raises:
            ValueError: a comparison where there is no cache, or what `answers` raises.
        """
        comparable(self.text, compare)
        rows = self.rows(items)
        facts = self.text.settings(self.model, self.compute)
        facts |= {"rule": self.rule, "stop": stop, "file": file, "seed": self.compute.seed}
        ranges = of_texts(len(rows), self.compute.batch)

        def make(k: int) -> dict[str, Any]:
            with count_nfe(self.network.network) as cost:
                answered = list(self._answered(items, rows, ranges[k], stop))
            spent = {"calls": cost.calls, "nfe": cost.rows, "positions": cost.positions}
            changed = self._changed(rows, ranges[k], [each.row for each in answered], stop) if compare else []
            told = {
                "answers": [each.entry | self._read(each.row) for each in answered],
                "seconds": [each.seconds for each in answered],
            }
            return told | {"spent": spent, "changed": changed}

        decided_by = facts | {"compare": compare} | self.decided_by(items)
        made = in_parts(hidden(out), decided_by, list(map(len, ranges)), make, title="decoding")
        with together() as here, receipt(receipt_of(out) if here.is_main else None, **facts) as entries, made as parts:
            told: Changes | None = here.meet(_written(parts, out, entries) if here.is_main else None)
        return told

    def decided_by(self, items: Sequence[Prompt]) -> dict[str, Any]:
        """What else decides the answers of a work in parts: the prompts, the weights and the batches."""
        asked = hashlib.sha256(json.dumps(list(items), sort_keys=True).encode()).hexdigest()
        return {"prompts": asked, "weights": mark(self.network.network.state_dict()), "batch": self.compute.batch}

    def _changed(self, rows: list[Tensor], part: range, found: list[Decoded], stop: tuple[str, ...]) -> list[Changed]:
        """What the cache has changed in the answers that were found; decodes them once more, without it."""
        seeds, options = self.compute.seeds(len(rows))[as_slice(part)], self._options(stop)
        exact = decode(self.exact, rows[as_slice(part)], self.rule, seeds=seeds, batch=self.compute.batch, **options)
        return [Changed.between(a, b) for a, b in zip(found, exact, strict=True)]

    def _read(self, row: Decoded) -> dict[str, Any]:
        """The text that each token adds, and the step at which it was decided."""
        return {"pieces": pieces(self.tokenizer, row.tokens), "steps": row.committed_at[row.start :].tolist()}

    def _options(self, stop: tuple[str, ...]) -> dict[str, Any]:
        found = StopStrings(self.tokenizer, stop) if stop else None
        return {"stop": found, "steps": self.text.steps, "temperature": self.text.temperature}

    def _answered(
        self, items: Sequence[Prompt], rows: list[Tensor], part: range, stop: tuple[str, ...]
    ) -> Iterator[_Answered]:
        """The answers of a part of the prompts, in order; `rows` are those of all."""
        begin = now = time.perf_counter()
        batch, generated, told = min(self.compute.batch, len(rows)), 0, 0
        entered: dict[int, float] = {}
        done: dict[int, tuple[Decoded, float]] = {}
        seeds, options, some = self.compute.seeds(len(rows))[as_slice(part)], self._options(stop), rows[as_slice(part)]
        walks = walk(self.predictor, some, self.rule, seeds=seeds, batch=batch, **options)
        for walked in tell(walks, some, self.predictor.mask_id):
            for progress in walked.progress:
                entered.setdefault(progress.number, now)
            now = time.perf_counter()
            done |= {number: (row, now - entered[number]) for number, row in walked.finished.items()}
            while told in done:
                row, seconds = done.pop(told)
                generated += len(row.tokens)
                entry = items[part[told]] | {
                    "text": self.lead + text_of(self.tokenizer, row.tokens, row.given, stop), "tokens": len(row.tokens),
                    "nfe": row.nfe, "positions": round(row.positions, 2), "batch": batch,
                }  # fmt: skip
                yield _Answered(entry, row, round(seconds, 4))
                told += 1
        seconds = time.perf_counter() - begin
        logger.info("%.2f texts and %.1f generated tokens a second", len(part) / seconds, generated / seconds)


class _Answered(NamedTuple):
    """An answer as it is written and as it was decoded, and its seconds from entering the batch to being finished."""

    entry: dict[str, Any]
    row: Decoded
    seconds: float


def as_slice(part: range) -> slice:
    """What takes the numbers of a range out of a list."""
    return slice(part.start, part.stop)


def _written(parts: Parts[dict[str, Any]], out: Path, entries: dict[str, Any]) -> Changes | None:
    """Writes the answers of all parts, and their cost into the entries of the receipt. Returns what the cache changed."""
    changed, seconds, spent = list[Changed](), list[float](), Counter[str]()
    with atomic_file(out) as handle:
        for part in parts:
            handle.writelines((json.dumps(answer, ensure_ascii=False) + "\n").encode() for answer in part["answers"])
            changed, seconds = changed + [Changed(*each) for each in part["changed"]], seconds + part["seconds"]
            spent.update(part["spent"])
    entries |= {**spent, "seconds_per_text": round(sum(seconds) / len(seconds), 4)}
    if not changed:
        return None
    entries["changed"] = (changes := changes_of(changed)).as_dict()
    return changes


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
    if calibration and text.infill:
        raise ValueError("no calibration is made for --infill; leave one of them out")
    found = calibrated(calibration, text.settings(model, compute)) if calibration else None
    tokenizer = compute.tokenizer(model)
    if tokenizer.chat_template and not text.raw:
        logger.info("prompts of plain text stand in the model's chat template; --raw leaves them as they are")
    rule.made(tokenizer)  # what is wrong with it is said before anything large is read
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
    """When full decoding first shows its final answer, and from which step on that stays, for a .jsonl of prompts.

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
    check_apart(file, out)
    check_open(text)
    items = read_prompts(file)
    decoder = open_decoder(model, text, rule, compute=compute)
    watched = EarlyCommit(decoder.rule, region=Suffix() if text.suffix else None)
    facts = text.settings(model, compute) | {"rule": watched.rule, "file": file, "seed": compute.seed}
    rows, seeds, ranges = decoder.rows(items), compute.seeds(len(items)), of_texts(len(items), compute.batch)

    def make(k: int) -> list[tuple[Settled, bool | None]]:
        some = as_slice(ranges[k])
        traces = record(
            decoder.predictor, rows[some], watched, steps=text.steps, temperature=text.temperature, seeds=seeds[some],
            batch=compute.batch,
        )  # fmt: skip
        return [_settled(trace, item, decoder) for trace, item in zip(traces, items[some], strict=True)]

    with (
        together() as here,
        receipt(out if here.is_main else None, **facts) as entries,
        in_parts(hidden(out), facts | decoder.decided_by(items), list(map(len, ranges)), make, title="watching") as parts,
    ):
        groups = _groups([(Settled(*hit), right) for part in parts for hit, right in part])
        found = entries["emergence"] = {
            name: {"n": len(hits), "by": {f"{share:g}": hit._asdict() for share, hit in emergence(hits, at)}}
            for name, hits in groups.items()
            if hits
        }
        entries["curves"] = {
            name: [{"share": share} | hit._asdict() for share, hit in emergence(hits, CURVE)]
            for name, hits in groups.items()
            if hits
        }
    return found


def check_apart(file: Path, out: Path) -> None:
    """Raises ValueError where nothing can be written, or it would replace the prompts."""
    writable_file(out)
    if out.exists() and file.exists() and out.samefile(file):
        raise ValueError(f"{out} holds the prompts; choose another file with --out")


def check_open(text: Text) -> None:
    """Raises ValueError where most of the text is given."""
    if text.infill:
        raise ValueError("--infill is of fewstep decode alone; leave it out")


def receipt_of(out: Path) -> Path:
    """Where the receipt of a file stands."""
    return out.with_name(out.name + ".receipt.json")


def _settled(trace: Trace, item: Prompt, decoder: Decoder) -> tuple[Settled, bool | None]:
    """When an answer was there, and whether it is right, as far as that is known."""
    if "answer" not in item:
        return settle(trace), None
    place = _place(trace.final.ids.tolist(), trace.region.tolist(), str(item["answer"]), decoder.tokenizer)
    same = same_place(partial(_constant, place)) if place and not decoder.text.suffix else None
    return settle(trace, same), place is not None


def _groups(settled: Sequence[tuple[Settled, bool | None]]) -> dict[str, list[Settled]]:
    """When each answer was there: of all prompts, and of those whose answer is right or wrong, as far as that is known."""
    kinds: dict[str, bool | None] = {"right": True, "wrong": False}
    groups = {name: [hit for hit, right in settled if right is kind] for name, kind in kinds.items()}
    return {"all": [hit for hit, _ in settled]} | groups


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
