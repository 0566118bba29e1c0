"""Where a checkpoint is: a folder, or a hub repository that is fetched without its code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parent.parent / "assets"  # what comes with the package
# configurations, weights and vocabularies; no Python
PATTERNS = ["*.json", "*.safetensors", "*.bin", "*.txt", "*.model"]


def folder_of(source: str | Path, what: str, *, bundled: str, pickles: bool = False) -> Path:
    """The folder `source`, or the snapshot of the hub repository of that name.

    Args:
        source: a folder, the id of a hub repository, owner/name, or "bundled".
        what: what should be in it, for the errors, such as "diffusers folder".
        bundled: the one of the package's own that the name "bundled" stands for.
        pickles: whether .bin files are fetched too; whoever reads them must take plain tensors only.

    Raises:
        ValueError: it is neither.
    """
    path = ASSETS / bundled if source == "bundled" else Path(source)
    if path.is_dir():
        return path
    if path.exists() or path.is_absolute() or str(source).startswith(".") or str(source).count("/") != 1:
        raise ValueError(f"{source} is not a folder; give a {what} or the id of a hub repository, owner/name")
    from huggingface_hub import snapshot_download

    patterns = [pattern for pattern in PATTERNS if pickles or pattern != "*.bin"]
    try:
        return Path(snapshot_download(str(source), allow_patterns=patterns))
    except (OSError, ValueError) as error:  # the hub's errors are one or the other
        raise ValueError(f"{source} is neither a folder nor a hub repository that can be fetched: {error}") from error


def read_json(path: Path, why: str) -> dict[str, Any]:
    """What stands in `path`; `why` it should be there ends the error if it is not.

    Raises:
        ValueError: not there, or not JSON.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"there is no {path.name} in {path.parent}: {why}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    return content
