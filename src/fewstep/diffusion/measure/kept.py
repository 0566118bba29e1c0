"""A cache of the references of real images, which are identified by content."""

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

from ...core.files import atomic_file, clear
from ..data import Samples
from .scores import Reference

WORTH = 20_000  # images from which a reference is kept
FOLDER = "FEWSTEP_CACHE"  # environment variable for another folder; empty keeps nothing
BATCH = 1000
LIMIT = 2 * 2**30  # bytes of all references at most
TRIED = 8  # images whose features are part of the name


def kept(network: nn.Module, images: Samples, make: Callable[[], Reference]) -> Reference:
    """The reference that `make` computes, or that an earlier command kept for the same images and network.

    Images and network are identified by their content, so the cache never has to be cleared. A damaged file is made again.
    If nothing can be written, nothing is kept. Beyond `LIMIT` the files that were not used for longest are removed.
    """
    place = "" if len(images) < WORTH else _place()
    if not place:
        return make()
    file = Path(place) / "references" / f"{_name(network, images)}.npz"
    with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile), open(file, "rb") as content:
        held = np.load(content, allow_pickle=False)
        found = Reference(held["mean"], held["cov"], int(held["n"]), held["features"].astype(np.float64))
        with suppress(OSError):  # marks the file as used
            os.utime(file)
        return found
    made = make()
    short = made.features.astype(np.float32)  # the dtype of extractors
    if np.array_equal(short, made.features):
        with suppress(OSError), atomic_file(file) as content:
            np.savez(content, mean=made.mean, cov=made.cov, n=np.array(made.n), features=short)
        _shrink(file.parent)
    return made


def _shrink(folder: Path) -> None:
    """Removes the files that were not used for longest, until the rest is within the limit. The last one used stays.

    Other processes may do the same at the same time. A process that is reading a removed file can read it to its end.
    """
    with suppress(OSError):
        clear(folder)
        used = {}
        for file in folder.glob("*.npz"):
            with suppress(FileNotFoundError):
                used[file] = file.stat()
        room = LIMIT
        for k, file in enumerate(sorted(used, key=lambda file: used[file].st_mtime_ns, reverse=True)):
            room -= used[file].st_size
            if k and room < 0:
                file.unlink(missing_ok=True)


def _place() -> str:
    """The folder of the cache; "" if there is none, as for a user without a home folder."""
    home = os.path.expanduser("~")
    return os.environ.get(FOLDER, "" if home == "~" else os.path.join(home, ".cache", "fewstep"))


@torch.no_grad()
def _name(network: nn.Module, images: Samples) -> str:
    """A hash of the network's architecture and weights, the device, and all images in their order.

    It includes the features of the first images, because the extractor's code may change.
    """
    device = next(network.parameters(), torch.empty(0)).device
    said = f"{network!r} {device.type} {torch.__version__} {tuple(images.shape)} {len(images)}"
    found = hashlib.sha256(said.encode())
    for name, value in network.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    found.update(network(images.raw(range(TRIED)).to(device)).half().cpu().numpy().tobytes())
    for start in range(0, len(images), BATCH):
        found.update(images.raw(range(start, min(start + BATCH, len(images)))).contiguous().numpy().tobytes())
    return found.hexdigest()[:32]
