"""What the configuration of a checkpoint may say, before transformers sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .source import inside, read_json

DTYPES = ("float64", "float32", "float16", "bfloat16")
# PyTorch decides how attention and experts are computed, not the checkpoint; a name with a slash means native code.
WAYS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
# entries that name code, other files or other repositories, or say how a network is called; all are ignored
DROPPED = ("auto_map", "custom_pipelines", "custom_generate", "configuration_files", "transformers_weights", "name_or_path",
           "_name_or_path", "init_inputs", "tp_plan", "distributed_config", "fusion_config", "return_dict",
           "return_dict_in_generate", "output_hidden_states", "output_attentions", "output_scores", "output_logits",
           "torchscript", *WAYS)  # fmt: skip
REFUSED = {
    "quantization_config": "its weights are quantised; give the model that they were made from, in 16 or 32 bits",
    "compression_config": "its weights are compressed; give the model that they were made from, in 16 or 32 bits",
    "use_kernels": "it asks for native code from elsewhere, which fewstep does not load; take that entry out",
    "kernel_config": "it asks for native code from elsewhere, which fewstep does not load; take that entry out",
    "backbone": "it takes a part of the network from elsewhere; give a model that is complete",
    "use_timm_backbone": "it takes a part of the network from timm; give a model of transformers alone",
}
COUNTED = ("layer", "depth", "block", "label", "types")  # parts of the names of entries from which lists are made
MOST_COUNTED = 1_000_000  # above any token id, as those stand in lists, too
LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")


def read_config(folder: Path, what: str) -> dict[str, Any]:
    """A model's config.json without the entries that name code, kernels or other places.

    Args:
        folder: of the model.
        what: what should be given, for the error messages, such as "folder of a language model".

    Raises:
        ValueError: config.json is missing, or asks for something that fewstep does not do.
    """
    file = inside(folder, "config.json")
    content: dict[str, Any] = cleaned(read_json(file, f"give a {what}"), file)
    if not isinstance(content.get("model_type"), str):
        raise ValueError(f"{file} does not say its model_type; give a {what}")
    return content


def cleaned(value: Any, file: Path, name: str = "") -> Any:
    """`value`, the content of a checkpoint's JSON `file`, without the entries that are ignored, at any depth.

    Raises:
        ValueError: an entry asks for something that fewstep does not do, or is too large or too small for any network.
    """
    if isinstance(value, dict):
        _check(value, file)
        return {
            key: cleaned(entry, file, key)
            for key, entry in value.items()
            if key not in DROPPED and key not in REFUSED and not key.endswith("_file")
        }
    if isinstance(value, list):
        return [cleaned(entry, file, "types") for entry in value]
    if isinstance(value, int):
        if value > MOST_COUNTED and any(part in name for part in COUNTED):
            raise ValueError(f"{file} has {name} = {value}, more than any network; the file is broken")
        if name.startswith(("num_", "n_")) and value < (1 if name in LAYERS else 0):
            raise ValueError(f"{file} has {name} = {value}, fewer than any network; the file is broken")
    return value


def _check(entries: dict[str, Any], file: Path) -> None:
    for key, entry in entries.items():
        if key in REFUSED and entry:
            raise ValueError(f"{file} has {key}: {REFUSED[key]}")
        if key in WAYS and "/" in json.dumps(entry):
            raise ValueError(f"{file} has {key} = {entry!r}, native code from elsewhere, which fewstep does not load")
        if key in ("dtype", "torch_dtype") and entry is not None and entry not in DTYPES:
            raise ValueError(f"{file} has {key} = {entry!r}; fewstep computes in {', '.join(DTYPES)}")
    if str(entries.get("model_type", "")).startswith("timm"):
        raise ValueError(f"{file} describes a model of timm; fewstep reads those of transformers")
