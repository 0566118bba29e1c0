"""Fashion-MNIST in colours with captions, the training data of the bundled text-to-image model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from .examples import Samples

NOUNS = ("t-shirt", "pair of trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
COLOURS = {
    "white": (1.0, 1.0, 1.0),
    "red": (1.0, 0.15, 0.15),
    "yellow": (1.0, 0.9, 0.1),
    "green": (0.15, 0.9, 0.25),
    "blue": (0.2, 0.35, 1.0),
    "pink": (1.0, 0.4, 0.85),
}
PALETTE = torch.tensor(list(COLOURS.values()))
CAPTIONS = tuple(f"a {colour} {noun}" for noun in NOUNS for colour in COLOURS)
EDGE = 2  # black pixels around each picture, because pipelines need sides that are multiples of 8


@dataclass(frozen=True)
class Clothes(Samples):
    """Coloured pictures, uint8 (3, 32, 32). Sample k is the grey picture k // 6 in colour k mod 6.

    Black stays black, and white becomes the colour. The largest of a pixel's three values is the grey one, except in green.

    Attributes:
        grey: pictures (1, 28, 28) of Fashion-MNIST, with their classes.
    """

    grey: Samples

    def __len__(self) -> int:
        return len(self.grey) * len(COLOURS)

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, 28 + 2 * EDGE, 28 + 2 * EDGE)

    @property
    def classes(self) -> None:
        """They have captions instead."""

    @property
    def label_range(self) -> None:
        """They have captions instead."""

    def cond(self, k: int) -> Mapping[str, Tensor]:
        return {}

    def caption(self, k: int) -> str:
        """The caption of sample `k`."""
        picture, colour = divmod(k, len(COLOURS))
        return CAPTIONS[int(self.grey.cond(picture)["class_labels"]) * len(COLOURS) + colour]

    def raw(self, rows: Sequence[int]) -> Tensor:
        pictures, colours = zip(*(divmod(k, len(COLOURS)) for k in rows), strict=True)
        return coloured(self.grey.raw(pictures), torch.tensor(colours))


def coloured(grey: Tensor, colours: Tensor) -> Tensor:
    """Colours grey pictures (B, 1, 28, 28) by colour numbers (B,): (B, 3, 32, 32), all uint8."""
    light = pad(grey.float(), (EDGE,) * 4)
    return (light * PALETTE[colours][:, :, None, None]).round().to(torch.uint8)
