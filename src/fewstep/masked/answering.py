"""Decodes prompts into a file of answers: all that `fewstep decode --out` does."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.files import atomic_file, writable_file
from ..core.nfe import count_nfe
from ..core.parts import Parts, hidden, in_parts, of_texts
from ..core.processes import together
from ..core.receipt import receipt
from .changes import Changed, Changes, changes_of
from .choices import comparable
from .decoder import Decoder, Prompt, as_slice, tell_speed
from .decoding import Decoded, decode
from .prompts import pieces


def save_answers(
    decoder: Decoder,
    items: Sequence[Prompt],
    out: Path,
    *,
    stop: tuple[str, ...] = (),
    file: Path | None = None,
    compare: bool = False,
) -> Changes | None:
    """Writes the answers into a .jsonl, with a receipt beside it that names the `file` of the prompts.

    Each answer has the entries of `Decoder.answers` and two more: `pieces`, the text of each token, and `steps`, the step
    at which each was decided, from 0; −1 is given text.

    All processes of the command share the prompts, and the file is the same with any number of processes. Its parts lie
    beside it until it is complete, so the same call goes on where it was stopped.

    Returns:
        With `compare` the changes by the cache, which the receipt holds too; else None.

    Raises:
        ValueError: `compare` without a cache, or as for `Decoder.answers`.
    """
    comparable(decoder.text, compare)
    rows = decoder.rows(items)
    facts = decoder.text.settings(decoder.model, decoder.compute)
    facts |= {"rule": decoder.rule, "stop": stop, "file": file, "seed": decoder.compute.seed}
    ranges = of_texts(len(rows), decoder.compute.batch)

    def make(k: int) -> dict[str, Any]:
        begin = time.perf_counter()
        with count_nfe(decoder.network.network) as cost:
            answered = list(decoder.answered(items, rows, ranges[k], stop))
        took = time.perf_counter() - begin
        spent = {"calls": cost.calls, "nfe": cost.rows, "positions": cost.positions}
        changed = _changed(decoder, rows, ranges[k], [each.row for each in answered], stop) if compare else []
        told = {
            "answers": [each.entry | _read(decoder, each.row) for each in answered],
            "seconds": [each.seconds for each in answered],
        }
        return told | {"took": took, "spent": spent, "changed": changed}

    decided_by = facts | {"compare": compare} | decoder.decided_by(items)
    made = in_parts(hidden(out), decided_by, list(map(len, ranges)), make, title="decoding")
    with together() as here, receipt(receipt_of(out) if here.is_main else None, **facts) as entries, made as parts:
        told: Changes | None = here.meet(_written(parts, out, entries) if here.is_main else None)
    return told


def _changed(
    decoder: Decoder, rows: list[Tensor], part: range, found: list[Decoded], stop: tuple[str, ...]
) -> list[Changed]:
    """The changes by the cache in the answers `found`, which are decoded once more without it."""
    seeds, options = decoder.compute.seeds(len(rows))[as_slice(part)], decoder.options(stop)
    exact = decode(decoder.exact, rows[as_slice(part)], decoder.rule, seeds=seeds, batch=decoder.compute.batch, **options)
    return [Changed.between(a, b) for a, b in zip(found, exact, strict=True)]


def _read(decoder: Decoder, row: Decoded) -> dict[str, Any]:
    """The text that each token adds, and the step at which it was decided."""
    return {"pieces": pieces(decoder.tokenizer, row.tokens), "steps": row.committed_at[row.start :].tolist()}


def _written(parts: Parts[dict[str, Any]], out: Path, entries: dict[str, Any]) -> Changes | None:
    """Writes the answers of all parts, adds their cost to the receipt, and returns the changes by the cache."""
    changed, seconds, spent = list[Changed](), list[float](), Counter[str]()
    tokens, took = 0, 0.0
    with atomic_file(out) as handle:
        for part in parts:
            handle.writelines((json.dumps(answer, ensure_ascii=False) + "\n").encode() for answer in part["answers"])
            changed, seconds = changed + [Changed(*each) for each in part["changed"]], seconds + part["seconds"]
            spent.update(part["spent"])
            tokens, took = tokens + sum(answer["tokens"] for answer in part["answers"]), took + part["took"]
    tell_speed(len(seconds), tokens, took)
    entries |= {**spent, "seconds_per_text": round(sum(seconds) / len(seconds), 4)}
    if not changed:
        return None
    entries["changed"] = (changes := changes_of(changed)).as_dict()
    return changes


def check_apart(file: Path, out: Path) -> None:
    """Raises ValueError if `out` cannot be written, or is the file of the prompts."""
    writable_file(out)
    if out.exists() and file.exists() and out.samefile(file):
        raise ValueError(f"{out} holds the prompts; choose another file with --out")


def receipt_of(out: Path) -> Path:
    """The path of a file's receipt."""
    return out.with_name(out.name + ".receipt.json")
