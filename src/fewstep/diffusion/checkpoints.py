"""From a checkpoint to a few-step generator in a folder: all that `fewstep tune` does."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..core.files import writable
from .choices import Choices, Lessons, Loss, Run, Training, averages, given
from .data import Paths, Source
from .denoiser import Denoiser
from .formats.folder import load
from .formats.pipelines import stock_pipeline
from .lessons import made_for, paths_of, training_data, visited
from .model import Model
from .recipes import ect_demo, path_regression
from .runs import check_new, few_step
from .stages import Stage, run_stages

logger = logging.getLogger(__name__)


def tune_checkpoint(
    checkpoint: str, lessons: Lessons, run: Run, *, loss: Loss = Loss(), training: Training = Training()
) -> Model:
    """Tunes a diffusion checkpoint into a few-step generator and leaves it in `run.out`, with its state and receipts.

    `tune_checkpoint("bundled", Lessons("bundled"), Run(Path("few-step")))` is `fewstep tune bundled --data bundled --out
    few-step`. What a teacher makes lies in the folder, too, and is made once.

    Args:
        checkpoint: a diffusers folder or hub id, an earlier run, or `bundled`.
        lessons: what the student learns from.
        run: where, and how it is computed.
        loss: what it is asked for.
        training: how long and how fast.

    Returns:
        The averaged model, as it is to be sampled.

    Raises:
        ValueError: what was chosen does not go together, or not with the checkpoint or the data.
        FloatingPointError, Interrupted, OSError: as `run` raises them.
    """
    chosen = Choices(lessons, run, loss, training)
    recipe = chosen.recipe()
    check_place(run.out, resume=run.resume)
    student, teacher = _models(checkpoint, chosen)
    _say_if_it_cannot_be_exported(student, chosen)
    teacher = lessons.guided(teacher)
    stages = _stages(checkpoint, student, teacher, recipe | loss.fitted(student, teacher), chosen)
    if training.scratch:
        student = _renewed(student, training.seed)
    return run_stages(
        student, stages, run.out, resume=run.resume, precision=run.precision, accumulate=run.accumulate,
        save_every=run.save_every, teacher=lessons.teacher or checkpoint,
    )  # fmt: skip


def check_place(out: Path, *, resume: bool) -> None:
    """Raises ValueError where nothing can be written or another run, or its first stage, would be overwritten."""
    writable(out)
    for folder in (out, out / "midtrain"):
        check_new(folder, resume=resume)


def _models(checkpoint: str, chosen: Choices) -> tuple[Denoiser, Denoiser]:
    """What is tuned, and its teacher.

    Raises:
        ValueError: the one cannot become what was asked for, or the other cannot teach it.
    """
    named, segments = chosen.lessons.teacher or checkpoint, chosen.loss.segments
    start, teacher = load(checkpoint), load(named)
    if chosen.are_taught and teacher.is_student:
        raise ValueError(f"{named} is a student, no diffusion model any more; name its diffusion checkpoint with --teacher")
    if segments == 1 and start.receipt.get("recipe", {}).get("margin"):
        raise ValueError(
            f"{checkpoint} was tuned with a margin, which a student of one segment does not unlearn; start from one that "
            "was tuned with --margin 0"
        )
    if chosen.are_taught:
        along_paths = chosen.lessons.are_paths or chosen.training.midtrain > 0
        _check_teacher(start.denoiser, teacher.denoiser, segments, along_paths=along_paths)
    return start.denoiser, teacher.denoiser


def _check_teacher(student: Denoiser, teacher: Denoiser, segments: int, *, along_paths: bool) -> None:
    """Raises ValueError where `teacher` cannot teach `student`."""
    if student.space != teacher.space:
        ours, theirs = ("x".join(map(str, model.space.shape)) for model in (student, teacher))
        raise ValueError(f"the teacher makes samples of {theirs}, the checkpoint of {ours}; name the teacher it came from")
    if along_paths and not student.schedule.grid(segments).equal(teacher.schedule.grid(segments)):
        raise ValueError("the teacher's noise levels are not those of the checkpoint, so its paths lead nowhere here")


def _say_if_it_cannot_be_exported(student: Denoiser, chosen: Choices) -> None:
    """Before hours are spent. A diffusion model is no student, and nobody exports it."""
    if chosen.loss.gap == "full" and not chosen.lessons.are_paths:
        return
    try:
        stock_pipeline(student, few_step(chosen.loss.segments))
    except ValueError as why:
        logger.warning("this student cannot be exported: %s", why)


def _stages(checkpoint: str, student: Denoiser, teacher: Denoiser, recipe: dict[str, Any], chosen: Choices) -> list[Stage]:
    """The tuning, behind path regression if that was asked for; what the teacher has to make for them is made here."""
    lessons, training, run = chosen.lessons, chosen.training, chosen.run
    made: dict[str, Any] = {"seed": training.seed, "precision": run.precision}
    paths = partial(paths_of, teacher, run.out, lessons.paths, segments=recipe["segments"], **made)
    data: Source
    if lessons.are_paths:
        data = paths(whole=False)
        recipe = recipe | path_regression(visited(teacher, recipe["segments"]))
    else:
        data = training_data(student, lessons.data, run.out, teacher=teacher, count=lessons.teacher_images, **made)
    first = [_midtraining(paths(whole=True), recipe, training)] if training.midtrain else []
    facts = {
        "checkpoint": checkpoint,
        "source": lessons.data,
        "recipe_name": training.recipe,
        "midtrain": training.midtrain,
        "scratch": training.scratch,
        "guidance": lessons.guidance,
        "null_label": lessons.null_label,
        "classes": data.classes,
    }
    return [*first, Stage("", recipe, data, facts | {"made": made_for(run.out), "changing": training.changing})]


def _midtraining(paths: Paths, recipe: dict[str, Any], training: Training) -> Stage:
    """Path regression, before what `recipe` says."""
    first = ect_demo(training.midtrain) | path_regression()
    first |= {name: recipe[name] for name in ("batch", "segments", "seed", "workers", "compile")}
    first |= {"average": averages((), first["average"], afresh=training.scratch), "max_grad_norm": training.clip}
    named = {"title": "midtrain", "remedy": "a --clip", "source": "teacher", "changing": given(max_grad_norm=training.clip)}
    return Stage("midtrain", first, paths, named)


def _renewed(denoiser: Denoiser, seed: int) -> Denoiser:
    """The same parametrisation around a network with new random weights."""
    torch.manual_seed(seed)
    denoiser.network = type(denoiser.network).from_config(denoiser.network.config)  # type: ignore[attr-defined]
    return denoiser
