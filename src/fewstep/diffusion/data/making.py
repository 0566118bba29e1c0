"""`make_table`: writes images from any source as a table on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...core.extras import needs
from ...core.files import atomic_folder, check_room
from ...core.receipt import receipt
from ..cond import CLASS
from .labels import read_labels
from .load import arrays_in, bytes_of, decoded, pictures_in, shape_of
from .table import IMAGE, LABEL, LATENTS, Table, arrays_of, write_table

BATCH = 2**26  # bytes of samples that are written in one batch


def make_table(
    source: str | Path, out: str | Path, *, channels: int, size: int | tuple[int, int], labels: bool = True
) -> Table:
    """Writes the images that `load_images` reads as a table, in the same order and with little memory.

    A training or a score sees the same rows as from the data in memory.

    Args:
        source, channels, size, labels: as for `load_images`.
        out: folder of the table, which must not exist. It appears when it is complete.

    Raises:
        ValueError: see `load_images`; or `out` exists, or the disk has no room for the table.
        OSError: the table could not be written.
    """
    needs("data")
    out = Path(out)
    if out.exists():
        raise ValueError(f"{out} is already there; choose another folder for the table with --out")
    plan = _plan(source, shape_of(channels, size), labels=labels)
    check_room(out, plan.bytes)
    facts = {"source": str(source), "shape": plan.shape, "classes": plan.names}
    with atomic_folder(out) as folder, receipt(folder / "receipt.json", **facts) as entries:
        write_table(folder, plan.features, plan.batches(entries))
    return Table(out)


class _Plan(NamedTuple):
    """A table to write: its rows, and their shape, size and classes."""

    rows: Iterator[tuple[Tensor, int]]
    shape: tuple[int, ...]
    dtype: torch.dtype
    bytes: int
    labelled: bool
    names: tuple[str, ...] | None

    @property
    def column(self) -> str:
        return IMAGE if self.dtype == torch.uint8 else LATENTS

    @property
    def features(self) -> dict[str, Any]:
        import datasets

        label = datasets.ClassLabel(names=list(self.names)) if self.names else datasets.Value("int64")
        known = {self.column: arrays_of(self.shape, str(self.dtype).removeprefix("torch."))}
        return known | ({LABEL: label} if self.labelled else {})

    def batches(self, entries: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The rows in batches; their number goes into the receipt."""
        entries["rows"], rows = 0, iter(self.rows)
        one = torch.empty(self.shape, dtype=self.dtype, device="meta").nbytes
        while some := list(islice(rows, max(1, BATCH // one))):
            samples, labels = zip(*some, strict=True)
            entries["rows"] += len(some)
            batch: dict[str, Any] = {self.column: torch.stack(samples).numpy()}
            yield batch | ({LABEL: np.array(labels, np.int64)} if self.labelled else {})


def _plan(source: str | Path, shape: tuple[int, int, int], *, labels: bool) -> _Plan:
    ready = arrays_in(source, shape, labels=labels)
    if isinstance(ready, Table):
        raise ValueError(f"{source} is a table already; give it to --data")
    if ready is not None:
        one, labelled = ready.raw([0]), ready.label_range is not None
        rows = ((ready.raw([k])[0], int(ready.cond(k).get(CLASS, -1))) for k in range(len(ready)))
        return _Plan(rows, shape, one.dtype, len(ready) * one.nbytes, labelled, ready.classes)
    pictures = pictures_in(source, shape[0])
    needed = bytes_of(pictures, shape)
    values, names = read_labels(lambda: pictures.labels, pictures.source, needed=labels)
    rows = ((x, -1 if values is None else int(values[k])) for k, x in decoded(pictures, shape))
    return _Plan(rows, shape, torch.uint8, needed, values is not None, names)
