"""Tables that are made in parts, for long work; see `core.parts`. The parts are files of the table itself."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ...core.parts import MADE_OF, begun, check_made_of, share
from ...core.processes import together
from ...core.receipt import plain, receipt
from ...core.source import read_json
from ..cond import CLASS, Cond
from .conditions import COLUMN, Conditions, kept, kept_as
from .table import LABEL, LATENTS, Table, arrays_of, complete_table, is_table, part_file, part_notes, write_part

WHAT = "the table"


@dataclass(frozen=True)
class Part:
    """Some rows of a table.

    Attributes:
        latents: float32 samples (B, *).
        cond: their conditions, B rows; the shared values are the same in all parts.
        columns: further columns by name: their feature of `datasets` and their B values.
        notes: numbers that the table's receipt sums over all parts, such as network calls.
    """

    latents: Tensor
    cond: Cond
    columns: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)

    def as_columns(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Features and values of all columns. Classes are the column `label`."""
        import datasets

        features = {LATENTS: arrays_of(self.latents.shape[1:], "float32")}
        values: dict[str, Any] = {LATENTS: self.latents.float().contiguous().numpy()}
        for name, rows in self.cond.rows.items():
            if name == CLASS and rows.ndim == 1:  # some networks take a text under that name
                features[LABEL], values[LABEL] = datasets.Value("int64"), rows.long().numpy()
            else:
                features[COLUMN + name], values[COLUMN + name] = arrays_of(rows.shape[1:], kept_as(rows.dtype)), kept(rows)
        for name, (feature, column) in self.columns.items():
            features[name], values[name] = feature, column
        return features, values


def make_in_parts(
    folder: Path,
    facts: Mapping[str, Any],
    ranges: Sequence[range],
    make: Callable[[range], Part],
    conditions: Callable[[], Conditions],
    *,
    title: str,
) -> Table:
    """The table in `folder`. All processes together make what is missing.

    Args:
        folder: folder of the table.
        facts: everything that the rows depend on, for the receipt. A table with other facts is refused.
        ranges: the examples of each part.
        make: makes a part of some examples; it may leave some out.
        conditions: returns the conditions that are kept outside of the rows.
        title: title of the progress bar.

    Raises:
        ValueError: another process writes there, or the folder holds something else.
        Interrupted: the command was told to stop; finished parts are kept.
    """
    facts = plain(dict(facts))
    if is_table(folder) and (folder / MADE_OF).exists():
        check_made_of(folder, facts, WHAT)
        return Table(folder)

    def write(k: int) -> bool:
        part = make(ranges[k])
        features, values = part.as_columns()
        write_part(folder, k, len(ranges), features, [values] if len(part.latents) else [], part.notes)
        return True

    with together() as here, begun(folder, facts, here, what=WHAT):
        missing = [k for k in range(len(ranges)) if not part_file(folder, k, len(ranges)).exists()]
        here.meet()  # all processes find the same parts missing before one is written
        share(missing, [len(part) for part in ranges], write, here, folder=folder, title=title)
        here.meet()
        if here.is_main:
            _complete(folder, facts, len(ranges), conditions())
        here.meet()
    return Table(folder)


def notes_in(folder: Path) -> dict[str, int]:
    """The sums of the notes of all parts of the table in `folder`."""
    said = read_json(folder / "receipt.json", "it says how the table was made").get("notes", {})
    return {name: int(value) for name, value in said.items()}


def _complete(folder: Path, facts: Mapping[str, Any], parts: int, conditions: Conditions) -> None:
    """Completes the table from its parts."""
    import datasets
    import pyarrow

    schemas: list[Any] = []
    notes, rows = Counter[str](), 0
    for k in range(parts):
        file = part_file(folder, k, parts)
        schema, more, count = part_notes(file)
        schemas, rows = [*schemas, schema] if count else schemas, rows + count
        notes.update(more)
    if not rows:
        for file in (folder / MADE_OF, *(part_file(folder, k, parts) for k in range(parts))):
            file.unlink()
        raise ValueError(f"the table in {folder} would be empty, because everything was skipped; see the warnings")
    for schema in schemas:
        if not schema.equals(schemas[0]):
            raise ValueError(
                f"the parts of {folder} have rows of different shapes: {_first_difference(schemas[0], schema)}"
            )
    features = datasets.Features.from_arrow_schema(pyarrow.schema(schemas[0]))
    fingerprint = hashlib.sha256(json.dumps([facts, rows], sort_keys=True).encode()).hexdigest()[:16]
    with receipt(folder / "receipt.json", **facts) as entries:
        entries |= {"rows": rows, "notes": dict(notes)}
        complete_table(folder, parts, features, conditions, fingerprint=fingerprint)


def _first_difference(a: Any, b: Any) -> str:
    ours, theirs = ({field.name: str(field.type) for field in schema} for schema in (a, b))
    name = next(name for name in ours | theirs if ours.get(name) != theirs.get(name))
    return f"{name} is {ours.get(name)} and {theirs.get(name)}"
