"""A batch's memory follows its rows and columns: one that keeps the whole canvas decodes what one without any does."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from masked.test_reopening import Doubt
from masked.toy import MASK, Toy, masks
from torch import Tensor

from fewstep.core.nfe import count_nfe
from fewstep.masked.decoding import decode, walk
from fewstep.masked.early import EarlyCommit, StableAndConfident, sched
from fewstep.masked.predictor import Canvas, Guided, MaskPredictor, Suppressed, pad
from fewstep.masked.rules import KLASS, Blockwise, EntropyBound, Factor, Last, Threshold, TopK
from fewstep.masked.schedule import Stairs
from fewstep.masked.step import CommitRule
from fewstep.steering.masked import Proxied

RULES: list[CommitRule] = [
    TopK(),
    TopK("margin", "dream"),
    TopK("chance"),
    Blockwise(Threshold(0.4), 3),
    Factor(1.0),
    EntropyBound(1.0),
    Blockwise(KLASS(0.2, 2.0, 1), 4),
    Last(TopK("entropy"), (3,)),
    EarlyCommit(Blockwise(TopK(), 3), Stairs((2.0,), ())),
    sched(threshold=Stairs((3.0,), ())),
    StableAndConfident(TopK(), 1, 0.8),
    Blockwise(Doubt(0.3, 0.9), 4),
]
ROWS = [masks("0" * (n % 4) + "_" * (1 + (5 * n) % 9)) for n in range(11)]


class Memory:
    """Keeps the canvas and a number of reads a row, and shows the network nothing but what it remembers."""

    def __init__(self, toy: Remembering, canvas: Canvas) -> None:
        self.toy, self.ids, self.reads = toy, torch.full_like(canvas.ids, -1), [0] * len(canvas.ids)

    def read(self, canvas: Canvas, wanted: Tensor, changed: Tensor) -> Tensor:
        assert len(self.reads) == len(canvas.ids)
        width = canvas.ids.shape[1]
        assert (self.ids[:, width:] == -1).all(), "nobody's token is cut off"
        self.ids = torch.nn.functional.pad(self.ids[:, :width], (0, max(width - self.ids.shape[1], 0)), value=-1)
        for row, reads in enumerate(self.reads):
            same = canvas.ids[row] == self.ids[row]
            assert torch.equal(changed[row], ~same & canvas.valid[row]), "what changed is told, and nothing else"
            assert reads or torch.equal(changed[row], canvas.valid[row])
        self.ids = torch.where(changed, canvas.ids, self.ids)
        self.reads = [reads + 1 for reads in self.reads]
        self.toy.latest = self
        return self.toy(canvas._replace(ids=self.ids.clamp(min=0)), wanted)

    def keep(self, rows: Sequence[int]) -> Memory:
        self.ids, self.reads = self.ids[list(rows)], [self.reads[row] for row in rows]
        return self

    def join(self, other: Memory) -> Memory:
        width = max(self.ids.shape[1], other.ids.shape[1])
        both = [torch.nn.functional.pad(m.ids, (0, width - m.ids.shape[1]), value=-1) for m in (self, other)]
        self.ids, self.reads = torch.cat(both), self.reads + other.reads
        return self


class Remembering(Toy):
    """A toy with a memory; `latest` is the one that was read last."""

    latest: Memory

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed, eos_bias=2.0)
        self.begun = 0

    def reading(self, canvas: Canvas) -> Memory:  # type: ignore[override]
        self.begun += 1
        return Memory(self, canvas)


def wrapped(kind: str, toys: list[Toy]) -> MaskPredictor:
    plain, guided = toys[0], Guided(toys[0], 2.5)
    made: dict[str, MaskPredictor] = {
        "alone": plain,
        "guided": guided,
        "unguided": Guided(plain, 1.0),
        "suppressed": Suppressed(guided, [2, 10]),
        "steered": Proxied(Suppressed(guided, [4]), toys[1], Guided(toys[2], 0.5), alpha=0.5),
    }
    return made[kind]


# Predictors around predictors see what a rule asks of a row: once with each way of asking.
ASKING = [TopK(), Blockwise(KLASS(0.2, 2.0, 1), 4), EarlyCommit(Blockwise(TopK(), 3), Stairs((2.0,), ())), RULES[-1]]
KINDS = ("guided", "unguided", "suppressed", "steered")


@pytest.mark.parametrize(
    ("rule", "temperature", "kind"),
    [(rule, temperature, "alone") for rule in RULES for temperature in (0.0, 1.0)]
    + [(rule, 1.0, kind) for rule in ASKING for kind in KINDS],
    ids=repr,
)
def test_a_memory_that_follows_its_rows_changes_nothing(rule: CommitRule, temperature: float, kind: str) -> None:
    """Rows of many lengths leave and enter, so that the canvas gets narrower and wider."""
    plain = wrapped(kind, [Toy(seed, eos_bias=2.0) for seed in range(3)])
    toys = [Remembering(seed) for seed in range(3)]
    widths = set()
    for a, b in zip(
        walk(plain, ROWS, rule, temperature=temperature, batch=3),
        walk(wrapped(kind, list(toys)), ROWS, rule, temperature=temperature, batch=3),
        strict=True,
    ):
        assert torch.equal(a.step.logits, b.step.logits) and torch.equal(a.rows.ids, b.rows.ids)
        assert a.finished.keys() == b.finished.keys()
        widths.add(a.canvas.ids.shape[1])
    assert toys[0].begun > 3 and len(widths) > 2


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_plain_is_the_network_on_the_canvas(rule: CommitRule) -> None:
    """Its logits are those of the network called on the same canvas, bit for bit, without the mask token's."""
    toy = Toy(eos_bias=2.0)
    for walked in walk(toy, ROWS, rule, batch=4):
        canvas = walked.canvas
        wanted = torch.zeros_like(canvas.open).index_put(walked.step.where, torch.tensor(True))
        logits = toy(canvas, wanted)
        logits[:, MASK] = -torch.inf
        assert torch.equal(walked.step.logits, logits)


