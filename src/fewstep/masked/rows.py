"""The rows that are being decoded: how they begin, change, leave and make room, and how far each is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.device import widest
from .predictor import Canvas, pad
from .step import Change

Stop = Callable[[list[int]], bool]  # the decided tokens of a row so far -> whether it ends here


class Batch(NamedTuple):
    """The rows that are being decoded, b of them."""

    number: Tensor  # (b,) the row's place among all
    seed: Tensor  # (b,)
    start: Tensor  # (b,) column of the first open position
    tail: Tensor  # (b,) column behind the last given text
    ids: Tensor  # (b, L)
    valid: Tensor  # (b, L)
    open: Tensor  # (b, L)
    changed: Tensor  # (b, L) whose token is another than at the last step; at first all that is no padding
    committed_at: Tensor  # (b, L)
    likeliest: Tensor  # (b, L) the most likely token at the last step, −1 where nobody looked
    unchanged: Tensor  # (b, L)
    drift: Tensor  # (b, L, H)
    before: Tensor  # (b, L) which of the last step's predictions is the position's, −1 where nobody looked
    steps: Tensor  # (b,) in all
    made: Tensor  # (b,) steps done
    nfe: Tensor  # (b,) network calls so far; on the CPU, as is
    positions: Tensor  # (b,) positions that were computed for it so far

    @property
    def canvas(self) -> Canvas:
        """What a predictor sees."""
        return Canvas(self.ids, self.valid, self.open)

    @property
    def late(self) -> Tensor:
        """Whether the next step is the last planned one, or one behind it; (b,) bool."""
        return self.made >= self.steps - 1

    def seen(self, likeliest: Tensor) -> Batch:
        """After a look that found these tokens the most likely ones, (b, L)."""
        return self._replace(
            likeliest=likeliest, unchanged=torch.where(likeliest == self.likeliest, self.unchanged + 1, 0)
        )  # fmt: skip

    def step(self, change: Change, proposal: Tensor, mask_id: int, *, nfe: float, positions: float) -> Batch:
        """After a step that made the proposals at `commit` final and the tokens at `reopen` masks, at this cost a row."""
        commit, reopen = change
        return self._replace(
            ids=torch.where(commit, proposal, self.ids).masked_fill(reopen, mask_id),
            changed=commit | reopen,
            committed_at=torch.where(commit, self.made[:, None], self.committed_at).masked_fill(reopen, -1),
            made=self.made + 1,
            nfe=self.nfe + nfe,
            positions=self.positions + positions,
        )

    def keep(self, rows: list[int]) -> Batch:
        """These rows only, and no more columns than they need."""
        kept = [part[torch.tensor(rows, dtype=torch.long, device=part.device)] for part in self]
        width = int(self.valid[rows].sum(1).amax())
        return Batch(*(part[:, :width] if part.ndim > 1 else part for part in kept))

    def join(self, others: Batch) -> Batch:
        """These rows and others; what is behind the end of a row is never looked at."""
        width = max(self.ids.shape[1], others.ids.shape[1])
        return Batch(*(torch.cat([_widened(a, width), _widened(b, width)]) for a, b in zip(self, others, strict=True)))


class Progress(NamedTuple):
    """How far a row is, in columns of its canvas."""

    number: int  # the row's place among all
    start: int  # of the generation
    decided: int  # everything before is decided
    final: int  # everything before is decided and stays so
    end: int | None  # where the row ends, None if it goes on


def begin(
    rows: Sequence[Tensor], seeds: Sequence[int], first: int, mask_id: int, *, steps: int | None, history: int
) -> Batch:
    """Rows number `first`, first + 1, … before their first step; their drift has a `history` of so many steps."""
    canvas = pad(rows, mask_id)
    device, blank = canvas.ids.device, torch.full_like(canvas.ids, -1)
    number = first + torch.arange(len(rows), device=device)
    column = torch.arange(canvas.ids.shape[1], device=device)
    nothing = torch.zeros(len(rows), dtype=torch.float64)
    return Batch(
        number=number,
        seed=torch.tensor([seed % 2**63 for seed in seeds], device=device),
        start=canvas.open.to(torch.uint8).argmax(1),
        tail=((column + 1) * (canvas.valid & ~canvas.open)).amax(1),
        ids=canvas.ids,
        valid=canvas.valid,
        open=canvas.open,
        changed=canvas.valid,
        committed_at=blank,
        likeliest=blank,
        unchanged=torch.zeros_like(blank),
        drift=torch.full((*blank.shape, history), torch.inf, dtype=widest(device), device=device),
        before=blank,
        steps=canvas.open.sum(1) if steps is None else torch.full((len(rows),), steps, device=device),
        made=torch.zeros_like(number),
        nfe=nothing,
        positions=nothing,
    )


def progress_of(batch: Batch, mask_id: int, ends: tuple[int, ...], stop: Stop | None, *, reopens: bool) -> list[Progress]:
    """How far each row is; the tokens `ends` end one behind its last given text, and so does `stop`.

    What a rule that `reopens` has decided stays so from where it may not any more, or where the row ends.
    """
    column = torch.arange(batch.ids.shape[1], device=batch.ids.device)
    never = batch.ids.shape[1]
    length = batch.valid.sum(1)
    undecided = torch.where(batch.open & (batch.ids == mask_id), column, never).amin(1)
    decided = torch.minimum(undecided, length)
    final = torch.where(batch.late, decided, batch.start) if reopens else decided
    behind = batch.valid & (column >= batch.tail[:, None])
    ending = torch.isin(batch.ids, torch.tensor(ends, dtype=torch.long, device=batch.ids.device))
    eos = torch.where(ending & behind, column, never).amin(1)
    # one transfer for all rows
    table = torch.stack([batch.number, batch.start, decided, final, eos, length, batch.tail], 1)
    found = []
    for row, (number, start, until, stays, eos_at, last, tail) in enumerate(table.tolist()):
        end = eos_at + 1 if eos_at < until else until if until == last else None
        if end is None and stop and until > tail and stop(batch.ids[row, tail:until].tolist()):
            end = until
        found.append(Progress(number, start, until, stays if end is None else end, end))
    return found


def _widened(part: Tensor, width: int) -> Tensor:
    """More columns, of zeros."""
    if part.ndim == 1 or part.shape[1] == width:
        return part
    return torch.cat([part, part.new_zeros(len(part), width - part.shape[1], *part.shape[2:])], 1)
