"""Draws and saves samples of pipelines: prompts or classes in, pictures, videos or sound out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.files import atomic_file
from ..core.nfe import NFE, count_nfe
from ..core.parts import Form, hidden, in_parts, in_ranges
from ..core.processes import together
from ..core.progress import progress
from ..core.receipt import receipt
from .asked import asked_of, in_turn, once, prompts_in
from .cond import NOTHING, Cond
from .deciding import decided_by
from .denoiser import Denoiser
from .encoding import own_steps
from .measure.seen import Setting
from .model import Model
from .pipeline import Asked, Pipeline
from .space import Space
from .walk import DDIM, Walk, sample

AT_ONCE = 16  # samples in one network call


@dataclass(frozen=True)
class Wanted:
    """What to draw: one prompt, a file of prompts that take turns, or a class; and the guidance scale."""

    prompt: str | None = None
    prompts: Path | None = None
    label: int | None = None
    guidance: float | None = None

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.prompt, self.prompts, self.label)) > 1:
            raise ValueError("--prompt, --prompts and --label exclude each other; give one of them")

    @property
    def is_any(self) -> bool:
        """Whether anything is given that needs a pipeline."""
        return self.prompt is not None or self.prompts is not None or self.guidance is not None

    def asked(self, model: Model) -> Asked:
        """The prompts or classes for `model`, which take turns.

        Raises:
            ValueError: the model does not take what is given, or needs what is missing.
        """
        if model.pipeline is not None and model.pipeline.prompted and self.label is not None:
            raise ValueError("this pipeline takes prompts; give --prompt instead of --label")
        if self.label is not None:
            classes = model.denoiser.classes
            if classes is None:
                raise ValueError("this model takes no classes; leave --label out")
            if self.label >= classes.count:
                raise ValueError(f"this model knows the classes 0 to {classes.count - 1}, not {self.label}")
            return [self.label]
        if self.prompt is not None:
            return asked_of(model.pipeline, model.denoiser, [self.prompt])
        if self.prompts is None and model.pipeline is not None and model.pipeline.prompted:
            raise ValueError("this pipeline takes prompts; give --prompt, or --prompts FILE with one prompt per line")
        return asked_of(model.pipeline, model.denoiser, None if self.prompts is None else prompts_in(self.prompts))


def arguments(words: Sequence[str]) -> dict[str, object]:
    """Arguments for a stock pipeline from words such as height=256. A value that is no JSON is taken as text.

    Raises:
        ValueError: a word is not of the form name=value.
    """
    told: dict[str, object] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (equals and name.isidentifier()):
            raise ValueError(f"--call takes arguments such as height=256, not {word!r}")
        try:
            told[name] = json.loads(value)
        except ValueError:
            told[name] = value
    return told


def draw(
    model: Model,
    wanted: Wanted,
    out: Path,
    *,
    n: int | None,
    walk: Walk | None,
    seed: int,
    steps: int | None,
    batch: int,
    checkpoint: str,
) -> tuple[int, float]:
    """Draws samples of a pipeline and saves them with a receipt. Returns their number and the network calls of each.

    Args:
        model: a model with a pipeline, on its device.
        wanted: what to draw.
        out: folder for the samples.
        n: number of samples; by default one per prompt, or 16 without prompts.
        walk: how to sample; None is the pipeline with its own scheduler.
        seed: seed of the first sample; the others count up from it.
        steps: steps of the pipeline's scheduler if `walk` is None; by default the pipeline's own number.
        batch: number of samples at once, at most AT_ONCE, because networks of pipelines are large.
        checkpoint: name for the receipt.

    Raises:
        ValueError: the model does not take what is wanted, or guidance is given for a student.
    """
    pipeline, asked = model.pipeline, wanted.asked(model)
    assert pipeline is not None
    if wanted.guidance is not None and model.is_student:
        raise ValueError("a student has its guidance built in; leave --guidance out")
    prompts = wanted.prompt is not None or wanted.prompts is not None
    count = n if n is not None else len(asked) if prompts else 16
    rows, seeds = in_turn(asked, range(count)), range(seed, seed + count)
    if wanted.guidance is not None:
        pipeline.manner.on(wanted.guidance, 1)  # raises where the pipeline has none
    steps = own_steps(pipeline) if steps is None else steps
    facts: dict[str, object] = {
        "checkpoint": checkpoint,
        "walk": walk or f"{type(pipeline.stock).__name__} in {steps} steps",
        "asked": asked,
    }
    facts |= {"guidance": wanted.guidance, "call": pipeline.call, "seed": seed, "n": count}
    calls = (walk.calls if walk else steps) * (1 if wanted.guidance is None else 2)
    each_once = once(rows)
    place = {each: k for k, each in enumerate(each_once)}
    whole, null = (NOTHING, None) if walk is None else pipeline.conditions(each_once)

    def make(part: range, done: Callable[[int], None]) -> tuple[Tensor, NFE]:
        some = [rows[k] for k in part]
        told_of = None if walk is None else (whole.part(torch.tensor([place[each] for each in some])), null)
        return drawn(
            model, some, [seeds[k] for k in part], walk=walk, steps=steps, guidance=wanted.guidance, batch=batch, told=done,
            cond=told_of,
        )  # fmt: skip

    settings = [Setting("", model.denoiser, walk or DDIM(steps), pipeline)]
    spent = save_in_parts(
        make, pipeline.space_of, out, seeds, batch=min(batch, AT_ONCE), calls=calls, facts=facts,
        decided=decided_by(settings),
    )  # fmt: skip
    return count, spent / count


class Made(NamedTuple):
    """Some samples: network calls, network rows, and the decoded samples if they are not saved yet."""

    calls: int
    rows: int
    raw: Tensor


def save_in_parts(
    make: Callable[[range, Callable[[int], None]], tuple[Tensor, NFE]],
    space_of: Callable[[Tensor], Space],
    out: Path,
    seeds: range,
    *,
    batch: int,
    calls: int,
    facts: Mapping[str, object],
    decided: Mapping[str, object],
) -> int:
    """Draws and saves samples in parts, shared by all processes, with a receipt. Returns the number of network rows.

    Args:
        make: draws the samples of a range; returns them decoded, and their network calls.
        space_of: the space that saves decoded samples.
        out: folder for the samples.
        seeds: seeds of all samples.
        batch: number of samples in a part.
        calls: network rows per sample, for the progress.
        facts: entries of the receipt.
        decided: everything else that the samples depend on.
    """
    names, ranges = [f"{k:06d}" for k in seeds], in_ranges(len(seeds), batch)

    def part(k: int) -> Made:
        with progress("sampling", len(ranges[k]) * calls) as done:
            raw, nfe = make(ranges[k], done)
        saved = space_of(raw).save_some(raw, out, names[ranges[k].start : ranges[k].stop])
        return Made(nfe.calls, nfe.rows, raw[:0] if saved else raw)

    sizes = [len(each) * calls for each in ranges]
    kept = in_parts(hidden(out / "samples"), {**facts, **decided, "batch": batch}, sizes, part, AS_NPZ, title="sampling")
    with together() as here, receipt(out / "receipt.json" if here.is_main else None, **facts) as entries, kept as parts:
        rows = sum(each.rows for each in parts)
        if here.is_main:
            space_of(parts[0].raw).finish(out, names, (each.raw for each in parts))
            entries |= {"nfe_per_sample": rows / len(seeds), "network_calls": sum(each.calls for each in parts)}
    return rows


def _write(file: Path, part: Made) -> None:
    with atomic_file(file) as content:
        np.savez(content, spent=np.array([part.calls, part.rows]), raw=part.raw.numpy())


def _read(file: Path) -> Made:
    with np.load(file) as held:
        calls, rows = held["spent"].tolist()
        return Made(calls, rows, torch.from_numpy(held["raw"]))


AS_NPZ: Form[Made] = Form(".npz", _write, _read)


def drawn(
    model: Model,
    rows: Asked,
    seeds: Sequence[int],
    *,
    walk: Walk | None,
    steps: int,
    guidance: float | None,
    batch: int,
    told: Callable[[int], None],
    cond: tuple[Cond, Cond | None] | None = None,
) -> tuple[Tensor, NFE]:
    """Draws samples of a pipeline. Returns them decoded, with the calls of the network.

    Args:
        model: a model with a pipeline, on its device.
        rows: prompt or class of each sample.
        seeds: one per sample.
        walk, steps, batch: as for `draw`.
        guidance: guidance scale, or None.
        told: called with the number of rows after each network call.
        cond: conditions of these rows and the null condition, if they are known already.
    """
    pipeline = model.pipeline
    assert pipeline is not None
    if cond is None:
        cond = (NOTHING, None) if walk is None else pipeline.conditions(rows)  # before calls are counted
    denoiser = _guided(model, pipeline, guidance, cond[1])
    with count_nfe(pipeline.network, told) as nfe:
        if walk is None:
            x0 = pipeline.latents(rows, seeds, steps=steps, guidance=guidance)
        else:
            x0 = sample(denoiser, seeds, walk, cond[0], batch=min(batch, AT_ONCE))
    return pipeline.decode(x0), nfe


def _guided(model: Model, pipeline: Pipeline, guidance: float | None, null: Cond | None) -> Denoiser:
    if guidance is None or null is None:
        return model.denoiser
    return pipeline.guided(model.denoiser, guidance, null)
