"""`tune`, the training loop, as a generator of steps. The caller logs, saves and stops."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ..core.device import default_accelerator, norm_of, wide
from ..core.interrupts import agreed
from ..core.seeds import derive, drawn_from
from ..core.spread import is_spread, together
from .average import Average, Exponential, MovingAverage, form_of, trained
from .cond import CLASS, Cond
from .data import Paths, Rows, Source
from .denoiser import Denoiser
from .loss import Distance, Hop, InverseGap, PseudoHuber, Weight, consistency_loss, from_data
from .noise import ECTGap, FullGap, Gap, LogNormal, Noise
from .optim import Constant, Dropout, LearningRate, OptimizerFactory, RAdam, label_dropout, training_mode
from .prediction import clean
from .step import Step, go_on, take_up
from .two_times import TwoTimes

if TYPE_CHECKING:
    from accelerate import Accelerator


def tune(
    denoiser: Denoiser,
    data: Source,
    *,
    images: int,
    batch: int = 128,
    segments: int | Sequence[int] = 1,
    noise: Noise = LogNormal(),
    gap: Gap = ECTGap(),
    hop: Hop = from_data,
    distance: Distance = PseudoHuber(),
    weight: Weight = InverseGap(),
    margin: float = 0.0,
    rate: LearningRate = Constant(),
    optimizer: OptimizerFactory = RAdam(),
    average: Average | Sequence[Average] = Exponential(),
    dropout: Dropout | None = None,
    dropped: float | None = None,
    max_grad_norm: float | None = None,
    mirror: bool = False,
    seed: int = 0,
    state: dict[str, Any] | None = None,
    accelerator: Accelerator | None = None,
    workers: int = 0,
    compile: bool = False,
) -> Iterator[Step]:
    """Tunes `denoiser` in place: with `gap=FullGap()` as a diffusion model, else as a (multistep) consistency function.

    Args:
        denoiser: the denoiser to tune. Its network is changed; under FSDP2 it stays sharded.
        data: training samples of the network's shape with the conditions that it needs; or a teacher's paths, for path
            regression with `gap=FullGap()`.
        images: number of samples, rounded up to whole batches.
        batch: samples per step, over all processes and micro-batches.
        segments: number of network calls of the result, at the levels of the schedule's grid: 1 gives a consistency
            function; more are sampled by DDIM steps. A `TwoTimes` takes a sequence of numbers, from which each row draws
            one. Numbers may be repeated to be drawn more often.
        noise: distribution of t.
        gap: computes r below t from t and the progress.
        hop, distance, weight, margin: see `consistency_loss`. The teacher of a hop should be frozen.
        rate: learning rate as a function of step and progress.
        optimizer: builds the optimizer from the parameters.
        average: one or several decays of moving averages of the weights; see docs/log/multistep.md. An average starts from
            the weights of `denoiser`. For random weights use a warm-up, `Exponential(decay, warmup=True)`.
        dropout: sets the network's dropout layers; None leaves them.
        dropped: share of rows, below 1, whose conditions are replaced by the null condition, for student and teacher alike.
            None is the network's own rate: that of label dropout for a DiT, 0 for all others.
        max_grad_norm: largest norm of the gradient; None never clips.
        mirror: whether half of the samples are flipped left to right.
        seed: seed of everything random, 0 or more.
        state: `Step.state()` of an interrupted run with the same arguments. The run continues bit-equal on a CPU.
        accelerator: device, precision, processes, accumulation. None is the best device, in bfloat16 where the hardware
            supports it; `Accelerator(mixed_precision="no")` computes in float32.
        workers: worker processes of the data loader.
        compile: whether to compile the network.

    Yields:
        A `Step` after each optimizer step.

    Raises:
        ValueError: the arguments contradict each other, the state belongs to another run, or the initial weights are not
            finite.
        FloatingPointError: the loss, its gradient or the weights after a step are not finite. No `Step` is yielded then.
            The averages are those before that step; the student has to be restored from a saved state.

    Reference: Geng et al. 2025, Consistency Models Made Easy.
    """
    accelerator = accelerator or default_accelerator()
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    micro, steps, first = _micro_batch(batch, accelerator), math.ceil(images / batch), state["step"] if state else 0
    _check(denoiser, data, images, steps - first, accelerator.mixed_precision)
    _check_settings(data, gap, mirror, margin, segments, max_grad_norm, seed)
    end_of, levels = segment_ends(denoiser, segments), partial(noise, sigma_max=denoiser.schedule.highest)
    _ready(denoiser, hop, dropout, device)
    form, student, update, averaged = _begin(denoiser, average, optimizer, state, accelerator)
    loss_of = partial(
        consistency_loss, _asked(student, denoiser, compile=compile), hop=hop, distance=distance, weight=weight,
        margin=margin, anyone=_anyone(denoiser, accelerator),
    )  # fmt: skip
    rows = Rows(data, levels, seed=seed, mirror=mirror, takes=denoiser.takes, dropped=_dropped(denoiser, data, dropped))
    batches = rows.batches(first * batch, steps * batch, micro, rank=rank, world=world, workers=workers)
    for step in range(first, steps):
        progress, speed = step / steps, rate(step, step / steps)
        training_mode(denoiser)  # at each step, as the caller may have sampled it
        seen = list[tuple[Tensor, Tensor]]()
        for part in range(accelerator.gradient_accumulation_steps):
            row = next(batches)
            t, lo, r, row = row.t, end_of(row.t, row.u), gap(row.t, progress), row.to(device)  # levels stay on the CPU
            drawn = drawn_from(derive(seed, 2, step, part, rank), device)  # for dropout; all other noise is in the row
            with accelerator.accumulate(student), accelerator.autocast(), _attention(device), drawn:
                per_row = loss_of(row.x0, row.eps, t, r, lo, cond=row.cond)
                accelerator.backward(per_row.mean())
            seen.append((t, per_row.detach()))
        norm = _descend(update, list(trained(denoiser).values()), speed, max_grad_norm)
        mean = accelerator.reduce(torch.stack([each.mean() for _, each in seen]).mean(), reduction="mean")
        loss, openness = _finite_loss(step, mean, norm, norm_of(denoiser)), float(((t - r) / t).mean())
        for each in averaged:
            each.update(denoiser)
        at, losses = map(torch.cat, zip(*seen, strict=True))
        yield Step(step + 1, (step + 1) * batch, loss, openness, speed, at, losses, denoiser, averaged, update, form)
    accelerator.unwrap_model(student, keep_fp32_wrapper=False)


def _ready(denoiser: Denoiser, hop: Hop, dropout: Dropout | None, device: torch.device) -> None:
    """Sets the student's dropout and moves the teacher to the device."""
    if dropout is not None:
        dropout(denoiser.network)
    denoiser.eval()
    if isinstance(teacher := getattr(hop, "teacher", None), nn.Module):
        teacher.to(device).eval()


