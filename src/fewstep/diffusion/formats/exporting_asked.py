"""`export_asked`: writes a student of a pipeline as that pipeline, and verifies it before it appears."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ...core.files import atomic_folder
from ..model import Model
from ..pipeline import Asked, Pipeline
from ..walk import Consistency, Segments, Walk, sample
from . import stock_asked
from .folder import carry, write_note
from .pipelines import few_step_scheduler, plain
from .rounding import one_step_off
from .verifying import Agreement, lines_of, said_by


def export_asked(
    model: Model,
    folder: Path,
    *,
    walk: Walk | None = None,
    card: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = range(2),
) -> Agreement:
    """Writes `model` as its own pipeline with a stock few-step scheduler and a model card, and verifies it.

    A new process loads the folder with plain diffusers and samples the same seeds for some prompts or classes. The folder
    appears only if the latents agree. Guidance is off in it, because the student has it built in.

    Args:
        model: a student with a pipeline, on the CPU.
        folder: folder to write; it must be free or an earlier export.
        walk: replaces the model's own walk. The folder is for this number of steps.
        card: facts for the model card, one line each.
        seeds: seeds of the samples that are compared.

    Returns:
        The largest difference of the latents, and the allowed one.

    Raises:
        ValueError: no stock scheduler samples as the walk does, or the latents of the stock pipeline differ.
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
        agreement = Agreement.of(theirs, ours, moved, "largest latent", size=float(ours.abs().max()))
        agreement.check("the stock pipeline's latents differ from ours")
        facts = dict(card or {}) | {"verified": f"{len(seeds)} samples, largest difference {agreement.largest:.2g}"}
        (temporary / "README.md").write_text(_card(folder.name, pipeline, told, asked, facts))
    return agreement


def _stock_latents(
    folder: Path, pipeline: Pipeline, told: Mapping[str, object], asked: Asked, seeds: Sequence[int]
) -> Tensor:
    """The latents that a new process samples."""
    rows: list[dict[str, object]] = [{} for _ in asked]
    if pipeline.prompted:
        rows = [{"prompt": each} for each in asked]
    elif pipeline.by_class:
        rows = [{"class_labels": [each]} for each in asked]
    takes_noise = pipeline.accepts("latents")
    latent = {"output_type": "latent"} if takes_noise and pipeline.accepts("output_type") else {}
    given: dict[str, object] = {"told": {**told, **latent}, "rows": rows, "seeds": list(seeds)}
    given["shape"] = list(pipeline.manner.shape) if takes_noise else None
    return said_by(stock_asked, folder, json.dumps(given))


def example(name: str, pipeline: Pipeline, told: Mapping[str, object], asked: Asked) -> str:
    """A line of Python that samples the exported folder `name` by plain diffusers."""
    words = [f"{key}={value!r}" for key, value in told.items()]
    if pipeline.prompted:
        words.insert(0, repr(asked[-1]))
    elif pipeline.by_class:
        words.insert(0, f"class_labels=[{asked[-1]}]")
    # one precision for all parts: transformers would load a part as it was saved, and diffusers in float32
    return f"DiffusionPipeline.from_pretrained({name!r}, torch_dtype=torch.float32)({', '.join(words)})[0]"


def _card(name: str, pipeline: Pipeline, told: Mapping[str, object], asked: Asked, facts: Mapping[str, Any]) -> str:
    return f"""---
library_name: diffusers
tags: [few-step, consistency, fewstep]
---
# {name}

A few-step generator, tuned from a diffusion pipeline with fewstep. Guidance is built in, so it is off. Plain diffusers
samples it:

```python
import torch
from diffusers import DiffusionPipeline

samples = {example(name, pipeline, told, asked)}
```

{lines_of(facts)}
"""
