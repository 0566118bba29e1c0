"""A steered mask predictor against the formula, and wherever a predictor may go."""

from __future__ import annotations

import pytest
import torch
from masked.toy import MASK, Toy, masks
from torch import Tensor

from fewstep.masked.decoding import decode
from fewstep.masked.early import EarlyCommit
from fewstep.masked.predictor import Canvas, Guided, pad
from fewstep.masked.rules import Blockwise, Threshold
from fewstep.steering.masked import Proxied

ROWS = [masks("31_4__"), masks("2________"), masks("0_1")]
BASE, EXPERT, ANTIEXPERT = (Toy(seed) for seed in (0, 1, 2))


class Half(Toy):
    """Computes in bfloat16, as large models do."""

    def forward(self, canvas: Canvas, wanted: Tensor) -> Tensor:
        return super().forward(canvas, wanted).bfloat16()


def test_logits_of_half_precision_are_added_in_float32() -> None:
    canvas, models = pad(ROWS, MASK), [Half(seed) for seed in range(3)]
    parts = [model(canvas, canvas.open).float() for model in models]
    made = Proxied(*models, alpha=0.7)(canvas, canvas.open)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, parts[0] + 0.7 * (parts[1] - parts[2]))
    hidden = canvas._replace(ids=canvas.ids.masked_fill(canvas.prompt, MASK))
    blind = models[0](hidden, canvas.open).float()
    torch.testing.assert_close(Guided(models[0], 2.5)(canvas, canvas.open), blind + 2.5 * (parts[0] - blind))


class Wide(Toy):
    """Knows two ids more than the others."""

    def forward(self, canvas: Canvas, wanted: Tensor) -> Tensor:
        return torch.nn.functional.pad(super().forward(canvas, wanted), (0, 2), value=50.0)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.5])
def test_logits_are_the_formula(alpha: float) -> None:
    canvas = pad(ROWS, MASK)
    parts = [toy(canvas, canvas.open) for toy in (BASE, EXPERT, ANTIEXPERT)]
    got = Proxied(BASE, EXPERT, ANTIEXPERT, alpha=alpha)(canvas, canvas.open)
    torch.testing.assert_close(got, parts[0] + alpha * (parts[1] - parts[2]))


def test_an_expert_that_learned_nothing_changes_nothing_but_the_calls() -> None:
    for rule in (Blockwise(Threshold(0.5), 3), EarlyCommit(threshold=lambda progress: torch.full_like(progress, 2.0))):
        plain, steered = (decode(p, ROWS, rule) for p in (BASE, Proxied(BASE, EXPERT, EXPERT)))
        for a, b in zip(plain, steered, strict=True):
            assert torch.equal(a.ids, b.ids) and torch.equal(a.committed_at, b.committed_at)
            assert b.nfe == a.nfe + 2 * a.nfe  # the expert, here also the antiexpert, is one network called twice


def test_rows_of_a_steered_batch_are_what_they_are_alone() -> None:
    steered = Guided(Proxied(BASE, EXPERT, ANTIEXPERT), 1.5)
    together = decode(steered, ROWS, Blockwise(length=4))
    for row, seen in zip(ROWS, together, strict=True):
        assert torch.equal(decode(steered, [row], Blockwise(length=4))[0].ids, seen.ids)


def test_ids_that_not_all_models_have_are_impossible() -> None:
    canvas = pad(ROWS, MASK)
    got = Proxied(Wide(0), EXPERT, ANTIEXPERT)(canvas, canvas.open)
    assert got.shape[1] == 14 and bool((got[:, 12:] == -torch.inf).all()) and bool(got[:, :12].isfinite().all())


def test_other_mask_tokens_are_refused() -> None:
    other = Toy(3)
    other.mask_id = 5
    with pytest.raises(ValueError, match="different mask tokens"):
        Proxied(BASE, other, ANTIEXPERT)
