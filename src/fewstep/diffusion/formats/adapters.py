"""Adapter files for `load_lora_weights` of diffusers and for ComfyUI."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.source import inside
from ...core.weights import check_finite, read_weights

FILE = "pytorch_lora_weights.safetensors"  # diffusers' name
COMFY = "comfyui_lora.safetensors"
METADATA = "lora_adapter_metadata"  # diffusers' key for the configuration of peft
IN_COMFY = {  # transformers whose layers ComfyUI knows by diffusers' names
    "AuraFlowTransformer2DModel", "FluxTransformer2DModel", "PixArtTransformer2DModel", "QwenImageTransformer2DModel",
    "SD3Transformer2DModel", "ZImageTransformer2DModel",
}  # fmt: skip


def write_adapter(folder: Path, network: nn.Module, factors: Mapping[str, Tensor]) -> None:
    """Writes the file for `load_lora_weights` of the network's pipeline.

    Args:
        folder: folder for the file.
        network: the adapted network.
        factors: PLACE.lora_A.weight and PLACE.lora_B.weight of each layer; B·A is added with scale 1.
    """
    from safetensors.torch import save_file

    part = part_of(network)
    ranks = {name.removesuffix(".lora_A.weight"): len(a) for name, a in factors.items() if name.endswith(".lora_A.weight")}
    most = max(ranks.values())
    others = {f"^{place}": rank for place, rank in ranks.items() if rank != most}
    config: dict[str, Any] = {
        "r": most, "lora_alpha": most, "target_modules": sorted(ranks), "rank_pattern": others, "alpha_pattern": others,
        "lora_bias": False, "use_dora": False,
    }  # fmt: skip
    said = json.dumps({f"{part}.{name}": value for name, value in config.items()}, indent=2, sort_keys=True)
    tensors = {f"{part}.{name}": factor.float().cpu().contiguous() for name, factor in factors.items()}
    save_file(tensors, folder / FILE, metadata={"format": "pt", METADATA: said})


def write_for_comfyui(folder: Path, network: nn.Module, factors: Mapping[str, Tensor]) -> None:
    """Writes the factors under ComfyUI's names: those of kohya for a UNet, those of diffusers for a transformer.

    Raises:
        ValueError: ComfyUI does not know this network's layers by diffusers' names.
    """
    from safetensors.torch import save_file

    check_for_comfyui(network)
    tensors = {}
    for name, factor in factors.items():
        place, _, which = name.removesuffix(".weight").rpartition(".")
        if part_of(network) == "unet":
            place = "lora_unet_" + place.replace(".", "_")
            which = {"lora_A": "lora_down", "lora_B": "lora_up"}[which]
        else:
            place = f"transformer.{place}"
        tensors[f"{place}.{which}.weight"] = factor.float().cpu().contiguous()
        if which in ("lora_A", "lora_down"):
            tensors[f"{place}.alpha"] = torch.tensor(float(len(factor)))
    save_file(tensors, folder / COMFY, metadata={"format": "pt"})


def check_for_comfyui(network: nn.Module) -> None:
    """Raises ValueError if ComfyUI has no names for the network's layers."""
    kind = type(network).__name__
    if kind != "UNet2DConditionModel" and kind not in IN_COMFY:
        raise ValueError(f"ComfyUI does not know the layers of a {kind} by diffusers' names; leave --form comfyui out")


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """Reads the factors that `write_adapter` wrote.

    Raises:
        ValueError: the file is broken, or holds other tensors or values that are not finite.
    """
    weights = read_weights(folder, (FILE,))
    check_finite(weights.items(), folder)
    found = {}
    for name, factor in weights.items():
        part, _, rest = name.partition(".")
        if part not in ("unet", "transformer") or not rest.endswith((".lora_A.weight", ".lora_B.weight")):
            raise ValueError(f"{FILE} in {folder} holds {name}, which is no factor of a LoRA; save the student again")
        found[rest] = factor
    return found


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter and no pipeline."""
    return inside(folder, FILE).exists() and not inside(folder, "model_index.json").exists()


def part_of(network: nn.Module) -> str:
    """The name of the network's part in a pipeline."""
    return "unet" if "UNet" in type(network).__name__ else "transformer"
