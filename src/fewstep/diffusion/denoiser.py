"""Denoisers: a checkpoint of any parametrisation as f(x, sigma, **cond) -> x0_hat.

Everything is variance exploding: x = x0 + sigma·eps with eps ~ N(0, I). Every denoiser here has f(x, 0) = x, so
each one already is a (bad) consistency function: nothing is added to a network before tuning it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from .noise import karras, like

if TYPE_CHECKING:
    from diffusers import DDPMScheduler


class Denoiser(Protocol):
    """Estimates the clean sample: f(x, sigma, **cond) -> x0_hat.

    x has shape (B, *), sigma (B,) in units of the data, cond tensors of B rows; the result has the shape of x.
    """

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Tensor) -> Tensor: ...


class NetworkDenoiser(nn.Module):
    """A denoiser made of a diffusers-style network: EDM, VP and Flow below.

    Attributes:
        network: called as network(input, time, **cond); returns a tensor or an object with `.sample`.
        sigma_min, sigma_max: the noise levels between which sampling goes.
        highest: the highest noise level that the network has a time for; infinite unless its schedule ends.
        prior_std: standard deviation of the state there.
        sigma_data: the data's standard deviation as the parametrisation assumes it.
    """

    network: nn.Module
    sigma_min: float = 0.002
    sigma_max: float
    highest: float = math.inf
    prior_std: float
    sigma_data: float

    @property
    def config(self) -> Mapping[str, Any]:
        """What a diffusers network says of itself; empty for other modules."""
        config: Mapping[str, Any] = getattr(self.network, "config", {})
        return config

    @property
    def conditional(self) -> bool:
        """Whether the network takes `class_labels`."""
        return self.classes > 0

    @property
    def classes(self) -> int:
        """How many classes a diffusers network knows; 0 if it is unconditional."""
        return next((self.config[key] for key in ("num_class_embeds", "num_embeds_ada_norm") if self.config.get(key)), 0)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The (channels, height, width) that a diffusers network says it was made for."""
        size = self.config.get("sample_size")
        if size is None:
            raise ValueError("the network's config.json does not say its sample_size; write the side of its images there")
        height, width = (size, size) if isinstance(size, int) else size
        return self.config["in_channels"], height, width

    @property
    def known_labels(self) -> int:
        """Labels run from 0 to one less; a DiT has one more than it has classes, for "no class"."""
        return self.classes + ("num_embeds_ada_norm" in self.config)

    def check_labels(self, labels: Tensor) -> None:
        """Raises ValueError where the network has no embedding for one of `labels` (B,)."""
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.known_labels:
            raise ValueError(
                f"this checkpoint knows the labels 0 to {self.known_labels - 1}, not {low if low < 0 else high}"
            )

    def grid(self, steps: int) -> Tensor:
        """`steps` noise levels from sigma_max down, without a final 0, evenly spaced in the schedule's own time; float64.

        Diffusion sampling walks them, and they are the upper edges of a multistep consistency model's segments.
        """
        raise NotImplementedError

    def predict(self, inputs: Tensor, time: Tensor, **cond: Tensor) -> Tensor:
        """The network's raw output, in the dtype of `inputs`; a learned variance is dropped."""
        dtype = next(self.network.parameters()).dtype
        output = self.network(inputs.to(dtype), time.to(dtype), **cond)
        output = output if isinstance(output, Tensor) else output.sample
        return output[:, : inputs.shape[1]].to(inputs.dtype)


