"""Spaces: what a sample is, and how it is encoded, decoded and saved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from zipfile import ZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.files import atomic_file

ON_SHEET = 1024  # pictures on a sheet at most


class Space(Protocol):
    """Where a denoiser's samples live.

    Attributes:
        shape: shape of one sample, without the batch.
        limits: values lie within ± limits; None if they are unbounded.
        mirrors: whether a sample flipped along its last axis is a valid sample.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def limits(self) -> float | None: ...
    @property
    def mirrors(self) -> bool: ...

    def encode(self, raw: Tensor) -> Tensor:
        """Raw data (B, *) as x0, float32."""

    def decode(self, x: Tensor) -> Tensor:
        """Samples x0 (B, *) in the form in which they are scored and saved."""

    def save(self, raw: Tensor, out: Path, names: Sequence[str]) -> None:
        """Writes decoded samples into the folder `out`, one name each, and what shows them together."""

    def save_some(self, raw: Tensor, out: Path, names: Sequence[str]) -> bool:
        """Writes some decoded samples, one file each. Returns False and writes nothing if all belong into one file."""

    def finish(self, out: Path, names: Sequence[str], unsaved: Iterable[Tensor]) -> None:
        """Writes a sheet of all samples in `names`, or the one file of the `unsaved` samples, part by part."""


class _Saved:
    """Implements `save` by `save_some` and `finish`."""

    def save(self: Space, raw: Tensor, out: Path, names: Sequence[str]) -> None:
        """Writes decoded samples into the folder `out`, one name each, and what shows them together."""
        self.finish(out, names, [] if self.save_some(raw, out, names) else [raw])


def to_uint8(x: Tensor) -> Tensor:
    """Samples in [−1, 1] rounded to uint8."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


@dataclass(frozen=True)
class Pixels(_Saved):
    """Pictures (C, H, W) of one or three channels, in [−1, 1]; decoded to uint8."""

    shape: tuple[int, int, int]

    limits = 1.0
    mirrors = True

    def encode(self, raw: Tensor) -> Tensor:
        return raw.float() / 127.5 - 1 if raw.dtype == torch.uint8 else raw.float()

    def decode(self, x: Tensor) -> Tensor:
        return to_uint8(x)

    def save_some(self, raw: Tensor, out: Path, names: Sequence[str]) -> bool:
        """Writes one PNG per sample."""
        pictures = raw.permute(0, 2, 3, 1).squeeze(-1).numpy()  # (B, H, W) or (B, H, W, 3)
        for name, picture in zip(names, pictures, strict=True):
            _save_picture(picture, out / f"{name}.png")
        return True

    def finish(self, out: Path, names: Sequence[str], unsaved: Iterable[Tensor]) -> None:
        """Writes `sheet.png` with the first 1024 samples."""
        from PIL import Image

        shown = names[:ON_SHEET]
        side = int(np.ceil(len(shown) ** 0.5))
        channels, height, width = self.shape
        whole = np.zeros((-(-len(shown) // side) * height, side * width, *([channels] if channels > 1 else [])), np.uint8)
        for index, name in enumerate(shown):
            top, left = index // side * height, index % side * width
            with Image.open(out / f"{name}.png") as picture:
                whole[top : top + height, left : left + width] = np.asarray(picture)
        _save_picture(whole, out / "sheet.png")


@dataclass(frozen=True)
class Latents(_Saved):
    """Latents of another model, of any shape, as float32. They are not decoded."""

    shape: tuple[int, ...]

    limits = None
    mirrors = False

    def encode(self, raw: Tensor) -> Tensor:
        return raw.float()

    def decode(self, x: Tensor) -> Tensor:
        return x

    def save_some(self, raw: Tensor, out: Path, names: Sequence[str]) -> bool:
        """Writes nothing, because all latents belong into one file."""
        return False

    def finish(self, out: Path, names: Sequence[str], unsaved: Iterable[Tensor]) -> None:
        """Writes `samples.npz` with `latents` (B, *) and `names`."""
        shape = {"descr": "<f4", "fortran_order": False, "shape": (len(names), *self.shape)}
        with atomic_file(out / "samples.npz") as file, ZipFile(file, "w") as archive:
            with archive.open("latents.npy", "w", force_zip64=True) as content:
                np.lib.format.write_array_header_1_0(content, shape)
                for raw in unsaved:
                    content.write(raw.float().contiguous().numpy().astype("<f4", copy=False).tobytes())
            with archive.open("names.npy", "w") as content:
                np.lib.format.write_array(content, np.array(names))


@dataclass(frozen=True)
class Waveform(_Saved):
    """Sound (C, T) in [−1, 1] with `rate` samples per second; decoded to int16."""

    shape: tuple[int, int]
    rate: int

    limits = 1.0
    mirrors = False

    def encode(self, raw: Tensor) -> Tensor:
        return raw.float() / 32767 if raw.dtype == torch.int16 else raw.float()

    def decode(self, x: Tensor) -> Tensor:
        return (x.clamp(-1, 1) * 32767).round().to(torch.int16)

    def save_some(self, raw: Tensor, out: Path, names: Sequence[str]) -> bool:
        """Writes one WAV file per sample."""
        from scipy.io import wavfile

        for name, sound in zip(names, raw, strict=True):
            with atomic_file(out / f"{name}.wav") as file:
                wavfile.write(file, self.rate, sound.T.numpy())  # channels last
        return True

    def finish(self, out: Path, names: Sequence[str], unsaved: Iterable[Tensor]) -> None:
        """Writes nothing: sounds have no sheet."""


@dataclass(frozen=True)
class Video(_Saved):
    """Videos (C, F, H, W) of one or three channels in [−1, 1] with `fps` frames per second; decoded to uint8."""

    shape: tuple[int, int, int, int]
    fps: float

    limits = 1.0
    mirrors = True

    def encode(self, raw: Tensor) -> Tensor:
        return raw.float() / 127.5 - 1 if raw.dtype == torch.uint8 else raw.float()

    def decode(self, x: Tensor) -> Tensor:
        return to_uint8(x)

    def save_some(self, raw: Tensor, out: Path, names: Sequence[str]) -> bool:
        """Writes one animated PNG, which is lossless, per sample."""
        from PIL import Image

        for name, frames in zip(names, raw.permute(0, 2, 3, 4, 1).squeeze(-1).numpy(), strict=True):
            first, *others = map(Image.fromarray, frames)
            with atomic_file(out / f"{name}.png") as file:
                first.save(file, format="PNG", save_all=True, append_images=others, duration=1000 / self.fps)
        return True

    def finish(self, out: Path, names: Sequence[str], unsaved: Iterable[Tensor]) -> None:
        """Writes nothing: videos have no sheet."""


def _save_picture(picture: NDArray[Any], path: Path) -> None:
    from PIL import Image

    with atomic_file(path) as file:
        Image.fromarray(picture).save(file, format="PNG")
