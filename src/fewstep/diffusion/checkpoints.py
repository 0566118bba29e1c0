"""Training and tuning of checkpoints in folders: what `fewstep train` and `fewstep tune` do."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from ..core.checks import at_least, given, positive
from ..core.device import default_accelerator
from ..core.files import writable
from .asked import prompts_in
from .choices import Choices, Lessons, Run, Training
from .data import Paths, Source, load_images
from .denoiser import Denoiser
from .depth import blocks_of, checkpointing, freeze, hold_in_bfloat16
from .drawing import arguments
from .formats.folder import load
from .formats.identity import identity_of
from .formats.pipelines import check_exportable
from .lessons import MADE, made_for, nothing_to, paths_of, training_data, visited
from .lora import adapt, base_of, factors_of, fused, is_adapted, shared
from .model import Model
from .objective import Loss
from .optim import label_dropout
from .pipeline import Pipeline
from .recipes import averages, diffusion, ect_demo, new_denoiser, path_regression, rate_of
from .runs import check_new, few_step, walk_of
from .runs import run as run_in_folder
from .stages import Stage, run_stages
from .tracking import check_trackers
from .tuning import check_prediction
from .two_times import TwoTimes
from .watcher import watch_of
from .watching import Watching

logger = logging.getLogger(__name__)


def train_checkpoint(
    data: str,
    out: Path,
    *,
    images: int = 500_000,
    batch: int = 64,
    channels: int = 1,
    size: int = 28,
    widths: tuple[int, ...] = (32, 48, 96),
    parametrisation: Literal["vp", "edm"] = "vp",
    conditional: bool = False,
    rate: float | None = None,
    clip: float | None = None,
    seed: int = 0,
    mirror: bool = False,
    workers: int = 0,
    save_every: float = 120.0,
    resume: bool = False,
) -> Model:
    """Trains a small diffusion model from scratch and writes it into `out`, with its state and receipt.

    Args:
        data: see `load_images`.
        out: folder of the run.
        images: number of training images.
        batch: images per step.
        channels, size, widths, parametrisation: the network, as in `new_denoiser`.
        conditional: whether the network is given the classes of the data.
        rate: peak learning rate, .001 by default; it falls to 0 along a cosine.
        clip: largest norm of the gradient, 1 by default.
        seed: seed of everything random.
        mirror: whether half of the images are flipped left to right.
        workers: worker processes of the data loader.
        save_every: seconds between saved states.
        resume: continue from the state saved in `out`, if there is one; `rate` and `clip` may be different.

    Raises:
        ValueError: a number is out of its range, or the data do not exist or have no classes; and what `run` raises.
    """
    at_least(1, images=images, batch=batch, channels=channels, size=size, widths=widths)
    at_least(0, seed=seed, workers=workers, save_every=save_every)
    positive(rate=rate, clip=clip)
    new_denoiser(channels, size, widths=widths)  # proves the sizes before a data set is read
    check_place(out, resume=resume)
    samples = load_images(data, channels=channels, size=size, labels=conditional)
    classes = _classes(samples, data) if conditional else 0
    torch.manual_seed(seed)
    denoiser = new_denoiser(channels, size, widths=widths, parametrisation=parametrisation, classes=classes)
    recipe = diffusion(images, batch=batch) | {"seed": seed, "mirror": mirror, "workers": workers}
    recipe |= given(rate=None if rate is None else rate_of(recipe["rate"], rate, None), max_grad_norm=clip)
    return run_in_folder(
        denoiser, samples, out, recipe, resume=resume, changing=given(rate=rate, max_grad_norm=clip),
        save_every=save_every, title="train", source=data, classes=samples.classes,
    )  # fmt: skip


def tune_checkpoint(
    checkpoint: str,
    lessons: Lessons,
    run: Run,
    *,
    loss: Loss = Loss(),
    training: Training = Training(),
    watching: Watching = Watching(),
) -> Model:
    """Tunes a diffusion checkpoint into a few-step generator and writes it into `run.out`, with state and receipts.

    `tune_checkpoint("bundled", Lessons("bundled"), Run(Path("student")))` is `fewstep tune bundled --data bundled --out
    student`. Images, latents and paths of a teacher are made once and kept in the folder.

    Args:
        checkpoint: a diffusers folder or hub id, an earlier run, or `bundled`.
        lessons: what the student learns from.
        run: where the results go, and how they are computed.
        loss: what the student learns.
        training: how long and how fast to train.
        watching: how the run is watched; with two stages only the second is.

    Returns:
        The averaged model with the walk that it was tuned for.

    Raises:
        ValueError: the settings contradict each other, the checkpoint or the data.
        FloatingPointError, Interrupted, OSError: see `run`.
    """
    chosen = Choices(lessons, run, loss, training)
    recipe = chosen.recipe()
    check_place(run.out, resume=run.resume)
    check_trackers(watching.track)
    prompts = None if lessons.prompts is None else prompts_in(lessons.prompts)
    start, named = _models(checkpoint, chosen)
    student = start.denoiser
    check_prediction(student)  # before anything is made
    _check_pipeline(named, chosen)
    _say_if_it_cannot_be_exported(student, chosen, start.pipeline)
    _choose_what_trains(checkpoint, student, chosen)
    stages = _stages(checkpoint, start, named, recipe, chosen, prompts, watching)
    if training.scratch:
        student = _renewed(student, training.seed)
    held = training.lora is not None and _autocasts(run)
    if held:
        hold_in_bfloat16(student.network)
    model = run_stages(
        student, stages, run.out, resume=run.resume, precision=run.precision, accumulate=run.accumulate,
        save_every=run.save_every, teacher=None if named.is_student else lessons.teacher or checkpoint,
        pipeline=start.pipeline,
    )  # fmt: skip
    return _read_back(run.out) if held else model


def _autocasts(run: Run) -> bool:
    """Whether the run computes in bfloat16 and does not shard the student."""
    accelerator = default_accelerator(run.precision, run.accumulate)
    return accelerator.mixed_precision == "bf16" and getattr(accelerator.state, "fsdp_plugin", None) is None


def _read_back(out: Path) -> Model:
    """Loads the model of a run, once the main process has written it."""
    from accelerate import PartialState

    PartialState().wait_for_everyone()
    return load(out)


def _classes(samples: Source, data: str) -> int:
    """Number of classes; ValueError if there are none."""
    if samples.label_range is None:
        raise ValueError(f"{data} has no labels to train a conditional model on; leave --conditional out")
    return len(samples.classes) if samples.classes else samples.label_range[1] + 1


def check_place(out: Path, *, resume: bool) -> None:
    """Raises ValueError if nothing can be written to `out`, or if a run in it would be overwritten."""
    writable(out)
    for folder in (out, out / "midtrain"):
        check_new(folder, resume=resume)


def _models(checkpoint: str, chosen: Choices) -> tuple[Model, Model]:
    """The model to tune and its teacher. The teacher may be a student if it makes nothing.

    Raises:
        ValueError: the checkpoint cannot become such a student, or the teacher does not fit it.
    """
    named, segments = chosen.lessons.teacher or checkpoint, chosen.loss.segments
    call = arguments(chosen.lessons.call) if chosen.lessons.call else None
    start = load(checkpoint, call=call)
    # a new LoRA leaves the base as it is, so student and teacher share it; factors that are there already will change
    alike = chosen.training.lora is not None and named == checkpoint and not is_adapted(start.denoiser.network)
    teacher = dataclasses.replace(start, denoiser=shared(start.denoiser)) if alike else load(named, call=call)
    if isinstance(start.denoiser, TwoTimes) and not chosen.loss.is_any:
        raise ValueError(f"{checkpoint} takes any number of calls already; tune it with --segments any")
    if chosen.are_taught and teacher.is_student:
        raise ValueError(f"{named} is a student and no diffusion model; name its diffusion checkpoint with --teacher")
    if segments == 1 and start.receipt.get("recipe", {}).get("margin"):
        raise ValueError(
            f"{checkpoint} was tuned with a margin, which a student of one segment keeps; start from one that was tuned "
            "with --margin 0"
        )
    student = start.denoiser
    if chosen.training.lora is None and is_adapted(student.network):
        student = fused(student).requires_grad_(True)
    if chosen.loss.is_any and not isinstance(student, TwoTimes):
        student = TwoTimes(student)
    if chosen.are_taught:
        on_paths = chosen.lessons.are_paths or chosen.training.midtrain > 0
        _check_same_encoders(start.pipeline, teacher.pipeline)
        _check_teacher(student, teacher.denoiser, along_paths=segments if on_paths and isinstance(segments, int) else None)
    return dataclasses.replace(start, denoiser=student), teacher


def _check_pipeline(teacher: Model, chosen: Choices) -> None:
    """Raises ValueError if a setting does not fit the teacher's pipeline, before anything is made."""
    lessons, pipeline = chosen.lessons, teacher.pipeline
    known = label_dropout(teacher.denoiser.network)[1].rows or (pipeline is not None and pipeline.manner.null is not None)
    if lessons.dropped and lessons.data == "teacher" and not known:
        raise ValueError("this model has no empty prompt or class; leave --dropped out")
    if pipeline is None:
        if lessons.guidance is not None:
            lessons.guided(teacher)
        said = given(prompts=lessons.prompts, teacher_steps=lessons.teacher_steps, call=lessons.call or None)
        for name in (each.replace("_", "-") for each in said):
            raise ValueError(f"--{name} is for pipelines that make latents, and this model makes pictures; leave it out")
        return
    if lessons.guidance is not None:
        pipeline.manner.on(lessons.guidance, 1)
    if lessons.null_label is not None:
        raise ValueError("a pipeline knows its null class or prompt; leave --null-label out")
    if lessons.mirror:
        raise ValueError("--mirror flips pictures and cannot flip latents; leave it out")
    if (lessons.are_paths or chosen.training.midtrain) and pipeline.prompted:
        raise ValueError("--midtrain and --data paths do not take prompts yet; leave them out, or use --hop heun")


