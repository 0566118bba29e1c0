"""Converts ADM networks (EDM's DhariwalUNet, openai's UNetModel) to an equivalent UNet2DModel of diffusers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from .ladder import Rung, ladder
from .pickles import RefusedError

# channel multipliers of openai's networks -> side of their pictures
SIZES = {(1, 2, 3, 4): 64, (1, 1, 2, 3, 4): 128, (1, 1, 2, 2, 4, 4): 256}
RESIDUAL = {"norm0": "norm1", "conv0": "conv1", "affine": "time_emb_proj", "norm1": "norm2", "conv1": "conv2",
            "skip": "conv_shortcut"}  # fmt: skip
WHOLE = {"map_layer0": "time_embedding.linear_1", "map_layer1": "time_embedding.linear_2", "out_norm": "conv_norm_out",
         "out_conv": "conv_out"}  # fmt: skip
# openai's names for EDM's layers
OPENAI = {"in_layers.0": "norm0", "in_layers.2": "conv0", "emb_layers.1": "affine", "out_layers.0": "norm1",
          "out_layers.3": "conv1", "skip_connection": "skip"}  # fmt: skip
OPENAI_ATTENTION = {"norm": "norm2", "qkv": "qkv", "proj_out": "proj"}
OPENAI_WHOLE = {"time_embed.0": "map_layer0", "time_embed.2": "map_layer1", "out.0": "out_norm", "out.2": "out_conv",
                "label_emb.weight": "map_label.weight", "input_blocks.0.0": "conv"}  # fmt: skip


def in_diffusers(
    weights: Mapping[str, Tensor], size: int, *, head: int, interleaved: bool = True
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings and weights of the UNet2DModel that is equivalent to a DhariwalUNet with these `weights`.

    Args:
        weights: weights by EDM's names.
        size: side of the pictures.
        head: channels of an attention head.
        interleaved: whether q, k and v are interleaved by channel, as in EDM, or concatenated.

    Raises:
        RefusedError: no UNet2DModel is equivalent.
    """
    down, up = rungs(weights, size)
    levels = len({rung.size for rung in down})
    widths = [next(rung.outputs for rung in up if rung.size == size >> level and rung.last) for level in range(levels)]
    attends = [f"enc.{side}x{side}_block0.qkv.weight" in weights for side in (size >> level for level in range(levels))]
    settings: dict[str, Any] = {
        "sample_size": size,
        "in_channels": down[0].inputs,
        "out_channels": len(weights["out_conv.weight"]),
        "block_out_channels": widths,
        "layers_per_block": sum(rung.kind == "block" for rung in down) // levels,
        "attention_head_dim": head,
        "attn_norm_num_groups": 32,
        "down_block_types": ["AttnDownBlock2D" if each else "ResnetDownsampleBlock2D" for each in attends],
        "up_block_types": ["AttnUpBlock2D" if each else "ResnetUpsampleBlock2D" for each in reversed(attends)],
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift" if _shifts_and_scales(weights, down[1]) else "default",
        "num_class_embeds": weights["map_label.weight"].shape[1] if "map_label.weight" in weights else None,
        "norm_eps": 1e-5,
    }
    _check_exact(weights, widths, head, smallest=128 if interleaved else 32)
    renamed = dict(_renamed(weights, down, up, levels, interleaved=interleaved))
    if "map_label.weight" in weights:
        renamed["class_embedding.weight"] = weights["map_label.weight"].T
    return settings, renamed


