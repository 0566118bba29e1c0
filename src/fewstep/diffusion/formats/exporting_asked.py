"""export_asked(): a student of a pipeline that is asked for something, as that pipeline, verified before it appears."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...core.files import atomic_folder
from ..model import Model
from ..pipeline import Asked, Pipeline
from ..walk import Consistency, Segments, Walk, sample
from . import stock_asked
from .folder import carry, write_note
from .pipelines import few_step_scheduler, plain
from .rounding import STEP, one_step_off

ROOM = 8  # times what float32 moves our own samples by is allowed


class Closeness(NamedTuple):
    """How well a stock pipeline's latents agree with ours, in parts of the largest.

    Attributes:
        largest: difference over all samples compared.
        allowed: several times what float32 rounding moves our own by.
    """

    largest: float
    allowed: float

    def __str__(self) -> str:
        return (
            f"by up to {self.largest:.2g} of the largest latent (allowed: {self.allowed:.2g}, {ROOM} times as far as "
            "float32 rounding moves ours)"
        )


def export_asked(
    model: Model,
    folder: Path,
    *,
    walk: Walk | None = None,
    card: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = range(2),
) -> Closeness:
    """Writes `model` as its own pipeline with a stock few-step scheduler and a model card, and verifies it.

    A fresh process loads the folder with plain diffusers and samples the same seeds for some prompts or classes. Only if
    its latents are ours does the folder appear. Guidance is off in it, as it is tuned in.

    Args:
        model: a student with a pipeline, on the CPU.
        folder: where to; it is free or an earlier export.
        walk: another than the model's own. The folder takes this number of steps.
        card: facts for the model card, a line each.
        seeds: of the samples compared.

    Raises:
        ValueError: no stock scheduler takes it along the walk, or the stock pipeline gives other latents.
    """
    assert model.pipeline is not None
    pipeline, chosen = model.pipeline, walk or model.walk
    scheduler, student = few_step_scheduler(model.denoiser, chosen, pipeline), plain(model.denoiser, chosen)
    assert isinstance(chosen, Consistency | Segments)  # few_step_scheduler knows no others
    asked = pipeline.examples(len(seeds))
    cond, _ = pipeline.conditions(asked)
    ours = sample(model.denoiser, list(seeds), chosen, cond)
    with one_step_off(model.denoiser):
        moved = sample(model.denoiser, list(seeds), chosen, cond)
    told = pipeline.call | dict(pipeline.manner.off) | {"num_inference_steps": chosen.steps}
    with atomic_folder(folder) as temporary:
        carry(pipeline.source, temporary, student.network, scheduler)
        write_note(temporary, chosen, pipeline=pipeline)
        theirs = _stock_latents(temporary, pipeline, told, asked, seeds)
        closeness = Closeness(_apart(theirs, ours), ROOM * max(_apart(moved, ours), STEP))
        if not closeness.largest <= closeness.allowed:
            raise ValueError(f"the stock pipeline's latents differ from ours {closeness}; nothing was exported")
        facts = dict(card or {}) | {"verified": f"{len(seeds)} samples, largest difference {closeness.largest:.2g}"}
        (temporary / "README.md").write_text(_card(folder.name, pipeline, told, asked, facts))
    return closeness


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def _stock_latents(
    folder: Path, pipeline: Pipeline, told: Mapping[str, object], asked: Asked, seeds: Sequence[int]
) -> Tensor:
    """What a fresh process samples."""
    rows: list[dict[str, object]] = [{} for _ in asked]
    if pipeline.prompted:
        rows = [{"prompt": each} for each in asked]
    elif pipeline.by_class:
        rows = [{"class_labels": [each]} for each in asked]
    takes_noise = pipeline.accepts("latents")
    latent = {"output_type": "latent"} if takes_noise and pipeline.accepts("output_type") else {}
    given: dict[str, object] = {"told": {**told, **latent}, "rows": rows, "seeds": list(seeds)}
    given["shape"] = list(pipeline.manner.shape) if takes_noise else None
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "latents.npy"
        sample_stock(folder, out, given)
        return torch.from_numpy(np.load(out))


def sample_stock(folder: Path, out: Path, given: Mapping[str, object]) -> None:
    """Runs the script of plain diffusers in a fresh process.

    Raises:
        ValueError: it failed, and why.
    """
    command = [sys.executable, "-I", stock_asked.__file__, str(folder), str(out), json.dumps(given)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1][:500]
        raise ValueError(f"stock diffusers cannot sample the exported folder: {said}")


def example(name: str, pipeline: Pipeline, told: Mapping[str, object], asked: Asked) -> str:
    """A program that samples the exported folder `name` by plain diffusers, and shows what comes out."""
    words = [f"{key}={value!r}" for key, value in told.items()]
    if pipeline.prompted:
        words.insert(0, repr(asked[-1]))
    elif pipeline.by_class:
        words.insert(0, f"class_labels=[{asked[-1]}]")
    # in one precision: transformers reads a part as it was saved, and diffusers in float32
    return f"DiffusionPipeline.from_pretrained({name!r}, torch_dtype=torch.float32)({', '.join(words)})[0]"


def _card(name: str, pipeline: Pipeline, told: Mapping[str, object], asked: Asked, facts: Mapping[str, Any]) -> str:
    lines = "\n".join(
        f"- **{key}**: {value if isinstance(value, str) else json.dumps(value)}" for key, value in facts.items()
    )
    return f"""---
library_name: diffusers
tags: [few-step, consistency, fewstep]
---
# {name}

A few-step generator, tuned from a diffusion pipeline with fewstep. Guidance is tuned in, so it is off. Plain diffusers
samples it:

```python
import torch
from diffusers import DiffusionPipeline

samples = {example(name, pipeline, told, asked)}
```

{lines}
"""
