"""Caches: keys and values are used again where little has changed since they were computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .predictor import Canvas, NetworkPredictor, facts_of


class Row(NamedTuple):
    """The facts of a row at a read; see `Facts`."""

    length: int
    first: int
    undecided: int
    low: int
    high: int
    until: int


State = tuple[int, int]  # a cache's note about a row at a read, for the next read


class Cache(Protocol):
    """Decides which columns of a row are computed at a read."""

    def columns(self, row: Row, last: State | None, shift: int, /) -> tuple[int, int, State]:
        """First column, column after the last, and the note for the next read; `last` is the last note, None at first.

        The logits for a column stand `shift` columns before it.
        """
        ...


@dataclass(frozen=True)
class Prefix:
    """Keeps the columns before the current block; the block and all columns after it are computed at every read.

    The whole row is computed when a block begins, and again after `refresh` reads.

    Args:
        block: length of the blocks, counted from a row's first open position; None is one block.
        refresh: at most this many reads from one computation of the whole row to the next; 1 is no cache; None computes it
            only when a block begins.

    Raises:
        ValueError: a block or a refresh below 1.

    Reference: Wu et al. 2025, Fast-dLLM.
    """

    block: int | None = 32
    refresh: int | None = None

    def __post_init__(self) -> None:
        _check(self.block, self.refresh)

    def columns(self, row: Row, last: State | None, shift: int) -> tuple[int, int, State]:
        start, _, state = _turn(row, last, self.block, self.refresh)
        return _window(row, state, start - shift, row.length)


@dataclass(frozen=True)
class Dual:
    """Keeps all columns but the current block and its neighbours; later columns stay as at the last refresh.

    Args:
        block, refresh: as for `Prefix`.
        around: number of neighbours on each side that are computed with the block.

    Raises:
        ValueError: a block or a refresh below 1, or `around` below 0.

    Reference: Wu et al. 2025, Fast-dLLM; with neighbours Ma et al. 2025, dInfer ("vicinity refresh").
    """

    block: int | None = 32
    refresh: int | None = None
    around: int = 0

    def __post_init__(self) -> None:
        _check(self.block, self.refresh)
        if self.around < 0:
            raise ValueError(f"the number of neighbours must not be negative, got around = {self.around}")

    def columns(self, row: Row, last: State | None, shift: int) -> tuple[int, int, State]:
        start, end, state = _turn(row, last, self.block, self.refresh)
        return _window(row, state, start - self.around - shift, end + self.around)


@dataclass(frozen=True)
class Blocks:
    """Keeps the unchanged blocks of a model in which no block sees a later one; exact with every rule.

    Args:
        size: of the blocks, counted from the first column.

    Reference: Arriola et al. 2025, Block Diffusion; Cheng et al. 2025, SDAR; Wu et al. 2025, Fast-dLLM v2.
    """

    size: int

    def columns(self, row: Row, last: State | None, shift: int) -> tuple[int, int, State]:
        done = 0 if last is None else last[0]  # the columns before it are unchanged
        if row.low < row.length:
            done = min(done, row.low // self.size * self.size)
        end = min(-(-row.until // self.size) * self.size, row.length)
        if end <= done:  # nothing new is wanted; the first block can always be computed
            return 0, min(self.size, row.length), (max(done, min(self.size, row.length)), 0)
        return done, end, (end, 0)


def _turn(row: Row, last: State | None, block: int | None, refresh: int | None) -> tuple[int, int, State]:
    """First column of the current block, the column after it, and the note: the block and its reads since the whole row."""
    size = block or row.length
    start = row.first + max(row.undecided - row.first, 0) // size * size
    again = last is not None and last[0] == start and last[1] != refresh
    return start, min(start + size, row.length), (start, last[1] + 1 if again and last else 1)


def _window(row: Row, state: State, begin: int, end: int) -> tuple[int, int, State]:
    """These columns and the changed ones; the whole row at the first read of a block."""
    if state[1] == 1:
        return 0, row.length, state
    return max(min(begin, row.low), 0), min(max(end, row.high), row.length), state


class Cached:
    """A predictor whose readings keep keys and values of the rows that are decoded. A call without a reading is exact.

    Args:
        predictor: of the network.
        cache: decides what is computed again.

    Raises:
        ValueError: the network does not take keys and values back, or already has an exact cache.
    """

    def __init__(self, predictor: NetworkPredictor, cache: Cache) -> None:
        kind = type(predictor.network).__name__
        if not predictor.decoder:
            raise ValueError(
                f"a {kind} takes no keys and values back, so it cannot be decoded with a cache; leave --cache out"
            )
        if predictor.block is not None:
            raise ValueError(
                "this model was trained on blocks, and its finished ones are kept as they are; leave the cache out"
            )
        self.predictor, self.cache = predictor, cache
        self.mask_id, self.eos_ids = predictor.mask_id, predictor.eos_ids

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return self.predictor.networks

    def __call__(self, canvas: Canvas, wanted: Tensor) -> Tensor:
        return self.predictor(canvas, wanted)  # type: ignore[no-any-return]

    def reading(self, canvas: Canvas) -> Memory:
        """The memory of these rows, empty."""
        return Memory.empty(self.predictor, self.cache, canvas)


class Memory:
    """The keys and values of each layer for the rows of a batch, and their states before the head.

    Each row has its own block, count of reads and window.

    Args:
        predictor: computes.
        cache: decides which columns are computed at a read.
        layers: keys, then values, of each layer in turn, (B, L, heads, D) each; empty before the first read.
        states: states before the head, (B, L, D); None before the first read.
        last: the cache's note about each row; None before its first read.
    """

    def __init__(
        self,
        predictor: NetworkPredictor,
        cache: Cache,
        layers: list[Tensor],
        states: Tensor | None,
        last: list[State | None],
    ) -> None:
        self.predictor, self.cache = predictor, cache
        self.layers, self.states, self.last = layers, states, last

    @classmethod
    def empty(cls, predictor: NetworkPredictor, cache: Cache, canvas: Canvas) -> Memory:
        """The memory for the rows of this canvas before their first read."""
        return cls(predictor, cache, [], None, [None] * len(canvas.ids))

    def read(self, canvas: Canvas, wanted: Tensor, changed: Tensor) -> Tensor:
        whole, windows = self._plan(canvas, wanted, changed)
        self._resize(canvas.ids.shape[1])
        row, column = self.predictor.places(canvas, wanted)

        def chosen() -> Tensor:
            assert self.states is not None, "it has been read"
            return self.states[row.to(self.states.device), column.to(self.states.device)]

        if not windows:
            return self._compute(canvas, range(len(self.last)), None, chosen)
        if whole:  # these first, as the logits are taken after the last call
            self._compute(canvas, whole, None, None)
        return self._compute(canvas, list(windows), list(windows.values()), chosen)

    def keep(self, rows: Sequence[int]) -> Memory:
        return self._of([_rows(part, rows) for part in self._parts], [self.last[row] for row in rows])

    def join(self, other: Memory) -> Memory:
        ours, theirs = self._parts, other._parts
        n, m = len(self.last), len(other.last)
        width = max([part.shape[1] for part in (*ours, *theirs)], default=0)
        # a side before its first read has no tensors; its columns are computed before they are used
        ours = ours or [part.new_zeros(n, 0, *part.shape[2:]) for part in theirs]
        theirs = theirs or [part.new_zeros(m, 0, *part.shape[2:]) for part in ours]
        both = [torch.cat([_wide(a, width), _wide(b, width)]) for a, b in zip(ours, theirs, strict=True)]
        return self._of(both, self.last + other.last)

    @property
    def _parts(self) -> list[Tensor]:
        """All tensors: the layers, then the states."""
        return [] if self.states is None else [*self.layers, self.states]

    def _of(self, parts: list[Tensor], last: list[State | None]) -> Memory:
        """A memory of other rows with these tensors."""
        return Memory(self.predictor, self.cache, parts[:-1], parts[-1] if parts else None, last)

    def _plan(self, canvas: Canvas, wanted: Tensor, changed: Tensor) -> tuple[list[int], dict[int, tuple[int, int]]]:
        """The rows that are computed as a whole, and for the others row -> (first column, column after the last)."""
        whole, windows = [], {}
        facts = canvas.facts or facts_of(canvas, wanted, changed, self.predictor.mask_id)
        for number, known in enumerate(torch.stack(facts, 1).tolist()):
            row = Row(*known[: len(Row._fields)])
            begin, end, self.last[number] = self.cache.columns(row, self.last[number], int(self.predictor.shift))
            if (begin, end) == (0, row.length):
                whole.append(number)
            else:
                windows[number] = begin, end
        return whole, windows

    def _resize(self, width: int) -> None:
        """Changes the number of columns; those that are cut off are padding."""
        if self.states is not None:
            self.layers, self.states = [_wide(part, width) for part in self.layers], _wide(self.states, width)

    def _compute(
        self,
        canvas: Canvas,
        rows: Sequence[int],
        windows: list[tuple[int, int]] | None,
        chosen: Callable[[], Tensor] | None,
    ) -> Tensor:
        """Computes and keeps columns of `rows`, all or those in `windows`; returns the logits of the `chosen` states."""
        every = len(rows) == len(self.last)
        place = torch.tensor(rows, dtype=torch.long, device=canvas.ids.device)
        part = canvas if every else canvas.part(place)
        update = _Update(self, None if every else place, part.ids.shape[1])
        ids = self.predictor.seen(part)
        column = torch.arange(update.width, device=ids.device)[None]
        if windows is not None:
            column = update.narrow(windows, ids.device)
            ids = ids.gather(1, column)

        def kept(states: Tensor) -> Tensor:
            if self.states is None:
                self.states = states.new_zeros(len(self.last), update.width, states.shape[-1])
            update.write(self.states, states)
            return states[0, :0] if chosen is None else chosen()

        mask = self.predictor.mask(part, None if windows is None else column)
        return self.predictor.compute(ids, mask, kept, past_key_values=update, position_ids=column)


class _Update:
    """The cache that transformers' attention sees in one call: takes new keys and values, returns those of all columns.

    Args:
        memory: keeps them.
        rows: (b,) long, the rows that are computed; None is all.
        width: of the canvas.
    """

    is_compileable = False

    def __init__(self, memory: Memory, rows: Tensor | None, width: int) -> None:
        self.memory, self.rows, self.width = memory, rows, width
        self.written: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def narrow(self, windows: list[tuple[int, int]], device: torch.device) -> Tensor:
        """Limits the call to these columns, (b, W) long; short windows are padded with columns that are not kept."""
        begin = torch.tensor([window[0] for window in windows], device=device)[:, None]
        size = max(end - start for start, end in windows)
        column = (begin + torch.arange(size, device=device)).clamp(max=self.width - 1)
        places = [(row, slot, start + slot) for row, (start, end) in enumerate(windows) for slot in range(end - start)]
        row, slot, where = torch.tensor(places, device=device).T
        self.written = row if self.rows is None else self.rows[row], where, row, slot
        return column

    def write(self, kept: Tensor, new: Tensor) -> None:
        """Writes computed values (b, W, …) to their places in `kept` (B, L, …)."""
        if self.written is not None:
            row, where, source, slot = (index.to(kept.device) for index in self.written)
            kept[row, where] = new[source, slot]
        elif self.rows is None:
            kept[:] = new
        else:
            kept[self.rows.to(kept.device)] = new

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        """Keeps new keys and values, (b, heads, W, D) each, and returns those of all columns."""
        new, layers = [keys.transpose(1, 2), values.transpose(1, 2)], self.memory.layers
        if len(layers) == 2 * layer:
            layers.extend(part.new_zeros(len(self.memory.last), self.width, *part.shape[2:]) for part in new)
        ours = layers[2 * layer : 2 * layer + 2]
        for kept, part in zip(ours, new, strict=True):
            self.write(kept, part)
        if self.written is None:
            return keys, values
        found = [kept if self.rows is None else kept[self.rows.to(kept.device)] for kept in ours]
        return found[0].transpose(1, 2), found[1].transpose(1, 2)

    def get_mask_sizes(self, *_: Any) -> tuple[int, int]:
        """The number of columns, and the number of columns dropped before them."""
        return self.width, 0

    def get_query_offset(self, *_: Any) -> int:
        """The offset of the queries' positions; without effect, as masks are given."""
        return 0


def _check(block: int | None, refresh: int | None) -> None:
    if block is not None and block < 1:
        raise ValueError(f"a block needs at least one position, got block = {block}")
    if refresh is not None and refresh < 1:
        raise ValueError(f"a cache needs at least one read between refreshes, got refresh = {refresh}")


def _rows(part: Tensor, rows: Sequence[int]) -> Tensor:
    return part[torch.tensor(rows, dtype=torch.long, device=part.device)]


def _wide(part: Tensor, width: int) -> Tensor:
    """(B, L, …) cut or padded with zeros to `width` columns."""
    if part.shape[1] >= width:
        return part[:, :width]
    return torch.cat([part, part.new_zeros(len(part), width - part.shape[1], *part.shape[2:])], 1)
