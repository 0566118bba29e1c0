"""Opens a stock pipeline by diffusers without running any code of its folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from ...core.configuration import cleaned
from ...core.source import inside, read_json
from ...core.weights import in_short
from .parts import Parts

CONFIGURATIONS = ("config.json", "tokenizer_config.json", "generation_config.json", "preprocessor_config.json")
WEIGHTS = re.compile(r"((?:diffusion_pytorch_)?model)(?:\.\w+)?\.safetensors(\.index(?:\.\w+)?\.json)?")
DATA = (".safetensors", ".txt", ".model", ".jinja")  # files of a pipeline's parts besides JSON


def open_pipeline(folder: Path, parts: Parts, network: nn.Module) -> Any:
    """Opens the stock pipeline in `folder` around `network`; its other parts are in float32 on the CPU, in evaluation mode.

    diffusers sees a copy of the folder that holds only safetensors, vocabularies, and JSON without entries that name code.

    Raises:
        ValueError: a part is missing, broken or pickled, or needs a library that is not installed.
    """
    import diffusers

    kind = getattr(diffusers, parts.pipeline)
    for part, name in (parts.others | {"scheduler": "scheduler"}).items():
        if not inside(folder, part).is_dir():
            raise ValueError(f"{folder} says that its {part} is a {name}, but has no folder {part}; download it again")
    with _cleaned(folder, parts) as place, _quietly():
        try:
            pipeline = kind.from_pretrained(
                place, local_files_only=True, use_safetensors=True, trust_remote_code=False, **{parts.network: network}
            )
        except (KeyboardInterrupt, MemoryError):
            raise
        except BaseException as error:  # the tokenizers library raises BaseException
            said = in_short(error).replace(str(place), str(folder))
            raise ValueError(f"diffusers cannot open the {parts.pipeline} in {folder}: {said}") from error
    for part in pipeline.components.values():
        if isinstance(part, nn.Module) and part is not network:
            part.eval().requires_grad_(False).float()
    return pipeline


@contextmanager
def _quietly() -> Iterator[None]:
    """In this context diffusers shows no progress bars."""
    from diffusers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _cleaned(folder: Path, parts: Parts) -> Iterator[Path]:
    """A copy of the folder without code: checked JSON files, and links to files that hold no code."""
    with TemporaryDirectory() as temporary:
        place = Path(temporary)
        index = read_json(inside(folder, "model_index.json"), "a diffusers pipeline folder has one at its top")
        (place / "model_index.json").write_text(json.dumps(cleaned(index, folder / "model_index.json")))
        for part in (*parts.others, "scheduler"):
            (place / part).mkdir()
            for name, file in files_of(folder, part).items():
                copy = place / part / name
                if name in CONFIGURATIONS:
                    copy.write_text(json.dumps(cleaned(read_json(file, "it is a part of the pipeline"), file)))
                else:
                    copy.symlink_to(file.resolve())
        yield place


def files_of(folder: Path, part: str) -> dict[str, Path]:
    """Weights, vocabularies and configurations of one part of a pipeline, by the names under which they are opened.

    A variant of the weights, such as fp16, is used only if there are no weights without a variant.

    Raises:
        ValueError: a link leads out of the folder, or there are several variants and no weights without one.
    """
    files = [inside(folder / part, file.name) for file in sorted(inside(folder, part).iterdir())]
    held = {file.name: file for file in files if file.suffix in (".json", *DATA) and file.is_file()}
    found = {name: file for name, file in held.items() if _plain(name) == name}
    is_whole = any(WEIGHTS.fullmatch(name) for name in found)
    for name in () if is_whole else held.keys() - found.keys():
        if _plain(name) in found:
            both = " and ".join(sorted((name, found[_plain(name)].name)))
            raise ValueError(f"{folder / part} holds {both}; rename the one to use to {_plain(name)}")
        found[_plain(name)] = held[name]
    return found


def _plain(name: str) -> str:
    """The name of a file of weights or of their index without its variant; other names unchanged."""
    said = WEIGHTS.fullmatch(name)
    return name if said is None else f"{said[1]}.safetensors{'.index.json' if said[2] else ''}"
