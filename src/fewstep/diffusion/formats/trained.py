"""Reads and checks the scheduler's configuration, which says how the network was trained."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...core.source import inside, read_json

MOST_TIMESTEPS = 100_000


def scheduler_config(folder: Path) -> dict[str, Any]:
    """Reads the configuration of the scheduler in `folder`, with diffusers' defaults for missing settings.

    Raises:
        ValueError: there is no configuration, or a setting is out of its range.
    """
    file = inside(folder, "scheduler_config.json")
    said = {
        name: value for name, value in read_json(file, "it says how the network was trained").items() if value is not None
    }
    for name, (possible, what) in SETTINGS.items():
        if name in said and not possible(said[name]):
            raise ValueError(f"{file} says {name} = {said[name]!r:.80}; it must be {what}")
    kind = said.get("_class_name", "")
    if kind == "KarrasVeScheduler":
        raise ValueError(
            f"{folder} was trained with the {kind}, which fewstep does not read; it reads VP, EDM, score SDE (VE) and flow "
            "matching checkpoints"
        )
    config = _defaults(kind) | said
    if "sigma_max" in config and not config["sigma_max"] > (config.get("sigma_min") or 0):
        raise ValueError(f"{file} says sigma_max = {config['sigma_max']}, which is not above its sigma_min")
    return config


def _defaults(kind: str) -> dict[str, Any]:
    """The defaults of a diffusers scheduler; {} for one that diffusers does not have."""
    import diffusers

    made = getattr(diffusers, kind, None) if kind.endswith("Scheduler") else None
    parameters = inspect.signature(made.__init__).parameters.values() if made else ()
    return {each.name: each.default for each in parameters if each.default not in (each.empty, None)}


def _is_word(value: Any) -> bool:
    return isinstance(value, str)


def _is_within(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _is_share(value: Any) -> bool:
    return _is_within(0, 1)(value)


def _are_betas(value: Any) -> bool:
    return isinstance(value, list) and 2 <= len(value) <= MOST_TIMESTEPS and all(map(_is_share, value))


def _are_timesteps(value: Any) -> bool:
    return isinstance(value, int) and _is_within(2, MOST_TIMESTEPS)(value)


_SCALE = (_is_within(1e-6, 1e6), "a number from 1e-6 to 1e6")
_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid")
SETTINGS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "_class_name": (_is_word, "the name of a scheduler"),
    "prediction_type": (_is_word, "epsilon, v_prediction or sample"),
    "beta_schedule": (lambda value: value in _BETAS, f"one of {', '.join(_BETAS)}"),
    "num_train_timesteps": (_are_timesteps, f"a whole number from 2 to {MOST_TIMESTEPS}"),
    "beta_start": (_is_share, "a number from 0 to 1"),
    "beta_end": (_is_share, "a number from 0 to 1"),
    "trained_betas": (_are_betas, "a list of numbers from 0 to 1"),
    "rescale_betas_zero_snr": (lambda value: isinstance(value, bool), "true or false"),
    "sigma_min": (_is_within(0, 1e6), "a number from 0 to 1e6"),
    "sigma_max": _SCALE,
    "sigma_data": _SCALE,
    "shift": _SCALE,
}