def test_reads_are_counted_a_row() -> None:
    """A row's counter stands at the steps that this row has made, whoever left or entered beside it."""
    toy = Remembering()
    for walked in walk(toy, ROWS, Threshold(0.4), batch=3):
        assert toy.latest.reads == walked.rows.made.tolist()


def test_positions_are_what_the_network_computed() -> None:
    toy = Toy()
    with count_nfe(toy) as seen:
        one, many = decode(toy, [masks("01____")], TopK())[0], decode(toy, [masks("0__"), masks("_" * 7)], TopK(), batch=2)
    assert one.positions == 4 * 6  # one token a step, on a canvas of six
    assert [row.positions for row in many] == [2 * 7, 2 * 7 + 5 * 7]  # the first row is padded to the second's seven
    assert seen.positions == one.positions + sum(row.positions for row in many)
    assert (seen.calls, seen.rows) == (4 + 7, one.nfe + sum(row.nfe for row in many))
    guided = decode(Guided(toy, 2.0), [masks("01____")], TopK())[0]
    assert (guided.nfe, guided.positions) == (2 * one.nfe, 2 * one.positions)


def test_a_network_that_takes_no_tokens_has_no_positions() -> None:
    layer = torch.nn.Linear(3, 2)
    with count_nfe(layer) as seen, torch.no_grad():
        layer(torch.zeros(5, 3))
    assert (seen.calls, seen.rows, seen.positions) == (1, 5, 0)


def test_a_call_is_the_first_read() -> None:
    canvas = pad(ROWS, MASK)
    for kind in ("guided", "suppressed", "steered"):
        plain = wrapped(kind, [Toy(seed, eos_bias=2.0) for seed in range(3)])(canvas, canvas.open)
        assert torch.equal(plain, wrapped(kind, [Remembering(seed) for seed in range(3)])(canvas, canvas.open))
