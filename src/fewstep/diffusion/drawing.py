"""Samples of a model whose pipeline is asked for something: prompts or classes in, pictures, videos or sound out."""

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

AT_ONCE = 16  # samples that go through a network together


@dataclass(frozen=True)
class Wanted:
    """What is to be drawn: a prompt or several in turn, or a class, and under which guidance."""

    prompt: str | None = None
    prompts: Path | None = None
    label: int | None = None
    guidance: float | None = None

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.prompt, self.prompts, self.label)) > 1:
            raise ValueError("give a --prompt, a file of --prompts or a --label, one of them")

    @property
    def is_any(self) -> bool:
        """Whether anything was asked for that needs a pipeline."""
        return self.prompt is not None or self.prompts is not None or self.guidance is not None

    def asked(self, model: Model) -> Asked:
        """What the pipeline of `model` is asked for, in turn.

        Raises:
            ValueError: it is not asked for such things.
        """
        if model.pipeline is not None and model.pipeline.prompted and self.label is not None:
            raise ValueError("this pipeline is asked by prompts; give a --prompt instead of --label")
        if self.label is not None:
            classes = model.denoiser.classes
            if classes is None:
                raise ValueError("this model is told no class, so it takes no --label; leave it out")
            if self.label >= classes.count:
                raise ValueError(f"this model knows the classes 0 to {classes.count - 1}, not {self.label}")
            return [self.label]
        if self.prompt is not None:
            return asked_of(model.pipeline, model.denoiser, [self.prompt])
        if self.prompts is None and model.pipeline is not None and model.pipeline.prompted:
            raise ValueError("this pipeline is asked by prompts; give a --prompt, or a text file of --prompts, one a line")
        return asked_of(model.pipeline, model.denoiser, None if self.prompts is None else prompts_in(self.prompts))


def arguments(words: Sequence[str]) -> dict[str, object]:
    """Arguments for a stock pipeline from words such as height=256; what is no JSON is a text.

    Raises:
        ValueError: a word without a name and a value.
    """
    told: dict[str, object] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (equals and name.isidentifier()):
            raise ValueError(f"--call takes arguments of the pipeline such as height=256, not {word!r}")
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
    """Saves samples with a receipt beside them. Returns how many there are, and how many network calls each took.

    Args:
        model: with a pipeline, on its device.
        wanted: what is drawn.
        out: folder.
        n: how many; one for each prompt if left out, or 16 where there are none.
        walk: how; None is the pipeline itself with its own scheduler.
        seed: of the first sample.
        steps: of the pipeline's scheduler, where it samples itself.
        batch: samples at once, at most AT_ONCE: networks of pipelines are large.
        checkpoint: for the receipt.
    """
    pipeline, asked = model.pipeline, wanted.asked(model)
    assert pipeline is not None
    if wanted.guidance is not None and model.is_student:
        raise ValueError("guidance is tuned into a student; leave --guidance out")
    prompts = wanted.prompt is not None or wanted.prompts is not None
    count = n if n is not None else len(asked) if prompts else 16
    rows, seeds = in_turn(asked, range(count)), range(seed, seed + count)
    if wanted.guidance is not None:
        pipeline.manner.on(wanted.guidance, 1)  # or it says that there is none
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
    """A part of samples: calls and rows of the network, and those that are not saved yet, as all stand in one file."""

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
    """Saves samples batch by batch, by all processes of a command, with a receipt; returns the rows of the network.

    Args:
        make: decoded samples of a range of them, and the calls that they took; it tells the rows of each call.
        space_of: which saves them.
        out: folder.
        seeds: of all.
        batch: samples of a part.
        calls: rows of the network that a sample takes.
        facts: for the receipt.
        decided: what else decides the samples.
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
    """What a pipeline shows of samples, and the calls of its network.

    Args:
        model: with a pipeline, on its device.
        rows: what each sample is asked for.
        seeds: one a sample.
        walk, steps, batch: as for `draw`.
        guidance: scale, or None.
        told: hears of each call how many rows it had.
        cond: what the pipeline tells its network of these rows and of nothing, where that is known.
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