def _choose_what_trains(checkpoint: str, student: Denoiser, chosen: Choices) -> None:
    """Selects what trains: the whole network, all but its first blocks, or a LoRA.

    Raises:
        ValueError: the network has fewer blocks, no such layers, or another adapter.
    """
    training, network = chosen.training, student.network
    freeze(network, training.freeze)
    if training.adapter is not None and not is_adapted(network):
        if isinstance(student, TwoTimes) and any(shift.any() for shift in student.shifts(student.schedule.grid(1).float())):
            raise ValueError(
                f"{checkpoint} was tuned in full for any number of calls and cannot be a LoRA's base; leave --lora out"
            )
        base = str(Path(checkpoint).resolve()) if Path(checkpoint).is_dir() else checkpoint
        adapt(student, training.adapter, base=base, seed=training.seed, frozen=training.freeze)
    elif training.adapter is not None:
        ranks = {len(a) for name, a in factors_of(network).items() if name.endswith(".lora_A.weight")}
        if ranks != {training.lora} or training.lora_targets or training.freeze:
            raise ValueError(
                f"{checkpoint} has an adapter of rank {max(ranks)}; tune it with --lora {max(ranks)} alone, or start "
                f"another one from its base, {base_of(network)}"
            )
    if chosen.run.checkpointing:
        inside = tuple(f"{block}." for block in blocks_of(network))
        if isinstance(student, TwoTimes) and any(place.startswith(inside) for place in student.places):
            raise ValueError(
                f"a {type(network).__name__} gets its times inside its blocks, so --checkpointing does not work with "
                "--segments any; leave it out"
            )
        checkpointing(network)


