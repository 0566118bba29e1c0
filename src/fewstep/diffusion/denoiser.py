"""The denoiser: a checkpoint of any parametrisation as f(x, sigma, cond) -> x0_hat.

Everything is variance exploding: x = x0 + sigma·eps with eps ~ N(0, I). Every prediction but `clean` gives f(x, sigma) = x
at a lowest noise level, usually 0, which is the boundary condition of a consistency function. So a network needs no change
before it is tuned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .calling import Calling, time_name
from .cond import NOTHING, Classes, Cond, Tokens
from .noise import like
from .prediction import Preconditioned, Prediction, clean, epsilon, v_prediction, velocity
from .schedule import DiscreteVP, Karras, Rectified, Schedule
from .space import Latents, Pixels, Space

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

Denoise = Callable[[Tensor, Tensor, Cond], Tensor]  # (x (B, *), sigma (B,), cond) -> x0_hat (B, *)


class Denoiser(nn.Module):
    """A network with its schedule, prediction and space: f(x (B, *), sigma (B,), cond) -> x0_hat (B, *).

    Args:
        network: its first parameter is the sample. The parameter named timestep, timesteps or t is the time, or else the
            second parameter. The rest are conditions. It returns a tensor or an object with `.sample`.
        schedule: how the network's input is scaled, and which time the network is given.
        prediction: computes x0_hat from the network's output.
        space: what a sample is; by default read from the configuration of a diffusers network.
        takes: the conditions that the network needs, by name; by default read from the configuration as well.
        call: how the network is called; by default with the batch, the time and the conditions.
        blank: one row of any conditions with which the network can be called.

    Raises:
        ValueError: the network predicts the noise, and its schedule ends in pure noise.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        prediction: Prediction,
        *,
        space: Space | None = None,
        takes: Mapping[str, Classes | Tokens] | None = None,
        call: Calling | None = None,
        blank: Cond | None = None,
    ) -> None:
        super().__init__()
        if prediction is epsilon and getattr(schedule, "ends_in_pure_noise", False):
            raise ValueError(
                "this checkpoint predicts the noise, but its schedule ends in pure noise (rescale_betas_zero_snr), where "
                "the noise says nothing about the sample; use a checkpoint with v_prediction"
            )
        self.network = network
        self.schedule = schedule
        self.prediction = prediction
        self.takes = takes_of(network) if takes is None else takes
        self.call = Calling(time_name(type(network))) if call is None else call
        first = Cond({name: torch.zeros(1, dtype=torch.long) for name in self.takes})
        self.blank = first if blank is None else blank
        self._space = space

    def around(self, network: nn.Module) -> Denoiser:
        """The same denoiser around another network of the same architecture."""
        return Denoiser(
            network, self.schedule, self.prediction, space=self._space, takes=self.takes, call=self.call, blank=self.blank
        )

    @property
    def space(self) -> Space:
        """What a sample is: its shape, its limits and how it is decoded."""
        if self._space is None:
            self._space = space_of(self.network)
        return self._space

    @property
    def classes(self) -> Classes | None:
        """The class labels that it takes; None if it takes none."""
        kind = self.takes.get("class_labels")
        return kind if isinstance(kind, Classes) else None

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.network.parameters()).device

    @property
    def identity(self) -> float:
        """The noise level at which f(x, sigma) = x."""
        return float(getattr(self.prediction, "offset", 0.0))

    def unguided(self, x: Tensor, sigma: Tensor, cond: Cond = NOTHING) -> tuple[Tensor, Tensor]:
        """The estimate of x0 with guidance and without, (B, *) each. Here both are the same."""
        x0 = self(x, sigma, cond)
        return x0, x0

    def check(self, cond: Cond) -> None:
        """Raises ValueError if a condition is missing, not taken by the network, or out of its range."""
        missing, surplus = self.takes.keys() - cond.rows.keys(), cond.rows.keys() - self.takes.keys()
        if missing:
            raise ValueError(f"this checkpoint is conditional and needs {', '.join(sorted(missing))}; give one per sample")
        if surplus:
            raise ValueError(f"this checkpoint takes no {', '.join(sorted(surplus))}; leave it out")
        for name, kind in self.takes.items():
            kind.check(cond.rows[name])

    def predict(self, inputs: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """The network's raw output, in the dtype of `inputs`; a learned variance is dropped."""
        dtype = next(self.network.parameters()).dtype
        if torch.is_autocast_enabled(inputs.device.type):  # autocast would round close times to the same value
            dtype = torch.promote_types(dtype, torch.float32)
        told = self.call.told(time).to(dtype)
        return self.call(self.network, inputs.to(dtype), told, cond.arguments(dtype, len(inputs))).to(inputs.dtype)

    def forward(self, x: Tensor, sigma: Tensor, cond: Cond = NOTHING) -> Tensor:
        s = like(sigma, x)
        output = self.predict(self.schedule.scale(s) * x + self.schedule.origin, self.schedule.time(sigma), cond)
        return self.prediction(x, output, s)


class Guided(Denoiser):
    """Classifier-free guidance around a conditional denoiser: f = f_null + scale·(f_cond − f_null).

    Args:
        denoiser: a conditional denoiser.
        scale: guidance scale; 1 is no guidance.
        null: the null condition, one row.
        keeps_norm: whether the guided output of the network is scaled to the norm of the conditional output, along the last
            axis.

    Raises:
        ValueError: the denoiser is unconditional, the scale is not finite, or the denoiser does not take `null`.

    Reference: Ho and Salimans 2022, Classifier-Free Diffusion Guidance.
    """

    def __init__(self, denoiser: Denoiser, scale: float, null: Cond, *, keeps_norm: bool = False) -> None:
        if not denoiser.takes:
            raise ValueError("guidance needs a conditional checkpoint; leave it out for this one")
        if not math.isfinite(scale):
            raise ValueError(f"the guidance scale must be finite, got {scale}")
        denoiser.check(null)
        super().__init__(
            denoiser.network, denoiser.schedule, denoiser.prediction, space=denoiser._space, takes=denoiser.takes,
            call=denoiser.call, blank=denoiser.blank,
        )  # fmt: skip
        self.denoiser = denoiser
        self.scale = scale
        self.null = null
        self.keeps_norm = keeps_norm

    def unguided(self, x: Tensor, sigma: Tensor, cond: Cond = NOTHING) -> tuple[Tensor, Tensor]:
        """The estimate of x0 with guidance and without, (B, *) each, from one network call with 2·B rows."""
        both = Cond.stack(cond, self.null.to(x.device).expand(len(x)))
        if self.keeps_norm:
            return self._with_norm(x, sigma, both)
        conditional, free = self.denoiser(torch.cat([x, x]), torch.cat([sigma, sigma]), both).chunk(2)
        return free + self.scale * (conditional - free), conditional

    def _with_norm(self, x: Tensor, sigma: Tensor, both: Cond) -> tuple[Tensor, Tensor]:
        s = like(sigma, x)
        shown, time = self.schedule.scale(s) * x + self.schedule.origin, self.schedule.time(sigma)
        conditional, free = self.denoiser.predict(torch.cat([shown, shown]), torch.cat([time, time]), both).chunk(2)
        guided = free + self.scale * (conditional - free)
        guided = guided * (conditional.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
        return self.prediction(x, guided, s), self.prediction(x, conditional, s)

    def forward(self, x: Tensor, sigma: Tensor, cond: Cond = NOTHING) -> Tensor:
        return self.unguided(x, sigma, cond)[0]


def edm(network: nn.Module, *, offset: float = 0.0, **settings: float) -> Denoiser:
    """An EDM network as a denoiser. `settings` are those of `Karras`, `offset` is that of `Preconditioned`."""
    schedule = Karras(**settings)
    return Denoiser(network, schedule, Preconditioned(schedule.sigma_data, offset))


def vp(network: nn.Module, scheduler: DDPMScheduler) -> Denoiser:
    """A variance-preserving network as a denoiser, with schedule and prediction of a diffusers scheduler.

    Raises:
        ValueError: the scheduler's prediction_type is unknown, or its noise levels do not rise.
    """
    config = dict(scheduler.config)
    kinds = {"epsilon": epsilon, "v_prediction": v_prediction, "sample": clean}
    kind = config.get("prediction_type", "epsilon")
    if kind not in kinds:
        raise ValueError(f"the prediction_type {kind!r} is unknown; {', '.join(kinds)} are known")
    return Denoiser(network, discrete_vp(config), kinds[kind])


def discrete_vp(config: Mapping[str, Any]) -> DiscreteVP:
    """The schedule in the configuration of a diffusers scheduler."""
    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "rescale_betas_zero_snr")
    known = {name: config[name] for name in names if config.get(name) is not None}
    betas = config.get("trained_betas")
    return DiscreteVP(**known, trained_betas=None if betas is None else tuple(map(float, betas)))


def flow(network: nn.Module, **settings: Any) -> Denoiser:
    """A flow-matching network, which predicts eps − x0, as a denoiser. `settings` are those of `Rectified`."""
    return Denoiser(network, Rectified(**settings), velocity)


def config_of(network: nn.Module) -> Mapping[str, Any]:
    """The configuration of a diffusers network; empty for other modules."""
    config: Mapping[str, Any] = getattr(network, "config", {})
    return config


def takes_of(network: nn.Module) -> dict[str, Classes | Tokens]:
    """The conditions that a network needs, from its attribute `takes` or from its diffusers configuration."""
    own: dict[str, Classes | Tokens] | None = getattr(type(network), "takes", None)
    if own is not None:
        return own
    config = config_of(network)
    if config.get("num_embeds_ada_norm"):
        return {"class_labels": Classes(config["num_embeds_ada_norm"], null=config["num_embeds_ada_norm"])}
    return {"class_labels": Classes(config["num_class_embeds"])} if config.get("num_class_embeds") else {}


def space_of(network: nn.Module) -> Space:
    """The space of a diffusers network's samples: pixels for one or three channels, else latents.

    Raises:
        ValueError: its configuration has no sample_size or no in_channels.
    """
    config = config_of(network)
    size = config.get("sample_size")
    if size is None or "in_channels" not in config:
        raise ValueError("the network's config.json has no sample_size or no in_channels; add what is missing")
    height, width = (size, size) if isinstance(size, int) else size
    shape = (int(config["in_channels"]), int(height), int(width))
    return Pixels(shape) if shape[0] in (1, 3) else Latents(shape)
