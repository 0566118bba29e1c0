"""The last line of a command: which command to run next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..diffusion.model import Model
    from ..diffusion.using import Exported


def say_next(*words: object) -> None:
    """Prints a fewstep command, given its words."""
    print("next: " + shlex.join(["fewstep", *map(str, words)]))


def after_tuning(checkpoint: object, model: Model) -> None:
    """Next: sample the student."""
    asked: tuple[object, ...] = ()
    if model.pipeline is not None and model.pipeline.prompted:
        asked = ("--prompt", "a picture")
    elif model.denoiser.classes:
        asked = ("--label", 0)
    say_next("sample", checkpoint, "--out", "samples", *asked)


def after_sampling(checkpoint: str, model: Model, *, prompts: Path | None = None, guidance: float | None = None) -> None:
    """Next: tune a diffusion model for the same prompts; measure a student if its data are known, else export it."""
    data, teacher = model.receipt.get("source"), model.receipt.get("teacher")
    if not model.is_student:
        asked = _prompted(model, prompts) + (() if guidance is None else ("--guidance", f"{guidance:g}"))
        say_next("tune", checkpoint, "--data", data if _is_there(data) else "teacher", *asked, "--out", "student")
    elif _is_there(data) and model.pipeline is None:  # a pipeline learned from latents, and pictures are measured
        beside = ("--teacher", teacher) if _is_there(teacher) else ()
        say_next("measure", checkpoint, *beside, "--data", data, "--out", "scores")
    elif _exports(model):
        say_next("export", checkpoint, "--out", "few-step")


def after_measuring(checkpoint: str, model: Model, data: str, scores: Path, *at: object) -> None:
    """Next: tune a diffusion model, a pipeline after encoding; export a student with its scores, with the flags `at`."""
    if not model.is_student and model.pipeline is not None:
        say_next("encode", checkpoint, data, "--out", "latents")
    elif not model.is_student:
        say_next("tune", checkpoint, "--data", data, "--out", "student")
    elif _exports(model):
        say_next("export", checkpoint, *at, "--out", "few-step", "--measured", scores)


def after_exporting(folder: Path, written: Exported) -> None:
    """Next: sample by plain diffusers if the pipeline needs no condition, else by `fewstep sample` or as the card says."""
    if written.model.pipeline is not None or not (folder / "model_index.json").exists():
        print(f"{folder / 'README.md'} says how plain diffusers samples it")
        after_tuning(folder, written.model)
        return
    program = (
        f"from diffusers import DiffusionPipeline as P; P.from_pretrained({str(folder)!r})"
        f"(num_inference_steps={written.steps})"
        ".images[0].save('sample.png')"
    )
    print("next: " + shlex.join(["python", "-c", program]))


def _prompted(model: Model, prompts: Path | None) -> tuple[object, ...]:
    """The flags for the prompts to tune a pipeline from, if it takes prompts."""
    if model.pipeline is None or not model.pipeline.prompted:
        return ()
    if prompts is None:
        print("write prompts like those it will be used with into prompts.txt, one a line, then tune it")
    return "--prompts", prompts or "prompts.txt"


def _exports(model: Model) -> bool:
    from ..diffusion.formats.pipelines import check_exportable

    try:
        check_exportable(model.denoiser, model.walk, model.pipeline)
    except ValueError:
        return False
    return True


def _is_there(name: object) -> bool:
    return name == "bundled" or (isinstance(name, str) and name not in ("teacher", "paths") and Path(name).exists())
