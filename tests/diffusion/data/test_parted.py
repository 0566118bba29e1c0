"""Tables made part by part: the same whoever makes them, and however often they are stopped."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import torch
from conftest import launch
from parted_worker import FACTS, N, conditions, make, whole

from fewstep.core.interrupts import Interrupted
from fewstep.core.parts import in_ranges
from fewstep.diffusion.data import Table
from fewstep.diffusion.data.parted import Part, make_in_parts, notes_in


def made(folder: Path, make: Callable[[range], Part] = make, **facts: object) -> Table:
    return make_in_parts(folder, FACTS | facts, in_ranges(N, 4), make, conditions, title="making")


def same(a: Table, b: Table) -> bool:
    return torch.equal(a.raw(range(len(a))), b.raw(range(len(b)))) and all(
        torch.equal(a.cond(k)[name], b.cond(k)[name]) for k in range(len(a)) for name in a.cond(k) | b.cond(k)
    )


def test_parts_make_the_table_that_one_would_be(tmp_path) -> None:
    """Row by row, as datasets reads it as well; what all parts noted is summed."""
    table, part = made(tmp_path / "table"), whole()
    assert torch.equal(table.raw(range(N)), part.latents) and len(table) == N
    for k in range(N):
        assert torch.equal(table.cond(k)["text"], part.cond.rows["text"][k]) and int(table.cond(k)["class_labels"]) == k % 3
    assert table.shared["ids"] == (1, 2) and table.null is not None
    assert datasets.load_from_disk(tmp_path / "table")["seed"][:] == list(range(N))
    receipt = json.loads((tmp_path / "table" / "receipt.json").read_text())
    assert receipt["rows"] == N and notes_in(tmp_path / "table") == {"calls": 3, "rows": N}
    assert (tmp_path / "table" / "made_of.json").exists() and sorted(tmp_path.iterdir()) == [tmp_path / "table"]


@pytest.mark.parametrize("kind", ["error", "signal"])
def test_a_table_goes_on_where_it_was_stopped(tmp_path, kind: str) -> None:
    """What is there is not made again."""
    asked: list[int] = []

    def stopped(rows: range) -> Part:
        asked.append(rows.start)
        if len(asked) == 2 and kind == "error":
            raise RuntimeError("out of power")
        if len(asked) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return make(rows)

    with pytest.raises(
        (RuntimeError, Interrupted), match=r"out of power|finished parts are in .*table, and the same command"
    ):
        made(tmp_path / "table", stopped)
    with pytest.raises(ValueError, match="not a readable table"):
        Table(tmp_path / "table")
    table = made(tmp_path / "table", stopped)
    assert asked == ([0, 4, 4, 8] if kind == "error" else [0, 4, 8])
    assert same(table, made(tmp_path / "another")) and table.fingerprint == made(tmp_path / "another").fingerprint
    assert made(tmp_path / "table", stopped) and len(asked) == (4 if kind == "error" else 3)


def test_processes_share_the_parts(tmp_path) -> None:
    launch("parted_worker", tmp_path, 2)
    assert same(Table(tmp_path / "table"), made(tmp_path / "alone"))
    assert json.loads((tmp_path / "0.json").read_text()) == [0, 8] and json.loads((tmp_path / "1.json").read_text()) == [4]


def test_another_table_is_not_taken_for_it(tmp_path) -> None:
    made(tmp_path / "table")
    with pytest.raises(ValueError, match="was made with teacher = 'one', not 'two'; delete it or choose another folder"):
        made(tmp_path / "table", teacher="two")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="holds other files; choose another"):
        made(tmp_path / "full")


def test_parts_may_leave_rows_out_but_not_differ_in_shape(tmp_path) -> None:
    def few(rows: range) -> Part:
        part = make(rows)
        keep = slice(0, 0 if rows.start == 4 else 2)
        columns = {name: (feature, values[keep]) for name, (feature, values) in part.columns.items()}
        return Part(part.latents[keep], part.cond.part(keep), columns, {"skipped": len(rows) - len(part.latents[keep])})

    table = made(tmp_path / "few", few)
    assert len(table) == 4 and notes_in(tmp_path / "few") == {"skipped": N - 4}
    assert torch.equal(table.raw([2, 3]), whole().latents[[8, 9]])

    def wide(rows: range) -> Part:
        part = make(rows)
        return Part(part.latents[:, :, : 2 + rows.start], part.cond, part.columns)

    with pytest.raises(ValueError, match="rows of different shapes: latents is"):
        made(tmp_path / "wide", wide)
    with pytest.raises(ValueError, match="would be empty, because everything was skipped"):
        made(tmp_path / "none", lambda rows: Part(torch.empty(0, 2, 2, 2), whole().cond.part(slice(0, 0))))
