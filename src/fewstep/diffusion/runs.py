"""Runs `tune` in a folder: progress bar, saved states to resume from, and the result as a diffusers folder."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..core.device import default_accelerator
from ..core.files import load_state
from ..core.interrupts import Interrupted
from ..core.nfe import count_nfe
from ..core.receipt import plain, receipt
from ..core.resuming import check_another, check_same, goes_on, is_complete, running
from .data import Paths, Source
from .denoiser import Denoiser, config_of
from .lora import is_adapted, mark_of
from .model import Model
from .noise import FullGap
from .pipeline import Pipeline
from .saving import Saver, write_all
from .step import Step, averages_in
from .tuning import tune
from .two_times import USUAL
from .walk import Consistency, Heun, Segments, Walk
from .watcher import Watch, Watcher

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

Calls = Mapping[str, Sequence[int]]  # network -> number of calls, and of rows in them


def run(
    denoiser: Denoiser,
    data: Source,
    out: Path,
    recipe: dict[str, Any],
    *,
    resume: bool = False,
    changing: Collection[str] = (),
    precision: str | None = None,
    accumulate: int = 1,
    save_every: float = 120.0,
    title: str = "tune",
    remedy: str = "a lower --rate or a --clip",
    made: Calls | None = None,
    pipeline: Pipeline | None = None,
    watch: Watch | None = None,
    **facts: Any,
) -> Model:
    """Tunes `denoiser`; writes into `out` the averaged model (`model/`), `state.pt` to resume from and `receipt.json`.

    If the recipe has several averages, the first makes `model/` and each other one `model-DECAY/`. Ctrl-C and SIGTERM save
    the state after the current step.

    Args:
        denoiser, data: arguments of `tune`.
        out: folder of the run. No other process may write into it.
        recipe: keyword arguments of `tune`.
        resume: continue from `out/state.pt` with the same recipe or more images; start a new run if there is none.
        changing: names of settings that may change when the run is resumed; the receipt keeps the earlier values.
        precision: "no" (float32) or "bf16"; None is bfloat16 where the hardware supports it.
        accumulate: micro-batches per step.
        save_every: seconds between saved states, 0 or more.
        title: title of the progress bar.
        remedy: flags that help a run that diverged, for its message.
        made: network calls that the teacher spent on the data, for the receipt.
        pipeline: the stock pipeline around the network, which is saved with it.
        watch: how the run is watched; see `Watcher`. It does not change the run.
        facts: further entries of the receipt. They must be the same when the run is resumed.

    Returns:
        The averaged model with the walk that it was tuned for.

    Raises:
        ValueError: `out` holds another run, or the run to resume began with other settings.
        FloatingPointError: the run diverged, or its samples collapsed; states saved before are sound.
        Interrupted: the run was told to stop; its state is saved.
        OSError: something could not be written; the message says what, and how to continue.
    """
    if not save_every >= 0:
        raise ValueError(f"save_every must be 0 seconds or more, got {save_every}")
    recipe, facts = _in_whole_batches(recipe), facts | _facts(denoiser, data)
    walk, accelerator = walk_of(recipe, data), default_accelerator(precision, accumulate)
    facts |= (computed := _computed(accelerator))
    main, folders = accelerator.is_main_process, [out / name for name in _names(recipe.get("average"))]
    with running(out, main=main) as interrupt:
        state, changes = _begun(out, recipe, facts, resume=resume, changing={*changing, *computed})
        seen = state["step"] * recipe["batch"] if state else 0
        if state and seen >= recipe["images"] and is_complete(out, folders, images=recipe["images"]):
            logger.info("the run in %s is complete: it has seen all its %d images", out, recipe["images"])
            return Model(averages_in(state, denoiser)[0], walk, pipeline=pipeline)
        kept = {"recipe": json.dumps(plain(recipe)), "facts": json.dumps(plain(facts)), "changes": json.dumps(changes)}
        facts |= {"recipe": recipe, "changes": changes, "resumed": state is not None}
        with (
            receipt(out / "receipt.json" if main else None, **facts) as entries,
            _watched(Watcher(out, watch, data, accelerator, recipe, pipeline) if watch else None, denoiser, state) as look,
            _counted(denoiser, recipe.get("hop"), accelerator, state) as spent,
            _progress(title, recipe, state, hidden=not main) as show,
            _with_remedy(remedy),
        ):
            saver = Saver(out / "state.pt", kept, spent, accelerator, interrupt, save_every, look)
            steps = tune(denoiser, data, state=state, accelerator=accelerator, **recipe)
            # without a step left only the models are missing
            last = _driven(steps, recipe, show, saver) if seen != recipe["images"] else None
            state = saver.whole(last) if last else state
            assert state is not None  # from this run, or from the one before
            averages = last.emas if last else averages_in(state, denoiser)
            models = [Model(average, walk, pipeline=pipeline) for average in averages]
            if main:
                write_all(out / "state.pt", state, dict(zip(folders, models, strict=True)))
                saver.sound.unlink(missing_ok=True)
            entries.update(_result(state, recipe["batch"], made or {}))
    if interrupt.by:
        raise Interrupted(f"stopped after the last step: the model is in {folders[0]}", interrupt.by)
    return models[0]


def check_new(out: Path, *, resume: bool) -> None:
    """Raises ValueError if a run in `out` would overwrite another run or a model."""
    saved = (out / "state.pt").exists()
    check_another(out, saved=saved, resume=resume)
    if not saved and (out / "model").exists():
        raise ValueError(f"there is a model in {out} but no state.pt to resume from; choose another folder")
    if (out / "model_index.json").exists():
        raise ValueError(f"{out} holds a pipeline, which a run would mix its files with; choose another folder")


def few_step(segments: int | Sequence[int]) -> Walk:
    """The walk of a student of `segments` segments; a student of several numbers takes `USUAL` calls."""
    if not isinstance(segments, int):
        return Segments(USUAL)
    return Segments(segments) if segments > 1 else Consistency()


def _in_whole_batches(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with its images rounded up to whole batches."""
    if recipe["batch"] < 1:
        raise ValueError(f"the batch must be at least 1, got {recipe['batch']}")
    return recipe | {"images": -(-recipe["images"] // recipe["batch"]) * recipe["batch"]}


def _facts(denoiser: Denoiser, data: Source) -> dict[str, Any]:
    """The facts that must be the same when a run is resumed: network, schedule, prediction and training data.

    The data are compared by number and, if they have one, by fingerprint. The base of a LoRA is compared by a hash of its
    weights, because the saved state does not hold them.
    """
    config = {name: value for name, value in config_of(denoiser.network).items() if not name.startswith("_")}
    said = {"schedule": denoiser.schedule, "prediction": denoiser.prediction, "network": config}
    said |= {"base_weights": mark_of(denoiser.network)} if is_adapted(denoiser.network) else {}
    return said | {"examples": len(data)} | ({"data_fingerprint": data.fingerprint} if data.fingerprint else {})


def _computed(accelerator: Accelerator) -> dict[str, Any]:
    """Precision, processes and device. They may change when a run is resumed; the receipt keeps the earlier ones."""
    precision, processes = accelerator.mixed_precision, accelerator.num_processes
    return {"precision": precision, "processes": processes, "device": str(accelerator.device)}


def _driven(steps: Iterator[Step], recipe: dict[str, Any], show: Callable[[Step], None], saver: Saver) -> Step | None:
    """Takes all steps: shows each, looks at its samples and saves its state where due. Returns the last, if any."""
    last = None
    for last in steps:
        show(last)
        looked = saver.look(last)
        if last.images < recipe["images"]:
            saver(last, sound=looked)
    return last


@contextmanager
def _watched(watcher: Watcher | None, denoiser: Denoiser, state: dict[str, Any] | None) -> Iterator[Watcher | None]:
    """Begins the watcher before the first step and ends it with the run, also after an error."""
    if watcher is None:
        yield None
        return
    try:
        watcher.begin(denoiser, state)
        yield watcher
    finally:
        watcher.end()


def _begun(
    out: Path, recipe: dict[str, Any], facts: dict[str, Any], *, resume: bool, changing: Collection[str]
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """The saved state to resume from (None for a new run), and changes of the recipe: [{"step": …, name: old value}]."""
    check_new(out, resume=resume)
    file = out / "state.pt"
    if not goes_on(out, saved=file.exists(), resume=resume):
        return None, []
    state = load_state(file)
    if not {"recipe", "facts", "changes", "loss", "calls", "seconds"} <= state.keys():
        raise ValueError(f"{file} was saved by an older fewstep and cannot be resumed; start a new run")
    before, now = json.loads(state["recipe"]) | json.loads(state["facts"]), plain(recipe | facts)
    free = ("images", "workers", "compile")  # they do not change the result
    changed = check_same(before, now, free=free, changing=changing)
    if changed:
        logger.info("from step %d on, the run has another %s", state["step"], " and ".join(sorted(changed)))
    return state, json.loads(state["changes"]) + ([{"step": state["step"]} | changed] if changed else [])


@contextmanager
def _counted(
    denoiser: Denoiser, hop: object, accelerator: Accelerator, state: dict[str, Any] | None
) -> Iterator[Callable[[], dict[str, Any]]]:
    """Yields a function that returns `calls` and `seconds` of the run since its beginning, over all processes."""
    teacher = getattr(getattr(hop, "teacher", None), "network", None)
    networks = {"student": denoiser.network} | ({} if teacher is None else {"teacher": teacher})
    if teacher is denoiser.network:
        networks = {"student and teacher": teacher}  # one network, whose calls cannot be told apart
    before = state["calls"] if state else dict.fromkeys(networks, (0, 0))
    seconds, start = state["seconds"] if state else 0.0, time.monotonic()
    with ExitStack() as stack:
        counts = [stack.enter_context(count_nfe(network)) for network in networks.values()]

        def spent() -> dict[str, Any]:
            mine = torch.tensor([[count.calls, count.rows] for count in counts], device=accelerator.device)
            new: Any = accelerator.reduce(mine, "sum")
            calls = {name: [a + b for a, b in zip(before[name], more, strict=True)]
                     for name, more in zip(networks, new.tolist(), strict=True)}  # fmt: skip
            return {"calls": calls, "seconds": seconds + time.monotonic() - start}

        yield spent


@contextmanager
def _progress(
    title: str, recipe: dict[str, Any], state: dict[str, Any] | None, *, hidden: bool
) -> Iterator[Callable[[Step], None]]:
    """Yields a function that shows a step on a progress bar, or without a terminal as a line every 30 seconds."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f}/{task.total:,.0f} images"),
        TextColumn("{task.fields[speed]:.0f}/s  loss {task.fields[loss]:.3f}  gap {task.fields[gap]:.3f}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    seen = state["step"] * recipe["batch"] if state else 0
    with Progress(*columns, disable=hidden, refresh_per_second=2) as bar:
        task = bar.add_task(title, total=recipe["images"], completed=seen, speed=0.0, loss=float("nan"), gap=1.0)
        start = logged = time.monotonic()

        def show(step: Step) -> None:
            nonlocal logged
            now = time.monotonic()
            speed = (step.images - seen) / (now - start)
            bar.update(task, completed=step.images, speed=speed, loss=step.loss, gap=step.gap)
            if not bar.console.is_terminal and now - logged > 30:
                logger.info("%d images, %.0f/s, loss %.4f, gap %.3f", step.images, speed, step.loss, step.gap)
                logged = now

        yield show


@contextmanager
def _with_remedy(remedy: str) -> Iterator[None]:
    """Adds to the error of a diverged run how to continue."""
    try:
        yield
    except FloatingPointError as error:
        raise FloatingPointError(f"{error}; what was saved before is sound: continue with --resume and {remedy}") from error


def _result(state: dict[str, Any], batch: int, made: Calls) -> dict[str, Any]:
    """The receipt's entries for a run that ends in `state`."""
    calls, images = state["calls"] | {f"teacher, for {what}": each for what, each in made.items()}, state["step"] * batch
    return {
        "steps": state["step"],
        "images": images,
        "seconds": round(state["seconds"], 1),
        "images_per_second": round(images / state["seconds"], 1),
        "loss": state["loss"],
        "network_calls": {name: each[0] for name, each in calls.items()},
        "network_rows": {name: each[1] for name, each in calls.items()},
    }


def walk_of(recipe: dict[str, Any], data: Source) -> Walk:
    """The walk of the result: Heun's method for a diffusion model, else see `few_step`."""
    if isinstance(recipe["gap"], FullGap) and not isinstance(data, Paths):
        return Heun()
    return few_step(recipe.get("segments", 1))


def _names(average: Any) -> list[str]:
    """Folders of the averages: `model` for the first, `model-` with decay or width for each other one."""
    others = average[1:] if isinstance(average, Sequence) else ()
    return ["model", *(f"model-{dataclasses.astuple(other)[0]}" for other in others)]
