"""What a run learns from: a data set, or what its teacher makes once and the run's folder keeps."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..data import Images, Paths
    from ..images.denoiser import NetworkDenoiser


def paths_of(teacher: NetworkDenoiser, out: Path, count: int, *, segments: int, seed: int, whole: bool) -> Paths:
    """The teacher's paths, or their states at the student's levels, made once and kept in the run's folder."""
    import torch
    from accelerate import PartialState

    from ..device import on_device
    from ..images.denoiser import Guided
    from ..teaching import load_paths, save_paths, teacher_paths

    cache = out / "paths.safetensors"
    facts: dict[str, float] = {"count": count, "segments": segments, "seed": seed, "whole": whole}
    if isinstance(teacher, Guided):
        facts |= {"guidance": teacher.scale, "null_label": teacher.null_label}
    with PartialState(cpu=not torch.cuda.is_available()).main_process_first():
        if not cache.exists():
            logging.getLogger(__name__).info("the teacher makes %d paths", count)
            levels = visited(teacher, segments)
            made = teacher_paths(
                on_device(teacher), count, segments=segments, levels=levels, whole=whole, seed=_first(seed)
            )
            save_paths(made, cache, **facts)
    return load_paths(cache, **facts)


def _first(seed: int) -> int:
    """The first seed of what the teacher makes: far from 0, 1, 2, …, with which students are sampled and scored."""
    from ..seeds import derive

    return derive(seed, 3)


def visited(denoiser: NetworkDenoiser, segments: int) -> list[float]:
    """The noise levels where a student is sampled: one of one segment in one call or two, one of several in as many."""
    from ..checkpoints.folder import few_step_grid

    grid = few_step_grid(denoiser, 2) if segments == 1 else denoiser.grid(segments)
    levels: list[float] = grid.tolist()
    return levels


def training_data(denoiser: NetworkDenoiser, data: str, out: Path, count: int, seed: int) -> Images:
    """The data set called `data` at the size of the model; `teacher` is made once and kept in the run's folder."""
    import torch
    from accelerate import PartialState

    from ..data import load_images, save_images
    from ..device import on_device
    from ..teaching import teacher_images

    channels, size, _ = denoiser.shape
    if data == "teacher":
        kept = out / "teacher_images.npz"
        with PartialState(cpu=not torch.cuda.is_available()).main_process_first():
            if not kept.exists():
                logging.getLogger(__name__).info("the teacher makes %d training images", count)
                save_images(teacher_images(on_device(denoiser), count, seed=_first(seed)), kept)
        data = str(kept)
    return load_images(data, channels=channels, size=size)
