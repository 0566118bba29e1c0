"""What a run learns from: a data set, or what its teacher makes once and the run's folder keeps."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ..core.device import best_device, on_device
from ..core.files import alone_in
from ..core.nfe import count_nfe
from ..core.seeds import derive
from .data import Images, Paths, Samples, load_images
from .denoiser import Denoiser, Guided
from .runs import few_step
from .teaching import Made, calls_of, load_made, save_made, teacher_images, teacher_paths

logger = logging.getLogger(__name__)


def training_data(
    student: Denoiser,
    data: str,
    out: Path,
    *,
    teacher: Denoiser,
    named: str,
    count: int,
    seed: int,
    precision: str | None,
) -> Samples:
    """The data set called `data` at the size of the model, or `count` images of the `teacher`, kept in the run's folder.

    `named` is the checkpoint that the teacher was loaded from: what another one made is not taken for its own.
    """
    if data != "teacher":
        channels, size = picture_of(student)
        return load_images(data, channels=channels, size=size, labels=bool(student.takes))
    make = partial(teacher_images, count=count, seed=_first(seed), precision=precision)
    facts: dict[str, Any] = {"teacher": named, "count": count, "seed": seed, "precision": precision}
    return _made_once(Images, out / "images.safetensors", teacher, make, facts)


def picture_of(denoiser: Denoiser) -> tuple[int, tuple[int, int]]:
    """Channels and (height, width) of the pictures or latents that it takes; ValueError if it takes anything else."""
    shape = denoiser.space.shape
    if len(shape) != 3:
        have = "x".join(map(str, shape))
        raise ValueError(f"this model takes {have}, and data sets are read as pictures or latents; use --data teacher")
    return shape[0], (shape[1], shape[2])


def paths_of(
    teacher: Denoiser, out: Path, count: int, *, named: str, segments: int, seed: int, precision: str | None, whole: bool
) -> Paths:
    """The teacher's paths, or their states at the student's levels, made once and kept in the run's folder.

    `named` is as for `training_data`.
    """
    levels = visited(teacher, segments)
    make = partial(
        teacher_paths, count=count, segments=segments, levels=levels, whole=whole, seed=_first(seed), precision=precision
    )
    facts: dict[str, Any] = {"teacher": named, "count": count, "segments": segments, "seed": seed, "whole": whole}
    facts |= {"precision": precision}
    return _made_once(Paths, out / "paths.safetensors", teacher, make, facts)


def visited(denoiser: Denoiser, segments: int) -> list[float]:
    """The noise levels where a student is sampled: one of one segment in one call or two, one of several in as many."""
    levels: list[float] = few_step(segments).levels(denoiser).tolist()
    return levels


def made_for(out: Path) -> dict[str, list[int]]:
    """What the images and paths in a run's folder cost the teacher: calls and rows of its network for each."""
    files = (out / "images.safetensors", out / "paths.safetensors")
    return {file.stem: calls_of(file) for file in files if file.exists()}


def _made_once(
    kind: type[Made], file: Path, teacher: Denoiser, make: Callable[[Denoiser], Made], facts: dict[str, Any]
) -> Made:
    """What the teacher makes: read from the run's folder, or made and kept there by the first process."""
    if isinstance(teacher, Guided):
        facts = facts | {"guidance": teacher.scale, "null_label": int(teacher.null.rows["class_labels"])}
    with PartialState(cpu=best_device().type == "cpu").main_process_first():
        if not file.exists():
            logger.info("the teacher makes %d %s", facts["count"], kind.__name__.lower())
            with alone_in(file.parent), count_nfe(teacher.network) as nfe:
                made = make(on_device(teacher))
                save_made(made, file, calls=[nfe.calls, nfe.rows], **facts)
    return load_made(kind, file, **facts)


def _first(seed: int) -> int:
    """The first seed of what the teacher makes: far from 0, 1, 2, …, with which students are sampled and scored."""
    return derive(seed, 3)
