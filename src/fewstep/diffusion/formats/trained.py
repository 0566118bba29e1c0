"""What a scheduler's configuration says about how the network was trained, with its numbers checked."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from ...core.source import inside, read_json

EXPLODING = ("ScoreSdeVeScheduler", "KarrasVeScheduler")
LIMITS = {  # what each setting may be, both ends included
    "num_train_timesteps": (2, 100_000), "beta_start": (0, 1), "beta_end": (0, 1),
    "sigma_min": (0, 1e6), "sigma_max": (1e-6, 1e6), "sigma_data": (1e-6, 1e6), "shift": (1e-6, 1e6),
}  # fmt: skip
WORDS = ("_class_name", "beta_schedule", "prediction_type")


def scheduler_config(folder: Path) -> dict[str, Any]:
    """The configuration of the scheduler in `folder`; what it leaves out is as diffusers would have it.

    Raises:
        ValueError: there is none, or a setting that says how the network was trained is not of its kind.
    """
    file = inside(folder, "scheduler_config.json")
    config = read_json(file, "it says how the network was trained")
    for word in WORDS:
        if type(config.get(word, "")) is not str:
            raise ValueError(f"{file} says {word} = {config[word]!r:.80}, which is no name")
    if config.get("_class_name") in EXPLODING:
        raise ValueError(
            f"{folder} was trained with the {config['_class_name']}, variance exploding on pictures from 0 to 1, which "
            "fewstep does not read yet; VP, EDM and flow matching checkpoints it does"
        )
    config = _defaults(config.get("_class_name", "")) | config
    for name, (low, high) in LIMITS.items():
        if config.get(name) is not None and not _within(config[name], low, high):
            raise ValueError(f"{file} says {name} = {config[name]!r:.80}, not a number from {low:g} to {high:g}")
    if type(config.get("num_train_timesteps") or 0) is not int:
        raise ValueError(f"{file} says num_train_timesteps = {config['num_train_timesteps']!r}, not a whole number")
    betas = config.get("trained_betas")
    if betas is not None and not (
        isinstance(betas, list) and 2 <= len(betas) <= 100_000 and all(_within(beta, 0, 1) for beta in betas)
    ):
        raise ValueError(f"{file} says trained_betas = {betas!r:.80}, not a list of numbers from 0 to 1")
    return config


def _defaults(kind: str) -> dict[str, Any]:
    """What diffusers takes for settings that a configuration leaves out; nothing for a scheduler that it does not have."""
    import diffusers

    made = getattr(diffusers, kind, None) if kind.endswith("Scheduler") else None
    parameters = inspect.signature(made.__init__).parameters.values() if made else ()
    return {each.name: each.default for each in parameters if each.default is not each.empty}


def _within(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