class EDM(NetworkDenoiser):
    """x0_hat = c_skip·x + c_out·F(c_in·x, time_scale·ln sigma).

    c_skip = sd²/((σ−δ)² + sd²), c_out = (σ−δ)·sd/√(σ² + sd²), c_in = 1/√(σ² + sd²).

    Args:
        network: F.
        sigma_data: sd.
        sigma_max: largest noise level.
        offset: δ, where f is the identity: 0 for diffusion checkpoints, sigma_min for published consistency models.
        time_scale: .25 is the paper's time, 250 is what diffusers' consistency scheduler gives the network.

    Reference: Karras et al. 2022, Elucidating the Design Space, table 1; Song et al. 2023, Consistency Models, app. C.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        sigma_data: float = 0.5,
        sigma_max: float = 80.0,
        offset: float = 0.0,
        time_scale: float = 250.0,
    ) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data
        self.sigma_max = self.prior_std = sigma_max
        self.offset = offset
        self.time_scale = time_scale

    def grid(self, steps: int) -> Tensor:
        """Karras' levels without the last: at few steps a call near 0 would be wasted."""
        return karras(steps + 1, self.sigma_min, self.sigma_max)[:-1]

    def forward(self, x: Tensor, sigma: Tensor, **cond: Tensor) -> Tensor:
        s = like(sigma, x)
        variance = s**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / ((s - self.offset) ** 2 + self.sigma_data**2)
        c_out = (s - self.offset) * self.sigma_data / variance.sqrt()
        time = self.time_scale * sigma.clamp(min=1e-8).log()  # finite at sigma = 0, where c_out removes it
        return c_skip * x + c_out * self.predict(x / variance.sqrt(), time, **cond)


class VP(NetworkDenoiser):
    """A variance-preserving checkpoint (DDPM and kin). With α = 1/√(1 + σ²) the network sees α·x and its timestep.

    epsilon: x0_hat = x − σ·eps_hat. v_prediction: x0_hat = α²·x − α·σ·v_hat. sample: x0_hat is the output.

    Args:
        network: the network.
        scheduler: a diffusers scheduler with `alphas_cumprod` and `config.prediction_type`, such as DDPMScheduler. Noise
            level √((1−ᾱ)/ᾱ) belongs to each timestep; sigma between them gets an interpolated (fractional) timestep,
            linear in ln sigma. prediction_type `sample` breaks f(x, 0) = x: it can be sampled, not tuned.

    Reference: Ho et al. 2020, DDPM, eq. 4; Salimans and Ho 2022, Progressive Distillation, app. D.
    """

    ln_sigmas: Tensor

    def __init__(self, network: nn.Module, scheduler: DDPMScheduler) -> None:
        super().__init__()
        self.network = network
        self.scheduler = scheduler
        self.prediction = scheduler.config.prediction_type
        if self.prediction not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(f"a network that predicts {self.prediction!r} is unknown; epsilon, v_prediction or sample")
        alphas = scheduler.alphas_cumprod.double().clamp(min=1e-8)  # zero terminal SNR would be infinitely far away
        self.register_buffer("ln_sigmas", ((1 - alphas) / alphas).log() / 2, persistent=False)
        self.sigma_data = 1.0
        self.sigma_min = max(0.002, float(self.ln_sigmas[0].exp()))
        self.sigma_max = self.highest = float(self.ln_sigmas[-1].exp())
        self.prior_std = (1 + self.sigma_max**2) ** 0.5

    def time(self, sigma: Tensor) -> Tensor:
        """The fractional timestep of noise level sigma, (B,) -> (B,), float64 within [0, T − 1]."""
        ln_sigma = sigma.double().clamp(min=1e-8).log()
        above = torch.searchsorted(self.ln_sigmas, ln_sigma).clamp(1, len(self.ln_sigmas) - 1)
        lo, hi = self.ln_sigmas[above - 1], self.ln_sigmas[above]
        share = ((ln_sigma - lo) / (hi - lo)).clamp(0, 1)
        return above - 1 + share

    def grid(self, steps: int) -> Tensor:
        """Trailing timesteps round(T·(1 − i/n)) − 1, as diffusers' DDIMScheduler spaces them."""
        total = len(self.ln_sigmas)
        if steps > total:
            raise ValueError(f"this schedule has {total} timesteps, too few for {steps} steps")
        timesteps = (total - torch.arange(steps, dtype=torch.float64) * total / steps).round().long() - 1
        return self.ln_sigmas.cpu()[timesteps].exp()

    def forward(self, x: Tensor, sigma: Tensor, **cond: Tensor) -> Tensor:
        s = like(sigma, x)
        alpha = (1 + s**2).rsqrt()
        output = self.predict(alpha * x, self.time(sigma), **cond)
        if self.prediction == "epsilon":
            return x - s * output
        if self.prediction == "v_prediction":
            return alpha**2 * x - alpha * s * output
        return output


