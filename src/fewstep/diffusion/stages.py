"""A training in stages: each starts from the model of the stage before."""

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
    """One stage of a training.

    Attributes:
        folder: the folder of its run inside that of the training; "" is the training's own folder.
        recipe: keyword arguments of `tune`.
        data: its training data.
        settings: further arguments of `run`, such as its title and the facts of its receipt.
    """

    folder: str
    recipe: dict[str, Any]
    data: Source
    settings: dict[str, Any] = field(default_factory=dict)


def run_stages(denoiser: Denoiser, stages: Sequence[Stage], out: Path, *, resume: bool = False, **shared: Any) -> Model:
    """Tunes `denoiser` in stages. Each stage is a run in its own folder and can be resumed.

    Args:
        denoiser: the model that the first stage starts from; it is changed.
        stages: at least one.
        out: folder of the training.
        resume: continue where the training stopped; finished stages are loaded.
        shared: arguments of `run` for all stages.

    Returns:
        The model of the last stage.

    Raises:
        ValueError: the number of images has changed for a stage before the last; and what `run` raises.
    """
    for stage in stages[:-1] if resume else ():
        _check_length(out / stage.folder / "state.pt", stage.recipe)
    for stage in stages:
        model = run(denoiser, stage.data, out / stage.folder, stage.recipe, resume=resume, **shared, **stage.settings)
        denoiser = model.denoiser
    return model


def _check_length(file: Path, recipe: dict[str, Any]) -> None:
    """Raises ValueError if the number of images has changed for a stage whose model later stages started from."""
    if not file.exists():
        return
    began, batch = json.loads(load_state(file).get("recipe", "{}")).get("images"), recipe["batch"]
    if began not in (None, -(-recipe["images"] // batch) * batch):
        raise ValueError(f"the stage in {file.parent} began with {began} images; resume it with the same number")
