"""A small table made in parts, for tests that share it out or stop it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import datasets
import torch

from fewstep.core.parts import in_ranges
from fewstep.diffusion.cond import Cond
from fewstep.diffusion.data.conditions import Conditions
from fewstep.diffusion.data.parted import Part, make_in_parts

N = 10
FACTS = {"teacher": "one", "count": N}
NULL = Cond({"text": torch.zeros(1, 3, 2).bfloat16(), "class_labels": torch.tensor([3])}, {"ids": (1, 2)})


def whole() -> Part:
    rng = torch.Generator().manual_seed(0)
    text = torch.randn(N, 3, 2, generator=rng).bfloat16()
    cond = Cond({"text": text, "class_labels": torch.arange(N) % 3}, {"ids": (1, 2)})
    return Part(torch.randn(N, 2, 8, 8, generator=rng), cond)


def make(rows: range) -> Part:
    part, some = whole(), slice(rows.start, rows.stop)
    columns = {"seed": (datasets.Value("int64"), list(rows))}
    return Part(part.latents[some], part.cond.part(some), columns, {"calls": 1, "rows": len(rows)})


def conditions() -> Conditions:
    return Conditions.of(whole().cond, NULL)


def main(folder: Path) -> None:
    asked: list[int] = []

    def seen(rows: range) -> Part:
        asked.append(rows.start)
        return make(rows)

    make_in_parts(folder / "table", FACTS, in_ranges(N, 4), seen, conditions, title="making")
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(asked))
