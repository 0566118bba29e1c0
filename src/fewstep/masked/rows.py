"""The rows that are being decoded: how they begin, change, leave and make room, and how far each is."""

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
    """The rows that are being decoded, b of them. What the host must know of them at each step is on the CPU."""

    number: Tensor  # (b,) the row's place among all
    seed: Tensor  # (b,)
    tail: Tensor  # (b,) column behind the last given text
    ids: Tensor  # (b, L)
    valid: Tensor  # (b, L)
    open: Tensor  # (b, L)
    changed: Tensor  # (b, L) whose token is another than at the last step; at first all that is no padding
    committed_at: Tensor  # (b, L)
    likeliest: Tensor  # (b, L) the most likely token at the last step, −1 where nobody looked
    unchanged: Tensor  # (b, L)
    drift: Tensor  # (b, L, H)
    recalled: Tensor  # (b, L, R)
    trusted: Tensor  # (b, L, R)
    before: Tensor  # (b, L) which of the last step's predictions is the position's, −1 where nobody looked
    wanted: Tensor  # (b, L) what the rule wants to see at the next step
    steps: Tensor  # (b,) in all
    made: Tensor  # (b,) steps done
    nfe: Tensor  # (b,) network calls so far; on the CPU, as are
    positions: Tensor  # (b,) positions that were computed for it so far
    facts: Tensor  # (b, 7) those of its canvas

    @property
    def canvas(self) -> Canvas:
        """What a predictor sees."""
        return Canvas(self.ids, self.valid, self.open, Facts(*self.facts.T))

    @property
    def late(self) -> Tensor:
        """Whether the next step is the last planned one, or one behind it; (b,) bool."""
        return self.made >= self.steps - 1

    def seen(self, likeliest: Tensor) -> Batch:
        """After a look that found these tokens the most likely ones, (b, L)."""
        return self._replace(
            likeliest=likeliest, unchanged=torch.where(likeliest == self.likeliest, self.unchanged + 1, 0)
        )  # fmt: skip

    def recall(self, probability: Tensor) -> Batch:
        """After the same look, for a rule that recalls; the probabilities of these tokens, (b, L)."""
        newest = probability.to(self.trusted.dtype)[..., None]
        return self._replace(
            recalled=torch.cat([self.recalled[..., 1:], self.likeliest[..., None]], -1),
            trusted=torch.cat([self.trusted[..., 1:], newest], -1),
        )

    def step(
        self, change: Change, proposal: Tensor, mask_id: int, rule: CommitRule, *, nfe: float, positions: float
    ) -> Batch:
        """After a step that made the proposals at `commit` final and the tokens at `reopen` masks, at this cost a row."""
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
        """These rows only, and no more columns than they need."""
        kept = [part[torch.tensor(rows, dtype=torch.long, device=part.device)] for part in self]
        made = Batch(*kept)
        width = int(Facts(*made.facts.T).length.amax())
        return Batch(*(part if name in ROWWISE else part[:, :width] for name, part in made._asdict().items()))

    def join(self, others: Batch) -> Batch:
        """These rows and others; what is behind the end of a row is never looked at."""
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

    number: int  # the row's place among all
    start: int  # of the generation
    left: int  # positions that are undecided
    final: int  # everything before is decided and stays so
    end: int | None  # where the row ends, None if it goes on


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
    """The one look of the host at a step: all that it must know of it, in a single transfer."""

    rows: Batch  # with what the host knows of them now
    progress: list[Progress]  # one a row
    told: list[bool]  # what was asked besides


def look(
    batch: Batch, mask_id: int, ends: tuple[int, ...], stop: Stop | None, *, reopens: bool, asked: Sequence[Tensor]
) -> Look:
    """How far each row is; the tokens `ends` end one behind its last given text, and so does `stop`.

    What a rule that `reopens` has decided stays so from where it may not any more, or where the row ends.

    Args:
        asked: flags () bool that the host wants to know as well.
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
