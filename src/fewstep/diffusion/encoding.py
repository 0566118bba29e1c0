"""Tables of latents with their conditions: made by a pipeline from prompts alone, or encoded from pictures."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..core.checks import at_least
from ..core.device import best_device, fast_precision
from ..core.files import check_room, writable
from ..core.nfe import count_nfe
from ..core.parts import in_ranges
from .asked import in_turn
from .captioned import captioned
from .cond import Cond, padded
from .data import Table
from .data.conditions import Conditions
from .data.parted import Part, make_in_parts, notes_in
from .formats.folder import load
from .formats.identity import identity_of
from .pipeline import Asked, Pipeline

logger = logging.getLogger(__name__)

PART, PARTS = 64, 1000  # minimal rows of a part, maximal parts of a table


class Encoder:
    """Encodes prompts into the conditions of a pipeline's network, padded to the longest of all prompts."""

    def __init__(self, pipeline: Pipeline, asked: Asked) -> None:
        self.pipeline, self.asked = pipeline, asked

    def __call__(self, asked: Asked) -> Cond:
        """The conditions of these prompts or classes, one row each."""
        cond, _ = self.pipeline.conditions(asked)
        return padded([cond, self._ruler])[0]

    @cached_property
    def null(self) -> Cond | None:
        """The null condition, one row; None if the pipeline has none."""
        _, null = self.pipeline.conditions(self.asked[:1])
        return None if null is None else padded([null, self._ruler])[0]

    def beside(self) -> Conditions:
        """The conditions that a table keeps outside of its rows."""
        return Conditions.of(self(self.asked[:1]), self.null, identity_of(self.pipeline.source))

    @cached_property
    def _ruler(self) -> Cond:
        """A row of the greatest length. If the pipeline does not pad to one length, all prompts are encoded to find it."""
        some = sorted(range(len(self.asked)), key=lambda k: len(str(self.asked[k])))
        ends = [self._longest(self.asked[k : k + 1]) for k in (some[0], some[-1])]
        if _shape(ends[0]) == _shape(ends[1]):
            return ends[0]
        rows = [self._longest(self.asked[k : k + PART]) for k in range(0, len(self.asked), PART)]
        return padded([*ends, *rows])[0]

    def _longest(self, asked: Asked) -> Cond:
        cond, _ = self.pipeline.conditions(asked)
        return cond.part(slice(0, 1))


def teacher_latents(
    pipeline: Pipeline,
    asked: Asked,
    folder: Path,
    *,
    count: int,
    seed: int,
    steps: int | None = None,
    guidance: float | None = None,
    precision: str | None = None,
    **facts: Any,
) -> Table:
    """A table of latents that a pipeline draws for prompts or classes in turn by its own scheduler, with conditions.

    All processes make the table together in parts. After an interruption the same call continues.

    Args:
        pipeline: the teacher's pipeline.
        asked: prompts, classes, or [""] for an unconditional pipeline; sample k is drawn for asked[k % len(asked)].
        folder: folder of the table.
        count: number of samples.
        seed: seed of the first sample; sample k has seed + k.
        steps: steps of the pipeline's scheduler; None is the pipeline's own number.
        guidance: the pipeline's guidance scale; None is without guidance.
        precision: "no" (float32) or "bf16" in the network; None is bfloat16 where the hardware supports it.
        facts: everything else that the samples depend on, such as the name of the checkpoint.

    Raises:
        ValueError: the pipeline has no guidance, or `folder` holds another table.
        Interrupted: the command was told to stop; finished parts are kept.
    """
    import datasets

    if guidance is not None:
        pipeline.manner.on(guidance, 1)  # before anything is made
    steps = own_steps(pipeline) if steps is None else steps
    encoder = Encoder(pipeline, asked)
    pipeline.network.to(best_device())  # where the others go, too
    _check_room(folder, count, pipeline, encoder)

    def make(rows: range) -> Part:
        wanted, seeds = in_turn(asked, rows), [seed + k for k in rows]
        with count_nfe(pipeline.network) as nfe, _autocast(precision):
            x0 = pipeline.latents(wanted, seeds, steps=steps, guidance=guidance)
        told = {"seed": (datasets.Value("int64"), seeds), "prompt": (datasets.Value("string"), list(map(str, wanted)))}
        return Part(x0, encoder(wanted), told, {"calls": nfe.calls, "rows": nfe.rows})

    facts |= {"count": count, "seed": seed, "steps": steps, "guidance": guidance, "precision": precision}
    facts |= {"prompts": len(asked), "prompts_hash": _hash(asked), "call": pipeline.call}
    return make_in_parts(folder, facts, _ranges(count), make, encoder.beside, title="the teacher")


