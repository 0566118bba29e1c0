"""LLaDA-MoE, SDAR's experts, MDLM, BD3LM, Nemotron: tiny checkpoints, against the published networks written plainly."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from masked.test_layouts import QWEN, Forgetful, gated, mlp
from masked.test_load import norm, random_weights, rotate, write
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, silu

from fewstep.masked.caching import Cached, Dual
from fewstep.masked.decoding import decode
from fewstep.masked.load import load_text
from fewstep.masked.predictor import NetworkPredictor, pad
from fewstep.masked.rules import KLASS, Blockwise, Threshold, TopK
from fewstep.masked.step import CommitRule

MASK = 38
MOE = {"num_experts": 8, "num_experts_per_tok": 3}
LLADA_MOE = {
    "architectures": ["LLaDAMoEModelLM"], "attention_bias": False, "attention_dropout": 0.0,
    "auto_map": {"AutoModel": "modeling_lladamoe.LLaDAMoEModelLM"}, "clip_qkv": None, "dense_intermediate_size": 48,
    "eos_token_id": 36, "expert_intermediate_size": 16, "hidden_act": "silu", "hidden_size": 32,
    "initializer_range": 0.02, "mask_token_id": MASK, "max_position_embeddings": 40, "model_type": "llada",
    "moe_layer_freq": [0, 1], "moe_router_enable_expert_bias": False, "moe_router_score_function": "softmax",
    "norm_topk_prob": None, "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 4,
    "output_router_logits": False, "pad_token_id": 36, "partial_rotary_factor": 1, "qk_layernorm": True,
    "rms_norm_eps": 1e-5, "rope_scaling": None, "rope_theta": 50000, "routed_scaling_factor": 1,
    "shared_expert_intermediate_size": None, "tie_word_embeddings": False, "vocab_size": 40, **MOE,
}  # fmt: skip
SDAR_MOE = QWEN | MOE | {
    "architectures": ["SDARMoeForCausalLM"], "attention_bias": False, "block_size": 4, "decoder_sparse_step": 1,
    "head_dim": 8, "mask_token_id": MASK, "mlp_only_layers": [], "model_type": "sdar_moe", "moe_intermediate_size": 16,
    "norm_topk_prob": True, "max_position_embeddings": 40,
}  # fmt: skip
MDLM = {
    "architectures": ["MDLM"], "auto_map": {"AutoModelForMaskedLM": "modeling_mdlm.MDLM"}, "cond_dim": 12, "dropout": 0.1,
    "hidden_dim": 32, "model_length": 40, "model_type": "mdlm", "n_blocks": 2, "n_heads": 4, "time_conditioning": False,
    "vocab_size": 39,
}  # fmt: skip
BD3LM = MDLM | {
    "adaln": True, "architectures": ["BD3LM"], "attn_backend": "flex", "block_size": 4, "causal": False,
    "cross_attn": True, "model_type": "bd3lm", "sampling_eps_max": 0.999, "sampling_eps_min": 0.001, "var_min": True,
}  # fmt: skip
ROPE = {
    "beta_fast": 32.0, "beta_slow": 1.0, "factor": 4.0, "llama_4_scaling_beta": 0.1, "mscale": 1.0, "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 10, "rope_theta": 10000.0, "rope_type": "yarn",
}  # fmt: skip
NEMOTRON = {
    "architectures": ["NemotronLabsDiffusionModel"], "attention_bias": False, "attn_implementation": "sdpa",
    "block_size": 4, "bos_token_id": 1, "dlm_paradigm": "bidirectional", "eos_token_id": 36, "head_dim": 8,
    "hidden_act": "silu", "hidden_size": 32, "intermediate_size": 48, "mask_token_id": MASK,
    "max_position_embeddings": 40, "mlp_bias": False, "model_type": "nemotron_labs_diffusion", "num_attention_heads": 4,
    "num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_parameters": ROPE,
    "sliding_window": None, "tie_word_embeddings": False, "vocab_size": 40,
}  # fmt: skip


def moe_weights(config: dict[str, Any]) -> dict[str, Tensor]:
    kv = 8 * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (40, 32), "model.norm.weight": (32,), "lm_head.weight": (40, 32)
    }  # fmt: skip
    for n in range(2):
        layer = {"input_layernorm.weight": (32,), "post_attention_layernorm.weight": (32,)}
        layer |= {f"self_attn.{p}_proj.weight": (rows, 32) for p, rows in zip("qkvo", (32, kv, kv, 32), strict=True)}
        layer |= {f"self_attn.{p}_norm.weight": (8,) for p in "qk"}
        if config.get("moe_layer_freq", [1, 1])[n]:
            layer |= {"mlp.gate.weight": (8, 32)}
            for expert in range(8):
                layer |= gated(f"mlp.experts.{expert}", 16)
        else:
            layer |= gated("mlp", 48)
        shapes |= {f"model.layers.{n}.{name}": shape for name, shape in layer.items()}
    return random_weights(shapes)


def dit_weights(config: dict[str, Any]) -> dict[str, Tensor]:
    level = config.get("adaln", True)
    shapes: dict[str, tuple[int, ...]] = {"vocab_embed.embedding": (39, 32), "rotary_emb.inv_freq": (4,)}
    if level:
        shapes |= {"sigma_map.mlp.0.weight": (12, 256), "sigma_map.mlp.0.bias": (12,), "sigma_map.mlp.2.weight": (12, 12),
                   "sigma_map.mlp.2.bias": (12,)}  # fmt: skip
    for n in range(2):
        layer = {"norm1.weight": (32,), "attn_qkv.weight": (96, 32), "attn_out.weight": (32, 32),
                 "norm2.weight": (32,), "mlp.0.weight": (128, 32), "mlp.0.bias": (128,),
                 "mlp.2.weight": (32, 128), "mlp.2.bias": (32,)}  # fmt: skip
        layer |= {"adaLN_modulation.weight": (192, 12), "adaLN_modulation.bias": (192,)} if level else {}
        shapes |= {f"blocks.{n}.{name}": shape for name, shape in layer.items()}
    last = {"norm_final.weight": (32,), "linear.weight": (39, 32), "linear.bias": (39,)}
    last |= {"adaLN_modulation.weight": (64, 12), "adaLN_modulation.bias": (64,)} if level else {}
    shapes |= {f"output_layer.{name}": shape for name, shape in last.items()}
    made = {f"backbone.{name}": 0.3 * value for name, value in random_weights(shapes).items()}
    return made | (
        {"sampling_eps_min": torch.tensor(1e-3), "sampling_eps_max": torch.tensor(0.999)} if "var_min" in config else {}
    )


def nemotron_weights(config: dict[str, Any]) -> dict[str, Tensor]:
    dense = {"moe_layer_freq": [0, 0]} | {"num_key_value_heads": 2}
    made = {name: value for name, value in moe_weights(dense).items() if "_norm.weight" not in name}
    return {name.replace("model.", "encoder.").replace("lm_head", "diffusion_head"): value for name, value in made.items()}


def attended(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """(L, heads, 8) each -> (L, D)."""
    k, v = (part.repeat_interleave(q.shape[1] // k.shape[1], 1) for part in (k, v))
    score = (torch.einsum("qhd,khd->hqk", q, k) / 8**0.5).masked_fill(~seen, -torch.inf)
    return torch.einsum("hqk,khd->qhd", score.softmax(-1), v).flatten(1)


def blocks(n: int, size: int) -> Tensor:
    at = torch.arange(n) // size
    return at[:, None] >= at


def plain_moe(ids: Tensor, weights: dict[str, Tensor], config: dict[str, Any]) -> Tensor:
    """Qwen3's attention, and of each token the best experts by softmax, their shares as they are or made to sum to one."""
    w = {name.removeprefix("model."): value.double() for name, value in weights.items()}
    x, eps = w["embed_tokens.weight"][ids], config["rms_norm_eps"]
    for n in range(2):
        name = f"layers.{n}"
        h = norm(x, w[f"{name}.input_layernorm.weight"], eps)
        q, k, v = ((h @ w[f"{name}.self_attn.{p}_proj.weight"].T).reshape(len(ids), -1, 8) for p in "qkv")
        q, k = (
            rotate(norm(t, w[f"{name}.self_attn.{p}_norm.weight"], eps), config["rope_theta"])
            for t, p in zip((q, k), "qk", strict=True)
        )
        seen = blocks(len(ids), config.get("block_size", len(ids)))
        x = x + attended(q, k, v, seen) @ w[f"{name}.self_attn.o_proj.weight"].T
        h = norm(x, w[f"{name}.post_attention_layernorm.weight"], eps)
        if f"{name}.mlp.gate.weight" not in w:
            x = x + mlp(h, w, f"{name}.mlp")
            continue
        shares = (h @ w[f"{name}.mlp.gate.weight"].T).softmax(-1)
        for place, share in enumerate(shares):
            best = sorted(range(8), key=lambda e, share=share: -float(share[e]))[:3]
            total = sum(share[e] for e in best) if config["norm_topk_prob"] else 1.0
            for e in best:
                x[place] += share[e] / total * mlp(h[place : place + 1], w, f"{name}.mlp.experts.{e}")[0]
    return norm(x, w["norm.weight"], eps) @ w["lm_head.weight"].T


