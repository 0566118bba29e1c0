"""Mask predictors: canvas with masks -> logits at wanted positions. A wrapped predictor is a predictor."""

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
    """Facts about the rows of a canvas that the host knows without waiting for the device; (B,) long each, on the CPU."""

    length: Tensor  # of the row
    first: Tensor  # column of its first open position
    undecided: Tensor  # column of its first position without a token
    low: Tensor  # column of the first changed position
    high: Tensor  # column after the last changed position; below `low` if nothing changed
    until: Tensor  # column after the last wanted position
    wanted: Tensor  # number of wanted positions


class Canvas(NamedTuple):
    """Rows of text with masks, padded on the right to one length.

    With padding on the right position ids are 0, 1, 2, … in every row, the default of every architecture.
    """

    ids: Tensor  # (B, L) long, the mask token at undecided positions
    valid: Tensor  # (B, L) bool, False at padding
    open: Tensor  # (B, L) bool, the positions to fill, decided by now or not
    facts: Facts | None = None  # from the decoder

    def part(self, rows: Tensor) -> Canvas:
        """Only these rows (b,), with all columns."""
        near = rows.cpu()
        facts = None if self.facts is None else Facts(*(fact[near] for fact in self.facts))
        return Canvas(self.ids[rows], self.valid[rows], self.open[rows], facts)

    @property
    def prompt(self) -> Tensor:
        """The positions before the first open one, (B, L) bool."""
        return self.valid & (self.open.cumsum(1) == 0)


class MaskPredictor(Protocol):
    """Predicts hidden tokens: f(canvas, wanted) -> logits.

    `wanted` is (B, L) bool. The result (N, V) holds the raw logits of its N true positions, row by row, left to right. The
    caller may write into the result.

    Attributes:
        mask_id: the mask token, which means "not decided".
        eos_ids: tokens that end a text.
        networks: the networks that are called, at which calls are counted.
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
    """The mask predictor of a transformers model with bidirectional attention; the LM head computes wanted positions only.

    Args:
        network: called as network(ids, attention_mask=…), returns an object with `.logits`.
        mask_id: id of the mask token.
        eos_ids: ids that end a text.
        pad_id: the token at padding; RoBERTa derives position ids from it.
        shift: the logits for position i stand at i − 1 (Dream); those for position 0 at 0.
        max_length: longest canvas; None if the network has no limit.
        decoder: the network is a decoder of transformers with bidirectional attention: it takes masks of four dimensions,
            position_ids and past_key_values, so its keys and values can be kept.
        block: length of the blocks that a decoder was trained on, counted from the first column: a position sees its own
            block and the blocks before it. None: a position sees all.
        causal: for a model with blocks: positions in blocks before the first block with a mask see no later position, as
            Nemotron-Labs-Diffusion was trained.
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
        """The device of the network's input."""
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
        """Rows and columns, (N,) each, of the logits for the N wanted positions."""
        row, column = places(wanted, None if canvas.facts is None else int(canvas.facts.wanted.sum()))
        return row, (column - 1).clamp(min=0) if self.shift else column

    def seen(self, canvas: Canvas) -> Tensor:
        """The ids that the network sees, (B, L) long.

        Raises:
            ValueError: the canvas is longer than the network takes.
        """
        length = canvas.ids.shape[1]
        if self.max_length is not None and length > self.max_length:
            raise ValueError(
                f"the canvas has {length} positions and this model takes {self.max_length}; "
                "shorten the prompt or the generation"
            )
        return canvas.ids.masked_fill(~canvas.valid, self.pad_id)

    def mask(self, canvas: Canvas, column: Tensor | None = None) -> Tensor | None:
        """The attention mask for the computed `column`s (B, W), or for all columns; padding is never seen.

        None if nothing is hidden, as attention is faster without a mask.
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
        """Logits (N, V) of the N states that `chosen` takes from those before the head, (B, L, D).

        Args:
            ids: (B, L) long.
            mask: from the method `mask`.
            chosen: (B, L, D) -> (N, D).
            memory: position_ids and past_key_values, for a decoder.
        """
        # The head is the same layer in every architecture, so a hook there hands it fewer positions.
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
        """`Plain`, or for a model with blocks the memory of its finished blocks; both are exact."""
        if self.block is None:
            return Plain(self)
        from .caching import Blocks, Memory

        return Memory.empty(self, Blocks(self.block), canvas)


class Guided:
    """Classifier-free guidance without a second model: u + scale·(c − u), where u does not see the prompt.

    Args:
        predictor: gives c, and u with every prompt token masked.
        scale: 1 is off, without a second network call; LLaDA's `cfg_scale` is scale − 1.

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
    """Guidance over a reading of n rows, followed by the same n rows with their prompt masked."""

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
    """The rows, followed by the same rows with their prompt masked."""
    hidden = canvas._replace(ids=canvas.ids.masked_fill(canvas.prompt, mask_id))
    both = [torch.cat(pair) for pair in zip(canvas[:3], hidden[:3], strict=True)]
    facts = canvas.facts and Facts(*(torch.cat([fact, fact]) for fact in canvas.facts))
    return Canvas(both[0], both[1], both[2], facts)


class Suppressed:
    """A predictor that never predicts some tokens: their logits are −inf.

    LLaDA's evaluations do so with the token that ends a text on some tasks, so that answers are not cut short.

    Args:
        predictor: the model, guided or not.
        tokens: ids that are never predicted.
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
    """The facts of a canvas, on its device."""
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
    """Rows and columns of the true values of (B, L), (N,) each, row by row. If their number `n` is given, nothing waits."""
    if n is None or flags.device.type == "cpu":
        row, column = flags.nonzero(as_tuple=True)
        return row, column
    found = flags.flatten().to(torch.uint8).sort(descending=True, stable=True).indices[:n]
    return found // flags.shape[1], found % flags.shape[1]


def scatter(values: Tensor, where: tuple[Tensor, Tensor], shape: torch.Size, fill: Any) -> Tensor:
    """Values (N,) of the positions `where` (rows, columns) on a grid of `shape` (B, L) that is `fill` elsewhere."""
    return values.new_full(shape, fill).index_put(where, values)
