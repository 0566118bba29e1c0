"""Mask predictors: a canvas with holes -> logits for the holes that are asked for. Wrapping one gives one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..core.device import at_least_float32
from .reading import Combined, Plain, Reading


class Facts(NamedTuple):
    """What the host knows of the rows of a canvas, so that it need not wait for the device; (B,) long each, on the CPU."""

    length: Tensor  # of the row
    first: Tensor  # column of its first open position
    undecided: Tensor  # column of its first position without a token
    low: Tensor  # changes begin at this column
    high: Tensor  # and end before this one; where there are none it is below
    until: Tensor  # no position is wanted from this column on
    wanted: Tensor  # how many are


class Canvas(NamedTuple):
    """Rows of text with holes, padded on the right to one length.

    On the right, because position ids then are 0, 1, 2, … for every row and no architecture needs to be told.
    """

    ids: Tensor  # (B, L) long, the mask token where nothing is decided yet
    valid: Tensor  # (B, L) bool, False on the padding
    open: Tensor  # (B, L) bool, the positions that are to be filled, decided by now or not
    facts: Facts | None = None  # where the decoder tells them

    def part(self, rows: Tensor) -> Canvas:
        """These rows (b,) alone, of as many columns."""
        near = rows.cpu()
        facts = None if self.facts is None else Facts(*(fact[near] for fact in self.facts))
        return Canvas(self.ids[rows], self.valid[rows], self.open[rows], facts)

    @property
    def prompt(self) -> Tensor:
        """What stands before the first open position, (B, L) bool."""
        return self.valid & (self.open.cumsum(1) == 0)


class MaskPredictor(Protocol):
    """Predicts hidden tokens: f(canvas, wanted) -> logits.

    wanted is (B, L) bool; the result (N, V) holds the raw logits of its N true positions, row after row, left to right. It
    belongs to the caller, who may write into it.

    Attributes:
        mask_id: the token that stands for "not decided".
        eos_ids: tokens that end a text.
        networks: what is called underneath; network calls are counted there.
    """

    @property
    def mask_id(self) -> int: ...

    @property
    def eos_ids(self) -> tuple[int, ...]: ...

    @property
    def networks(self) -> tuple[nn.Module, ...]: ...

    def __call__(self, canvas: Canvas, wanted: Tensor, /) -> Tensor: ...

    def reading(self, canvas: Canvas, /) -> Reading:
        """The memory of these rows before they are read; `Plain(self)` has none."""
        ...


class NetworkPredictor(nn.Module):
    """The mask predictor in a transformers model with bidirectional attention; its LM head sees wanted positions only.

    Args:
        network: called as network(ids, attention_mask=…), returns an object with `.logits`.
        mask_id: id of the mask token.
        eos_ids: ids that end a text.
        pad_id: what the network finds on padding; RoBERTa tells its position ids by it.
        shift: the logits for position i stand at i − 1 (Dream); those for position 0 at 0.
        max_length: longest canvas, None where the network has no limit.
        decoder: the network is one of transformers' decoders that was told to see both ways: it takes masks of four
            dimensions, position_ids and past_key_values, so that its keys and values can be kept.
        block: positions see their own block of so many, counted from the first column, and the blocks before it; None: all.
            Of a decoder that was trained so.
        causal: of one with blocks: what stands in a block before the first that has a hole sees no later position, as
            Nemotron-Labs-Diffusion was taught to; blocks with holes are seen in full.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        mask_id: int,
        eos_ids: Sequence[int] = (),
        pad_id: int = 0,
        shift: bool = False,
        max_length: int | None = None,
        decoder: bool = False,
        block: int | None = None,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.mask_id = mask_id
        self.eos_ids = tuple(eos_ids)
        self.pad_id = pad_id
        self.shift = shift
        self.max_length = max_length
        self.decoder, self.block, self.causal = decoder, block, causal

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return (self.network,)

    @property
    def device(self) -> torch.device:
        """Where the network takes its input."""
        return next(self.network.parameters()).device

    def forward(self, canvas: Canvas, wanted: Tensor) -> Tensor:
        row, column = self.places(canvas, wanted)
        if getattr(self.network, "get_output_embeddings", lambda: None)() is None:
            logits: Tensor = self.network(self.seen(canvas), attention_mask=self.mask(canvas)).logits
            return logits[row, column]
        return self.compute(
            self.seen(canvas), self.mask(canvas), lambda hidden: hidden[row.to(hidden.device), column.to(hidden.device)]
        )

    def places(self, canvas: Canvas, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns, (N,) each, where the network says what stands at the N wanted positions."""
        row, column = places(wanted, None if canvas.facts is None else int(canvas.facts.wanted.sum()))
        return row, (column - 1).clamp(min=0) if self.shift else column

    def seen(self, canvas: Canvas) -> Tensor:
        """The ids that the network sees, (B, L) long.

        Raises:
            ValueError: they are more than it takes.
        """
        length = canvas.ids.shape[1]
        if self.max_length is not None and length > self.max_length:
            raise ValueError(
                f"the canvas has {length} positions and this model takes {self.max_length}; "
                "shorten the prompt or the generation"
            )
        return canvas.ids.masked_fill(~canvas.valid, self.pad_id)

    def mask(self, canvas: Canvas, column: Tensor | None = None) -> Tensor | None:
        """What the network may see from the `column`s (B, W) that it computes, or from all: whatever is no padding.

        None is everything; without a mask attention is quicker.
        """
        if self.block is not None:
            every = torch.arange(canvas.ids.shape[1], device=canvas.ids.device)
            at = (every[None] if column is None else column)[:, :, None]
            seen = every // self.block <= at // self.block
            if self.causal:
                holes = canvas.open & (canvas.ids == self.mask_id)
                first = torch.where(holes, every, len(every)).amin(1)[:, None, None] // self.block
                seen = seen & ((every <= at) | (at // self.block >= first))
            return seen[:, None] & canvas.valid[:, None, None]
        length, facts = canvas.ids.shape[1], canvas.facts
        if bool(canvas.valid.all() if facts is None else (facts.length == length).all()):
            return None
        return canvas.valid[:, None, None] if self.decoder else canvas.valid.long()

    def compute(self, ids: Tensor, mask: Tensor | None, chosen: Callable[[Tensor], Tensor], **memory: Any) -> Tensor:
        """Logits (N, V) of the N states that are `chosen` among those before the head, (B, L, D).

        Args:
            ids: (B, L) long.
            mask: as from `mask`.
            chosen: (B, L, D) -> (N, D).
            memory: position_ids and past_key_values, for a decoder.
        """
        # The last layer is the same in every architecture, what leads there is not: so it is handed fewer positions.
        network: Any = self.network
        head = network.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, args: (chosen(args[0]),))
        try:
            logits: Tensor = network(ids, attention_mask=mask, **memory).logits
        finally:
            hook.remove()
        assert logits.ndim == 2, f"{type(self.network).__name__} changes the shape of its logits"
        return logits.to(ids.device)

    def reading(self, canvas: Canvas) -> Reading:
        """Plain, or of a model that was trained on blocks the memory of those that are finished; both are exact."""
        if self.block is None:
            return Plain(self)
        from .caching import Blocks, Memory

        return Memory.empty(self, Blocks(self.block), canvas)


class Guided:
    """Classifier-free guidance without a second model: u + scale·(c − u), where u does not see the prompt.

    Args:
        predictor: c; u is the same with every prompt token masked.
        scale: 1 is off (and makes no second network call); LLaDA's `cfg_scale` is scale − 1.

    Raises:
        ValueError: the scale is not a finite number.

    Reference: Nie et al. 2025, Large Language Diffusion Models.
    """

    def __init__(self, predictor: MaskPredictor, scale: float) -> None:
        if not math.isfinite(scale):
            raise ValueError(f"guidance takes a finite scale, got {scale}")
        self.predictor = predictor
        self.scale = scale
        self.mask_id = predictor.mask_id
        self.eos_ids = predictor.eos_ids
        self.networks = predictor.networks

    def __call__(self, canvas: Canvas, wanted: Tensor) -> Tensor:
        return self.reading(canvas).read(canvas, wanted, canvas.valid)

    def reading(self, canvas: Canvas) -> Reading:
        if self.scale == 1:
            return self.predictor.reading(canvas)
        return _Twice(self.scale, self.mask_id, self.predictor.reading(_twice(canvas, self.mask_id)), len(canvas.ids))


@dataclass(frozen=True)
class _Twice:
    """Guidance over a reading of n rows as they are, and behind them of the same n with their prompt masked."""

    scale: float
    mask_id: int
    both: Reading
    n: int

    def read(self, canvas: Canvas, wanted: Tensor, changed: Tensor) -> Tensor:
        logits = self.both.read(
            _twice(canvas, self.mask_id), torch.cat([wanted, wanted]), torch.cat([changed, changed])
        )  # fmt: skip
        conditional, unconditional = at_least_float32(logits).chunk(2)
        return unconditional + self.scale * (conditional - unconditional)

    def keep(self, rows: Sequence[int]) -> _Twice:
        kept = self.both.keep([*rows, *(self.n + row for row in rows)])
        return _Twice(self.scale, self.mask_id, kept, len(rows))

    def join(self, other: _Twice) -> _Twice:
        n, m = self.n, other.n  # joined they are n, n masked, m, m masked
        order = [*range(n), *range(2 * n, 2 * n + m), *range(n, 2 * n), *range(2 * n + m, 2 * n + 2 * m)]
        return _Twice(self.scale, self.mask_id, self.both.join(other.both).keep(order), n + m)


def _twice(canvas: Canvas, mask_id: int) -> Canvas:
    """The rows, and behind them the same with their prompt masked."""
    hidden = canvas._replace(ids=canvas.ids.masked_fill(canvas.prompt, mask_id))
    both = [torch.cat(pair) for pair in zip(canvas[:3], hidden[:3], strict=True)]
    facts = canvas.facts and Facts(*(torch.cat([fact, fact]) for fact in canvas.facts))
    return Canvas(both[0], both[1], both[2], facts)


class Suppressed:
    """A predictor that never says some tokens: their logits are −inf.

    With the token that ends a text it is what LLaDA's evaluations do on some tasks, so that answers are not cut short.

    Args:
        predictor: the model, guided or not.
        tokens: ids of what it is not to say.
    """

    def __init__(self, predictor: MaskPredictor, tokens: Sequence[int]) -> None:
        self.predictor = predictor
        self.tokens = tuple(tokens)
        self.mask_id = predictor.mask_id
        self.eos_ids = predictor.eos_ids
        self.networks = predictor.networks

    def __call__(self, canvas: Canvas, wanted: Tensor) -> Tensor:
        return self.reading(canvas).read(canvas, wanted, canvas.valid)

    def reading(self, canvas: Canvas) -> Reading:
        return Combined(self._silenced, (self.predictor.reading(canvas),))

    def _silenced(self, logits: Tensor) -> Tensor:
        return logits.index_fill(1, torch.tensor(self.tokens, dtype=torch.long, device=logits.device), -torch.inf)


def facts_of(canvas: Canvas, wanted: Tensor, changed: Tensor, mask_id: int) -> Facts:
    """Those of a canvas, on its device."""
    width = canvas.ids.shape[1]
    column = torch.arange(width, device=canvas.ids.device)
    undecided = canvas.open & (canvas.ids == mask_id)
    first, following, low = (torch.where(where, column, width).amin(1) for where in (canvas.open, undecided, changed))
    high, until = (torch.where(where, column + 1, 0).amax(1) for where in (changed, wanted))
    return Facts(canvas.valid.sum(1), first, following, low, high, until, wanted.sum(1))


def pad(rows: Sequence[Tensor], mask_id: int) -> Canvas:
    """One canvas from rows of token ids (L_i,); every mask token in them is an open position."""
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    ids = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    valid = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
    return Canvas(ids, valid, (ids == mask_id) & valid)


def places(flags: Tensor, n: int | None = None) -> tuple[Tensor, Tensor]:
    """Rows and columns of the true values of (B, L), (N,) each, row after row; with `n`, their number, nobody waits."""
    if n is None or flags.device.type == "cpu":
        row, column = flags.nonzero(as_tuple=True)
        return row, column
    found = flags.flatten().to(torch.uint8).sort(descending=True, stable=True).indices[:n]
    return found // flags.shape[1], found % flags.shape[1]


def scatter(values: Tensor, where: tuple[Tensor, Tensor], shape: torch.Size, fill: Any) -> Tensor:
    """Values (N,) of the positions `where` (rows, columns) on a grid of `shape` (B, L) that is `fill` elsewhere."""
    return values.new_full(shape, fill).index_put(where, values)