def plain_dit(ids: Tensor, weights: dict[str, Tensor], config: dict[str, Any]) -> Tensor:
    """DiT's layers, which are told a noise level of 0; Sahoo et al. 2024, app. B."""
    w = {name.removeprefix("backbone."): value.double() for name, value in weights.items()}
    x, level = w["vocab_embed.embedding"][ids], None
    if config.get("adaln", True):
        angles = torch.tensor(0.0) * torch.exp(-math.log(10_000) * torch.arange(128, dtype=torch.float64) / 128)
        h = silu(torch.cat([angles.cos(), angles.sin()]) @ w["sigma_map.mlp.0.weight"].T + w["sigma_map.mlp.0.bias"])
        level = silu(h @ w["sigma_map.mlp.2.weight"].T + w["sigma_map.mlp.2.bias"])

    def told(name: str, parts: int) -> list[Tensor]:
        if level is None:
            return [torch.full((32,), float(k % 3 == 2), dtype=torch.float64) for k in range(parts)]
        return list((w[f"{name}.adaLN_modulation.weight"] @ level + w[f"{name}.adaLN_modulation.bias"]).chunk(parts))

    def normed(x: Tensor, name: str, shift: Tensor, scale: Tensor) -> Tensor:
        return layer_norm(x, [32]) * w[f"{name}.weight"] * (1 + scale) + shift

    for n in range(2):
        name = f"blocks.{n}"
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = told(name, 6)
        h = normed(x, f"{name}.norm1", shift, scale)
        q, k, v = (h @ w[f"{name}.attn_qkv.weight"].T).reshape(len(ids), 3, 4, 8).unbind(1)
        out = attended(rotate(q, 10_000.0), rotate(k, 10_000.0), v, blocks(len(ids), config.get("block_size", len(ids))))
        x = x + gate * (out @ w[f"{name}.attn_out.weight"].T)
        h = normed(x, f"{name}.norm2", shift_mlp, scale_mlp)
        h = gelu(h @ w[f"{name}.mlp.0.weight"].T + w[f"{name}.mlp.0.bias"], approximate="tanh")
        x = x + gate_mlp * (h @ w[f"{name}.mlp.2.weight"].T + w[f"{name}.mlp.2.bias"])
    h = normed(x, "output_layer.norm_final", *told("output_layer", 2))
    return h @ w["output_layer.linear.weight"].T + w["output_layer.linear.bias"]


