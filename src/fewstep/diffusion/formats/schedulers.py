"""Converts configurations of diffusers' schedulers into a schedule and a prediction, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..denoiser import Denoiser, discrete_vp
from ..prediction import Preconditioned, Prediction, Trigonometric, clean, epsilon, unit_score, v_prediction, velocity
from ..schedule import NO_OFFSET, PURE_NOISE, DiscreteVP, Exploding, Karras, Rectified, Schedule, TrigFlow

PREDICTIONS = {"epsilon": epsilon, "v_prediction": v_prediction, "sample": clean}  # names in diffusers
EVERYWHERE = ("linear", "scaled_linear", "squaredcos_cap_v2")  # beta schedules of all VP schedulers


def read(config: Mapping[str, Any]) -> tuple[Schedule, Prediction]:
    """The schedule and prediction of a network from the configuration of its diffusers scheduler.

    Raises:
        ValueError: the scheduler or its prediction_type is not supported.
    """
    kind = str(config.get("_class_name", ""))
    own = _read_flow(config, kind) if _is_flow(config) else _read_own(config, kind)
    if own is not None:
        return own
    if "beta_schedule" not in config:
        raise ValueError(f"the scheduler {kind or 'without a name'} does not say how the network was trained")
    predicts = config.get("prediction_type", "epsilon")
    if predicts not in PREDICTIONS:
        raise ValueError(f"the prediction_type {predicts!r} is unknown; {', '.join(PREDICTIONS)} are known")
    return discrete_vp(config), PREDICTIONS[predicts]


def _is_flow(config: Mapping[str, Any]) -> bool:
    """Whether it is a scheduler of flow models, or a DPM or UniPC solver with settings for them."""
    by_setting = config.get("prediction_type") == "flow_prediction" and bool(config.get("use_flow_sigmas"))
    return by_setting or str(config.get("_class_name", "")).startswith("FlowMatch")


def _read_flow(config: Mapping[str, Any], kind: str) -> tuple[Schedule, Prediction]:
    # sigma_max is no setting of diffusers; `write` adds it
    ours = kind.startswith("FlowMatch")
    shift = float(config.get("shift" if ours else "flow_shift", 1.0))
    schedule = Rectified(shift=shift, time_scale=float(config.get("num_train_timesteps", 1000)))
    if ours and "sigma_max" in config:
        schedule = replace(schedule, sigma_max=_numbers(config, "sigma_max")[0])
    return schedule, velocity


def _read_own(config: Mapping[str, Any], kind: str) -> tuple[Schedule, Prediction] | None:
    """Reads schedulers of other kinds: EDM, consistency, TrigFlow and variance exploding; None for all others."""
    predicts = config.get("prediction_type", "epsilon")
    if kind == "CMStochasticIterativeScheduler":
        data, low, high = _numbers(config, "sigma_data", "sigma_min", "sigma_max")
        offset = low if low > NO_OFFSET else 0.0
        return Karras(data, sigma_max=high), Preconditioned(data, offset)
    if kind.startswith("EDM"):
        if predicts != "epsilon":
            raise ValueError(f"an {kind} with prediction_type {predicts} is not known, only epsilon")
        data, high = _numbers(config, "sigma_data", "sigma_max")
        return Karras(data, sigma_max=high, time_scale=0.25), Preconditioned(data)
    if kind == "SCMScheduler":
        data, high = _numbers({"sigma_max": 80.0} | dict(config), "sigma_data", "sigma_max")
        return TrigFlow(data, sigma_max=high), Trigonometric(data)
    if kind == "IPNDMScheduler":  # α = cos t, σ = sin t, and the time is t/(π/2)
        return TrigFlow(1.0, sigma_max=PURE_NOISE, time_scale=2 / math.pi), Trigonometric(1.0)
    if kind == "ScoreSdeVeScheduler":
        low, high = _numbers(config, "sigma_min", "sigma_max")
        return Exploding(2 * low, 2 * high), unit_score
    return None


def write(denoiser: Denoiser) -> Any:
    """The diffusers scheduler whose configuration `read` converts back to the denoiser's schedule and prediction."""
    from diffusers import (
        CMStochasticIterativeScheduler,
        DDPMScheduler,
        EDMEulerScheduler,
        FlowMatchEulerDiscreteScheduler,
        SCMScheduler,
        ScoreSdeVeScheduler,
    )  # fmt: skip

    schedule = denoiser.schedule
    if isinstance(schedule, DiscreteVP):
        predicts = next(name for name, prediction in PREDICTIONS.items() if prediction is denoiser.prediction)
        betas = schedule.trained_betas
        return DDPMScheduler(
            num_train_timesteps=schedule.num_train_timesteps, beta_start=schedule.beta_start, beta_end=schedule.beta_end,
            beta_schedule=schedule.beta_schedule, trained_betas=None if betas is None else list(betas),
            rescale_betas_zero_snr=schedule.rescale_betas_zero_snr, prediction_type=predicts, clip_sample=False,
        )  # fmt: skip
    if isinstance(schedule, Rectified):
        flow = FlowMatchEulerDiscreteScheduler(num_train_timesteps=int(schedule.time_scale), shift=schedule.shift)
        flow.register_to_config(sigma_max=schedule.sigma_max)
        return flow
    if isinstance(schedule, TrigFlow):
        trigflow = SCMScheduler(sigma_data=schedule.sigma_data)
        trigflow.register_to_config(sigma_max=schedule.sigma_max)  # diffusers has no such setting
        return trigflow
    if isinstance(schedule, Exploding):
        return ScoreSdeVeScheduler(sigma_min=schedule.sigma_min / 2, sigma_max=schedule.highest / 2)
    assert isinstance(schedule, Karras)
    if schedule.time_scale == 250:
        return CMStochasticIterativeScheduler(**schedule.consistency_settings(None, denoiser.identity))
    return EDMEulerScheduler(sigma_max=schedule.sigma_max, sigma_data=schedule.sigma_data)


def vp_config(denoiser: Denoiser, schedule: DiscreteVP) -> dict[str, Any]:
    """The configuration for any stock VP scheduler; beta schedules that some lack are replaced by their betas."""
    config = dict(write(denoiser).config)
    if schedule.beta_schedule in EVERYWHERE or schedule.trained_betas is not None:
        return config
    return config | {"beta_schedule": "linear", "trained_betas": schedule.betas.tolist(), "rescale_betas_zero_snr": False}


def _numbers(config: Mapping[str, Any], *names: str) -> list[float]:
    for name in names:
        value = config.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise ValueError(f"scheduler_config.json needs a positive number as {name}, got {value!r}")
    return [float(config[name]) for name in names]