def from_openai(weights: Mapping[str, Tensor], size: int | None) -> tuple[int, dict[str, Tensor]]:
    """The size of the pictures, and the weights of openai's UNetModel by EDM's names; q, k and v keep their order.

    Raises:
        RefusedError: the network has other blocks, or its channels do not determine the size.
    """
    ups = [k for k in range(1000) if _has_up(weights, k)]
    count = 1 + max((int(name.split(".")[1]) for name in weights if name.startswith("output_blocks.")), default=-1)
    levels = len(ups) + 1
    blocks = count // levels - 1
    if blocks < 1 or count % levels or any(name.endswith(".op.weight") for name in weights):
        raise RefusedError(
            "has other blocks than openai's published networks (resblock_updown), so no UNet2DModel is equivalent"
        )
    widths = [_width(weights, f"input_blocks.{1 + level * (blocks + 1)}.0") for level in range(levels)]
    stem = len(weights["input_blocks.0.0.weight"])
    size = size or SIZES.get(tuple(width // stem for width in widths))
    if size is None:
        raise RefusedError(
            f"has {levels} sizes of {widths} channels, which do not determine the size of its pictures; give --size"
        )
    down, up = ladder(size, weights["input_blocks.0.0.weight"].shape[1], stem, widths, blocks)
    places = {
        "middle_block.0": f"dec.{up[0].name}",
        "middle_block.1": f"dec.{up[0].name}",
        "middle_block.2": f"dec.{up[1].name}",
    }
    for index, rung in enumerate(down):
        places |= {f"input_blocks.{index}.{part}": f"enc.{rung.name}" for part in (0, 1)}
    for index, rung in enumerate([rung for rung in up if rung.kind == "block"]):
        places |= {f"output_blocks.{index}.{part}": f"dec.{rung.name}" for part in (0, 1)}
        if rung.last and rung.size < size:
            part = 2 if f"output_blocks.{index}.2.in_layers.2.weight" in weights else 1
            places[f"output_blocks.{index}.{part}"] = f"dec.{2 * rung.size}x{2 * rung.size}_up"
    named = {}
    for name, weight in weights.items():
        said = _edm_name(name, places, down[0])
        if said in named:
            raise RefusedError(f"has {name} twice; download it again")
        named[said] = weight[..., None] if said.endswith(("qkv.weight", "proj.weight")) and weight.ndim == 3 else weight
    if "map_label.weight" in named:
        named["map_label.weight"] = named["map_label.weight"].T
    return size, named


def rungs(weights: Mapping[str, Tensor], size: int, layer: str = "conv0") -> tuple[tuple[Rung, ...], tuple[Rung, ...]]:
    """Encoder and decoder of a network by its weights under EDM's names; `layer` is the first layer of a block."""
    found = [re.fullmatch(rf"enc\.(\d{{1,5}})x\1_block(\d{{1,5}})\.{layer}\.weight", name) for name in weights]
    blocks = [(int(each[1]), int(each[2])) for each in found if each]
    sides = sorted({side for side, _ in blocks}, reverse=True)
    count = sum(side == size for side, _ in blocks)
    if not blocks or sides != [size >> level for level in range(len(sides))] or len(blocks) != count * len(sides):
        raise RefusedError("has other blocks than a network for pictures of that size")
    widths = [len(weights[f"enc.{side}x{side}_block0.{layer}.weight"]) for side in sides]
    first = weights[f"enc.{size}x{size}_conv.weight"]
    return ladder(size, first.shape[1], len(first), widths, count)


def _has_up(weights: Mapping[str, Tensor], index: int) -> bool:
    return any(f"output_blocks.{index}.{part}.in_layers.2.weight" in weights for part in (1, 2))


def _width(weights: Mapping[str, Tensor], block: str) -> int:
    name = f"{block}.out_layers.3.weight"
    if name not in weights:
        raise RefusedError(f"has no {name}, which every network of openai has; download it again")
    return len(weights[name])


def _edm_name(name: str, places: Mapping[str, str], first: Rung) -> str:
    """EDM's name for a weight of openai's network."""
    if name in OPENAI_WHOLE:
        return OPENAI_WHOLE[name]
    module, _, kind = name.rpartition(".")
    if module in OPENAI_WHOLE:
        said = OPENAI_WHOLE[module]
        return f"enc.{first.name}.{kind}" if said == "conv" else f"{said}.{kind}"
    place = next((place for place in (".".join(name.split(".")[:n]) for n in (3, 2)) if place in places), None)
    layer = module[len(place) + 1 :] if place else ""
    said = OPENAI.get(layer) or OPENAI_ATTENTION.get(layer, "")
    if place is None or not said:
        raise RefusedError(f"has {name:.100}, which no published network of openai has")
    return f"{places[place]}.{said}.{kind}"


def _shifts_and_scales(weights: Mapping[str, Tensor], rung: Rung) -> bool:
    name = f"enc.{rung.name}.affine.weight"
    return name in weights and len(weights[name]) == 2 * rung.outputs


def _check_exact(weights: Mapping[str, Tensor], widths: list[int], head: int, *, smallest: int) -> None:
    """Raises RefusedError if a UNet2DModel would differ in ways that shapes do not show."""
    told, embedded = weights["map_layer0.weight"].shape[::-1]
    if (told, embedded) != (widths[0], 4 * widths[0]):
        raise RefusedError("has a time embedding of another width than any UNet2DModel, so diffusers has no such network")
    if min(widths) < smallest:  # EDM has groups of at least four channels, diffusers always 32 groups
        raise RefusedError(
            f"has blocks of fewer than {smallest} channels, which UNet2DModel would normalise in other groups"
        )
    if any(len(weight) % (3 * head) for name, weight in weights.items() if name.endswith(".qkv.weight")):
        raise RefusedError(
            f"has attention channels that are no multiple of {head}; give the channels of a head with --head"
        )


def _renamed(
    weights: Mapping[str, Tensor], down: tuple[Rung, ...], up: tuple[Rung, ...], levels: int, *, interleaved: bool
) -> Iterator[tuple[str, Tensor]]:
    """All weights by diffusers' names."""
    size = down[0].size
    places = {f"enc.{down[0].name}": ("conv_in", "")}
    for rung in down[1:]:
        level = (size // rung.size).bit_length() - 1
        at = f"down_blocks.{level - (rung.kind == 'down')}"
        places[f"enc.{rung.name}"] = _place(at, rung)
    for rung in up:
        level = levels - (size // rung.size).bit_length()
        at = "mid_block" if rung.kind.startswith("in") else f"up_blocks.{level - (rung.kind == 'up')}"
        places[f"dec.{rung.name}"] = _place(at, rung)
    for name, weight in weights.items():
        module, _, kind = name.rpartition(".")
        if module in WHOLE:
            yield f"{WHOLE[module]}.{kind}", weight
        elif module in places:
            yield f"{places[module][0]}.{kind}", weight
        elif name != "map_label.weight" and kind != "resample_filter":  # ADM networks have the same filter as diffusers
            block, _, layer = module.rpartition(".")
            if block not in places or layer not in {*RESIDUAL, *OPENAI_ATTENTION.values()}:
                raise RefusedError(f"has {name:.100}, which no published network of EDM has")
            residual, attention = places[block]
            if layer in RESIDUAL:
                yield f"{residual}.{RESIDUAL[layer]}.{kind}", weight
            elif layer == "qkv":
                parts = _split(weight.flatten(1) if kind == "weight" else weight, interleaved=interleaved)
                yield from ((f"{attention}.to_{word}.{kind}", part) for word, part in zip("qkv", parts, strict=True))
            else:
                flat = weight.flatten(1) if layer == "proj" and kind == "weight" else weight
                yield f"{attention}.{ {'norm2': 'group_norm', 'proj': 'to_out.0'}[layer] }.{kind}", flat


def _place(at: str, rung: Rung) -> tuple[str, str]:
    """Diffusers' names of the residual part and of the attention of a block."""
    if rung.kind in ("down", "up"):
        return f"{at}.{rung.kind}samplers.0", ""
    number = rung.name.rpartition("block")[2] if rung.kind == "block" else rung.kind[-1]
    return f"{at}.resnets.{number}", f"{at}.attentions.{number}"


def _split(weight: Tensor, *, interleaved: bool) -> tuple[Tensor, ...]:
    """Splits a joint weight into q, k and v, with the channels of a head together."""
    if len(weight) % 3:
        raise RefusedError("has attention that is not made of queries, keys and values")
    return weight.unflatten(0, (-1, 3)).unbind(1) if interleaved else weight.chunk(3)
