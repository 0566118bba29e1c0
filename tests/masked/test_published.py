"""Conventions by which published tables were made, id by id against a plain reading of each formula, one row at a time."""

from __future__ import annotations

import pytest
import torch
from masked.toy import EOS, MASK, Toy, masks
from torch import Tensor

from fewstep.masked.decoding import decode
from fewstep.masked.early import EarlyCommit
from fewstep.masked.predictor import Canvas, Suppressed
from fewstep.masked.rules import Blockwise, Last, TopK
from fewstep.masked.schedule import Stairs

ROWS = [masks("12" + "_" * 12), masks("_" * 17), masks("3" + "_" * 24)]


def logits_of(toy: Toy, ids: Tensor) -> Tensor:
    """At every position, (L, V), without the mask token itself."""
    canvas = Canvas(ids[None], torch.ones_like(ids, dtype=torch.bool)[None], (ids == MASK)[None])
    logits = toy(canvas, canvas.valid)
    logits[:, MASK] = -torch.inf
    return logits


def best(score: Tensor, masked: Tensor, k: int) -> Tensor:
    """Places of the k largest scores among the masked ones, the left ones first where scores are equal."""
    return score.masked_fill(~masked, -torch.inf).sort(descending=True, stable=True).indices[:k]


def dream(toy: Toy, row: Tensor, steps: int, order: str) -> Tensor:
    ids, times = row.clone(), torch.linspace(1, 1e-3, steps + 1)
    for i in range(steps):
        masked, logits = ids == MASK, logits_of(toy, ids)
        p = logits.softmax(-1)
        first, second = p.sort(descending=True).values[:, :2].T
        score = {"confidence": first, "margin": first - second, "entropy": (p * (p + 1e-10).log()).sum(-1)}[order]
        n = masked.sum()
        k = int(n * (1 - times[i + 1] / times[i])) if i < steps - 1 else int(n)
        chosen = best(score, masked, k)
        ids[chosen] = logits.argmax(-1)[chosen]
    return ids


@pytest.mark.parametrize("order", ["confidence", "margin", "entropy"])
@pytest.mark.parametrize("steps", [1, 5, 12, 24])
def test_dreams_orders_and_schedule(order: str, steps: int) -> None:
    toy, rule = Toy(), TopK(order, "dream")  # type: ignore[arg-type]
    together = decode(toy, ROWS, rule, steps=steps, eos=False)
    for row, found in zip(ROWS, together, strict=True):
        assert torch.equal(found.ids, dream(toy, row, steps, order)) and found.nfe == steps
    if 1 < steps < 24:
        even = decode(toy, ROWS, TopK(order), steps=steps, eos=False)  # type: ignore[arg-type]
        assert any(a.committed_at.tolist() != b.committed_at.tolist() for a, b in zip(together, even, strict=True))


def test_dreams_orders_are_three() -> None:
    ways = [decode(Toy(), ROWS, TopK(by, "dream"), steps=12) for by in ("confidence", "margin", "entropy", "gap")]
    assert len({tuple(map(tuple, (row.committed_at.tolist() for row in way))) for way in ways}) == 4


def prophet(toy: Toy, row: Tensor, steps: int, levels: tuple[float, float, float], first: int) -> tuple[Tensor, int]:
    """What it comes to, and after how many steps; LLaDA's even schedule until then."""
    ids, region = row.clone(), row == MASK
    for index in range(steps):
        masked, logits = ids == MASK, logits_of(toy, ids)
        top = logits.sort(descending=True).values
        p = (index + first) / steps
        threshold = levels[0] if p < 0.33 else levels[1] if p < 0.67 else levels[2]
        if (top[:, 0] - top[:, 1])[region].mean() >= threshold:
            return torch.where(masked, logits.argmax(-1), ids), index + 1
        n = int(region.sum())
        chosen = best(logits.softmax(-1).amax(-1), masked, n // steps + (index < n % steps))
        ids[chosen] = logits.argmax(-1)[chosen]
    return ids, steps


def test_prophet_counts_its_steps_from_one_as_its_code_does() -> None:
    early = []
    for seed in range(8):
        toy, levels = Toy(seed), (9.0, 4.0, 2.0)
        for first in (0, 1):
            rule = EarlyCommit(TopK(), Stairs(levels), over="region", first=first)  # type: ignore[arg-type]
            found = decode(toy, ROWS, rule, steps=12, eos=False)
            for row, one in zip(ROWS, found, strict=True):
                ids, steps = prophet(toy, row, 12, levels, first)
                assert torch.equal(one.ids, ids) and one.nfe == steps
            early.append([one.nfe for one in found])
    assert early[::2] != early[1::2] and min(map(min, early)) < 12


def llada(toy: Toy, row: Tensor, blocks: int, steps: int, ends: tuple[int, ...], never: bool, late: bool) -> Tensor:
    """Low-confidence remasking in blocks, with the end tokens' logits or confidence at −inf."""
    ids, start = row.clone(), int((row == MASK).nonzero()[0])
    length, each = (len(row) - start) // blocks, steps // blocks
    for block in range(blocks):
        inside = torch.zeros_like(row, dtype=torch.bool)
        inside[start + block * length : start + (block + 1) * length] = True
        for index in range(each):
            logits = logits_of(toy, ids)
            if never:
                logits[:, list(ends)] = -torch.inf
            proposal = logits.argmax(-1)
            if late:
                logits[:, list(ends)] = -torch.inf
            confidence = logits.softmax(-1).gather(1, proposal[:, None]).squeeze(1)
            count = length // each + (index < length % each)
            chosen = best(confidence, (ids == MASK) & inside, count)
            ids[chosen] = proposal[chosen]
    return ids


@pytest.mark.parametrize("blocks", [1, 3])
def test_lladas_end_tokens(blocks: int) -> None:
    row, ends = masks("31" + "_" * 24), (EOS, 9)
    ways: dict[tuple[bool, bool], list[list[int]]] = {}
    for never in (False, True):
        for late in (False, True):
            rule = Blockwise(Last(TopK(), ends) if late else TopK(), 24 // blocks)
            for toy in (Toy(seed, eos_bias=4.0) for seed in range(6)):
                (found,) = decode(Suppressed(toy, ends) if never else toy, [row], rule, steps=12, eos=False)
                assert torch.equal(found.ids, llada(toy, row, blocks, 12, ends, never, late))
                ways.setdefault((never, late), []).append(found.ids.tolist())
    # where no end token is left to say, its confidence does not matter
    assert ways[True, True] == ways[True, False] != ways[False, False] != ways[False, True] != ways[True, False]
