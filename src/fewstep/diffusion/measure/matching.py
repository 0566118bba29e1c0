"""Scores how well pictures match their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, interpolate

from ...core.configuration import read_config
from ...core.device import on_device
from ...core.pretrained import load_config, load_network, load_tokenizer
from ...core.source import folder_of
from ...core.weights import in_short
from ..data.clothes import CAPTIONS, COLOURS, EDGE, PALETTE
from .features import FashionFeatures


class Match(Protocol):
    """A function that scores how well pictures match their prompts."""

    def __call__(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        """The scores (B,) of uint8 pictures (B, C, H, W) and B prompts; larger is better."""


def match(name: str) -> Match:
    """The judge called `name`, on the best device.

    Args:
        name: `clothes` for the captions of the bundled text-to-image model, or the folder or hub id of a CLIP model for
            the CLIP score.

    Raises:
        ValueError: `name` is neither.
    """
    judge = ClothesMatch() if name == "clothes" else ClipMatch(name)
    return on_device(judge.eval())


class ClothesMatch(nn.Module):
    """The judge for the bundled text-to-image model: 1 if garment and colour are those of the prompt, else 0.

    The bundled classifier, which is right for 92 % of real pictures, decides the garment. The colour is that of the palette
    with the smallest angle to the picture's mean colour.
    """

    def __init__(self) -> None:
        super().__init__()
        self.garments = FashionFeatures.bundled()

    @torch.no_grad()
    def forward(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        unknown = next((prompt for prompt in prompts if prompt not in CAPTIONS), None)
        if unknown is not None:
            raise ValueError(f"the bundled pictures have no caption {unknown!r}; give captions such as {CAPTIONS[1]!r}")
        pictures = pictures.to(self.garments.head.weight.device)
        asked = torch.tensor([CAPTIONS.index(prompt) for prompt in prompts], device=pictures.device)
        grey = pictures.amax(1, keepdim=True)[..., EDGE:-EDGE, EDGE:-EDGE]
        garment = self.garments.classify(grey).argmax(1)
        mean = pictures.float().mean((2, 3))
        colour = cosine_similarity(mean[:, None], PALETTE.to(mean)[None], dim=2).argmax(1)
        return (garment * len(COLOURS) + colour == asked).float()


class ClipMatch(nn.Module):
    """The CLIP score: 100 times the cosine of the CLIP embeddings of picture and prompt, at least 0.

    Pictures are resized to the model's size by antialiased bicubic interpolation, without cropping.

    Reference: Hessel et al. 2021, CLIPScore, with the factor 100 in place of 250.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, source: str) -> None:
        super().__init__()
        from transformers import AutoModel

        what = "folder of a CLIP model"
        try:
            folder = folder_of(source, what, bundled="clip")
        except ValueError as error:
            raise ValueError(f"{source} is neither clothes nor a CLIP model: {error}") from error
        config = load_config(folder, read_config(folder, what))
        self.network = load_network(folder, config, AutoModel, "CLIP model", dtype=torch.float32, pickled=True)
        self.tokenizer = load_tokenizer(folder)
        # mean and standard deviation are those of CLIP's training
        self.register_buffer("mean", torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1))
        try:
            self(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ["a"])
        except Exception as error:  # other models have other inputs or outputs
            raise ValueError(f"{source} is no CLIP model of pictures and text: {in_short(error)}") from error

    @torch.no_grad()
    def forward(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        pictures = pictures.to(self.mean.device)
        side = self.network.config.vision_config.image_size
        pixels = interpolate(pictures.expand(-1, 3, -1, -1).float() / 255, (side, side), mode="bicubic", antialias=True)
        longest = self.network.config.text_config.max_position_embeddings
        said = self.tokenizer(list(prompts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        seen = self.network(pixel_values=(pixels.clamp(0, 1) - self.mean) / self.std, **said.to(pixels.device))
        return 100 * cosine_similarity(seen.image_embeds, seen.text_embeds).clamp(min=0)
