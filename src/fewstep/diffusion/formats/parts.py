"""The parts of a pipeline folder: its network and the others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.extras import needs
from ...core.source import inside, read_json

OURS = {
    "SongUNet": ".foreign.song",
    "EDM2UNet": ".foreign.edm2",
    "ScalarUNet": ".foreign.scalar",
}  # networks of fewstep and their modules, which are imported when they are read
NETWORKS = ("UNet2DModel", "DiTTransformer2DModel", *OURS)
WERE_CALLED = {"Transformer2DModel": "DiTTransformer2DModel"}  # older class names of published DiTs
HOMES = ("diffusers.models.unets.", "diffusers.models.transformers.")  # diffusers' modules of denoising networks


@dataclass(frozen=True)
class Parts:
    """The parts of a pipeline folder by its model_index.json.

    Attributes:
        pipeline: class of the pipeline.
        network: name of the denoising network.
        kind: class of the denoising network.
        others: the classes of all parts but the network and the scheduler.
    """

    pipeline: str
    network: str
    kind: str
    others: dict[str, str]

    @property
    def is_bare(self) -> bool:
        """Whether it is a network that is sampled without a pipeline."""
        return self.kind in NETWORKS and not self.others


def read_parts(folder: Path) -> Parts:
    """The parts of the pipeline in `folder`.

    Raises:
        ValueError: it is no pipeline folder, has no network or several, or has parts that need their own code.
    """
    index = read_json(inside(folder, "model_index.json"), "a diffusers pipeline folder has one at its top")
    classes = _classes(folder, index)
    pipeline = index.get("_class_name")
    said = pipeline if isinstance(pipeline, str) else "pipeline"
    names = {
        part: WERE_CALLED.get(name, name)
        for part, (library, name) in classes.items()
        if library == "diffusers" or is_ours(library, name)
    }
    networks = {part: name for part, name in names.items() if is_network(name)}
    listed = ", ".join(
        sorted(name if library == "diffusers" else f"{library}.{name}" for library, name in classes.values())
    )
    if len(networks) != 1:
        raise ValueError(
            f"{folder} is a {said} of {listed or 'no parts'}; fewstep tunes pipelines whose one network is a UNet or a "
            "transformer of diffusers"
        )
    ((network, kind),) = networks.items()
    others = {part: name for part, (_, name) in classes.items() if part not in (network, "scheduler")}
    parts = Parts(said, network, kind, others)
    if not parts.is_bare:
        needs("pipelines")
        _check_known(folder, pipeline, classes)
    return parts


def is_network(name: str) -> bool:
    """Whether diffusers or fewstep has a denoising network of that class."""
    return name in OURS or str(getattr(_of_diffusers(name), "__module__", "")).startswith(HOMES)


def is_ours(library: str, name: str) -> bool:
    """Whether it is a network of fewstep."""
    return name in OURS and library.startswith("fewstep.")


def part_folder(folder: Path, part: str) -> Path:
    """The folder of `part`: that of its name, or in old repositories the pipeline's own folder."""
    return folder / part if inside(folder, part).is_dir() else folder


def _of_diffusers(name: str) -> Any:
    import diffusers

    return getattr(diffusers, name, None) if name.isidentifier() and not name.startswith("_") else None


def _check_known(folder: Path, pipeline: object, classes: dict[str, tuple[str, str]]) -> None:
    """Raises ValueError if the pipeline or one of its parts is neither of diffusers nor of transformers."""
    import diffusers
    from diffusers import pipelines

    kind = _of_diffusers(pipeline) if isinstance(pipeline, str) else None
    is_pipeline = isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)
    if not is_pipeline or kind is diffusers.DiffusionPipeline:
        raise ValueError(
            f"model_index.json in {folder} names the pipeline {pipeline!r:.80} of "
            f"{', '.join(sorted(name for _, name in classes.values()))}, which diffusers does not have; fewstep "
            "runs no code of a checkpoint"
        )
    for part, (library, name) in classes.items():
        if library not in ("diffusers", "transformers") and not hasattr(pipelines, library):
            raise ValueError(
                f"the {part} in {folder} is a {library}.{name}, which neither diffusers nor transformers has; fewstep "
                "runs no code of a checkpoint"
            )


def _classes(folder: Path, index: dict[str, object]) -> dict[str, tuple[str, str]]:
    """Library and class of each part that is not left out."""
    classes = {}
    for part, entry in index.items():
        if not (isinstance(entry, list) and len(entry) == 2) or part.startswith("_") or entry[1] is None:
            continue  # a setting, such as the class names of a DiT, or a part that is left out
        library, name = entry
        if not (isinstance(library, str) and isinstance(name, str) and part.isidentifier()):
            raise ValueError(f"model_index.json in {folder} says {entry!r} of its part {part!r}, not a library and a class")
        classes[part] = (library, name)
    return classes
