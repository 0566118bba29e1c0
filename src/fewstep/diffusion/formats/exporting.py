"""export(): a student as a folder that stock diffusers samples, verified before it appears."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...core.files import atomic_folder, writable
from ...core.progress import progress
from ..cond import labelled
from ..denoiser import Denoiser
from ..model import Model
from ..walk import Consistency, Segments, Walk, sample
from . import stock
from .exporting_asked import Closeness, export_asked
from .folder import NOTE, write_note
from .pipelines import stock_pipeline
from .rounding import STEP, one_step_off

ROOM = 8  # times what float32 moves our own images by is allowed; stock pipelines with random networks needed up to 3
EXPORTED = (NOTE, "README.md")  # by these an earlier export is known


class Agreement(NamedTuple):
    """How well a stock pipeline's images agree with ours, in grey levels, 0 to 255.

    Attributes:
        largest: difference over all samples compared.
        allowed: several times what float32 rounding moves our own images by.
    """

    largest: float
    allowed: float

    def __str__(self) -> str:
        return (
            f"by up to {self.largest:.2g} of 255 grey levels (allowed: {self.allowed:.2g}, {ROOM} times as far as "
            "float32 rounding moves ours)"
        )


def export(
    model: Model,
    folder: str | Path,
    *,
    walk: Walk | None = None,
    card: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = range(4),
) -> Agreement | Closeness:
    """Writes `model` as a stock few-step pipeline with a model card, and verifies it in a fresh process.

    The fresh process loads the folder with plain diffusers and samples the same seeds as our own sampler. Only if they
    agree does the folder appear.

    Args:
        model: a student that `stock_pipeline` can carry.
        folder: where to; only an earlier export there is replaced.
        walk: another than the model's own, as `Model.walk_in` gives it. A consistency function takes any number of steps
            afterwards, and these are verified; the folder of a student of any number of calls takes these alone.
        card: facts for the model card, a line each.
        seeds: of the samples compared; a class-conditional student's classes take turns.

    Returns:
        The largest difference over all samples, and what was allowed.

    Raises:
        ValueError: there is no stock pipeline for it, the stock pipeline gives other images, or something else is at
            `folder`.

    A student of a pipeline that is asked for something is written as that pipeline; see `export_asked`.
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
        theirs = _sample_stock(temporary, chosen.steps, seeds, labels, 10 + (time.monotonic() - start) / 2)
        agreement = Agreement(_largest(ours, theirs), ROOM * max(_largest(ours, moved), 255 * STEP))
        if not agreement.largest <= agreement.allowed:
            raise ValueError(f"the stock pipeline's images differ from ours {agreement}; nothing was exported")
        facts = dict(card or {}) | {"verified": f"{len(seeds)} samples, largest difference {agreement.largest:.2g} of 255"}
        (temporary / "README.md").write_text(_card(Path(folder).name, chosen.steps, denoiser, facts))
    return agreement


def _pictures(x0: Tensor) -> NDArray[np.float32]:
    pictures: NDArray[np.float32] = (x0 / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return pictures


def _largest(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.abs(a - b).max() * 255)


def _labels(denoiser: Denoiser, count: int) -> Tensor | None:
    return None if denoiser.classes is None else torch.arange(count) % denoiser.classes.count


def check_free(folder: Path) -> None:
    """Raises ValueError where nothing can be written, or an export would replace anything but an earlier export."""
    writable(folder.parent)
    empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not empty and not all((folder / name).exists() for name in EXPORTED):
        raise ValueError(f"{folder} is there already and is no earlier export; choose another folder with --out")


def _sample_stock(
    folder: Path, steps: int, seeds: Sequence[int], labels: Tensor | None, seconds: float
) -> NDArray[np.float32]:
    """What a fresh process samples; it is expected to take so many seconds."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "images.npy"
        asked = {"steps": steps, "seeds": list(seeds), "labels": None if labels is None else labels.tolist()}
        command = [sys.executable, "-I", stock.__file__, str(folder), str(out), json.dumps(asked)]
        with (
            progress("verifying", seconds) as done,
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process,
        ):
            said = None
            while said is None:
                try:
                    said = process.communicate(timeout=1)[1]
                except subprocess.TimeoutExpired:
                    done(1)
        if process.returncode:
            raise ValueError(f"stock diffusers cannot sample the exported folder: {last_line(said)}")
        images: NDArray[np.float32] = np.load(out)
    return images


def last_line(said: str) -> str:
    """The error itself, of what a process said."""
    return (said.strip().splitlines() or ["it ended without a word"])[-1][:500]


def _card(name: str, steps: int, denoiser: Denoiser, facts: Mapping[str, Any]) -> str:
    lines = "\n".join(
        f"- **{key}**: {value if isinstance(value, str) else json.dumps(value)}" for key, value in facts.items()
    )
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

{lines}
"""
