"""To the hub: an exported folder becomes a repository there."""

from __future__ import annotations

import re
from pathlib import Path

CARD = "README.md"
MODELS = ("model_index.json", "pytorch_lora_weights.safetensors")  # an exported folder has one of these
PUSHED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", CARD)  # numbers and text, no code and no pickle


def push(folder: str | Path, repository: str, *, private: bool = False) -> str:
    """Uploads an exported folder to the hub as one commit; the repository is made if there is none.

    Args:
        folder: what `export` wrote.
        repository: owner/name.
        private: whether a new repository is seen by its owner alone.

    Returns:
        The repository's URL.

    Raises:
        ValueError: `folder` is no exported folder, `repository` is not owner/name, or the hub refuses the upload.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    folder = Path(folder)
    _check(folder)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ValueError(f"{repository!r} is no name on the hub; give owner/name")
    hub = HfApi()
    try:
        hub.whoami()  # before gigabytes are read
        hub.create_repo(repository, private=private, exist_ok=True)
        done = hub.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=list(PUSHED), commit_message="Few-step generator"
        )
    except LocalTokenNotFoundError as error:
        raise ValueError("the hub does not know who you are; log in with `hf auth login`") from error
    except Exception as error:  # the hub's client and the HTTP library under it have no class of errors in common
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status in (401, 403):
            raise ValueError(
                f"the hub does not let you write to {repository} ({status}); log in with a token that may write there "
                "(`hf auth login`)"
            ) from error
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"the hub did not take {folder} ({said}); the folder is unchanged, so try again") from error
    return str(done.repo_url)


def _check(folder: Path) -> None:
    """Raises ValueError where `folder` is not what `export` wrote."""
    if (folder / CARD).is_file() and any((folder / name).is_file() for name in MODELS):
        return
    each = sorted(part for part in folder.glob("*-step") if (part / CARD).is_file())
    if each:
        raise ValueError(f"{folder} holds an exported folder for each number of steps; push one of them, such as {each[0]}")
    raise ValueError(f"{folder} is no exported folder; export the student first, with `fewstep export`")