def yarn(x: Tensor) -> Tensor:
    """x (L, H, 8): waves longer than the trained length turn `factor` times slower, those that turn often as ever.

    Peng et al. 2023, YaRN, sec. 3.2; its temperature is 1, as both mscale are.
    """
    j = torch.arange(4, dtype=torch.float64)
    plain = ROPE["rope_theta"] ** (-j / 4)

    def place(turns: float) -> float:
        """Which of the waves turns so often over the trained length."""
        return 4 * math.log(ROPE["original_max_position_embeddings"] / (turns * 2 * math.pi)) / math.log(ROPE["rope_theta"])

    low, high = max(math.floor(place(32.0)), 0), min(math.ceil(place(1.0)), 7)
    slow = ((j - low) / (high - low)).clamp(0, 1)
    angle = torch.arange(len(x))[:, None] * (plain / 4.0 * slow + plain * (1 - slow))
    a, b, cos, sin = x[..., :4], x[..., 4:], angle.cos()[:, None], angle.sin()[:, None]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def plain_nemotron(ids: Tensor, weights: dict[str, Tensor], config: dict[str, Any]) -> Tensor:
    """Ministral 3; finished blocks are read as a causal model reads, the first with a hole sees itself and them."""
    w = {name.removeprefix("encoder."): value.double() for name, value in weights.items()}
    x, at = w["embed_tokens.weight"][ids], torch.arange(len(ids))
    hole = int((ids == MASK).nonzero()[0]) // 4 if (ids == MASK).any() else len(ids)
    seen = torch.stack([at <= i if i // 4 < hole else at // 4 <= i // 4 for i in range(len(ids))])
    longer = 1 + 0.1 * torch.log(1 + at // 10)
    for n in range(2):
        name = f"layers.{n}"
        h = norm(x, w[f"{name}.input_layernorm.weight"], 1e-5)
        q, k, v = ((h @ w[f"{name}.self_attn.{p}_proj.weight"].T).reshape(len(ids), -1, 8) for p in "qkv")
        x = x + attended(yarn(q) * longer[:, None, None], yarn(k), v, seen) @ w[f"{name}.self_attn.o_proj.weight"].T
        x = x + mlp(norm(x, w[f"{name}.post_attention_layernorm.weight"], 1e-5), w, f"{name}.mlp")
    return norm(x, w["norm.weight"], 1e-5) @ w["diffusion_head.weight"].T


CASES = {
    "llada-moe": (LLADA_MOE, moe_weights, plain_moe), "sdar-moe": (SDAR_MOE, moe_weights, plain_moe),
    "mdlm": (MDLM, dit_weights, plain_dit), "bd3lm": (BD3LM, dit_weights, plain_dit),
    "bd3lm without a level": (BD3LM | {"adaln": False}, dit_weights, plain_dit),
    "nemotron": (NEMOTRON, nemotron_weights, plain_nemotron),
}  # fmt: skip
ROWS = [
    torch.tensor([1, 2, MASK, 4, MASK, MASK, 7]),
    torch.tensor([MASK, 9, MASK]),
    torch.tensor([*range(1, 11), MASK, 3, MASK, MASK, 5, MASK]),
    torch.tensor([5, 6, 7, 8, 9, MASK, MASK, MASK, MASK, 2]),
]


def loaded(name: str, folder: Path) -> NetworkPredictor:
    config, weights, _ = CASES[name]
    predictor = load_text(write(folder, config, weights(config)), dtype=torch.float64)
    if "moe" in name:
        predictor.network.set_experts_implementation("eager")  # the quick one has no float64
    return predictor


@pytest.mark.parametrize("name", CASES)
def test_a_loaded_checkpoint_is_the_published_architecture(name: str, tmp_path: Path) -> None:
    (config, weights, plain), predictor = CASES[name], loaded(name, tmp_path)
    canvas = pad(ROWS, MASK)
    with torch.no_grad():
        found = predictor(canvas, canvas.valid)
        read = predictor.reading(canvas).read(canvas, canvas.valid, canvas.valid)
    expected = torch.cat([plain(row, weights(config), config) for row in ROWS])
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)  # some of their norms and rotations are float32
    torch.testing.assert_close(read, found, atol=1e-9, rtol=1e-9)
    assert (predictor.mask_id, predictor.max_length, predictor.decoder) == (MASK, 40, True)
    assert predictor.block == (config.get("block_size"))


RULES: list[CommitRule] = [
    TopK(),
    Blockwise(TopK(), 4, aligned=True),
    Blockwise(Threshold(0.3), 4, aligned=True),
    Blockwise(TopK(), 3),
    Blockwise(KLASS(0.2, 2.0, 1), 4),
]


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("name", ["bd3lm", "nemotron"])
def test_finished_blocks_are_kept_exactly(name: str, rule: CommitRule, tmp_path: Path) -> None:
    predictor = loaded(name, tmp_path)
    alone = [decode(Forgetful(predictor), [row], rule, seeds=[n])[0] for n, row in enumerate(ROWS)]
    for batch in (1, 3):
        for a, b in zip(alone, decode(predictor, ROWS, rule, batch=batch), strict=True):
            assert torch.equal(a.ids, b.ids) and torch.equal(a.committed_at, b.committed_at)


def test_mdlm_takes_a_cache_too(tmp_path: Path) -> None:
    predictor = loaded("mdlm", tmp_path)
    rule = Blockwise(TopK(), 4)
    exact = decode(predictor, ROWS, rule, batch=2)
    for a, b in zip(exact, decode(Cached(predictor, Dual(4, refresh=1)), ROWS, rule, batch=2), strict=True):
        assert torch.equal(a.ids, b.ids)


def test_the_mask_token_and_the_end_that_no_config_names(tmp_path: Path) -> None:
    predictor = load_text(write(tmp_path, MDLM, dit_weights(MDLM)))
    assert (predictor.mask_id, predictor.eos_ids, predictor.block) == (MASK, (), None)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (LLADA_MOE | {"clip_qkv": 8.0}, "this LLaDA-MoE has clip_qkv = 8.0"),
        (LLADA_MOE | {"moe_layer_freq": [1, 1, 1]}, "one entry for each layer"),
        (LLADA_MOE | {"num_experts_per_tok": 9}, "chooses 9 of 8 experts, which cannot be"),
        (SDAR_MOE | {"num_experts": 9}, "do not fit|could not be loaded"),
        (MDLM | {"time_conditioning": True}, "this MDLM has time_conditioning = True; only False"),
        (MDLM | {"n_blocks": 3}, "do not fit"),
        (MDLM | {"hidden_dim": 30}, "do not fit|makes no network|could not be loaded"),
        (BD3LM | {"causal": True}, "this BD3LM has causal = True"),
        (BD3LM | {"block_size": 0}, "no length of a block"),
        (NEMOTRON | {"dlm_paradigm": "autoregressive"}, "dlm_paradigm = 'autoregressive'"),
        ({key: value for key, value in NEMOTRON.items() if key != "rope_parameters"}, "does not say its rope_parameters"),
        (NEMOTRON | {"rope_parameters": {"rope_type": "nonsense"}}, "makes no"),
    ],
)
def test_other_variants_are_refused_by_name(config: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    kind = config["model_type"]
    weights = {"mdlm": dit_weights, "bd3lm": dit_weights, "nemotron_labs_diffusion": nemotron_weights}.get(
        kind, moe_weights
    )
    with pytest.raises(ValueError, match=sentence):
        load_text(write(tmp_path, config, weights(config)))


def test_weights_of_another_layout_are_refused(tmp_path: Path) -> None:
    weights = dit_weights(MDLM)
    del weights["backbone.blocks.1.norm2.weight"]
    with pytest.raises(ValueError, match=r"do not fit its config\.json, for example backbone\.blocks\.1\.norm2"):
        load_text(write(tmp_path / "missing", MDLM, weights))
    more = dit_weights(MDLM) | {"backbone.extra.weight": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"do not fit its config\.json, for example backbone\.extra"):
        load_text(write(tmp_path / "more", MDLM, more))
