"""What a checkpoint is, and what memory a run with it needs: what `fewstep check` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..core.device import on_device
from ..core.weights import elements
from .cond import Classes, Cond, Tokens
from .denoiser import Denoiser
from .depth import blocks_of
from .drawing import arguments
from .formats.folder import load
from .formats.pipelines import few_step_scheduler, stock_pipeline
from .lessons import examples_for
from .lora import is_adapted, places_of
from .measure.claims import claims
from .model import Model
from .prediction import clean
from .two_times import time_embeddings
from .walk import Consistency, Segments, Walk

FLOAT, HALF = 4, 2  # bytes of a number
KNOWN = 1000  # real samples for the claims that need no network
TUNED = 5  # time of a training image in network calls: 1 forward, 2 for hop and target, 2 backward
MOMENTS = 2  # moments that Adam keeps per trained number


@dataclass(frozen=True)
class Memory:
    """Bytes that a run needs without activations, by arithmetic.

    Attributes:
        name: the way to train.
        weights, gradients, optimizer, averages: bytes of each for the student; weights include a frozen base.
    """

    name: str
    weights: int
    gradients: int
    optimizer: int
    averages: int

    @property
    def total(self) -> int:
        """The sum of all."""
        return self.weights + self.gradients + self.optimizer + self.averages


@dataclass(frozen=True)
class Checked:
    """The result of `check_checkpoint`: named facts, and the memory of each way to train."""

    facts: tuple[tuple[str, str], ...]
    memory: tuple[Memory, ...]


def check_checkpoint(
    checkpoint: str, *, rank: int = 16, call: Sequence[str] = (), data: str | None = None, n: int = 64
) -> Checked:
    """Reads a checkpoint and reports what it is. The network is called only if data are given.

    Args:
        checkpoint: a run, a diffusers folder or a hub id.
        rank: rank of the LoRA in the table of memory.
        call: arguments for a stock pipeline, such as "height=256".
        data: real samples to denoise; a table of latents for a pipeline.
        n: number of samples to denoise.

    Raises:
        ValueError: see `load`; or the data do not fit the checkpoint.
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
    else:
        facts.append(("guidance", _guidance(model)))
    facts += [(f"export {walk}", _exported(model, walk)) for walk in (Consistency(2), Segments(4))]
    facts.append(("methods", _open_to_it(model)))
    facts += [] if data is None else _tested(model, data, n)
    return Checked(tuple(facts), tuple(memory_of(network, rank)))


def _tested(model: Model, data: str, n: int) -> list[tuple[str, str]]:
    """Tests the claims of a checkpoint on real samples: one sentence per claim, and the expected time."""
    denoiser = on_device(model.denoiser).eval()
    examples = examples_for(model, data).shuffled()
    count = min(n, len(examples))
    rows = [examples.cond(k) for k in range(count)]
    cond = Cond({name: torch.stack([row[name] for row in rows]) for name in denoiser.takes}, examples.shared)
    real = torch.stack([examples.x0(k) for k in range(min(KNOWN, len(examples)))])
    found, seconds = claims(denoiser, real[:count], cond, real=real, mean=not model.is_student)
    return [(claim.name, claim.sentence) for claim in found] + [("time", _time(seconds, denoiser.device))]


def _time(seconds: float, device: torch.device) -> str:
    """The time of a network call per sample, and estimates from it."""
    sampling, tuning = 4000 * seconds, 10_000 * TUNED * seconds
    return (
        f"A call takes {1000 * seconds:.2g} ms a sample on {device.type}: 1,000 samples in 4 calls about "
        f"{_long(sampling)}, tuning on 10,000 images about {_long(tuning)}."
    )


def _long(seconds: float) -> str:
    """A time to two figures, in the unit of which it has fewer than 90."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.2g} s"


def _open_to_it(model: Model) -> str:
    """The ways to tune it, and why the others are not possible."""
    denoiser, network = model.denoiser, model.denoiser.network
    if denoiser.prediction is clean:
        return "none: it predicts the clean sample, so f(x, 0) is not x; it can be sampled, not tuned"
    found, closed = ["tune"], []
    for way, tried in (("--segments any", time_embeddings), ("--lora", places_of)):
        try:
            tried(network)
            found.append(f"tune {way}")
        except ValueError as why:
            closed.append(f"not {way}: {why}")
    found += ["tune --freeze"] if blocks_of(network) else []
    return "; ".join([", ".join(found), *closed])


def _guidance(model: Model) -> str:
    """Whether a checkpoint without a pipeline takes guidance."""
    if model.is_student:
        return "built in, if its teacher had any; it takes none"
    kind = model.denoiser.classes
    if kind is None:
        return "none: it takes no classes"
    return "taken with --guidance and --null-label" + ("" if kind.null is None else f" {kind.null}")


def memory_of(network: nn.Module, rank: int) -> list[Memory]:
    """The memory for tuning a whole network, and for a LoRA of that rank on a base in float32 or bfloat16.

    It includes one average of the weights. A separate teacher, for hops or guidance, would add the weights once more.
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
    """The number of values in A (rank, in) and B (out, rank) of a layer."""
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
    """The other parts of the pipeline, and what it takes."""
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
    """The stock scheduler or pipeline for a student with this walk, or why there is none."""
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
