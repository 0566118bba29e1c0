"""Proxy-tuning of masked diffusion models: a steered mask predictor is a mask predictor."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from ..masked.predictor import Canvas, MaskPredictor
from ..masked.reading import Combined
from .combine import combined


class Proxied:
    """logits = base + α·(expert − antiexpert), at the wanted positions of a canvas.

    The decoder, commit rules, early commit and calibration take it like any predictor. A step counts as three calls.

    Args:
        base: the large model.
        expert, antiexpert: the small model tuned and untuned, of the same vocabulary.
        alpha: α.

    Raises:
        ValueError: the models have different mask tokens.

    Reference: Liu et al. 2024, Tuning Language Models by Proxy.
    """

    def __init__(
        self, base: MaskPredictor, expert: MaskPredictor, antiexpert: MaskPredictor, *, alpha: float = 1.0
    ) -> None:
        masks = {predictor.mask_id for predictor in (base, expert, antiexpert)}
        if len(masks) > 1:
            raise ValueError(f"the models have different mask tokens, {sorted(masks)}, so their vocabularies differ")
        self.base, self.expert, self.antiexpert, self.alpha = base, expert, antiexpert, alpha
        self.mask_id, self.eos_ids = base.mask_id, base.eos_ids

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return (*self.base.networks, *self.expert.networks, *self.antiexpert.networks)

    def __call__(self, canvas: Canvas, wanted: Tensor) -> Tensor:
        return self.reading(canvas).read(canvas, wanted, canvas.valid)

    def reading(self, canvas: Canvas) -> Combined:
        """A reading that combines those of the three models."""
        parts = tuple(predictor.reading(canvas) for predictor in (self.base, self.expert, self.antiexpert))
        return Combined(partial(combined, alpha=self.alpha), parts)
