"""Sheets of samples as pictures: one line per setting, one column per seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..core.files import atomic_file
from .formats.parts import read_parts
from .pipeline import Pipeline
from .space import Space

CHEAP = 2**30  # bytes of a pipeline's other parts at most, because they are read again for every sheet
SMALL = 64  # pixels: smaller pictures are enlarged


def decodes(pipeline: Pipeline) -> bool:
    """Whether the encoders and decoders are small enough to be loaded for every sheet."""
    parts = read_parts(pipeline.source)
    files = (file for part in parts.others for file in (pipeline.source / part).glob("*.safetensors"))
    return sum(file.stat().st_size for file in files) <= CHEAP


def pictures(x0: Tensor, space: Space, pipeline: Pipeline | None) -> Tensor | None:
    """Decodes x0 (B, *) to uint8 pictures (B, C, H, W), of videos the middle frame; None if there are no pictures."""
    raw = space.decode(x0) if pipeline is None else pipeline.decode(x0)
    if raw.ndim == 5:
        raw = raw[:, :, raw.shape[2] // 2]
    return raw if raw.dtype == torch.uint8 and raw.ndim == 4 and raw.shape[1] in (1, 3) else None


def write_sheet(lines: Sequence[Tensor], path: Path) -> Tensor:
    """Writes lines of uint8 pictures (B, C, H, W), all of one shape, as a PNG. Returns the sheet, (H, W, C)."""
    from PIL import Image

    sheet = torch.cat([torch.cat(list(line), dim=-1) for line in lines], dim=-2).permute(1, 2, 0)
    times = max(1, SMALL // lines[0].shape[-1])
    sheet = sheet.repeat_interleave(times, 0).repeat_interleave(times, 1)
    with atomic_file(path) as file:
        Image.fromarray(sheet.squeeze(-1).numpy()).save(file, format="PNG")
    return sheet
