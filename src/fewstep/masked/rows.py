"""The rows that are being decoded: how they begin, change and leave, and how far each is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.device import widest
from .predictor import Canvas, Facts, facts_of, pad
from .step import Change, CommitRule

Stop = Callable[[list[int]], bool]  # the decided tokens of a row so far -> whether it ends here


class Batch(NamedTuple):
    """The b rows that are being decoded. Facts that the host needs at each step are on the CPU."""

    number: Tensor  # (b,) the row's number among all rows
    seed: Tensor  # (b,)
    tail: Tensor  # (b,) column after the last given text
    ids: Tensor  # (b, L)
    valid: Tensor  # (b, L)
    open: Tensor  # (b, L)
    changed: Tensor  # (b, L) positions whose token changed at the last step; at first all but padding
    committed_at: Tensor  # (b, L)
    likeliest: Tensor  # (b, L) the most likely token at the last step, −1 where not wanted
    unchanged: Tensor  # (b, L)
    drift: Tensor  # (b, L, H)
    recalled: Tensor  # (b, L, R)
    trusted: Tensor  # (b, L, R)
    before: Tensor  # (b, L) index of the position's prediction in the last step, −1 where not wanted
    wanted: Tensor  # (b, L) positions whose logits the rule needs at the next step
    steps: Tensor  # (b,) in all
    made: Tensor  # (b,) steps done
    nfe: Tensor  # (b,) network calls so far; on the CPU, as are the next two
    positions: Tensor  # (b,) positions computed for the row so far
    facts: Tensor  # (b, 7) the facts of the canvas

    @property
    def canvas(self) -> Canvas:
        """The predictor's input."""
        return Canvas(self.ids, self.valid, self.open, Facts(*self.facts.T))

    @property
    def late(self) -> Tensor:
        """Whether the next step is the last planned one or later; (b,) bool."""
        return self.made >= self.steps - 1

    def seen(self, likeliest: Tensor) -> Batch:
        """The rows after a prediction with these most likely tokens, (b, L)."""
        return self._replace(
            likeliest=likeliest, unchanged=torch.where(likeliest == self.likeliest, self.unchanged + 1, 0)
        )  # fmt: skip

    def recall(self, probability: Tensor) -> Batch:
        """The rows after the same prediction, for a rule that recalls; probabilities of those tokens, (b, L)."""
        newest = probability.to(self.trusted.dtype)[..., None]
        return self._replace(
            recalled=torch.cat([self.recalled[..., 1:], self.likeliest[..., None]], -1),
            trusted=torch.cat([self.trusted[..., 1:], newest], -1),
        )

    def step(
        self, change: Change, proposal: Tensor, mask_id: int, rule: CommitRule, *, nfe: float, positions: float
    ) -> Batch:
        """The rows after a step: proposals at `commit` are final, tokens at `reopen` are masks; adds its cost a row."""
        commit, reopen = change
        ids = torch.where(commit, proposal, self.ids).masked_fill(reopen, mask_id)
        return self._replace(
            ids=ids,
            wanted=rule.sees(self.open & (ids == mask_id), self.open),
            changed=commit | reopen,
            committed_at=torch.where(commit, self.made[:, None], self.committed_at).masked_fill(reopen, -1),
            made=self.made + 1,
            nfe=self.nfe + nfe,
            positions=self.positions + positions,
        )

    def keep(self, rows: list[int]) -> Batch:
        """Only these rows, with no more columns than they need."""
        kept = [part[torch.tensor(rows, dtype=torch.long, device=part.device)] for part in self]
        made = Batch(*kept)
        width = int(Facts(*made.facts.T).length.amax())
        return Batch(*(part if name in ROWWISE else part[:, :width] for name, part in made._asdict().items()))

    def join(self, others: Batch) -> Batch:
        """These rows and others; columns after the end of a row are never read."""
        width = max(self.ids.shape[1], others.ids.shape[1])
        both = zip(self._fields, self, others, strict=True)
        return Batch(
            *(
                torch.cat([a, b]) if name in ROWWISE else torch.cat([_widened(a, width), _widened(b, width)])
                for name, a, b in both
            )
        )


ROWWISE = {"number", "seed", "tail", "steps", "made", "nfe", "positions", "facts"}  # these have no columns