def encode_data(
    checkpoint: str, data: str, out: Path, *, n: int | None = None, call: Mapping[str, object] | None = None
) -> Table:
    """Encodes pictures and their captions or classes by a pipeline's own encoders into a table to tune it with.

    All processes make the table together in parts. After an interruption the same call continues. Pictures that cannot be
    read are skipped, and a warning says how many.

    Args:
        checkpoint: a folder or hub id of a pipeline, or a run of it.
        data: a folder, a zip or a .tar of images with captions in a `metadata.jsonl` or in files beside them; a .parquet or
            a hub data set with a column `text` or `caption`. Classes are read as `load_images` reads them.
        out: folder of the table.
        n: number of pictures, drawn at random; by default all.
        call: as for `load`.

    Raises:
        ValueError: the pipeline or the data do not exist, captions or classes are missing, or `out` holds something else.
        Interrupted: the command was told to stop; finished parts are kept.
    """
    at_least(1, n=n)
    writable(out)
    model = load(checkpoint, call=call)
    pipeline = model.pipeline
    if pipeline is None:
        raise ValueError(f"{checkpoint} takes pictures as they are; give {data} to --data of fewstep tune")
    pictures = captioned(data, shown_by(pipeline), model)
    if n is not None:
        pictures = pictures.some(n)
    encoder = Encoder(pipeline, pictures.asked)
    pipeline.network.to(best_device())  # where the others go, too
    _check_room(out, len(pictures), pipeline, encoder)

    def make(rows: range) -> Part:
        found = [(k, picture) for k, picture in ((k, pictures.read(k)) for k in rows) if picture is not None]
        kept = [k for k, _ in found]
        wanted = in_turn(pictures.asked, kept)
        shape, skipped = pipeline.manner.shape, len(rows) - len(kept)
        if not found:
            return Part(torch.empty(0, *shape), encoder(pictures.asked[:1]).part(slice(0, 0)), {}, {"skipped": skipped})
        x0 = pipeline.encode(torch.stack([picture for _, picture in found]))
        return Part(x0, encoder(wanted), {}, {"skipped": skipped})

    facts = {"pipeline": identity_of(pipeline.source), "source": data, "pictures": len(pictures), "call": pipeline.call}
    facts |= {"prompts_hash": _hash(pictures.asked), "shape": pipeline.manner.shape}
    table = make_in_parts(out, facts, _ranges(len(pictures)), make, encoder.beside, title=f"encoding {data}")
    skipped = notes_in(out).get("skipped", 0)
    if skipped:
        logger.warning("skipped %d unreadable of %d images", skipped, len(pictures))
    return table


def shown_by(pipeline: Pipeline) -> tuple[int, int, int]:
    """The shape (C, H, W) of the pictures that a pipeline makes; ValueError if it makes anything else."""
    shape = pipeline.shown
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(f"this pipeline makes samples of {'x'.join(map(str, shape))}, and fewstep encodes only pictures")
    return shape[0], shape[1], shape[2]


def _check_room(out: Path, count: int, pipeline: Pipeline, encoder: Encoder) -> None:
    """Raises ValueError if the disk has no room for the table."""
    cond = encoder(encoder.asked[:1])
    row = 4 * math.prod(pipeline.manner.shape) + sum(value.nbytes for value in cond.rows.values())
    check_room(out, count * row)


def own_steps(pipeline: Pipeline) -> int:
    """The default number of steps of a pipeline."""
    steps = inspect.signature(pipeline.stock.__call__).parameters["num_inference_steps"].default
    return steps if isinstance(steps, int) else 50


def _ranges(count: int) -> list[range]:
    return in_ranges(count, max(PART, -(-count // PARTS)))


def _shape(cond: Cond) -> dict[str, tuple[int, ...]]:
    return {name: tuple(rows.shape[1:]) for name, rows in cond.rows.items()}


def _hash(asked: Asked) -> str:
    return hashlib.sha256(json.dumps(list(asked)).encode()).hexdigest()[:16]


def _autocast(precision: str | None) -> torch.autocast:
    bf16 = (precision or fast_precision()) == "bf16"
    return torch.autocast(best_device().type, torch.bfloat16, bf16)