class Flow(NetworkDenoiser):
    """A flow-matching checkpoint: z = (1 − u)·x0 + u·eps with u = σ/(1 + σ); x0_hat = z − u·v_hat.

    Args:
        network: predicts v = eps − x0 from (z, time_scale·u).
        sigma_max: where sampling starts; u = 1 itself is infinitely far away in these coordinates.
        time_scale: 1000 for diffusers' flow schedulers.

    Reference: Lipman et al. 2023, Flow Matching; Liu et al. 2023, Rectified Flow.
    """

    def __init__(self, network: nn.Module, *, sigma_max: float = 500.0, time_scale: float = 1000.0) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = 1.0
        self.sigma_max = sigma_max
        self.prior_std = (1 + sigma_max**2) ** 0.5
        self.time_scale = time_scale

    def grid(self, steps: int) -> Tensor:
        """Evenly spaced in u."""
        u = self.sigma_max / (1 + self.sigma_max) * (1 - torch.arange(steps, dtype=torch.float64) / steps)
        return u / (1 - u)

    def forward(self, x: Tensor, sigma: Tensor, **cond: Tensor) -> Tensor:
        s = like(sigma, x)
        z, u = x / (1 + s), sigma / (1 + sigma)
        return z - like(u, x) * self.predict(z, self.time_scale * u, **cond)


class Guided(NetworkDenoiser):
    """Classifier-free guidance around a conditional denoiser: f = f_null + scale·(f_label − f_null); scale 1 is none.

    Args:
        denoiser: takes `class_labels`.
        scale: strength.
        null_label: the class that stands for "no class"; a DiT's is its number of classes.

    Reference: Ho and Salimans 2022, Classifier-Free Diffusion Guidance.
    """

    def __init__(self, denoiser: NetworkDenoiser, scale: float, null_label: int) -> None:
        super().__init__()
        if not denoiser.conditional:
            raise ValueError("guidance needs a checkpoint that is conditional on classes; leave it out for this one")
        if not math.isfinite(scale):
            raise ValueError(f"the scale of guidance must be a number, got {scale}")
        known = denoiser.known_labels
        if not 0 <= null_label < known:
            raise ValueError(f"this checkpoint knows the labels 0 to {known - 1}; {null_label} cannot be its null label")
        self.denoiser = denoiser
        self.network = denoiser.network
        self.scale = scale
        self.null_label = null_label
        self.sigma_min, self.sigma_max = denoiser.sigma_min, denoiser.sigma_max
        self.prior_std, self.sigma_data = denoiser.prior_std, denoiser.sigma_data

    def grid(self, steps: int) -> Tensor:
        """That of the denoiser within."""
        return self.denoiser.grid(steps)

    def both(self, x: Tensor, sigma: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """The guided estimate and the one it guides, f_label, from one network call."""
        labels = cond["class_labels"]
        classes = torch.cat([labels, torch.full_like(labels, self.null_label)])
        labelled, free = self.denoiser(torch.cat([x, x]), torch.cat([sigma, sigma]), class_labels=classes).chunk(2)
        return free + self.scale * (labelled - free), labelled

    def forward(self, x: Tensor, sigma: Tensor, **cond: Tensor) -> Tensor:
        return self.both(x, sigma, **cond)[0]
