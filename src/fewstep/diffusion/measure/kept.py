"""What real images look like to an extractor, kept from one command to the next: known by content, and no code in it."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ...core.files import atomic_file
from ..data import Samples
from .scores import Reference

WORTH = 20_000  # images from which keeping pays
FOLDER = "FEWSTEP_CACHE"  # variable that names another folder; empty keeps nothing
BATCH = 1000


def kept(network: nn.Module, images: Samples, make: Callable[[], Reference]) -> Reference:
    """What `make` computes of all images, or what an earlier command kept of the very same images and network.

    Both are known by their content, so nothing has to be cleared when data or weights change. A file that is damaged is
    made again, and where nothing can be written nothing is kept.
    """
    place = os.environ.get(FOLDER, str(Path.home() / ".cache" / "fewstep"))
    if len(images) < WORTH or not place:
        return make()
    file = Path(place) / "references" / f"{_name(network, images)}.npz"
    with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile), open(file, "rb") as content:
        held = np.load(content, allow_pickle=False)
        return Reference(held["mean"], held["cov"], int(held["n"]), held["features"].astype(np.float64))
    made = make()
    short = made.features.astype(np.float32)  # extractors answer in it
    if np.array_equal(short, made.features):
        with suppress(OSError), atomic_file(file) as content:
            np.savez(content, mean=made.mean, cov=made.cov, n=np.array(made.n), features=short)
    return made


def _name(network: nn.Module, images: Samples) -> str:
    """A hash of the network's form and weights, of where it is computed, and of all images in their order."""
    device = next(network.parameters(), torch.empty(0)).device.type
    found = hashlib.sha256(f"{network!r} {device} {torch.__version__} {tuple(images.shape)} {len(images)}".encode())
    for name, value in network.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if value.ndim else b"")
    for start in range(0, len(images), BATCH):
        found.update(images.raw(range(start, min(start + BATCH, len(images)))).contiguous().numpy().tobytes())
    return found.hexdigest()[:32]
