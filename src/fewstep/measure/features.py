"""Feature extractors: images in, one vector an image out; every score says which one it used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

Extractor = Callable[[Tensor], Tensor]  # uint8 images (B, C, H, W) -> features (B, D)

ASSETS = Path(__file__).parent.parent / "assets"


class FashionFeatures(nn.Module):
    """The bundled extractor: the last hidden layer of a small Fashion-MNIST classifier.

    `forward` takes uint8 images (B, 1, 28, 28) and returns features (B, 128); `classify` returns logits (B, 10).
    """

    name = "fashion"

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_block(1, 32), *_block(32, 32), nn.MaxPool2d(2),
            *_block(32, 64), *_block(64, 64), nn.MaxPool2d(2),
            *_block(64, 128), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 128), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1:] != (1, 28, 28):
            raise ValueError(
                f"the bundled features take 1x28x28 images, these are {'x'.join(map(str, images.shape[1:]))}; "
                "choose another extractor with --features"
            )
        features: Tensor = self.body(images.float() / 127.5 - 1)
        return features

    def classify(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self(images))
        return logits


def _block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
