"""A model and its teacher for the page of `fewstep play`: both draw the same seeds."""

from __future__ import annotations

import shlex
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from ..core.checks import at_least
from ..core.device import best_device
from ..core.nfe import count_nfe
from .drawing import Wanted, arguments, drawn
from .encoding import own_steps
from .formats.folder import load
from .lora import is_adapted
from .measuring import diffusion_model
from .model import Model
from .space import Latents, Space
from .using import condition_of
from .walk import DDIM, Walk, sample

Side = Literal["model", "few", "teacher"]
KINDS = {".png": "image/png", ".wav": "audio/wav"}
MOST = 16  # samples at once: a single network batch, so that `fewstep sample` gives the same bytes
MOST_STEPS = 50  # end of the sliders


class LeftError(Exception):
    """The client has gone."""


@dataclass(frozen=True)
class Ask:
    """A request for samples.

    Attributes:
        steps: steps of the model; by default its own number.
        teacher_steps: steps of the teacher; by default its own number.
        seed: seed of the first sample.
        n: number of samples, 1 to 16.
        prompt, label, number: see `sample_checkpoint`.
        guidance: guidance scale of a diffusion pipeline.
        strength: strength of a LoRA student.

    Raises:
        ValueError: a number is out of its range.
    """

    steps: int | None = None
    teacher_steps: int | None = None
    seed: int = 0
    n: int = 8
    prompt: str | None = None
    label: int | None = None
    number: float | None = None
    guidance: float | None = None
    strength: float | None = None

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, teacher_steps=self.teacher_steps, n=self.n)
        at_least(0, seed=self.seed, label=self.label, guidance=self.guidance, strength=self.strength)
        if self.n > MOST:
            raise ValueError(f"at most {MOST} samples are drawn at once, not {self.n}")


@dataclass(frozen=True)
class Drawing:
    """Samples as files.

    Attributes:
        files: a PNG or WAV per sample, the same bytes as `fewstep sample` writes.
        kind: their media type.
        seeds: one per sample.
        calls: network calls per sample, as counted at the network.
        seconds: time for all samples.
        command: the command that draws the same samples.
    """

    files: tuple[bytes, ...]
    kind: str
    seeds: tuple[int, ...]
    calls: float
    seconds: float
    command: str


