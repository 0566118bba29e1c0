"""Spaces: what a sample is, and how a person sees or hears it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..core.files import atomic_file


class Space(Protocol):
    """Where a denoiser's samples live.

    Attributes:
        shape: of one sample, without the batch.
        limits: values lie within ± limits; None where they are unbounded.
        mirrors: whether a sample flipped along its last axis is a sample as well.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def limits(self) -> float | None: ...
    @property
    def mirrors(self) -> bool: ...

    def encode(self, raw: Tensor) -> Tensor:
        """What the data hold (B, *) as x0, float32."""

    def decode(self, x: Tensor) -> Tensor:
        """Samples x0 (B, *) as what a person sees or hears: what is scored and saved."""

    def save(self, raw: Tensor, out: Path, names: Sequence[str]) -> None:
        """Writes decoded samples into the folder `out`, one name each, and what shows them together."""


def to_uint8(x: Tensor) -> Tensor:
    """Samples in [−1, 1] rounded to uint8, as an image file would hold them."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


@dataclass(frozen=True)
class Pixels:
    """Pictures (C, H, W) of one or three channels, in [−1, 1]; decoded to uint8."""

    shape: tuple[int, int, int]

    limits = 1.0
    mirrors = True

    def encode(self, raw: Tensor) -> Tensor:
        return raw.float() / 127.5 - 1 if raw.dtype == torch.uint8 else raw.float()

    def decode(self, x: Tensor) -> Tensor:
        return to_uint8(x)

    def save(self, raw: Tensor, out: Path, names: Sequence[str]) -> None:
        """A PNG a sample, and `sheet.png` of all."""
        from PIL import Image

        pictures = raw.permute(0, 2, 3, 1).squeeze(-1).numpy()  # (B, H, W) or (B, H, W, 3)
        side = int(np.ceil(len(pictures) ** 0.5))
        height, width = pictures.shape[1:3]
        whole = np.zeros((-(-len(pictures) // side) * height, side * width, *pictures.shape[3:]), np.uint8)
        for index, picture in enumerate(pictures):
            top, left = index // side * height, index % side * width
            whole[top : top + height, left : left + width] = picture
        for name, picture in [*zip(names, pictures, strict=True), ("sheet", whole)]:
            with atomic_file(out / f"{name}.png") as file:
                Image.fromarray(picture).save(file, format="PNG")


@dataclass(frozen=True)
class Latents:
    """Samples of another model's making, of any shape: float32 as they are. Nobody sees them without their decoder."""

    shape: tuple[int, ...]

    limits = None
    mirrors = False

    def encode(self, raw: Tensor) -> Tensor:
        return raw.float()

    def decode(self, x: Tensor) -> Tensor:
        return x

    def save(self, raw: Tensor, out: Path, names: Sequence[str]) -> None:
        """`samples.npz` with `latents` (B, *) and `names`."""
        with atomic_file(out / "samples.npz") as file:
            np.savez(file, latents=raw.numpy(), names=np.array(names))


@dataclass(frozen=True)
class Waveform:
    """Sound (C, T) in [−1, 1] at `rate` samples a second; decoded to 16-bit integers."""

    shape: tuple[int, int]
    rate: int

    limits = 1.0
    mirrors = False

    def encode(self, raw: Tensor) -> Tensor:
        return raw.float() / 32767 if raw.dtype == torch.int16 else raw.float()

    def decode(self, x: Tensor) -> Tensor:
        return (x.clamp(-1, 1) * 32767).round().to(torch.int16)

    def save(self, raw: Tensor, out: Path, names: Sequence[str]) -> None:
        """A WAV file a sample."""
        from scipy.io import wavfile

        for name, sound in zip(names, raw, strict=True):
            with atomic_file(out / f"{name}.wav") as file:
                wavfile.write(file, self.rate, sound.T.numpy())  # channels last


@dataclass(frozen=True)
class Video:
    """Moving pictures (C, F, H, W) of one or three channels, in [−1, 1], `fps` frames a second; decoded to uint8."""

    shape: tuple[int, int, int, int]
    fps: float

    limits = 1.0
    mirrors = True

    def encode(self, raw: Tensor) -> Tensor:
        return raw.float() / 127.5 - 1 if raw.dtype == torch.uint8 else raw.float()

    def decode(self, x: Tensor) -> Tensor:
        return to_uint8(x)

    def save(self, raw: Tensor, out: Path, names: Sequence[str]) -> None:
        """An animated PNG a sample, which loses nothing."""
        from PIL import Image

        for name, frames in zip(names, raw.permute(0, 2, 3, 4, 1).squeeze(-1).numpy(), strict=True):
            first, *others = map(Image.fromarray, frames)
            with atomic_file(out / f"{name}.png") as file:
                first.save(file, format="PNG", save_all=True, append_images=others, duration=1000 / self.fps)
