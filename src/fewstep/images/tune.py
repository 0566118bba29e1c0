"""tune(): the one training loop, a generator of steps. The caller logs, saves and stops."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..data import Images, Rows
from ..seeds import derive
from .denoiser import NetworkDenoiser
from .loss import Distance, Hop, InverseGap, PseudoHuber, Weight, consistency_loss
from .noise import ECTGap, Gap, LogNormal

if TYPE_CHECKING:
    from accelerate import Accelerator

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class LearningRate(Protocol):
    """The learning rate at `step` (counted from 0) when `progress` (0 to 1) of the images have been seen."""

    def __call__(self, step: int, progress: float) -> float: ...


@dataclass(frozen=True)
class Constant:
    """The same rate throughout."""

    rate: float = 1e-4

    def __call__(self, step: int, progress: float) -> float:
        return self.rate


@dataclass(frozen=True)
class Cosine:
    """Rises linearly over `warmup` steps, then falls to 0 along half a cosine."""

    rate: float = 1e-3
    warmup: int = 0

    def __call__(self, step: int, progress: float) -> float:
        return self.rate * min(1.0, (step + 1) / (self.warmup + 1)) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class InverseSqrt:
    """rate/√max(step/reference, 1). Reference: Karras et al. 2024, EDM2, eq. 67."""

    rate: float = 1e-3
    reference: int = 2000

    def __call__(self, step: int, progress: float) -> float:
        return self.rate / math.sqrt(max(step / self.reference, 1))


@dataclass(frozen=True)
class RAdam:
    """Rectified Adam without weight decay. Reference: Liu et al. 2020, On the Variance of the Adaptive Learning Rate."""

    betas: tuple[float, float] = (0.9, 0.999)

    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.RAdam(parameters, betas=self.betas, foreach=True)


@dataclass(frozen=True)
class Adam:
    """Adam without weight decay. Reference: Kingma and Ba 2015."""

    betas: tuple[float, float] = (0.9, 0.99)

    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, betas=self.betas, foreach=True)


@dataclass(frozen=True)
class Step:
    """One optimizer step done.

    Attributes:
        step, images: optimizer steps and training images so far.
        progress: images over all images, 0 to 1.
        loss: mean of the (global) batch.
        gap: mean of (t − r)/t over this process's last micro-batch: 1 is diffusion, towards 0 is consistency.
        rate: the learning rate used.
        student: the denoiser being trained.
        ema: its moving average, the one to keep.
        optimizer: the optimizer, for `state`.
    """

    step: int
    images: int
    progress: float
    loss: float
    gap: float
    rate: float
    student: NetworkDenoiser
    averaged: AveragedModel
    optimizer: torch.optim.Optimizer

    @property
    def ema(self) -> NetworkDenoiser:
        """The moving average of the student, in evaluation mode."""
        module = self.averaged.module
        assert isinstance(module, NetworkDenoiser)
        return module.eval()

    def state(self) -> dict[str, Any]:
        """All that `tune(state=...)` needs to go on as if it had never stopped.

        No random state is in it: noise, order and dropout are functions of the seed and the step.
        """
        return {
            "step": self.step,
            "student": self.student.state_dict(),
            "ema": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }


def tune(
    denoiser: NetworkDenoiser,
    data: Images,
    *,
    images: int,
    batch: int = 128,
    noise: LogNormal = LogNormal(),
    gap: Gap = ECTGap(),
    hop: Hop | None = None,
    distance: Distance = PseudoHuber(),
    weight: Weight = InverseGap(),
    rate: LearningRate = Constant(),
    optimizer: OptimizerFactory = RAdam(),
    ema_decay: float = 0.9999,
    dropout: float | None = None,
    max_grad_norm: float | None = None,
    mirror: bool = False,
    seed: int = 0,
    state: dict[str, Any] | None = None,
    accelerator: Accelerator | None = None,
    workers: int = 0,
    compile: bool = False,
) -> Iterator[Step]:
    """Tunes `denoiser` in place; with `gap=FullGap()` it trains a diffusion model, else a consistency function.

    Args:
        denoiser: what to tune. Its network is changed.
        data: training samples of the shape the network takes.
        images: how many samples to see in all, rounded up to whole batches.
        batch: samples a step over all processes and accumulated micro-batches.
        noise: distribution of t.
        gap: chooses r below t; gets the progress as an argument.
        hop, distance, weight: knobs of `consistency_loss`.
        rate: learning rate as a function of step and progress.
        optimizer: builds the optimizer from the parameters.
        ema_decay: decay a step of the moving average, 0 to 1.
        dropout: probability to set in every dropout layer of the network; None leaves them.
        max_grad_norm: clips the gradient's norm there; None never clips.
        mirror: flips half of the samples left to right.
        seed: everything random is a function of it.
        state: `Step.state()` of an interrupted run with the same arguments; it goes on bit-equal on a CPU.
        accelerator: device, precision, processes, accumulation; None is one process on the best device at hand.
        workers: loader processes.
        compile: compiles the network.

    Yields:
        A `Step` after each optimizer step.

    Raises:
        ValueError: arguments that cannot work together.
        FloatingPointError: the loss or gradient is no longer finite; the weights are those before that step.

    Reference: Geng et al. 2025, Consistency Models Made Easy, alg. 1.
    """
    from accelerate import Accelerator  # seconds to import

    accelerator = accelerator or Accelerator()
    micro_batches = accelerator.gradient_accumulation_steps
    micro = _micro_batch(batch, accelerator.num_processes, micro_batches)
    _check_tunable(denoiser, data, images, ema_decay)
    steps = math.ceil(images / batch)
    first = state["step"] if state else 0
    if first > steps:
        raise ValueError(f"the saved run is at {first * batch} images, beyond the {images} asked for; raise `images`")

    if dropout is not None:
        set_dropout(denoiser, dropout)
    denoiser.to(accelerator.device)
    averaged = AveragedModel(denoiser, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))
    parameters = [p for p in denoiser.parameters() if p.requires_grad]
    update = optimizer(parameters)
    if state:
        denoiser.load_state_dict(state["student"])
        averaged.load_state_dict(state["ema"])
        update.load_state_dict(state["optimizer"])
    student, update = accelerator.prepare(denoiser, update)
    if compile:
        student = torch.compile(student)
    denoiser.train()

    rows = Rows(data, seed=seed, mirror=mirror)
    rank, world = accelerator.process_index, accelerator.num_processes
    batches = rows.batches(first * batch, steps * batch, micro, rank=rank, world=world, workers=workers)
    for step in range(first, steps):
        progress = step / steps
        for group in update.param_groups:
            group["lr"] = rate(step, progress)
        torch.manual_seed(derive(seed, 2, step, rank))  # dropout
        losses, openness = [], torch.zeros(())
        for _ in range(micro_batches):
            x0, eps, z, labels = next(batches)
            t = noise(z, denoiser.sigma_max).to(accelerator.device)
            r = gap(t, progress)
            cond = {} if labels is None else {"class_labels": labels.to(accelerator.device)}
            x0, eps = x0.to(accelerator.device), eps.to(accelerator.device)
            with accelerator.accumulate(student), _attention(accelerator.device):
                loss = consistency_loss(
                    student, x0, eps, t, r, torch.zeros_like(t), hop=hop, distance=distance, weight=weight, **cond
                ).mean()
                accelerator.backward(loss)
                losses.append(loss.detach())
                openness = ((t - r) / t).mean()
        mean_loss = float(accelerator.reduce(torch.stack(losses).mean(), reduction="mean"))
        norm = float(get_total_norm([p.grad for p in parameters if p.grad is not None]))
        if not (math.isfinite(mean_loss) and math.isfinite(norm)):
            raise FloatingPointError(
                f"step {step + 1}: the loss is {mean_loss} and its gradient's norm {norm}; nothing was changed in this "
                "step, the last checkpoint is good; lower the learning rate or clip the gradient (max_grad_norm)"
            )
        if max_grad_norm is not None:
            clip_grads_with_norm_(parameters, max_grad_norm, torch.tensor(norm, device=accelerator.device))
        update.step()
        update.zero_grad()
        averaged.update_parameters(denoiser)
        done = step + 1
        yield Step(done, done * batch, done / steps, mean_loss, float(openness), rate(step, progress), denoiser, averaged, update)


def _attention(device: torch.device) -> AbstractContextManager[None]:
    """On a CPU the fused attention's backward pass is slower than plain matrix products at these lengths."""
    context: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
    return context


def set_dropout(module: nn.Module, probability: float) -> None:
    """Sets the probability of every dropout layer in `module`."""
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = probability


def _micro_batch(batch: int, processes: int, accumulate: int) -> int:
    micro, rest = divmod(batch, processes * accumulate)
    if rest or not micro:
        raise ValueError(
            f"a batch of {batch} does not split over {processes} processes times {accumulate} accumulation steps; "
            f"use a multiple of {processes * accumulate}"
        )
    return micro


def _check_tunable(denoiser: NetworkDenoiser, data: Images, images: int, ema_decay: float) -> None:
    if images < 1:
        raise ValueError(f"`images` is how many training images to see, at least 1, got {images}")
    if not 0 <= ema_decay < 1:
        raise ValueError(f"the EMA decay must lie in [0, 1), got {ema_decay}")
    if getattr(denoiser, "prediction", None) == "sample":
        raise ValueError("this checkpoint predicts the clean sample, so f(x, 0) is not x; convert it to v-prediction first")
