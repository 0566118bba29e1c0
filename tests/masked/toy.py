"""A small mask predictor in float64 in which every position matters to every other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewstep.masked.predictor import Canvas
from fewstep.masked.reading import Plain

VOCABULARY, MASK, EOS = 12, 11, 10


class Toy(nn.Module):
    """logits = scale·(table[position] + mix of what stands around), a fixed random function."""

    mask_id = MASK
    eos_ids = (EOS,)

    def __init__(self, seed: int = 0, *, scale: float = 3.0, length: int = 64, eos_bias: float = -100.0) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        for name, shape in (("embed", (VOCABULARY, 8)), ("place", (length, 8)), ("out", (8, VOCABULARY))):
            self.register_buffer(name, torch.randn(shape, generator=rng, dtype=torch.float64))
        self.scale, self.eos_bias = scale, eos_bias

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return (self,)

    def forward(self, canvas: Canvas, wanted: Tensor) -> Tensor:
        place = self.place[: canvas.ids.shape[1]]
        around = (self.embed[canvas.ids] * place).tanh() * canvas.valid[..., None]  # (B, L, 8)
        near = torch.einsum("ld,md->lm", place, place).cos()  # (L, L)
        hidden = torch.einsum("lm,bmd->bld", near, around) + place + self.embed[canvas.ids]
        logits = self.scale * (hidden.sin() @ self.out)
        logits[..., EOS] += self.eos_bias
        return logits[wanted]

    def reading(self, canvas: Canvas) -> Plain:
        return Plain(self)


def masks(row: str) -> Tensor:
    """A row of token ids: digits are tokens, `_` is the mask token."""
    return torch.tensor([MASK if letter == "_" else int(letter) for letter in row])
