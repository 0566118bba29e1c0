"""`export`: writes a student as a folder for stock diffusers, and verifies it before it appears."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.files import atomic_folder, writable
from ..cond import labelled
from ..denoiser import Denoiser
from ..model import Model
from ..walk import Consistency, Segments, Walk, sample
from . import stock
from .exporting_asked import export_asked
from .folder import NOTE, write_note
from .pipelines import stock_pipeline
from .rounding import one_step_off
from .verifying import Agreement, lines_of, said_by

EXPORTED = (NOTE, "README.md")  # files of an earlier export


def export(
    model: Model,
    folder: str | Path,
    *,
    walk: Walk | None = None,
    card: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = range(4),
) -> Agreement:
    """Writes `model` as a stock few-step pipeline with a model card, and verifies it in a new process.

    The new process loads the folder with plain diffusers and samples the same seeds as our sampler. The folder appears only
    if the images agree. A student with a pipeline is written as that pipeline; see `export_asked`.

    Args:
        model: a student that `stock_pipeline` supports.
        folder: folder to write; only an earlier export there is replaced.
        walk: replaces the model's own walk; see `Model.walk_in`. It is verified. A consistency function takes any number of
            steps afterwards, and the folder of a student of any number of calls takes only this number.
        card: facts for the model card, one line each.
        seeds: seeds of the samples that are compared; classes take turns.

    Returns:
        The largest difference over all samples, and the allowed one.

    Raises:
        ValueError: there is no stock pipeline for the model, its images differ, or `folder` holds something else.
    """
    check_free(Path(folder))
    if model.pipeline is not None:
        return export_asked(model, Path(folder), walk=walk, card=card, seeds=seeds[:2])
    start = time.monotonic()
    chosen, denoiser = walk or model.walk, copy.deepcopy(model.denoiser).cpu().eval()
    pipeline = stock_pipeline(denoiser, chosen)
    assert isinstance(chosen, (Consistency, Segments))  # stock_pipeline knows no others
    labels = _labels(denoiser, len(seeds))
    ours = _pictures(sample(denoiser, list(seeds), chosen, labelled(labels)))
    with one_step_off(denoiser):
        moved = _pictures(sample(denoiser, list(seeds), chosen, labelled(labels)))
    with atomic_folder(Path(folder)) as temporary:
        pipeline.save_pretrained(temporary)
        write_note(temporary, chosen)
        asked = {"steps": chosen.steps, "seeds": list(seeds), "labels": None if labels is None else labels.tolist()}
        seconds = 10 + (time.monotonic() - start) / 2
        theirs = said_by(stock, temporary, json.dumps(asked), seconds=seconds)
        agreement = Agreement.of(theirs, ours, moved, "grey levels", size=1.0, unit=255)
        agreement.check("the stock pipeline's images differ from ours")
        facts = dict(card or {}) | {"verified": f"{len(seeds)} samples, largest difference {agreement.largest:.2g} of 255"}
        (temporary / "README.md").write_text(_card(Path(folder).name, chosen.steps, denoiser, facts))
    return agreement


def _pictures(x0: Tensor) -> Tensor:
    """Samples x0 as pictures (B, H, W, C) in [0, 1], as pipelines return them."""
    return (x0 / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


def _labels(denoiser: Denoiser, count: int) -> Tensor | None:
    return None if denoiser.classes is None else torch.arange(count) % denoiser.classes.count


def check_free(folder: Path) -> None:
    """Raises ValueError if nothing can be written, or if `folder` holds anything but an earlier export."""
    writable(folder.parent)
    empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not empty and not all((folder / name).exists() for name in EXPORTED):
        raise ValueError(f"{folder} exists and is no earlier export; choose another folder with --out")


def _card(name: str, steps: int, denoiser: Denoiser, facts: Mapping[str, Any]) -> str:
    labels = ", class_labels=0" if denoiser.takes else ""
    return f"""---
library_name: diffusers
tags: [few-step, consistency, fewstep]
---
# {name}

A few-step generator, tuned from a diffusion checkpoint with fewstep. Plain diffusers samples it:

```python
from diffusers import DiffusionPipeline

images = DiffusionPipeline.from_pretrained("{name}")(num_inference_steps={steps}{labels}).images
```

{lines_of(facts)}
"""
