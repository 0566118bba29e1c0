"""Decoding: one loop for every rule, predictor, prompt length and canvas. A finished row makes room for the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.device import at_least_float32, wide, widest, with_float64
from ..core.nfe import NFE, count_nfe
from ..core.progress import progress
from .noise import gumbel
from .predictor import Canvas, Facts, MaskPredictor, places, scatter
from .reading import Reading
from .rows import Batch, Progress, Stop, begin, look
from .step import Change, CommitRule, Scores, Step


class Decoded(NamedTuple):
    """One finished row."""

    ids: Tensor  # (n,) long: the canvas, prompt included, up to its end
    start: int  # where the generation begins
    committed_at: Tensor  # (n,) long: the step at which each token became final; −1 for given text
    nfe: float  # network calls this row took part in, counted at the network
    positions: float  # its share of the token ids in them, padding of its batch included

    @property
    def tokens(self) -> list[int]:
        """The generated tokens, with given text inside."""
        generated: list[int] = self.ids[self.start :].tolist()
        return generated

    @property
    def given(self) -> int:
        """Number of tokens up to the end of the last given text; 0 if none is given."""
        places = (self.committed_at[self.start :] < 0).nonzero()
        return int(places[-1]) + 1 if len(places) else 0


class Walked(NamedTuple):
    """One finished step of the loop."""

    canvas: Canvas  # before the step
    step: Step  # what the rule saw
    rows: Batch  # after the step, with the rows that it finished
    progress: list[Progress]  # one a row
    finished: dict[int, Decoded]  # by row number


@torch.no_grad()
def walk(
    predictor: MaskPredictor,
    rows: Sequence[Tensor],
    rule: CommitRule,
    *,
    steps: int | None = None,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
    eos: bool = True,
    stop: Stop | None = None,
    batch: int = 16,
) -> Iterator[Walked]:
    """The decoding loop: predict, propose, commit by the rule, replace finished rows by new ones; yields after every step.

    A row is finished when nothing is undecided, or when all positions before an end of text or a stop are decided. Only
    tokens after the last given text can end a row. A finished row is final, even if a rule would reopen positions of it.
    The host waits for the device once a step, to learn how far the rows are.

    Args: as for `decode`; rows enter in their order.
    """
    seeds = range(len(rows)) if seeds is None else seeds
    _check(predictor.mask_id, rows, seeds, steps, temperature, batch)
    ends = predictor.eos_ids if eos else ()
    state: Batch | None = None
    reading: Reading | None = None
    entered, predictions = 0, None
    with ExitStack() as stack:
        counters = [stack.enter_context(count_nfe(network)) for network in dict.fromkeys(predictor.networks)]
        while state is not None or entered < len(rows):
            free = min(batch - (0 if state is None else len(state.number)), len(rows) - entered)
            if free:
                new = slice(entered, entered + free)
                fresh = begin(rows[new], seeds[new], entered, predictor.mask_id, rule, steps=steps)
                unread = predictor.reading(fresh.canvas)
                state = fresh if state is None else state.join(fresh)
                reading = unread if reading is None else reading.join(unread)
                entered += free
            assert state is not None and reading is not None
            canvas, masked = state.canvas, state.open & (state.ids == predictor.mask_id)
            where = places(state.wanted, int(canvas.facts.wanted.sum()) if canvas.facts else None)
            spent = _spent(counters)
            logits = at_least_float32(reading.read(canvas, state.wanted, state.changed))  # (N, V)
            nfe, positions = ((_spent(counters) - spent) / len(state.number)).tolist()
            logits[:, predictor.mask_id] = -torch.inf
            scores = Scores(logits)
            state = state.seen(torch.full_like(state.ids, -1).index_put(where, scores.best[1]))
            if rule.recalls():
                likely = (scores.best[0] - scores.normaliser).exp()
                state = state.recall(scatter(likely, where, state.ids.shape, 0.0))
            if rule.remembers():
                predictions, state = _drift(predictions, scores, where, state)
            proposal = state.likeliest if temperature == 0 else _sample(logits, where, state, temperature)
            step = _step(state, scores, where, masked, proposal)
            change = _change(rule, step, state.late[:, None])
            idle = ~(change.commit | ~state.late[:, None]).any(1).all()
            state = state.step(change, proposal, predictor.mask_id, rule, nfe=nfe, positions=positions)
            state, far, (broken, stuck) = look(
                state, predictor.mask_id, ends, stop, reopens=rule.reopens(), asked=(scores.best[0].isnan().any(), idle)
            )
            _check_step(rule, broken=broken, stuck=stuck)
            yield Walked(canvas, step, state, far, _finished(state, far))
            going_on = [row for row, p in enumerate(far) if p.end is None]
            if len(going_on) < len(far):
                state, reading = (state.keep(going_on), reading.keep(going_on)) if going_on else (None, None)


def decode(
    predictor: MaskPredictor,
    rows: Sequence[Tensor],
    rule: CommitRule,
    *,
    steps: int | None = None,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
    eos: bool = True,
    stop: Stop | None = None,
    batch: int = 16,
) -> list[Decoded]:
    """Fills every mask token of `rows`; each row's result is the same as if decoded alone.

    Args:
        predictor: the model, guided or not.
        rows: canvases of token ids, (L_i,) each, on the predictor's device; see `canvas_row`. Masks may be anywhere.
        rule: says which positions are committed at each step.
        steps: steps in all, for rules that keep to a schedule; None is one a token.
        temperature: 0 takes the most likely token; above 0, argmax of logits + temperature·Gumbel noise drawn in float64.
        seeds: one a row; row i has i by default.
        eos: whether a token of `predictor.eos_ids` ends a row.
        stop: ends a row by its decided tokens after the last given text; see `StopStrings`.
        batch: rows at once; when one is finished the next enters, the shortest first, so that there is little padding.

    Returns:
        One result a row, in order.

    Raises:
        ValueError: a row without a mask token or a seed, fewer than one step or row at once, a temperature below 0, a
            canvas longer than the model takes, or a rule that still commits nothing at a row's last step.
        FloatingPointError: the network returns logits that are not numbers.
    """
    done: dict[int, Decoded] = {}
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    if seeds is not None and len(seeds) == len(rows):
        seeds = [seeds[number] for number in order]
    walks = walk(
        predictor, [rows[number] for number in order], rule, steps=steps, temperature=temperature,
        seeds=order if seeds is None else seeds, eos=eos, stop=stop, batch=batch,
    )  # fmt: skip
    for walked in tell(walks, rows, predictor.mask_id):
        done |= {order[number]: row for number, row in walked.finished.items()}
    return [done[number] for number in range(len(rows))]


def tell(walks: Iterator[Walked], rows: Sequence[Tensor], mask_id: int) -> Iterator[Walked]:
    """The steps of a `walk` over `rows`, with a progress display; see `progress`."""
    left = {number: int((row == mask_id).sum()) for number, row in enumerate(rows)}
    with progress("decoding", sum(left.values())) as more:
        for walked in walks:
            yield walked
            now = {p.number: p.left if p.end is None else 0 for p in walked.progress}
            more(sum(left[number] - undecided for number, undecided in now.items()))
            left |= now


def stream(walks: Iterator[Walked]) -> Iterator[tuple[int, list[int], Decoded | None]]:
    """Streams a `walk`: (row number, new tokens of the row, its result at its end or None).

    The tokens of a row, joined, are its `Decoded.tokens`. Tokens that a rule may still reopen are held back.
    """
    sent: dict[int, int] = {}
    for walked in walks:
        for row, p in enumerate(walked.progress):
            start = sent.get(p.number, p.start)
            if p.final > start or p.end is not None:
                sent[p.number] = p.final
                yield p.number, walked.rows.ids[row, start : p.final].tolist(), walked.finished.get(p.number)


def _check(
    mask_id: int, rows: Sequence[Tensor], seeds: Sequence[int], steps: int | None, temperature: float, batch: int
) -> None:
    """Refuses rows and settings that cannot be decoded."""
    if batch < 1:
        raise ValueError(f"a batch holds at least one row, got batch = {batch}")
    if steps is not None and steps < 1:
        raise ValueError(f"decoding takes at least one step, got steps = {steps}")
    if not temperature >= 0:
        raise ValueError(f"the temperature must not be negative, got {temperature}")
    if len(seeds) != len(rows):
        raise ValueError(f"every row needs a seed, got {len(seeds)} seeds for {len(rows)} rows")
    if not all(bool((row == mask_id).any()) for row in rows):
        raise ValueError("a row without a mask token has nothing to decode")


def _spent(counters: list[NFE]) -> Tensor:
    """Rows and positions that the networks have computed so far, (2,) float64 on the CPU."""
    return (
        torch.tensor([(counter.rows, counter.positions) for counter in counters], dtype=torch.float64).reshape(-1, 2).sum(0)
    )


def _drift(before: Tensor | None, scores: Scores, where: tuple[Tensor, Tensor], state: Batch) -> tuple[Tensor, Batch]:
    """Appends KL(now ‖ before) at `where` to each position's drifts; also returns the log-probabilities now, (N, V)."""
    log_p = scores.logits - scores.normaliser[:, None]
    moved = log_p.new_full((len(log_p),), torch.inf)
    if before is not None and len(before):
        found = state.before[where]
        then = before[found.clamp(min=0)]
        parts = log_p.exp() * (log_p - then).masked_fill(log_p == -torch.inf, 0.0)  # 0·log 0 is 0
        moved = torch.where(found >= 0, parts.sum(-1), moved)
    place = torch.full_like(state.before, -1).index_put(where, torch.arange(len(log_p), device=log_p.device))
    newest = torch.full(state.ids.shape, torch.inf, device=log_p.device, dtype=state.drift.dtype)
    newest = newest.index_put(where, moved.to(newest.dtype))
    return log_p, state._replace(drift=torch.cat([state.drift[..., 1:], newest[..., None]], -1), before=place)


