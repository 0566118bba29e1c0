"""What a checkpoint is and what a run with it would take, before one begins: all that `fewstep check` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..core.device import on_device
from ..core.weights import elements
from .cond import CLASS, Classes, Tokens, labelled
from .data import load_images
from .denoiser import Denoiser
from .drawing import arguments
from .formats.folder import load
from .formats.pipelines import few_step_scheduler, stock_pipeline
from .lora import is_adapted, places_of
from .measure.accounting import made_to_denoise
from .measure.comparing import image_shape
from .measure.denoising import verdict_of
from .model import Model
from .walk import Consistency, Segments, Walk

FLOAT, HALF = 4, 2  # bytes of a number
MOMENTS = 2  # that Adam keeps of each number that trains


@dataclass(frozen=True)
class Memory:
    """Bytes that a run holds beside its activations, by arithmetic.

    Attributes:
        name: of the way to train.
        weights, gradients, optimizer, averages: of the student; a frozen base is a weight.
    """

    name: str
    weights: int
    gradients: int
    optimizer: int
    averages: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.optimizer + self.averages


@dataclass(frozen=True)
class Checked:
    """What `check_checkpoint` found: lines of a name and what is said of it, and the memory of each way to train."""

    facts: tuple[tuple[str, str], ...]
    memory: tuple[Memory, ...]


def check_checkpoint(
    checkpoint: str, *, rank: int = 16, call: Sequence[str] = (), data: str | None = None, n: int = 64
) -> Checked:
    """Reads a checkpoint and says what it is; only with data is anything computed with its network.

    Args:
        checkpoint: a run, a diffusers folder or a hub id.
        rank: of the LoRA in the table of memory.
        call: arguments for a stock pipeline where its defaults are not wanted, such as "height=256".
        data: real samples that it is to denoise.
        n: so many of them.

    Raises:
        ValueError: what `load` says of it, or data that do not go with it.
    """
    model = load(checkpoint, call=arguments(call) if call else None)
    if call and model.pipeline is None:
        raise ValueError("--call is for pipelines that make latents, and this model makes pictures; leave it out")
    denoiser, network = model.denoiser, model.denoiser.network
    kind = type(network).__name__
    facts = [("network", f"{kind}, {elements(network.parameters()):,} parameters")]
    facts += [("schedule", str(denoiser.schedule)), ("prediction", _name(denoiser.prediction))]
    facts += [("a sample", "x".join(map(str, denoiser.space.shape))), ("sampled by", _sampled(model))]
    facts += _conditions(denoiser)
    if model.pipeline is not None:
        facts = [("pipeline", type(model.pipeline.stock).__name__), *facts, *_beside(model)]
    facts += [(f"export {walk}", _exported(model, walk)) for walk in (Consistency(2), Segments(4))]
    facts += [] if data is None else [("denoises", _denoises(model, data, n))]
    return Checked(tuple(facts), tuple(memory_of(network, rank)))


def _denoises(model: Model, data: str, n: int) -> str:
    """What real samples say of it, in one sentence."""
    if model.pipeline is not None:
        raise ValueError("--data is for checkpoints that make pictures themselves; leave it out for a pipeline")
    denoiser = on_device(model.denoiser).eval()
    channels, height, width = image_shape(denoiser)
    images = load_images(data, channels=channels, size=(height, width), labels=bool(denoiser.classes)).shuffled()
    count = min(n, len(images))
    x0 = torch.stack([images.x0(k) for k in range(count)])
    labels = torch.stack([images.cond(k)[CLASS] for k in range(count)]) if denoiser.classes else None
    return verdict_of(denoiser, x0, labelled(labels), mean=made_to_denoise(model))[1]


def memory_of(network: nn.Module, rank: int) -> list[Memory]:
    """The memory of tuning all of a network, and of a LoRA of that rank, on a base in float32 or in bfloat16.

    One average of the weights is kept. A teacher of its own, which hops and guidance ask for, takes the weights once more.
    """
    total = elements(network.parameters())
    ways = [Memory("full", FLOAT * total, FLOAT * total, MOMENTS * FLOAT * total, FLOAT * total)]
    if is_adapted(network):
        return ways
    try:
        places = places_of(network)
    except ValueError:
        return ways
    trained = sum(_factors(network.get_submodule(place), rank) for place in places)
    for name, size in ((f"LoRA of rank {rank}", FLOAT), (f"LoRA of rank {rank}, base in bfloat16", HALF)):
        weights = size * total + FLOAT * trained
        ways.append(Memory(name, weights, FLOAT * trained, MOMENTS * FLOAT * trained, FLOAT * trained))
    return ways


def _factors(layer: nn.Module, rank: int) -> int:
    """How many numbers A (rank, in) and B (out, rank) of a layer have."""
    weight: Any = layer.weight
    return int(rank * (len(weight) + weight[0].numel()))


def _conditions(denoiser: Denoiser) -> list[tuple[str, str]]:
    found = []
    for name, kind in denoiser.takes.items():
        if isinstance(kind, Classes):
            said = f"classes 0 to {kind.count - 1}"
        else:
            said = ("x".join(map(str, kind.shape)) or "a number") if isinstance(kind, Tokens) else str(kind)
        found.append((f"told {name}", said))
    return found


def _beside(model: Model) -> list[tuple[str, str]]:
    """What the pipeline has beside its network, and how it is asked."""
    pipeline = model.pipeline
    assert pipeline is not None
    guide = pipeline.manner.guide
    asked = "by prompts" if pipeline.prompted else "by class" if pipeline.by_class else "for nothing"
    facts = [
        ("asked", asked),
        ("guidance", f"by {guide.name}" if guide else "none"),
        ("scheduler", type(pipeline.stock.scheduler).__name__),
    ]
    for name, part in pipeline.stock.components.items():
        if isinstance(part, nn.Module) and part is not pipeline.network:
            facts.append((f"beside it {name}", f"{type(part).__name__}, {elements(part.parameters()):,} parameters"))
    return facts


def _exported(model: Model, walk: Walk) -> str:
    """The stock scheduler or pipeline that would take a student along the walk, or why there is none."""
    try:
        if model.pipeline is None:
            return type(stock_pipeline(model.denoiser, walk)).__name__
        return type(few_step_scheduler(model.denoiser, walk, model.pipeline)).__name__
    except ValueError as why:
        return f"not: {why}"


def _sampled(model: Model) -> str:
    own = model.pipeline is not None and not model.is_student
    return "its own scheduler" if own else str(model.walk)


def _name(prediction: object) -> str:
    return getattr(prediction, "__name__", None) or str(prediction)
