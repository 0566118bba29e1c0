"""Statistics of samples for scores, which are kept in place of pictures and made in parts by all processes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...core.files import atomic_file
from ...core.nfe import count_nfe
from ...core.parts import Form, in_parts, in_ranges
from ...core.progress import progress
from ..cond import NOTHING, Cond
from ..denoiser import Denoiser, Guided
from ..pipeline import Pipeline
from ..walk import Walk, sample
from .features import extract
from .scores import Array

SHOWN = 64  # pictures of a setting that are kept
FEATURES = "features of "
Matching = Callable[[Tensor, range], Tensor]  # pictures (B, C, H, W) and their numbers -> scores of matching, (B,)
Extra = Callable[[Sequence[Tensor], range], Sequence[Mapping[str, Array]]]


@dataclass(frozen=True)
class Setting:
    """A model and how to sample it. `name` is its line in the plot; `pipeline` decodes its samples, if there is one."""

    name: str
    denoiser: Denoiser
    walk: Walk
    pipeline: Pipeline | None = None

    def decode(self, x0: Tensor) -> Tensor:
        """Samples x0 (B, *) as uint8 pictures (B, C, H, W)."""
        return self.denoiser.space.decode(x0) if self.pipeline is None else self.pipeline.decode(x0)

    @property
    def calls(self) -> int:
        """Network rows per sample."""
        return self.walk.calls * (2 if isinstance(self.denoiser, Guided) else 1)


class Told(Protocol):
    """The conditions of all samples, of which `part` makes some rows; a `Cond` is one."""

    def part(self, rows: slice) -> Cond: ...


@dataclass(frozen=True)
class Seen:
    """Statistics of samples.

    Attributes:
        each: values of every sample by name, (n, *): features, looks and further ones.
        images: the first pictures, uint8 (at most `SHOWN`, C, H, W).
        rows: network rows that the samples took.
        seconds: time of sampling, summed over all processes.
    """

    each: dict[str, NDArray[Any]]
    images: Tensor
    rows: int
    seconds: float

    @property
    def features(self) -> dict[str, Array]:
        """Features (n, D) by the name of the extractor."""
        return {name.removeprefix(FEATURES): value for name, value in self.each.items() if name.startswith(FEATURES)}

    @classmethod
    def joined(cls, parts: Sequence[Seen]) -> Seen:
        """The statistics of several parts, joined in their order."""
        each = {name: np.concatenate([part.each[name] for part in parts]) for name in parts[0].each}
        images = torch.cat([part.images for part in parts])[:SHOWN]
        return cls(each, images, sum(part.rows for part in parts), sum(part.seconds for part in parts))


@contextmanager
def sampled(
    groups: Sequence[Sequence[Setting]],
    seeds: Sequence[int],
    networks: Mapping[str, nn.Module],
    *,
    batch: int = 250,
    precision: str = "no",
    cond: Callable[[Setting], Told] = lambda setting: NOTHING,
    match: Matching | None = None,
    looks: Callable[[Tensor], Tensor],
    extra: Extra | None = None,
    folder: Path | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Iterator[Callable[[int, int], Seen]]:
    """Samples settings in batches and computes statistics of the samples.

    All processes share the batches. Finished batches are kept, so that an interrupted command does not repeat them.

    Args:
        groups: groups of settings; the pictures of a group are compared with each other.
        seeds: one per sample, the same for all settings.
        networks: extractors by name.
        batch: number of samples at once.
        precision: "no" (float32) or "bf16" in the models.
        cond: returns the conditions of a setting, one row per seed.
        match: scores how well pictures match their prompts.
        looks: computes values of each picture.
        extra: computes further values of each sample from the pictures of all settings of a group.
        folder: folder for finished batches; None keeps none and is for a single process.
        facts: everything that the samples depend on besides their number and the batches.

    Yields:
        A function (group, place in it) -> statistics of all samples of that setting.
    """
    ranges = in_ranges(len(seeds), batch)
    told: dict[int, Told] = {}

    def given(setting: Setting) -> Told:
        if id(setting) not in told:
            told[id(setting)] = cond(setting)
        return told[id(setting)]

    def make(k: int) -> list[Seen]:
        group, rows = groups[k // len(ranges)], ranges[k % len(ranges)]
        found, pictures = list[Seen](), list[Tensor]()
        with progress("sampling", len(rows) * sum(setting.calls for setting in group)) as done:
            for setting in group:
                x0, seen = _drawn(setting, [seeds[row] for row in rows], given(setting), rows, precision, done)
                images = setting.decode(x0)
                each = {FEATURES + name: extract(network, images) for name, network in networks.items()}
                each["looks"] = looks(images).double().numpy()
                if match is not None:
                    each["match"] = match(images, rows).double().cpu().numpy()
                found.append(Seen(each, images[: max(0, SHOWN - rows.start)].clone(), *seen))
                pictures.append(images)
        for seen_of, more in zip(found, extra(pictures, rows) if extra else [], strict=False):
            seen_of.each.update(more)
        return found

    sizes = [len(rows) * sum(setting.calls for setting in group) for group in groups for rows in ranges]
    decided = {**(facts or {}), "n": len(seeds), "batch": batch, "precision": precision}
    with in_parts(folder, decided, sizes, make, KEPT, title="sampling") as parts:

        def of(group: int, place: int) -> Seen:
            mine = range(group * len(ranges), (group + 1) * len(ranges))
            return Seen.joined([parts[k][place] for k in mine])

        yield of


@torch.no_grad()
def _drawn(
    setting: Setting, seeds: Sequence[int], told: Told, rows: range, precision: str, done: Callable[[int], None]
) -> tuple[Tensor, tuple[int, float]]:
    """Samples x0 of one batch, their network rows, and the seconds."""
    denoiser, start = setting.denoiser.eval(), time.perf_counter()
    cond = told.part(slice(rows.start, rows.stop))
    with (
        count_nfe(denoiser.network, done) as nfe,
        torch.autocast(denoiser.device.type, torch.bfloat16, precision == "bf16"),
    ):
        x0 = sample(denoiser, seeds, setting.walk, cond, batch=len(seeds))
    return x0, (nfe.rows, time.perf_counter() - start)


def _write(file: Path, part: Sequence[Seen]) -> None:
    arrays: dict[str, NDArray[Any]] = {}
    for k, seen in enumerate(part):
        arrays |= {f"{k}.{place}": _short(value) for place, value in enumerate(seen.each.values())}
        arrays[f"{k}.images"] = seen.images.numpy()
    told = [{"names": list(seen.each), "rows": seen.rows, "seconds": seen.seconds} for seen in part]
    with atomic_file(file) as content:
        np.savez(content, **{"told": np.array(json.dumps(told))} | arrays)  # type: ignore[arg-type]


def _short(values: NDArray[Any]) -> NDArray[Any]:
    """The values in float32 if that is exact."""
    if values.dtype != np.float64:
        return values
    short = values.astype(np.float32)
    return short if np.array_equal(short, values) else values


def _read(file: Path) -> list[Seen]:
    with np.load(file) as held:
        found = []
        for k, told in enumerate(json.loads(str(held["told"]))):
            each = {name: _long(held[f"{k}.{place}"]) for place, name in enumerate(told["names"])}
            found.append(Seen(each, torch.from_numpy(held[f"{k}.images"]), told["rows"], told["seconds"]))
    return found


def _long(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(np.float64) if values.dtype == np.float32 else values


KEPT: Form[list[Seen]] = Form(".npz", _write, _read)