def _sample(logits: Tensor, where: tuple[Tensor, Tensor], state: Batch, temperature: float) -> Tensor:
    """Proposals (b, L): argmax of logits + temperature·Gumbel noise, row by row, as the noise takes much memory.

    The noise is drawn on a device with float64: in float32 one draw in thirty million would be infinite, and so chosen.
    """
    home, drawn_at = logits.device, with_float64(logits.device)
    counts = Facts(*state.facts.T).wanted.tolist()
    sampled = []
    rows = [each.to(drawn_at) for each in (state.seed, state.made)]
    for part, seed, step, column in zip(logits.split(counts), *rows, where[1].to(drawn_at).split(counts), strict=True):
        noise = gumbel(seed, step, column, part.shape[1]).to(widest(home)).to(home)
        sampled.append((wide(part) + temperature * noise).argmax(-1))
    return torch.full_like(state.ids, -1).index_put(where, torch.cat(sampled))


def _step(state: Batch, scores: Scores, where: tuple[Tensor, Tensor], masked: Tensor, proposal: Tensor) -> Step:
    """The rule's input."""
    held = state.ids.masked_fill(masked | ~state.open, -1)
    return Step(
        scores, where, masked, state.open, held, state.committed_at, proposal, state.unchanged, state.drift,
        state.recalled, state.trusted, state.seed, state.made, state.steps, deadline=state.steps,
    )  # fmt: skip


