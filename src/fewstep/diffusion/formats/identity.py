"""What a pipeline is known by: all but its network and its scheduler, which is what gives latents their meaning."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ...core.source import read_json
from .opening import files_of
from .parts import read_parts

SAMPLE = 1 << 16  # bytes of each file of weights, at its begin, its middle and its end


def identity_of(folder: Path) -> str:
    """The same for a teacher and for its students, and another where a text encoder or a decoder is another.

    Of weights some bytes are read, so that it takes no time; how a library of another version writes its name into a
    configuration does not count.
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