def _check_same_encoders(ours: Pipeline | None, theirs: Pipeline | None) -> None:
    """Raises ValueError if two pipelines have different encoders or decoders."""
    if ours and theirs and identity_of(ours.source) != identity_of(theirs.source):
        raise ValueError(
            f"the teacher {theirs.source} has other encoders or decoders than the checkpoint; name the teacher that the "
            "checkpoint came from"
        )


def _check_teacher(student: Denoiser, teacher: Denoiser, *, along_paths: int | None) -> None:
    """Raises ValueError if `teacher` cannot teach `student`."""
    if student.space != teacher.space:
        ours, theirs = ("x".join(map(str, model.space.shape)) for model in (student, teacher))
        raise ValueError(f"the teacher makes samples of {theirs}, the checkpoint of {ours}; name the teacher it came from")
    if along_paths and not student.schedule.grid(along_paths).equal(teacher.schedule.grid(along_paths)):
        raise ValueError("paths need a teacher with the noise levels of the checkpoint; name the one that it came from")


def _say_if_it_cannot_be_exported(student: Denoiser, chosen: Choices, pipeline: Pipeline | None) -> None:
    """Warns before the training if its result cannot be exported. Diffusion models are not exported."""
    if chosen.loss.gap == "full" and not chosen.lessons.are_paths:
        return
    try:
        check_exportable(student, few_step(chosen.recipe()["segments"]), pipeline)
    except ValueError as why:
        logger.warning("this student cannot be exported: %s", why)