class Player:
    """A model and its teacher, loaded once. They answer requests one after another.

    Args:
        checkpoint: a run, a diffusers folder or a hub id, tuned or not.
        teacher: the diffusion checkpoint that it came from, for comparison.
        call: arguments for a stock pipeline, such as "height=256".

    Raises:
        ValueError: see `load`; or the samples cannot be shown, or the two make samples of different shapes.
    """

    def __init__(self, checkpoint: str, teacher: str | None = None, call: Sequence[str] = ()) -> None:
        self.checkpoint, self.call = checkpoint, tuple(call)
        self.model = load(checkpoint, call=arguments(call) if call else None).to(best_device())
        self.teacher_name, self.teacher = teacher, None
        if call and self.model.pipeline is None:
            raise ValueError("--call is for pipelines that make latents, and this model makes pictures; leave it out")
        if self.model.pipeline is None and isinstance(self.model.denoiser.space, Latents):
            raise ValueError(f"{checkpoint} makes latents, which cannot be shown; name the pipeline that decodes them")
        if teacher is not None:
            told = None if self.model.pipeline is None else self.model.pipeline.call
            self.teacher = diffusion_model(teacher, call=told or None)
            if self.teacher.denoiser.space.shape != self.model.denoiser.space.shape:
                raise ValueError(f"{teacher} makes samples of another shape than {checkpoint}; name its teacher")
        self._strong = (1.0, self.model)
        self._turn = Lock()

    @property
    def offers(self) -> dict[str, Any]:
        """What can be requested, as types of JSON."""
        model, pipeline, denoiser = self.model, self.model.pipeline, self.model.denoiser
        asked_by_prompt = pipeline is not None and pipeline.prompted
        classes = None if asked_by_prompt else denoiser.classes
        free = self.teacher or (None if model.is_student else model)  # for guidance: students have it built in
        guided = free is not None and free.pipeline is not None and free.pipeline.manner.guide is not None
        return {
            "name": self.checkpoint,
            "teacher": self.teacher_name,
            "student": model.is_student,
            "steps": _steps(model),
            "most": MOST_STEPS,
            "any": model.takes_any_steps,
            "teacher_steps": None if self.teacher is None else _steps(self.teacher),
            "prompt": asked_by_prompt,
            "classes": None if classes is None else classes.count,
            "number": "number" in denoiser.takes and pipeline is None,
            "guided": guided,
            "guidance": model.receipt.get("guidance"),
            "strength": is_adapted(denoiser.network),
            "n": MOST,
        }

    def draw(self, side: Side, ask: Ask, left: Callable[[], bool] = lambda: False) -> Drawing:
        """Draws the requested samples.

        Args:
            side: "model"; "few" for the teacher in as many calls as the model; "teacher" for the teacher in its own steps.
            ask: the request.
            left: returns whether the client has gone; it is called after each network call.

        Raises:
            ValueError: the model does not take this request.
            LeftError: the client has gone.
        """

        def still(rows: int) -> None:
            if left():
                raise LeftError

        with self._turn:
            still(0)
            model = self._at(ask.strength)
            if side == "model":
                return self._drawn(model, self.checkpoint, _walk(model, ask.steps), ask.steps, ask, still)
            if self.teacher is None or self.teacher_name is None:
                raise ValueError("this page has no teacher; start it with --teacher")
            ask = replace(ask, strength=None)
            if side == "teacher":
                steps = ask.teacher_steps
                return self._drawn(self.teacher, self.teacher_name, _walk(self.teacher, steps), steps, ask, still)
            own = _walk(model, ask.steps)
            calls = own.calls if own else _steps(model)
            few = None if self.teacher.pipeline is not None else DDIM(calls)
            return self._drawn(self.teacher, self.teacher_name, few, calls, ask, still)

    def _at(self, strength: float | None) -> Model:
        """The model with its LoRA at that strength; the last one is kept."""
        if strength is None:
            return self.model
        if self._strong[0] != strength or strength == 1:
            self._strong = (strength, self.model.at(strength))
        return self._strong[1]

    def _drawn(
        self, model: Model, name: str, walk: Walk | None, steps: int | None, ask: Ask, still: Callable[[int], None]
    ) -> Drawing:
        seeds = range(ask.seed, ask.seed + ask.n)
        start = time.perf_counter()
        if model.pipeline is not None:
            guidance = None if model.is_student else ask.guidance
            rows = Wanted(ask.prompt, None, ask.label, guidance).asked(model)
            if guidance is not None:
                model.pipeline.manner.on(guidance, 1)  # raises where the pipeline has none
            raw, nfe = drawn(
                model, [rows[k % len(rows)] for k in range(ask.n)], seeds, walk=walk, guidance=guidance, batch=MOST,
                steps=own_steps(model.pipeline) if steps is None else steps, told=still,
            )  # fmt: skip
            space = model.pipeline.space_of(raw)
        else:
            guidance, space = None, model.denoiser.space
            cond = condition_of(model.denoiser, ask.n, ask.label, ask.number)
            with count_nfe(model.denoiser.network, still) as nfe:
                assert walk is not None
                raw = space.decode(sample(model.denoiser, seeds, walk, cond, batch=MOST))
        seconds = time.perf_counter() - start
        kind, files = _files(space, raw, seeds)
        options: dict[str, object] = {"n": ask.n, "seed": ask.seed, "steps": steps} | {
            "sampler": "ddim" if isinstance(walk, DDIM) and not isinstance(model.walk, DDIM) else None,
            "prompt": ask.prompt, "label": ask.label, "number": ask.number, "guidance": guidance, "strength": ask.strength,
        }  # fmt: skip
        words = [word for option, value in options.items() if value is not None for word in (f"--{option}", str(value))]
        words += ["--call", *self.call] if self.call else []
        command = shlex.join(["fewstep", "sample", name, "--out", "samples", *words])
        return Drawing(files, kind, tuple(seeds), nfe.rows / ask.n, seconds, command)


def _walk(model: Model, steps: int | None) -> Walk | None:
    """The model's walk in `steps` steps; None if a pipeline samples with its own scheduler."""
    return None if model.pipeline is not None and not model.is_student else model.walk_in(steps)


def _steps(model: Model) -> int:
    """The default number of steps."""
    if model.pipeline is not None and not model.is_student:
        return own_steps(model.pipeline)
    return model.walk.steps


def _files(space: Space, raw: Any, seeds: range) -> tuple[str, tuple[bytes, ...]]:
    """Media type and bytes of the samples as their space saves them."""
    names = [f"{k:06d}" for k in seeds]
    with tempfile.TemporaryDirectory() as folder:
        space.save(raw, Path(folder), names)
        suffix = next(ending for ending in KINDS if (Path(folder) / f"{names[0]}{ending}").exists())
        return KINDS[suffix], tuple((Path(folder) / f"{name}{suffix}").read_bytes() for name in names)