class Progress(NamedTuple):
    """How far a row is, in columns of its canvas."""

    number: int  # the row's number among all rows
    start: int  # of the generation
    left: int  # number of undecided positions
    final: int  # every position before this column is final
    end: int | None  # the column where the row ends; None if it goes on


def begin(
    rows: Sequence[Tensor], seeds: Sequence[int], first: int, mask_id: int, rule: CommitRule, *, steps: int | None
) -> Batch:
    """Rows number `first`, first + 1, … before their first step, for this rule."""
    canvas = pad(rows, mask_id)
    device, blank = canvas.ids.device, torch.full_like(canvas.ids, -1)
    number = first + torch.arange(len(rows), device=device)
    column = torch.arange(canvas.ids.shape[1], device=device)
    nothing = torch.zeros(len(rows), dtype=torch.float64)
    made = Batch(
        number=number,
        seed=torch.tensor([seed % 2**63 for seed in seeds], device=device),
        tail=((column + 1) * (canvas.valid & ~canvas.open)).amax(1),
        ids=canvas.ids,
        valid=canvas.valid,
        open=canvas.open,
        changed=canvas.valid,
        committed_at=blank,
        likeliest=blank,
        unchanged=torch.zeros_like(blank),
        drift=torch.full((*blank.shape, rule.remembers()), torch.inf, dtype=widest(device), device=device),
        recalled=torch.full((*blank.shape, rule.recalls()), -1, device=device),
        trusted=torch.zeros((*blank.shape, rule.recalls()), dtype=widest(device), device=device),
        before=blank,
        wanted=rule.sees(canvas.open, canvas.open),
        steps=canvas.open.sum(1) if steps is None else torch.full((len(rows),), steps, device=device),
        made=torch.zeros_like(number),
        nfe=nothing,
        positions=nothing,
        facts=torch.zeros(len(rows), len(Facts._fields), dtype=torch.long),
    )
    facts = facts_of(canvas, made.wanted, made.changed, mask_id)
    return made._replace(facts=torch.stack(facts, 1).cpu())


class Look(NamedTuple):
    """All that the host needs to know after a step, in a single transfer."""

    rows: Batch  # with their facts on the host
    progress: list[Progress]  # one a row
    told: list[bool]  # the further flags


def look(
    batch: Batch, mask_id: int, ends: tuple[int, ...], stop: Stop | None, *, reopens: bool, asked: Sequence[Tensor]
) -> Look:
    """How far each row is. After its last given text a row is ended by a token of `ends` or by `stop`.

    If the rule `reopens`, positions are final once it may not reopen any more, or once the row has ended.

    Args:
        asked: further flags, () bool, to transfer to the host.
    """
    width = batch.ids.shape[1]
    column = torch.arange(width, device=batch.ids.device)
    facts = facts_of(batch.canvas, batch.wanted, batch.changed, mask_id)
    behind = batch.valid & (column >= batch.tail[:, None])
    ending = torch.isin(batch.ids, torch.tensor(ends, dtype=torch.long, device=batch.ids.device))
    eos = torch.where(ending & behind, column, width).amin(1)
    left = (batch.open & (batch.ids == mask_id)).sum(1)
    flags = [flag.long().expand_as(eos) for flag in asked]
    table = torch.stack([*facts, batch.number, batch.tail, batch.late.long(), eos, left, *flags], 1)
    near = (torch.cat([table, batch.ids], 1) if stop else table).cpu()  # one transfer for all rows
    known, found = len(facts), []
    for row in near.tolist():
        length, first, undecided = row[:3]
        number, tail, late, eos_at, open_ones = row[known : known + 5]
        until = min(undecided, length)
        end = eos_at + 1 if eos_at < until else until if until == length else None
        if end is None and stop and until > tail and stop(row[table.shape[1] :][tail:until]):
            end = until
        final = until if late or not reopens or end is not None else first
        found.append(Progress(number, first, open_ones, final if end is None else end, end))
    told = [bool(flag) for flag in near[0, known + 5 : table.shape[1]]]
    return Look(batch._replace(facts=near[:, :known]), found, told)


def _widened(part: Tensor, width: int) -> Tensor:
    """More columns, of zeros."""
    if part.shape[1] == width:
        return part
    return torch.cat([part, part.new_zeros(len(part), width - part.shape[1], *part.shape[2:])], 1)
