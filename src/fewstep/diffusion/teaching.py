"""Training data that the teacher makes itself: images and sampling paths."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..core.device import fast_precision, wide
from ..core.files import atomic_file
from ..core.nfe import count_nfe
from ..core.progress import progress
from ..core.seeds import generators
from .cond import labelled
from .data import Images, Paths
from .denoiser import Denoiser, Guided
from .noise import like
from .samplers import heun_path
from .tuning import lower_edges
from .walk import Heun, prior, sample

Made = TypeVar("Made", Images, Paths)


def teacher_images(
    teacher: Denoiser, count: int, *, seed: int = 0, steps: int = 18, precision: str | None = None
) -> Images:
    """Draws samples of the teacher as a data set, with its classes in turn if it has any.

    Args:
        teacher: the diffusion model, on its device.
        count: number of samples, at least 1.
        seed: seed of the first sample; the others count up from it.
        steps: steps of Heun's method on Karras' noise levels; 2·steps − 1 network calls per sample.
        precision: "no" (float32) or "bf16" in the network; None is bfloat16 where the hardware supports it.

    Returns:
        The samples, decoded by the teacher's space: uint8 pictures or float32 latents.
    """
    _at_least_one(count)
    labels, seeds = _labels(teacher, count), range(seed, seed + count)
    walk = Heun(steps)
    with _telling(teacher, count * walk.calls), _autocast(teacher, precision):
        x0 = sample(teacher.eval(), seeds, walk, labelled(labels))
    return Images(teacher.space.decode(x0), labels)


def teacher_paths(
    teacher: Denoiser,
    count: int,
    *,
    segments: int = 1,
    levels: Sequence[float] = (),
    whole: bool = True,
    seed: int = 0,
    steps: int = 18,
    batch: int = 250,
    precision: str | None = None,
) -> Paths:
    """Draws sampling paths of the teacher for path regression, with its classes in turn if it has any.

    Args:
        teacher: the diffusion model, on its device.
        count: number of paths, at least 1.
        segments: number of segments of the student. The paths have states at the lower edges of its segments.
        levels: further noise levels at which the paths have states.
        whole: whether to keep all states that Heun's method visits, or only those at the edges and at `levels`.
        seed: seed of the first path; the others count up from it.
        steps: steps of Heun's method on Karras' noise levels; about 2·steps network calls per path.
        batch: number of paths at once.
        precision: as for `teacher_images`.
    """
    _at_least_one(count)
    edges = lower_edges(teacher, segments)
    asked = torch.cat([edges, torch.tensor(list(levels))])
    stops = torch.cat([Heun(steps).levels(teacher).float(), asked]).unique().flip(0)  # the last is 0, the lowest edge
    grid, kept = stops[:-1], torch.isin(stops, asked) | whole
    labels, done = _labels(teacher, count), []
    with _telling(teacher, count * (2 * len(grid) - 1)):
        for start in range(0, count, batch):
            rngs = generators(range(seed + start, seed + min(start + batch, count)))
            x = prior(teacher, rngs)
            cond = labelled(None if labels is None else labels[start : start + batch].to(x.device))
            with _autocast(teacher, precision):
                states = [x, *(state for state, _ in heun_path(teacher.eval(), x, grid.to(x.dtype), cond))]
            points = [_scaled(state, level) for state, level, keep in zip(states, stops, kept, strict=True) if keep]
            done.append(torch.stack(points, 1))
    return Paths(torch.cat(done), stops[kept], edges, labels)


def save_made(made: Images | Paths, file: Path, *, calls: Sequence[int] = (0, 0), **facts: Any) -> None:
    """Writes a teacher's images or paths as safetensors, atomically, with the facts that determine them.

    `calls` are the calls of the teacher's network and the rows in them; `calls_of` reads them.
    """
    from safetensors.torch import save

    tensors = {name: tensor for name, tensor in vars(made).items() if tensor is not None}
    with atomic_file(file) as handle:
        handle.write(save(tensors, {"facts": json.dumps(facts), "calls": json.dumps(calls)}))


def load_made(kind: type[Made], file: Path, **facts: Any) -> Made:
    """Reads the images or paths that `save_made` wrote with the same facts.

    Raises:
        ValueError: the file is something else, or its facts are different.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as stored:
            made_of = json.loads(stored.metadata()["facts"])
            made = kind(**{name: stored.get_tensor(name) for name in stored.keys()})  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{file} holds no images or paths of a teacher: {error}; delete it to make it again") from error
    if made_of != facts:
        raise ValueError(f"{file} was made with {made_of}, not {facts}; delete it or choose another folder")
    return made


def calls_of(file: Path) -> list[int]:
    """The calls of the teacher's network, and the rows in them, that the file cost."""
    from safetensors import safe_open

    with safe_open(file, "pt") as stored:
        calls: list[int] = json.loads(stored.metadata()["calls"])
    return calls


def _scaled(x: Tensor, sigma: Tensor) -> Tensor:
    return (x * like(1 + wide(sigma) ** 2, x).rsqrt().to(x)).half().cpu()


def _labels(teacher: Denoiser, count: int) -> Tensor | None:
    if teacher.classes is None:
        return None
    null = int(teacher.null.rows["class_labels"]) if isinstance(teacher, Guided) else None  # it is not sampled
    classes = torch.tensor([label for label in range(teacher.classes.count) if label != null])
    return classes[torch.arange(count) % len(classes)]


def _at_least_one(count: int) -> None:
    if count < 1:
        raise ValueError(f"a teacher must make at least one sample, got {count}")


@contextmanager
def _telling(teacher: Denoiser, calls: int) -> Iterator[None]:
    """Shows the progress of the teacher in network rows; guidance doubles them."""
    with (
        progress("the teacher", calls * (2 if isinstance(teacher, Guided) else 1)) as done,
        count_nfe(teacher.network, done),
    ):
        yield


def _autocast(teacher: Denoiser, precision: str | None) -> torch.autocast:
    bf16 = (precision or fast_precision()) == "bf16"
    return torch.autocast(teacher.device.type, torch.bfloat16, bf16)
