"""The training data of a run: a data set, or what the teacher makes once and the run's folder keeps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ..core.device import best_device, on_device
from ..core.files import alone_in
from ..core.nfe import count_nfe
from ..core.parts import MADE_OF
from ..core.seeds import derive
from .asked import asked_of
from .choices import Lessons
from .cond import Cond
from .data import Images, Paths, Samples, Table, load_images
from .data.parted import notes_in
from .data.table import holds_arrays, is_table, open_folder
from .denoiser import Denoiser, Guided
from .encoding import teacher_latents
from .formats.identity import identity_of
from .model import Model
from .runs import few_step
from .teaching import Made, calls_of, load_made, save_made, teacher_images, teacher_paths

logger = logging.getLogger(__name__)

MADE = 4000  # images or paths that a teacher makes by default


def training_data(
    student: Model,
    lessons: Lessons,
    out: Path,
    *,
    teacher: Model,
    prompts: Sequence[str] | None,
    named: str,
    seed: int,
    precision: str | None,
) -> Samples:
    """Reads the data set of `lessons`, or lets `teacher` make one and keeps it in the run's folder `out`.

    A pipeline makes latents of `prompts`, or of its classes. `named` is the checkpoint that the teacher was loaded from.

    Raises:
        ValueError: the data do not fit the model, or the folder holds data that another checkpoint made.
    """
    if lessons.data != "teacher":
        return examples_for(student, lessons.data)
    count = lessons.teacher_images or MADE
    if teacher.pipeline is not None:
        asked = asked_of(teacher.pipeline, teacher.denoiser, prompts)
        return teacher_latents(
            teacher.pipeline, asked, out / "latents", count=count, seed=_first(seed),
            steps=lessons.teacher_steps, guidance=lessons.guidance, precision=precision, teacher=named,
        )  # fmt: skip
    make = partial(teacher_images, count=count, seed=_first(seed), precision=precision)
    facts: dict[str, Any] = {"teacher": named, "count": count, "seed": seed, "precision": precision}
    return _made_once(Images, out / "images.safetensors", lessons.guided(teacher), make, facts)


def examples_for(model: Model, data: str) -> Samples:
    """Reads `data` for a model: pictures, or latents that its pipeline encoded.

    Raises:
        ValueError: the data are of another kind or shape.
    """
    return _encoded(model, data) if model.pipeline else _pictures(model.denoiser, data)


def _pictures(denoiser: Denoiser, data: str) -> Samples:
    channels, size = picture_of(denoiser)
    return load_images(data, channels=channels, size=size, labels=bool(denoiser.takes))


def _encoded(student: Model, data: str) -> Table:
    """Reads the table of latents that the student's pipeline encoded.

    Raises:
        ValueError: `data` is no such table, or another pipeline encoded it.
    """
    assert student.pipeline is not None
    path, space = Path(data), student.denoiser.space
    if not (is_table(path) and holds_arrays(open_folder(path).features)):
        if (path / MADE_OF).is_file():
            raise ValueError(f"the table in {path} is not complete; repeat the command that began it")
        raise ValueError(
            f"this model is a pipeline and takes latents; run `fewstep encode {student.pipeline.source} {data} "
            "--out TABLE` and give TABLE as data, or tune it from prompts alone with --data teacher"
        )
    table = Table(path, labelled=student.denoiser.classes is not None)
    if table.shape != space.shape:
        have, want = ("x".join(map(str, shape)) for shape in (table.shape, space.shape))
        raise ValueError(f"{path} holds samples of {have}, the model takes {want}; encode the pictures with this pipeline")
    if table.conditions.maker not in (None, identity_of(student.pipeline.source)):
        raise ValueError(f"{path} was encoded by a pipeline with other encoders than this model; encode the pictures again")
    return table


def picture_of(denoiser: Denoiser) -> tuple[int, tuple[int, int]]:
    """Channels and (height, width) of a denoiser's samples; ValueError if they are not of the shape (C, H, W)."""
    shape = denoiser.space.shape
    if len(shape) != 3:
        have = "x".join(map(str, shape))
        raise ValueError(f"this model takes {have}, and data sets hold only pictures and latents; use --data teacher")
    return shape[0], (shape[1], shape[2])


def paths_of(
    teacher: Denoiser, out: Path, count: int, *, named: str, segments: int, seed: int, precision: str | None, whole: bool
) -> Paths:
    """The teacher's sampling paths, made once and kept in the run's folder.

    Without `whole` they hold only the states at the student's noise levels. `named` is as for `training_data`.
    """
    levels = visited(teacher, segments)
    make = partial(
        teacher_paths, count=count, segments=segments, levels=levels, whole=whole, seed=_first(seed), precision=precision
    )
    facts: dict[str, Any] = {"teacher": named, "count": count, "segments": segments, "seed": seed, "whole": whole}
    facts |= {"precision": precision}
    return _made_once(Paths, out / "paths.safetensors", teacher, make, facts)


def visited(denoiser: Denoiser, segments: int) -> list[float]:
    """The noise levels at which a student of `segments` segments is sampled."""
    levels: list[float] = few_step(segments).levels(denoiser).tolist()
    return levels


def nothing_to(model: Model) -> Cond | None:
    """The null condition of a pipeline of classes, one row; None for other models."""
    return None if model.pipeline is None or model.pipeline.prompted else model.pipeline.conditions([0])[1]


def made_for(out: Path) -> dict[str, list[int]]:
    """The network calls and rows that the teacher spent on the images, latents and paths in a run's folder."""
    files = (out / "images.safetensors", out / "paths.safetensors")
    made = {file.stem: calls_of(file) for file in files if file.exists()}
    if is_table(out / "latents"):
        notes = notes_in(out / "latents")
        made["latents"] = [notes["calls"], notes["rows"]]
    return made


def _made_once(
    kind: type[Made], file: Path, teacher: Denoiser, make: Callable[[Denoiser], Made], facts: dict[str, Any]
) -> Made:
    """Reads what the teacher made from `file`; if there is none, the main process makes and writes it."""
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
    """The first seed of the teacher's samples, far from the seeds 0, 1, 2, … of samples that are shown and scored."""
    return derive(seed, 3)
