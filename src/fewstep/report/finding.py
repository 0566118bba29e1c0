"""Finds the results in a folder; the entries of a file tell its kind."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..core.source import read_json
from .section import Found

KINDS = (  # entries that tell each kind of result; the first kind that fits is taken
    ("ledger", {"lines", "sentences"}),
    ("dial", {"points", "real"}),
    ("settling", {"quantiles", "sigmas", "sentence"}),
    ("emergence", {"emergence"}),
    ("calibration", {"epsilon", "delta", "full_steps"}),
    ("proxy", {"texts", "alpha"}),
    ("forecast", {"forecasts"}),
    ("run", {"recipe", "steps", "loss", "images_per_second"}),
)
MADE_BY = "measure, dial, ledger, settle, tune, forecast, decode --out, calibrate, settle-text, ledger-text or proxy --out"
# the same for each line of a .jsonl
LINES = (("answers", {"text", "tokens", "nfe"}), ("changes", {"prompt", "before", "after"}))
LONGEST = 64 << 20  # bytes; larger files are not read


def find(path: Path) -> list[Found]:
    """The results at `path`: a file, or the files in a folder and in the folders in it.

    Raises:
        ValueError: `path` does not exist, or holds no result of fewstep.
    """
    if not path.exists():
        raise ValueError(f"there is no {path}; name a folder or a file that fewstep {MADE_BY} has written")
    if path.is_dir():
        found = [result for file in _files(path) if (result := _result(file, _named(file)))]
        if not found:
            raise ValueError(f"{path} holds nothing to report; name a folder that fewstep {MADE_BY} has written")
        return found
    result = _result(path, str(path))
    if result is None:
        raise ValueError(f"{path} is no result to report; name what fewstep {MADE_BY} has written")
    return [result]


def _files(folder: Path) -> Iterator[Path]:
    """The files of the folder first, then those of its folders; hidden folders are left out."""
    inner = sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    for place in (folder, *inner):
        yield from sorted(
            file for file in place.iterdir()
            if file.suffix in (".json", ".jsonl") and not file.name.endswith(".receipt.json") and file.is_file()
        )  # fmt: skip


def _named(file: Path) -> str:
    """The name of a result: its folder, if the file has the usual name of results, else the file."""
    return str(file.parent if file.name in ("measure.json", "ledger.json", "receipt.json") else file)


def _result(file: Path, source: str) -> Found | None:
    if file.stat().st_size > LONGEST:
        return None
    if file.suffix == ".jsonl":
        rows = read_lines(file.read_text(encoding="utf-8", errors="replace").split("\n"))
        kind = next((kind for kind, names in LINES if rows and all(names <= row.keys() for row in rows)), None)
        return Found(file, kind, {"answers": rows}, source) if kind else None
    content = _json(file)
    kind = next((kind for kind, names in KINDS if content and names <= content.keys()), None)
    return Found(file, kind, content, source) if kind and content else None


def read_lines(lines: Sequence[str]) -> list[dict[str, Any]]:
    """The objects in the lines of a .jsonl; none if a line is no object."""
    try:
        rows = [json.loads(line) for line in lines if line.strip()]
    except (ValueError, RecursionError):
        return []
    return rows if all(isinstance(row, dict) for row in rows) else []


def _json(file: Path) -> dict[str, Any] | None:
    try:
        return read_json(file, "it is no result")
    except ValueError:
        return None
