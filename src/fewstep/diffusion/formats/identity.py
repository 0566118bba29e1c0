"""The identity of a pipeline: a hash of all parts but network and scheduler, which determine what latents mean."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ...core.source import read_json
from .opening import files_of
from .parts import read_parts

SAMPLE = 1 << 16  # bytes that are read at the beginning, the middle and the end of each file of weights


def identity_of(folder: Path) -> str:
    """A hash that is the same for a teacher and its students, and differs for other text encoders or decoders.

    Only some bytes of the weights are read, to be fast. Names of library versions in configurations are ignored.
    """
    said = hashlib.sha256()
    for part in sorted(read_parts(folder).others):
        said.update(f"{part} ".encode())
        for name, file in sorted(files_of(folder, part).items()):
            if name == "config.json":
                content = read_json(file, "it is a part of the pipeline")
                plain = {name: value for name, value in content.items() if not name.startswith("_")}
                said.update(json.dumps(plain, sort_keys=True).encode())
            elif file.suffix == ".safetensors":
                said.update(_some(file))
    return said.hexdigest()[:16]


def _some(file: Path) -> bytes:
    """Some bytes of a file of weights, and its size."""
    size = file.stat().st_size
    with file.open("rb") as content:
        read = [str(size).encode()]
        for place in (0, size // 2, max(0, size - SAMPLE)):
            content.seek(place)
            read.append(content.read(SAMPLE))
    return b"".join(read)
