"""Where a checkpoint is: a folder, or a hub repository that is fetched without its code."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, cast

ASSETS = Path(__file__).parent.parent / "assets"  # what comes with the package
# configurations, weights and vocabularies; no Python
PATTERNS = ["*.json", "*.safetensors", "*.bin", "*.txt", "*.model", "*.jinja"]
HUB_SECONDS = 5.0  # that the hub may take to say whether it has a repository
JSON_BYTES, JSON_DEPTH = 16 << 20, 64  # far above any configuration
_IMPORTED = "`fewstep import` turns files of EDM, EDM2, ECT, FastGen and openai/consistency_models into a folder"
_STATE = f"weights or a training state without the network they belong to; {_IMPORTED}"
FILES = {  # what single files hold, and what to do with them
    ".pkl": f"a pickle, and reading it would run the code in it; {_IMPORTED}, without running it",
    ".pt": _STATE,
    ".pth": _STATE,
    ".ckpt": _STATE,
    ".bin": "weights without the network they belong to; give the folder they came in",
    ".safetensors": f"weights without the network they belong to; give the folder they came in; {_IMPORTED}",
    ".gguf": "weights quantised for llama.cpp; give the folder of the model they were made from",
    ".onnx": "a network compiled for onnxruntime; give the folder of the model it was made from",
}


def folder_of(source: str | Path, what: str, *, bundled: str, pickles: bool = False) -> Path:
    """The folder `source`, or the snapshot of the hub repository of that name.

    Args:
        source: a folder, the id of a hub repository, owner/name, "bundled", or "bundled-text" for the text-to-image model.
        what: what should be in it, for the errors, such as "diffusers folder".
        bundled: the folder below assets/ that the name "bundled" stands for.
        pickles: whether .bin files are fetched too; their reader must accept plain tensors only.

    Raises:
        ValueError: `source` is no folder, and no hub repository that can be fetched.
    """
    ours = {"bundled": bundled, "bundled-text": "text_to_image"}
    path = ASSETS / ours[str(source)] if str(source) in ours else Path(source)
    if path.is_dir():
        return path
    name = str(source)
    if "://" in name or name.startswith("https:/"):  # a Path has lost one of the slashes
        raise ValueError(f"{name} is a URL; download it and give the {what}, or give a hub repository as owner/name")
    if path.suffix.lower() in FILES:
        there = f"{name} holds" if path.is_file() else f"there is no file {name}, and it would hold"
        raise ValueError(f"{there} {FILES[path.suffix.lower()]}. fewstep reads a {what}")
    if path.exists() or path.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise ValueError(f"{name} is not a folder; give a {what} or the id of a hub repository, owner/name")
    return _snapshot(name, [pattern for pattern in PATTERNS if pickles or pattern != "*.bin"])


def _snapshot(repository: str, patterns: list[str]) -> Path:
    """Fetches `repository` from the hub, or takes the copy that was fetched before.

    The hub's own fetcher retries for minutes if the hub does not answer, so one question with a deadline comes first.
    """
    from huggingface_hub import HfApi, snapshot_download

    doubt = None
    try:
        HfApi().model_info(repository, timeout=HUB_SECONDS)
    except Exception as error:  # the hub's client and the HTTP library under it have no class of errors in common
        doubt = error
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns, local_files_only=doubt is not None))
    except (OSError, ValueError) as error:  # the hub's errors are one or the other
        raise ValueError(f"{repository} is no folder and was not fetched before, and {_why(doubt or error)}") from error


def _why(error: Exception) -> str:
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

    if isinstance(error, RepositoryNotFoundError):
        return "the hub has no such repository, or shows it only to those who log in with `hf auth login`"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids asking the hub; give a folder, or unset HF_HUB_OFFLINE"
    said = str(error).strip().partition("\n")[0] or type(error).__name__
    return f"the hub cannot be asked ({said}); give a folder, or try again with a connection"


def inside(folder: Path, name: str) -> Path:
    """The path of the file or folder `name` in `folder`, whether or not it exists.

    Links may lead out of the folder only in the hub's cache, where a snapshot consists of links to its repository's
    blobs.

    Raises:
        ValueError: the path is a link that leads out of the folder.
    """
    assert Path(name).name == name, "a name, not a path"
    home = folder.resolve()
    repositories = (parent.parent for parent in home.parents if parent.name == "snapshots")
    home = next((repository for repository in repositories if (repository / "blobs").is_dir()), home)
    if not Path(os.path.realpath(folder / name)).is_relative_to(home):
        raise ValueError(f"{folder / name} is a link that leads out of its folder; replace the link by its target")
    return folder / name


def read_json(path: Path, why: str) -> dict[str, Any]:
    """The JSON object in the file `path`. Error messages end with `why`, which says what the file is for.

    Raises:
        ValueError: the file is missing, holds no JSON object, or is larger or deeper than any configuration.
    """
    if not path.is_file():  # nor a folder, nor a pipe that would never end
        raise ValueError(f"there is no {path.name} in {path.parent}: {why}")
    with path.open("rb") as file:
        text = file.read(JSON_BYTES + 1)
    if len(text) > JSON_BYTES:
        raise ValueError(f"{path} is larger than {JSON_BYTES >> 20} MiB, so it is no configuration: {why}")
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError(f"{path} is nested without end") from None
    except ValueError as error:  # also bytes that are no text, and numbers of thousands of digits
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if type(content) is not dict:
        raise ValueError(f"{path} holds a {type(content).__name__}, not a JSON object: {why}")
    if _depth(content) > JSON_DEPTH:
        raise ValueError(f"{path} is nested more than {JSON_DEPTH} deep, so it is no configuration: {why}")
    return cast(dict[str, Any], content)


def _depth(content: object) -> int:
    depth, level = 0, [content]
    while level and depth <= JSON_DEPTH:
        depth += 1
        inner = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list))
        level = [item for items in inner for item in items]
    return depth
