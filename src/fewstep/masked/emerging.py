"""Measures when answers first appear in full decoding, and when they stay: all that `fewstep settle-text` does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..core.parts import hidden, in_parts, of_texts
from ..core.processes import together
from ..core.receipt import receipt
from .answering import check_apart
from .choices import Compute, Text
from .committing import Rule
from .decoder import Decoder, Prompt, as_slice, check_open, open_decoder
from .early import EarlyCommit
from .prompts import read_prompts
from .schedule import Suffix
from .settling import Settled, Trace, emergence, record, same_place, settle

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CURVE = tuple(k / 20 for k in range(1, 21))  # shares of the steps at which the curves are written


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
    """The steps at which full decoding first shows its final answer, and from which it stays, for a .jsonl of prompts.

    The answer is the text after the suffix. Without a suffix it is the prompt's "answer" if the finished text holds it,
    else the whole text.

    Args:
        model, text, rule, compute: as for `open_decoder`.
        file: the prompts; an "answer" in their objects tells right from wrong.
        out: the .json to write.
        at: shares of the steps to report, above 0 and up to 1.

    Returns:
        For "all" prompts and, if their answers are known, the "right" and the "wrong" ones: {"n": their number, "by":
        {share of the steps: {"first": share of them that had shown their answer, "stable": shown it for good}}}.

    Raises:
        ValueError: a share is not in (0, 1], the file holds no prompts, or as for `open_decoder`.
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


def _settled(trace: Trace, item: Prompt, decoder: Decoder) -> tuple[Settled, bool | None]:
    """When an answer was shown, and whether it is right; None if that is not known."""
    if "answer" not in item:
        return settle(trace), None
    place = _place(trace.final.ids.tolist(), trace.region.tolist(), str(item["answer"]), decoder.tokenizer)
    same = same_place(partial(_constant, place)) if place and not decoder.text.suffix else None
    return settle(trace, same), place is not None


def _groups(settled: Sequence[tuple[Settled, bool | None]]) -> dict[str, list[Settled]]:
    """When each answer was shown: for all prompts, and for those whose answer is known to be right or wrong."""
    kinds: dict[str, bool | None] = {"right": True, "wrong": False}
    groups = {name: [hit for hit, right in settled if right is kind] for name, kind in kinds.items()}
    return {"all": [hit for hit, _ in settled]} | groups


def _constant(place: slice, _: Tensor) -> slice:
    return place


def _place(ids: list[int], region: list[bool], answer: str, tokenizer: PreTrainedTokenizerBase) -> slice | None:
    """The place of the answer in a finished row: the last one inside the region, with or without a space before it."""
    for text in (answer, " " + answer):
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        for start in range(len(ids) - len(tokens), -1, -1):
            part = slice(start, start + len(tokens))
            if tokens and ids[part] == tokens and all(region[part]):
                return part
    return None
