"""Pictures to be encoded, with their captions or classes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from .asked import in_turn
from .cond import CLASS
from .data import Samples
from .data.clothes import Clothes
from .data.labels import read_labels
from .data.load import arrays_in, bytes_of, load_images, pictures_in
from .data.order import Order
from .data.pixels import decode
from .model import Model
from .pipeline import Asked

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Captioned:
    """Pictures with captions or classes.

    Attributes:
        count: number of pictures.
        read: returns picture `k`, uint8 (C, H, W), or None if it cannot be read.
        asked: caption or class of each picture; a single "" for an unconditional pipeline.
    """

    count: int
    read: Callable[[int], Tensor | None]
    asked: Asked

    def __len__(self) -> int:
        return self.count

    def some(self, count: int) -> Captioned:
        """A random choice of at most `count` pictures, the same each time."""
        order = Order(self.count, 0)
        rows = [order(k) for k in range(min(count, self.count))]
        return Captioned(len(rows), lambda k: self.read(rows[k]), in_turn(self.asked, rows))


def captioned(data: str, shape: tuple[int, int, int], model: Model) -> Captioned:
    """The pictures in `data` at the shape (C, H, W), with captions or classes for the pipeline of `model`.

    Raises:
        ValueError: there are no pictures, one has no caption or class, or they are encoded already.
    """
    by_class = model.denoiser.classes is not None
    bundled = data == "bundled-text"
    ready = load_images(data, channels=3, size=shape[1:]) if bundled else arrays_in(data, shape, labels=by_class)
    if ready is not None:
        return _of_samples(ready, data, model)
    pictures = pictures_in(data, shape[0])
    if not len(pictures):
        raise ValueError(f"there are no pictures in {data}; give a folder, a zip, a .tar or a .parquet of them")
    bytes_of(pictures, shape)
    asked: Asked = [""]
    if by_class:
        values, _ = read_labels(lambda: pictures.labels, pictures.source, needed=True)
        asked = _classes([] if values is None else values.tolist(), data, model)
    elif model.denoiser.takes:
        asked = list(pictures.captions)

    def read(k: int) -> Tensor | None:
        try:
            return decode(pictures.read(k), *shape)
        except ValueError as error:
            logger.info("skipped %s (%s)", pictures.name(k), error)
            return None

    return Captioned(len(pictures), read, asked)


def _of_samples(samples: Samples, data: str, model: Model) -> Captioned:
    """Captioned pictures from samples that are decoded already."""
    raw = samples.raw([0])
    if raw.is_floating_point():
        raise ValueError(f"{data} holds latents, which are encoded already; give it to --data")
    asked: Asked = [""]
    if model.denoiser.classes is not None:
        labelled = samples.label_range is not None
        asked = _classes([int(samples.cond(k)[CLASS]) for k in range(len(samples))] if labelled else [], data, model)
    elif model.denoiser.takes:
        if not isinstance(samples, Clothes):
            raise ValueError(f"{data} has no captions, which this pipeline needs; give pictures with captions")
        asked = [samples.caption(k) for k in range(len(samples))]
    return Captioned(len(samples), lambda k: samples.raw([k])[0], asked)


def _classes(values: Sequence[int], data: str, model: Model) -> list[int]:
    """Checks that the pipeline knows all classes."""
    known = model.denoiser.classes
    assert known is not None
    if not values:
        raise ValueError(f"{data} has no classes, which this pipeline needs; give pictures with classes")
    if max(values) >= known.count or min(values) < 0:
        wrong = max(values) if max(values) >= known.count else min(values)
        raise ValueError(f"{data} has the class {wrong}, and the pipeline knows 0 to {known.count - 1}")
    return list(values)