def _descend(
    update: torch.optim.Optimizer, parameters: list[nn.Parameter], rate: float, max_grad_norm: float | None
) -> Tensor:
    """Makes the optimizer's step. Returns the norm of the gradient before clipping."""
    for group in update.param_groups:
        group["lr"] = rate
    norm = together(get_total_norm([p.grad for p in parameters if p.grad is not None]))
    if max_grad_norm is not None:
        clip_grads_with_norm_(parameters, max_grad_norm, norm)
    update.step()
    update.zero_grad()
    return norm


def _prepared(
    denoiser: Denoiser, optimizer: OptimizerFactory, accelerator: Accelerator
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The student prepared by accelerate, replicated or sharded, and its optimizer."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None:
        if not accelerator.is_fsdp2:
            raise ValueError("fewstep shards students by FSDP2 alone; set fsdp_version 2 for accelerate")
        # FSDP's own would round inputs, and with them close noise levels; accelerate's autocast is used instead
        plugin.mixed_precision_policy = None
    update = optimizer(list(trained(denoiser).values()))
    student: nn.Module = accelerator.prepare(denoiser, update)[0]  # together, so that the optimizer follows the weights
    return student, update


def _begin(
    denoiser: Denoiser,
    average: Average | Sequence[Average],
    optimizer: OptimizerFactory,
    state: dict[str, Any] | None,
    accelerator: Accelerator,
) -> tuple[Denoiser, nn.Module, torch.optim.Optimizer, tuple[MovingAverage, ...]]:
    """Form of the student, prepared student, optimizer and averages, new or restored from `state`."""
    if state:
        take_up(denoiser, state)
    form = form_of(denoiser)  # made first, as accelerate changes precision and sharding
    student, update = _prepared(denoiser, optimizer, accelerator)
    averages = average if isinstance(average, Sequence) else (average,)
    averaged = tuple(MovingAverage(denoiser, each) for each in averages)
    if state:
        for each, kept in zip(averaged, state["emas"], strict=True):
            each.load(kept)
        go_on(update, state["optimizer"])
    starts = [denoiser.parameters(), *(each.weights.values() for each in averaged)]
    if not all(math.isfinite(together(get_total_norm([p.detach() for p in start]))) for start in starts):
        raise ValueError("the initial weights are not finite; start from another checkpoint")
    return form, student, update, averaged


def _anyone(denoiser: nn.Module, accelerator: Accelerator) -> Callable[[bool], bool]:
    """The argument `anyone` of `consistency_loss`: processes of a sharded student agree."""
    if not any(map(is_spread, denoiser.parameters())):
        return bool
    return lambda mine: agreed(accelerator, int(mine))[0] > 0


def _asked(student: nn.Module, denoiser: nn.Module, *, compile: bool) -> Callable[..., Tensor]:
    """The student for the loss: as prepared, but without DDP in calls without gradient.

    DDP synchronises buffers before each call, also without gradient. It would wait for processes that make no such call.
    """
    modules = (student, denoiser) if isinstance(student, DistributedDataParallel) else (student,)
    learns, *knows = (torch.compile(module) if compile else module for module in modules)

    def asked(*args: object) -> Tensor:
        said: Tensor = (knows[0] if knows and not torch.is_grad_enabled() else learns)(*args)
        return said

    return asked


def segment_ends(denoiser: Denoiser, segments: int | Sequence[int]) -> Callable[[Tensor, Tensor], Tensor]:
    """A function (t, u) -> lo, (B,) each: the end of t's segment on one of the grids, which u in [0, 1) chooses.

    Raises:
        ValueError: there are several grids and no `TwoTimes`, no grid, or a grid without segments.
    """
    if not isinstance(segments, int) and not isinstance(denoiser, TwoTimes):
        raise ValueError("only a TwoTimes can learn several numbers of segments; give one, or a single number")
    counts = (segments,) if isinstance(segments, int) else tuple(segments)
    if not counts:
        raise ValueError("segments must hold at least one number, got none")
    grids = [lower_edges(denoiser, count) for count in counts]

    def lo(t: Tensor, u: Tensor) -> Tensor:
        each = torch.stack([edges[torch.searchsorted(edges, t) - 1] for edges in grids])
        return each[(u * len(grids)).long(), torch.arange(len(t))]

    return lo


def lower_edges(denoiser: Denoiser, segments: int) -> Tensor:
    """The lower edges of the segments, rising from 0, (segments,) float32: 0 and the schedule's grid but its first."""
    if segments < 1:
        raise ValueError(f"segments must be at least 1, got {segments}")
    return torch.cat([torch.zeros(1), denoiser.schedule.grid(segments)[1:].flip(0).float()])


def _finite_loss(step: int, mean: Tensor, gradient: Tensor, weights: Tensor) -> float:
    """The mean loss; FloatingPointError if it, the norm of its gradient or that of the new weights is not finite.

    All three are read at once, because the host waits for the device.
    """
    loss, norm, after = torch.stack([wide(each.detach()) for each in (mean, gradient, weights)]).tolist()
    remedy = "lower the learning rate or clip the gradient"
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise FloatingPointError(f"step {step + 1}: the loss is {loss:.3g} and its gradient's norm {norm:.3g}; {remedy}")
    if not math.isfinite(after):
        raise FloatingPointError(f"step {step + 1}: the weights after it are not finite; {remedy}")
    return float(loss)


def _attention(device: torch.device) -> AbstractContextManager[None]:
    """Plain attention on a CPU, where the backward pass of fused attention is slower at these lengths."""
    context: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
    return context


def _micro_batch(batch: int, accelerator: Accelerator) -> int:
    processes, accumulate = int(accelerator.num_processes), int(accelerator.gradient_accumulation_steps)
    if batch < 1 or accumulate < 1:
        raise ValueError(f"batch and accumulation must be at least 1, got {batch} and {accumulate}")
    micro, rest = divmod(batch, processes * accumulate)
    if rest or not micro:
        raise ValueError(
            f"a batch of {batch} does not split over {processes} processes times {accumulate} accumulation steps; "
            f"use a multiple of {processes * accumulate}"
        )
    return micro


def _check_settings(
    data: Source,
    gap: Gap,
    mirror: bool,
    margin: float,
    segments: int | Sequence[int],
    max_grad_norm: float | None,
    seed: int,
) -> None:
    if isinstance(data, Paths) and not isinstance(segments, int):
        raise ValueError("a teacher's paths are cut for one number of segments; for several use a teacher's hop instead")
    if isinstance(data, Paths) and (mirror or not isinstance(gap, FullGap)):
        raise ValueError("paths need gap=FullGap() and mirror=False, because their points are regressed to their ends")
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ValueError(f"max_grad_norm must be above 0, got {max_grad_norm}")
    if seed < 0:
        raise ValueError(f"the seed must be 0 or more, got {seed}")
    if margin < 0 or (margin and segments == 1):
        raise ValueError(
            f"the margin must be at least 0, and 0 with one segment, as each call starts from the output of the last one; "
            f"got {margin}"
        )


def _check(denoiser: Denoiser, data: Source, images: int, steps_left: int, precision: str) -> None:
    if images < 1:
        raise ValueError(f"`images` must be at least 1, got {images}")
    if steps_left < 0:
        raise ValueError(f"the saved run has already seen more than {images} images; raise --images")
    if precision == "fp16":
        raise ValueError("float16 overflows in consistency losses; use bf16 or no mixed precision")
    check_prediction(denoiser)
    denoiser.check(_at_the_ends(denoiser, data))


def check_prediction(denoiser: Denoiser) -> None:
    """Raises ValueError if f(x, 0) is not x."""
    if denoiser.prediction is clean:
        raise ValueError("this checkpoint predicts the clean sample, so f(x, 0) is not x; convert it to v-prediction first")


def _at_the_ends(denoiser: Denoiser, data: Source) -> Cond:
    """Two rows of conditions to check: those of the first and the last example, and the lowest and highest class of all.

    Classes are left out if the network takes none, as in training.
    """
    first, last = data.cond(0), data.cond(len(data) - 1)
    embedded = denoiser.classes is None and CLASS in denoiser.takes  # some networks take a text under that name
    rows = {name: torch.stack([first[name], last[name]]) for name in first if name != CLASS or embedded}
    if denoiser.classes is not None:
        if data.label_range is None:
            raise ValueError("this checkpoint is conditional on classes, but the data has no labels; give labelled data")
        rows[CLASS] = torch.tensor(data.label_range)
    return Cond(rows, data.shared)


def _dropped(denoiser: Denoiser, data: Source, share: float | None) -> tuple[float, Cond]:
    """The share of rows that get the null condition, and this condition, one row.

    Raises:
        ValueError: the share is out of range, or the null condition is not known.
    """
    own, null = label_dropout(denoiser.network)
    if share is None:
        return own, null
    if not 0 <= share < 1:
        raise ValueError(f"dropped must be 0 or more and below 1, got {share}")
    null = data.null or null
    if share and not null.rows:
        raise ValueError("neither the data nor the network have a null condition; leave --dropped out")
    if share:
        denoiser.check(null)
    return share, null
