"""MDLM's network, a DiT at noise level 0, as the plain transformer that it then equals.

The published models were trained without the noise level (`time_conditioning` is false), so its effect on each layer is
constant: a scale and a shift after each norm, and a gate at each layer's output. They are multiplied into the neighbouring
weights exactly. The result is a pre-norm transformer with rotary positions: transformers' Starcoder2, with a bias in its
last layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEFT_OUT = ("backbone.rotary_emb.inv_freq", "backbone.mask", "sampling_eps_min", "sampling_eps_max")  # no weights
LEVEL = "backbone.sigma_map.mlp"
MODULATION = "adaLN_modulation"


def of_decoder(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """MDLM's or BD3LM's weights under Starcoder2's names, with noise level 0 folded in.

    Raises:
        ValueError: weights are missing or have another shape.

    Reference: Sahoo et al. 2024, Masked Diffusion Language Models (MDLM); Arriola et al. 2025, Block Diffusion.
    """
    left = {name: value for name, value in weights.items() if name not in LEFT_OUT}
    try:
        level = _level(left)
        made = {"model.embed_tokens.weight": left.pop("backbone.vocab_embed.embedding")}
        for n in range(sum(name.endswith(".attn_qkv.weight") for name in weights)):
            made |= _layer(left, f"backbone.blocks.{n}.", f"model.layers.{n}.", level)
        shift, scale = _modulation(left, "backbone.output_layer.", level, 2, made["model.embed_tokens.weight"].shape[1])
        norm = left.pop("backbone.output_layer.norm_final.weight")
        made |= _normalised("model.norm", norm, shift, scale)
        made |= {f"lm_head.{part}": left.pop(f"backbone.output_layer.linear.{part}") for part in ("weight", "bias")}
    except KeyError as error:
        raise ValueError(f"the weights do not fit its config.json, for example {error.args[0]}") from error
    except (IndexError, RuntimeError, ValueError) as error:
        raise ValueError(f"the weights do not fit its config.json: {error}") from error
    return made | left  # unknown weights are refused later, by name


def _level(left: dict[str, Tensor]) -> Tensor | None:
    """The embedding of noise level 0 for all layers, (C,) float64; None for a network without a noise level."""
    if f"{LEVEL}.0.weight" not in left:
        return None
    first, first_bias, second, second_bias = (
        left.pop(f"{LEVEL}.{n}.{part}").double() for n in (0, 2) for part in ("weight", "bias")
    )  # fmt: skip
    waves = torch.zeros(first.shape[1], dtype=torch.float64, device=first.device)
    waves[: len(waves) // 2] = 1  # the cosines of 0, then its sines
    inner = torch.nn.functional.silu(first @ waves + first_bias)
    return torch.nn.functional.silu(second @ inner + second_bias)


def _modulation(left: dict[str, Tensor], name: str, level: Tensor | None, parts: int, width: int) -> tuple[Tensor, ...]:
    """The vectors (D,), `parts` of them, of a layer at noise level 0; without a level shifts and scales are 0, gates 1."""
    if level is None:
        nothing = torch.zeros(width, dtype=torch.float64)
        return tuple(nothing + 1 if place % 3 == 2 else nothing for place in range(parts))
    weight, bias = (left.pop(f"{name}{MODULATION}.{part}").double() for part in ("weight", "bias"))
    made = (weight @ level + bias).chunk(parts)
    if len(made) != parts or any(part.shape != (width,) for part in made):
        raise ValueError(f"{name}{MODULATION}.weight")
    return made


def _layer(left: dict[str, Tensor], theirs: str, ours: str, level: Tensor | None) -> dict[str, Tensor]:
    attention, out = left.pop(f"{theirs}attn_qkv.weight"), left.pop(f"{theirs}attn_out.weight")
    width = len(out)
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = _modulation(left, theirs, level, 6, width)
    made = _normalised(f"{ours}input_layernorm", left.pop(f"{theirs}norm1.weight"), shift, scale)
    made |= _normalised(f"{ours}post_attention_layernorm", left.pop(f"{theirs}norm2.weight"), shift_mlp, scale_mlp)
    for letter, part in zip("qkv", attention.split(width), strict=True):
        made[f"{ours}self_attn.{letter}_proj.weight"] = part.contiguous()
    made[f"{ours}self_attn.o_proj.weight"] = (gate[:, None] * out.double()).to(out.dtype)
    made |= {f"{ours}self_attn.{letter}_proj.bias": out.new_zeros(width) for letter in "qkvo"}
    for place, name in ((0, "c_fc"), (2, "c_proj")):
        made |= {f"{ours}mlp.{name}.{part}": left.pop(f"{theirs}mlp.{place}.{part}") for part in ("weight", "bias")}
    for part, factor in (("weight", gate_mlp[:, None]), ("bias", gate_mlp)):
        last = made[f"{ours}mlp.c_proj.{part}"]
        made[f"{ours}mlp.c_proj.{part}"] = (factor * last.double()).to(last.dtype)
    return made


def _normalised(name: str, norm: Tensor, shift: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """A layer norm with weight norm·(1 + scale) and bias shift."""
    weight = norm.double() * (1 + scale)
    return {f"{name}.weight": weight.to(norm.dtype), f"{name}.bias": shift.to(norm.dtype)}
