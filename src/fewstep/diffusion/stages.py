"""A training in stages: each begins with what the one before has made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.files import load_state
from .data import Source
from .denoiser import Denoiser
from .model import Model
from .runs import run


@dataclass(frozen=True)
class Stage:
    """One of them.

    Attributes:
        folder: of its run, inside that of the training; "" is that one itself.
        recipe: keyword arguments of `tune`.
        data: what it learns from.
        settings: further arguments of `run`, such as its title and the facts of its receipt.
    """

    folder: str
    recipe: dict[str, Any]
    data: Source
    settings: dict[str, Any] = field(default_factory=dict)


def run_stages(denoiser: Denoiser, stages: Sequence[Stage], out: Path, *, resume: bool = False, **shared: Any) -> Model:
    """Tunes `denoiser` stage after stage, each a run in a folder of its own that can be resumed.

    Args:
        denoiser: what the first stage begins with; it is changed.
        stages: at least one.
        out: folder of the training.
        resume: go on from where it stopped; stages that are done are read.
        shared: arguments of `run` that are the same for all.

    Returns:
        What the last stage made.

    Raises:
        ValueError: a stage that another has gone on from is to see more images, or fewer; and what `run` raises.
    """
    for stage in stages[:-1] if resume else ():
        _check_length(out / stage.folder / "state.pt", stage.recipe)
    for stage in stages:
        model = run(denoiser, stage.data, out / stage.folder, stage.recipe, resume=resume, **shared, **stage.settings)
        denoiser = model.denoiser
    return model


def _check_length(file: Path, recipe: dict[str, Any]) -> None:
    """Only the last stage may be made longer: of what the others made, a later one has begun."""
    if not file.exists():
        return
    began, batch = json.loads(load_state(file).get("recipe", "{}")).get("images"), recipe["batch"]
    if began not in (None, -(-recipe["images"] // batch) * batch):
        raise ValueError(f"the stage in {file.parent} began with {began} images; resume it with as many")
