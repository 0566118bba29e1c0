"""Receipts: a JSON beside each result that says how it came about."""

from __future__ import annotations

import dataclasses
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .files import atomic_file

PACKAGES = ("fewstep", "torch", "diffusers", "transformers", "accelerate", "peft", "numpy")


@contextmanager
def receipt(path: Path | None, **facts: Any) -> Iterator[dict[str, Any]]:
    """Writes `facts` and the entries of the yielded dict to `path` after the block, unless it failed; None writes nothing.

    Command line, versions, git commit, machine and wall time are added.
    """
    start = time.time()
    entries: dict[str, Any] = {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(start)),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
        "machine": platform.machine(),
        **facts,
    }
    yield entries
    entries["wall_seconds"] = round(time.time() - start, 1)
    if path:
        write_json(path, entries)


def write_json(path: Path, content: Any) -> None:
    """Writes `content` as JSON, atomically; see `plain`."""
    with atomic_file(path) as file:
        file.write((json.dumps(plain(content), indent=2) + "\n").encode())


def plain(content: Any) -> Any:
    """`content` in JSON's own types: dataclasses become {"name": class, **fields}, other objects their name or string."""
    return json.loads(json.dumps(content, default=_plain))


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        shown = [field.name for field in dataclasses.fields(value) if field.repr]  # not a hop's teacher
        return {"name": type(value).__name__} | {name: getattr(value, name) for name in shown}
    return getattr(value, "__name__", None) or str(value)  # a function's string would hold its address


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the working directory, None outside a repository or without git."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], check=False, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
