"""Recognises published networks by the names and shapes of their tensors."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .adm import from_openai, in_diffusers, rungs
from .pickles import RefusedError

# a weight that identifies each layout, and beginnings of weights that are not needed: augmentation and uncertainty
SIGNS = {"openai": "input_blocks.0.0.weight", "edm": "map_layer0.weight", "edm2": "emb_fourier.freqs"}
NEEDLESS = ("map_augment.", "logvar_", "n_averaged")
HEAD = 64  # channels of an attention head in all published networks
# settings in files that shapes do not determine, and those that they do, by EDM's names
UNSHAPED = {"dropout", "label_balance", "concat_balance", "channels_per_head", "res_balance", "attn_balance", "clip_act",
            "resample_filter"}  # fmt: skip
SHAPED = {"img_resolution", "img_channels", "in_channels", "out_channels", "label_dim", "augment_dim", "model_channels",
          "channel_mult", "channel_mult_emb", "channel_mult_noise", "num_blocks", "attn_resolutions", "embedding_type",
          "encoder_type", "decoder_type", "model_type"}  # fmt: skip
SCALAR = {"sample_size", "in_channels", "out_channels", "block_out_channels", "layers_per_block", "attention_head_dim",
          "down_block_types", "up_block_types", "resnet_time_scale_shift"}  # fmt: skip  # settings of a ScalarUNet
ELSEWHERE = {"use_fp16", "sigma_data", "sigma_min", "sigma_max", "label_dropout", "logvar_channels"}


@dataclass(frozen=True)
class Layout:
    """A recognised network: its class, settings and weights, and whether its time is 250·ln σ instead of ln σ/4."""

    kind: str
    settings: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    thousandfold: bool = False


def recognised(
    tensors: Mapping[str, Tensor], told: Mapping[str, Any], *, size: int | None, head: int | None, part: str | None
) -> Layout:
    """Recognises the network of these tensors.

    Args:
        tensors: tensors by name, with any prefix.
        told: settings of the network in the file.
        size: side of the pictures, if the tensors do not determine it.
        head: channels of an attention head; 64 by default.
        part: prefix of the network's names, if there are several networks.

    Raises:
        RefusedError: there is no known network or several, or a setting is not supported.
    """
    layout, weights = _chosen(tensors, part)
    unknown = told.keys() - UNSHAPED - SHAPED - ELSEWHERE
    if unknown:
        raise RefusedError(f"has the setting {min(unknown):.100}, which no published network has")
    for name in UNSHAPED & told.keys():
        _check(name, told[name])
    if layout == "openai":
        number = {name: weight for name, weight in weights.items() if re.fullmatch(r"label_emb\.[02]\.\w+", name)}
        plain = {name: weight for name, weight in weights.items() if name not in number}
        size, named = from_openai(plain, size)
        settings, renamed = in_diffusers(named, size, head=head or HEAD, interleaved=False)
        if number:
            told_one = {f"unet.{name}": weight for name, weight in renamed.items()} | number
            kept = {name: value for name, value in settings.items() if name in SCALAR}
            return Layout("ScalarUNet", kept, told_one, thousandfold=True)
        return Layout("UNet2DModel", settings, renamed, thousandfold=True)
    size, dropout = _size(weights), {"dropout": told["dropout"]} if "dropout" in told else {}
    if layout == "edm2":
        return Layout("EDM2UNet", _edm2(weights, size, told, head), _scalars(weights))
    if "out_norm.weight" in weights:
        settings, renamed = in_diffusers(weights, size, head=head or HEAD)
        return Layout("UNet2DModel", settings | dropout, renamed)
    song = _song(weights, size) | dropout
    return Layout("SongUNet", song, {name: weight for name, weight in weights.items() if "resample_filter" not in name})


def _chosen(tensors: Mapping[str, Tensor], part: str | None) -> tuple[str, dict[str, Tensor]]:
    """The layout, and the weights of its only network or of the only average."""
    found = {
        name.removesuffix(sign): layout
        for name in tensors
        for layout, sign in SIGNS.items()
        if name == sign or name.endswith(f".{sign}")
    }
    if not found:
        raise RefusedError("holds no network of EDM, EDM2, ECT, FastGen or openai/consistency_models")
    if part is not None:
        chosen = [root for root in found if root.startswith(part)]
    else:
        chosen = [root for root in found if "ema" in root] if len(found) > 1 else [*found]
    if len(chosen) != 1:
        roots = ", ".join(sorted(f"{root:.40}".rstrip(".") for root in found))
        raise RefusedError(f"holds several networks ({roots}); say which one with --part")
    (root,) = chosen
    weights = {name.removeprefix(root): tensor for name, tensor in tensors.items() if name.startswith(root)}
    return found[root], {name: weight for name, weight in weights.items() if not name.startswith(NEEDLESS)}


def _size(weights: Mapping[str, Tensor]) -> int:
    found = [re.fullmatch(r"enc\.(\d{1,5})x\1_conv\.weight", name) for name in weights]
    sizes = [int(each[1]) for each in found if each]
    if len(sizes) != 1:
        raise RefusedError("has no first layer with the size of its pictures; download it again")
    return sizes[0]


def _song(weights: Mapping[str, Tensor], size: int) -> dict[str, Any]:
    channels = len(weights[f"enc.{size}x{size}_conv.weight"])
    embedded, told = weights["map_layer0.weight"].shape
    _check_multiples(channels, embedded, told)
    if told != channels and "map_noise.freqs" not in weights:  # FastGen's mean flow looks like this
        raise RefusedError(
            "has two times, or a time embedding of another width than any published network; fewstep does not read it"
        )
    beside = {"residual": "_aux_residual.weight", "skip": "_aux_skip.weight"}
    return _ladder(weights, size, channels, "qkv") | {
        "in_channels": weights[f"enc.{size}x{size}_conv.weight"].shape[1],
        "out_channels": len(_of(weights, f"dec.{size}x{size}_aux_conv.weight")),
        "num_class_embeds": weights["map_label.weight"].shape[1] if "map_label.weight" in weights else None,
        "channel_mult_emb": embedded // channels,
        "channel_mult_noise": told // channels,
        "embedding_type": "fourier" if "map_noise.freqs" in weights else "positional",
        "encoder_type": next(
            (kind for kind, end in beside.items() if any(name.endswith(end) for name in weights)), "standard"
        ),
        "decoder_type": "skip" if sum(name.endswith("_aux_conv.weight") for name in weights) > 1 else "standard",
        "resample_filter": _taps(weights),
    }


def _edm2(weights: Mapping[str, Tensor], size: int, told: Mapping[str, Any], head: int | None) -> dict[str, Any]:
    embedded, noise = _of(weights, "emb_noise.weight").shape
    down, _ = rungs(weights, size, layer="conv_res0")
    unit = math.gcd(embedded, noise, *(rung.outputs for rung in down))
    picked = {name: told[name] for name in UNSHAPED & told.keys()}
    return _ladder(weights, size, unit, "attn_qkv", layer="conv_res0") | picked | {
        "in_channels": down[0].inputs - 1,
        "out_channels": len(_of(weights, "out_conv.weight")),
        "num_class_embeds": weights["emb_label.weight"].shape[1] if "emb_label.weight" in weights else None,
        "channel_mult_emb": embedded // unit,
        "channel_mult_noise": noise // unit,
        **({} if head is None else {"channels_per_head": head}),
    }  # fmt: skip


def _ladder(weights: Mapping[str, Tensor], size: int, unit: int, attention: str, *, layer: str = "conv0") -> dict[str, Any]:
    """The common settings of EDM's three networks; their channels are multiples of `unit`."""
    down, _ = rungs(weights, size, layer=layer)
    widths = {rung.size: rung.outputs for rung in down if rung.kind == "block"}
    _check_multiples(unit, *widths.values())
    return {
        "sample_size": size,
        "model_channels": unit,
        "channel_mult": [width // unit for width in widths.values()],
        "layers_per_block": sum(rung.kind == "block" and rung.size == size for rung in down),
        "attn_resolutions": [side for side in widths if f"enc.{side}x{side}_block0.{attention}.weight" in weights],
    }


def _check_multiples(unit: int, *widths: int) -> None:
    if not unit or any(not width or width % unit for width in widths):
        raise RefusedError(
            f"has layers of widths that are no multiples of {unit}, so it is no published network; download it again"
        )


def _check(name: str, value: Any) -> None:
    """Raises RefusedError if a setting is not valid."""
    each = value if isinstance(value, list | tuple) and name == "resample_filter" and 0 < len(value) <= 16 else [value]
    numbers = (isinstance(one, int | float) and not isinstance(one, bool) and 0 <= one <= 1 << 20 for one in each)
    if not all(numbers) and not (name == "clip_act" and value is None):
        raise RefusedError(f"has the invalid setting {name} = {reprlib.repr(value):.40}; download it again")


def _of(weights: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in weights:
        raise RefusedError(f"has no {name}, which every such network has; download it again")
    return weights[name]


def _taps(weights: Mapping[str, Tensor]) -> list[int]:
    """The taps of the resampling filter, whose rows and columns are multiples of them."""
    filters = [weight for name, weight in weights.items() if name.endswith(".resample_filter") and weight.ndim == 4]
    if not filters:
        return [1, 1]
    sums = filters[0].float().sum((0, 1, 2))
    return [round(float(each)) for each in sums / sums.min()]


def _scalars(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with gains as scalars, which FastGen stores as lists of one number."""
    return {
        name: weight.reshape(()) if name.endswith("_gain") and weight.shape == (1,) else weight
        for name, weight in weights.items()
    }