def _stages(
    checkpoint: str,
    start: Model,
    named: Model,
    recipe: dict[str, Any],
    chosen: Choices,
    prompts: Sequence[str] | None,
    watching: Watching,
) -> list[Stage]:
    """The stages: path regression if --midtrain is given, then the tuning. The teacher makes their data here.

    Afterwards the encoders and decoders of pipelines are freed.
    """
    lessons, training, run = chosen.lessons, chosen.training, chosen.run
    made: dict[str, Any] = {"named": lessons.teacher or checkpoint, "seed": training.seed, "precision": run.precision}
    data: Source | None = None
    if not lessons.are_paths:
        data = training_data(start, lessons, run.out, teacher=named, prompts=prompts, **made)
    teacher = lessons.guided(named, nothing_to(named) if data is None else data.null)
    recipe = recipe | chosen.loss.fitted(start.denoiser, teacher)
    paths = partial(paths_of, teacher, run.out, lessons.paths or MADE, segments=recipe["segments"], **made)
    if data is None:
        data = paths(whole=False)
        recipe = recipe | path_regression(visited(teacher, recipe["segments"]))
    for model in (start, named):
        if model.pipeline is not None:
            model.pipeline.let_go()
    first = [_midtraining(paths(whole=True), recipe, training)] if training.midtrain else []
    facts = {
        "checkpoint": checkpoint,
        "source": lessons.data,
        "recipe_name": chosen.recipe_name,
        "midtrain": training.midtrain,
        "scratch": training.scratch,
        "guidance": lessons.guidance,
        "null_label": lessons.null_label,
        "classes": data.classes,
    }
    facts |= given(lora=training.adapter, freeze=training.freeze or None)
    facts |= {"made": made_for(run.out), "changing": training.changing}
    becomes = dataclasses.replace(start, walk=walk_of(recipe, data))
    watch = watch_of(watching, becomes, data, teacher, named.walk, bundled=lessons.data == "bundled")
    return [*first, Stage("", recipe, data, facts | {"watch": watch})]


def _midtraining(paths: Paths, recipe: dict[str, Any], training: Training) -> Stage:
    """The stage of path regression before the tuning of `recipe`."""
    first = ect_demo(training.midtrain) | path_regression()
    first |= {name: recipe[name] for name in ("batch", "segments", "seed", "workers", "compile")}
    first |= {"average": averages((), first["average"], afresh=training.scratch), "max_grad_norm": training.clip}
    named = {"title": "midtrain", "remedy": "a --clip", "source": "teacher", "changing": given(max_grad_norm=training.clip)}
    return Stage("midtrain", first, paths, named)


def _renewed(denoiser: Denoiser, seed: int) -> Denoiser:
    """The same parametrisation around a network with new random weights."""
    torch.manual_seed(seed)
    network: Any = denoiser.network
    denoiser.network = type(network).from_config(network.config)
    return TwoTimes(denoiser) if isinstance(denoiser, TwoTimes) else denoiser  # with a new second time that starts at zero
