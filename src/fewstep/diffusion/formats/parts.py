"""What a pipeline folder is made of: which part is its network, and whether fewstep would drop another."""

from __future__ import annotations

from pathlib import Path

from ...core.source import inside, read_json

NETWORKS = ("UNet2DModel", "DiTTransformer2DModel")
WERE_CALLED = {"Transformer2DModel": "DiTTransformer2DModel"}  # published DiTs bear the older name


def network_part(folder: Path) -> str:
    """The name of the one part in the pipeline `folder` that is a network; nothing but a scheduler may stand beside it.

    Raises:
        ValueError: no pipeline folder, another network, or parts that a tuned model would lack.
    """
    index = read_json(inside(folder, "model_index.json"), "a diffusers pipeline folder has one at its top")
    classes = _classes(folder, index)
    networks = [part for part, name in classes.items() if WERE_CALLED.get(name, name) in NETWORKS]
    pipeline = index.get("_class_name")
    pipeline = pipeline if isinstance(pipeline, str) else "pipeline"
    if len(networks) != 1:
        raise ValueError(
            f"{folder} is a {pipeline} of {', '.join(sorted(classes.values())) or 'no parts'}; "
            f"fewstep tunes pipelines whose one network is a {' or '.join(NETWORKS)}"
        )
    others = sorted(part for part in classes if part not in (*networks, "scheduler"))
    if others:
        lost = ", ".join(f"{part} ({classes[part]})" for part in others)
        raise ValueError(
            f"{folder} is a {pipeline} with {lost}, which a tuned model "
            "would lack; fewstep does not read such pipelines yet. To tune its network on latents of your own, leave only "
            f"{networks[0]} and scheduler in a copy of its model_index.json"
        )
    return networks[0]


def part_folder(folder: Path, part: str) -> Path:
    """Where `part` lies: in a folder of its name; old repositories keep the parts of a pipeline at its top."""
    return folder / part if inside(folder, part).is_dir() else folder


def _classes(folder: Path, index: dict[str, object]) -> dict[str, str]:
    """The class of each part that is there."""
    classes = {}
    for part, entry in index.items():
        if not (isinstance(entry, list) and len(entry) == 2) or part.startswith("_") or entry[1] is None:
            continue  # a setting, such as the names of a DiT's classes, or a part that was left out
        library, name = entry
        if not (isinstance(library, str) and isinstance(name, str) and part.isidentifier()):
            raise ValueError(f"model_index.json in {folder} says {entry!r} of its part {part!r}, not a library and a class")
        classes[part] = name if library == "diffusers" else f"{library}.{name}"
    return classes