def _change(rule: CommitRule, step: Step, late: Tensor) -> Change:
    """The rule's answer, limited to positions that it may change: nothing is reopened in a row that is `late` (B, 1)."""
    said = rule(step)
    if isinstance(said, Change) and not rule.reopens():
        raise ValueError(f"{rule} reopens positions and does not say so: its reopens() must return True")
    commit, reopen = said if isinstance(said, Change) else (said, torch.zeros_like(said))
    return Change(commit & step.masked, reopen & (step.held >= 0) & ~late)


def _check_step(rule: CommitRule, *, broken: bool, stuck: bool) -> None:
    """Raises if logits are NaN (`broken`), or if a late row had no commit (`stuck`)."""
    if broken:
        raise FloatingPointError("the network's logits are not numbers; check its weights, or load it in float32")
    if stuck:
        raise ValueError(
            f"{rule} committed nothing at the last planned step or later, where it must commit a position of each row"
        )


def _finished(state: Batch, far: list[Progress]) -> dict[int, Decoded]:
    """The rows that have ended, by their number."""
    return {
        p.number: Decoded(
            state.ids[row, : p.end], p.start, state.committed_at[row, : p.end],
            nfe=float(state.nfe[row]), positions=float(state.positions[row]),
        )
        for row, p in enumerate(far)
        if p.end is not None
    }  # fmt: skip
