"""Models that were trained on blocks: published layouts against the architecture written plainly, and exact caches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from masked.test_load import norm, random_weights, rotate, write
from masked.test_reopening import Doubt
from masked.tiny_bert import call, word_tokenizer, write_prompts
from torch import Tensor

from fewstep.cli.text import decode as decode_command
from fewstep.masked.caching import Cached, Dual
from fewstep.masked.committing import Rule
from fewstep.masked.decoding import decode, walk
from fewstep.masked.early import EarlyCommit
from fewstep.masked.load import load_text
from fewstep.masked.predictor import Canvas, Guided, NetworkPredictor, pad
from fewstep.masked.reading import Plain
from fewstep.masked.rules import KLASS, Blockwise, Threshold, TopK
from fewstep.masked.schedule import Stairs
from fewstep.masked.step import CommitRule

MASK = 38
QWEN = {
    "attention_dropout": 0.0, "bos_token_id": 36, "eos_token_id": 36, "hidden_act": "silu", "hidden_size": 32,
    "initializer_range": 0.02, "intermediate_size": 48, "max_position_embeddings": 40, "max_window_layers": 2,
    "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": False,
    "use_cache": False, "use_sliding_window": False, "vocab_size": 40,
}  # fmt: skip
SDAR = QWEN | {
    "architectures": ["SDARForCausalLM"], "attention_bias": False, "attn_implementation": "flex_attention",
    "auto_map": {"AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM"}, "block_size": 4, "debug": False, "ep_size": 1,
    "fuse_cross_entropy": True, "head_dim": 8, "mask_token_id": MASK, "micro_forward": False, "model_type": "sdar",
    "skip_checkpoint": False, "use_deepep": False,
}  # fmt: skip
FAST_DLLM = QWEN | {
    "architectures": ["Fast_dLLM_QwenForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling.Fast_dLLM_QwenForCausalLM"},
    "bd_size": 8, "layer_types": ["full_attention"] * 2, "model_type": "Fast_dLLM_Qwen", "mask_token_id": MASK,
}  # fmt: skip
LLADA2 = {
    "architectures": ["LLaDA2MoeModelLM"], "attention_dropout": 0.0, "eos_token_id": 36, "first_k_dense_replace": 1,
    "auto_map": {"AutoModelForCausalLM": "modeling_llada2_moe.LLaDA2MoeModelLM"}, "head_dim": 8, "hidden_act": "silu",
    "hidden_size": 32, "initializer_range": 0.02, "intermediate_size": 48, "mask_token_id": MASK,
    "max_position_embeddings": 80, "model_type": "llada2_moe", "moe_intermediate_size": 16,
    "moe_router_enable_expert_bias": True, "n_group": 4, "norm_head": False, "norm_topk_prob": True,
    "num_attention_heads": 4, "num_experts": 16, "num_experts_per_tok": 3, "num_hidden_layers": 2,
    "num_key_value_heads": 2, "num_shared_experts": 1, "output_router_logits": False, "pad_token_id": 36,
    "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 600000, "rotary_dim": 4,
    "routed_scaling_factor": 2.5, "router_dtype": "fp32", "score_function": "sigmoid", "tie_word_embeddings": False,
    "topk_group": 2, "use_bias": False, "use_qk_norm": True, "use_qkv_bias": False, "vocab_size": 40,
}  # fmt: skip


def gated(name: str, inner: int) -> dict[str, tuple[int, ...]]:
    shapes = {"gate": (inner, 32), "up": (inner, 32), "down": (32, inner)}
    return {f"{name}.{part}_proj.weight": shape for part, shape in shapes.items()}


def weights_of(config: dict[str, Any]) -> dict[str, Tensor]:
    """Random ones under the published names."""
    llada2, sdar = config["model_type"] == "llada2_moe", config["model_type"] == "sdar"
    shapes: dict[str, tuple[int, ...]] = {"model.norm.weight": (32,), "lm_head.weight": (40, 32)}
    shapes[f"model.{'word_embeddings' if llada2 else 'embed_tokens'}.weight"] = (40, 32)
    for n in range(2):
        layer: dict[str, tuple[int, ...]] = {name + "_layernorm.weight": (32,) for name in ("input", "post_attention")}
        if llada2:
            layer |= {"attention.query_key_value.weight": (64, 32), "attention.dense.weight": (32, 32),
                      "attention.query_layernorm.weight": (8,), "attention.key_layernorm.weight": (8,)}  # fmt: skip
        else:
            layer |= {f"self_attn.{p}_proj.weight": (size, 32) for p, size in zip("qkvo", (32, 16, 16, 32), strict=True)}
            layer |= {f"self_attn.{p}_norm.weight": (8,) for p in "qk" if sdar}
            layer |= {f"self_attn.{p}_proj.bias": (size,) for p, size in zip("qkv", (32, 16, 16), strict=True) if not sdar}
        if llada2 and n >= 1:
            layer |= {"mlp.gate.weight": (16, 32), "mlp.gate.expert_bias": (16,)} | gated("mlp.shared_experts", 16)
            for expert in range(16):
                layer |= gated(f"mlp.experts.{expert}", 16)
        else:
            layer |= gated("mlp", 48)
        shapes |= {f"model.layers.{n}.{name}": shape for name, shape in layer.items()}
    return random_weights(shapes)


def mlp(h: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    gate = h @ w[f"{name}.gate_proj.weight"].T
    return (gate * gate.sigmoid() * (h @ w[f"{name}.up_proj.weight"].T)) @ w[f"{name}.down_proj.weight"].T


def experts(h: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    """Token by token: the best groups by their two best experts, the best experts in them, weighed by their own scores."""
    out = mlp(h, w, f"{name}.shared_experts")
    for place, x in enumerate(h):
        score = (w[f"{name}.gate.weight"] @ x).sigmoid()
        ranked = score + w[f"{name}.gate.expert_bias"]
        groups = [sum(sorted(ranked[4 * g : 4 * g + 4].tolist())[-2:]) for g in range(4)]
        among = [e for g in sorted(range(4), key=lambda g: -groups[g])[:2] for e in range(4 * g, 4 * g + 4)]
        chosen = sorted(among, key=lambda e: -float(ranked[e]))[:3]
        total = sum(score[e] for e in chosen)
        for e in chosen:
            out[place] += 2.5 * score[e] / total * mlp(x[None], w, f"{name}.experts.{e}")[0]
    return out


def plain(ids: Tensor, weights: dict[str, Tensor], config: dict[str, Any], block: int) -> Tensor:
    """Logits (L, V) of one row, as the architecture is published; in float64."""
    w = {name.removeprefix("model."): value.double() for name, value in weights.items()}
    llada2, eps, theta = config["model_type"] == "llada2_moe", config["rms_norm_eps"], config["rope_theta"]
    x = w["word_embeddings.weight" if llada2 else "embed_tokens.weight"][ids]
    at = torch.arange(len(ids)) // block
    for n in range(2):
        name = f"layers.{n}"
        h = norm(x, w[f"{name}.input_layernorm.weight"], eps)
        if llada2:
            q, k, v = (h @ w[f"{name}.attention.query_key_value.weight"].T).split([32, 16, 16], -1)
        else:
            q, k, v = (
                h @ w[f"{name}.self_attn.{p}_proj.weight"].T + w.get(f"{name}.self_attn.{p}_proj.bias", 0.0) for p in "qkv"
            )
        q, k, v = (t.reshape(len(ids), -1, 8) for t in (q, k, v))
        for theirs in (("attention.query_layernorm", "attention.key_layernorm"), ("self_attn.q_norm", "self_attn.k_norm")):
            if f"{name}.{theirs[0]}.weight" in w:
                q, k = (norm(t, w[f"{name}.{part}.weight"], eps) for t, part in zip((q, k), theirs, strict=True))
        turned = 4 if llada2 else 8  # the first half of a head only
        q, k = (torch.cat([rotate(t[..., :turned], theta), t[..., turned:]], -1) for t in (q, k))
        k, v = (t.repeat_interleave(2, 1) for t in (k, v))
        score = torch.einsum("qhd,khd->hqk", q, k) / 8**0.5
        score = score.masked_fill(at[:, None] < at, -torch.inf)  # no block sees a later one
        out = torch.einsum("hqk,khd->qhd", score.softmax(-1), v).flatten(1)
        x = x + out @ w[f"{name}.attention.dense.weight" if llada2 else f"{name}.self_attn.o_proj.weight"].T
        h = norm(x, w[f"{name}.post_attention_layernorm.weight"], eps)
        x = x + (experts(h, w, f"{name}.mlp") if llada2 and n == 1 else mlp(h, w, f"{name}.mlp"))
    logits = norm(x, w["norm.weight"], eps) @ w["lm_head.weight"].T
    return torch.cat([logits[:1], logits[:-1]]) if config["model_type"] == "Fast_dLLM_Qwen" else logits


CASES = {"sdar": (SDAR, 4), "fast-dllm v2": (FAST_DLLM, 8), "llada2": (LLADA2, 32)}
RULES: list[CommitRule] = [
    TopK(),
    Blockwise(TopK(), 4, aligned=True),
    Blockwise(Threshold(0.3), 4, aligned=True),
    Blockwise(TopK(), 3),
    Blockwise(KLASS(0.2, 2.0, 1), 4),
    EarlyCommit(Blockwise(TopK(), 4, aligned=True), Stairs((2.0,), ())),
    Blockwise(Doubt(0.2, 0.9), 4, aligned=True),
]
ROWS = [
    torch.tensor([*range(1, 1 + 3 * n % 8), *[MASK] * (1 + 5 * n % 12), *([7] if n % 3 == 0 else []), *[MASK] * (n % 5)])
    for n in range(6)
]
LONG = [torch.tensor([*range(1, 1 + n), *[MASK] * 12]) for n in (5, 33, 25)]  # LLaDA2's blocks have 32


def loaded(name: str, folder: Path, dtype: torch.dtype = torch.float64) -> NetworkPredictor:
    config, _ = CASES[name]
    predictor = load_text(write(folder, config, weights_of(config)), dtype=dtype)
    if name == "llada2" and dtype == torch.float64:
        predictor.network.set_experts_implementation("eager")  # the quick one has no float64
    return predictor


@pytest.mark.parametrize("name", CASES)
def test_a_loaded_checkpoint_is_the_published_architecture(name: str, tmp_path: Path) -> None:
    (config, block), predictor = CASES[name], loaded(name, tmp_path)
    rows = LONG if name == "llada2" else [*ROWS, *LONG[:1]]
    canvas, weights = pad(rows, MASK), weights_of(config)
    with torch.no_grad():
        found = predictor(canvas, canvas.valid)
        read = predictor.reading(canvas).read(canvas, canvas.valid, canvas.valid)
    expected = torch.cat([plain(row, weights, config, block) for row in rows])
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)  # their norms and rotations are float32
    torch.testing.assert_close(read, found, atol=1e-9, rtol=1e-9)
    assert (predictor.mask_id, predictor.block, predictor.eos_ids) == (MASK, block, (36,))


class Forgetful:
    """The same predictor without a memory."""

    def __init__(self, predictor: NetworkPredictor) -> None:
        self.predictor, self.mask_id, self.eos_ids = predictor, predictor.mask_id, predictor.eos_ids
        self.networks = predictor.networks

    def __call__(self, canvas: Canvas, wanted: Tensor) -> Tensor:
        return self.predictor(canvas, wanted)  # type: ignore[no-any-return]

    def reading(self, canvas: Canvas) -> Plain:
        return Plain(self.predictor)


@pytest.mark.parametrize(
    ("name", "rule"),
    [*((name, rule) for name in ("sdar", "fast-dllm v2") for rule in RULES), ("llada2", RULES[1])],
    ids=repr,
)
def test_finished_blocks_are_kept_exactly(name: str, rule: CommitRule, tmp_path: Path) -> None:
    """Ids are those without a cache, at any batch, and so are the logits but for what the order of sums costs."""
    predictor, rows = loaded(name, tmp_path), LONG if name == "llada2" else ROWS
    alone = [decode(Forgetful(predictor), [row], rule, seeds=[n])[0] for n, row in enumerate(rows)]
    for batch in (1, 4):
        for a, b in zip(alone, decode(predictor, rows, rule, batch=batch), strict=True):
            assert torch.equal(a.ids, b.ids) and torch.equal(a.committed_at, b.committed_at)
    pairs = zip(
        walk(Guided(Forgetful(predictor), 2.0), rows, rule, temperature=0.5, batch=3),
        walk(Guided(predictor, 2.0), rows, rule, temperature=0.5, batch=3), strict=True,
    )  # fmt: skip
    for one, other in pairs:
        torch.testing.assert_close(one.step.logits, other.step.logits, atol=1e-9, rtol=1e-9)
        assert torch.equal(one.rows.ids, other.rows.ids)


def test_what_a_kept_block_saves(tmp_path: Path) -> None:
    """Prompt of six, fourteen masks, blocks of four, one token a step: a block is computed alone while it is decided."""
    predictor, row = loaded("sdar", tmp_path), torch.tensor([1, 2, 3, 4, 5, 6, *[MASK] * 14])
    (found,) = decode(predictor, [row], Blockwise(TopK(), 4, aligned=True))
    first, second = 8 + 4, (8 + 3 * 4) * 3  # the prompt's block with the first; then each with the finished one before it
    assert (found.nfe, found.positions) == (14, first + second)
    (whole,) = decode(Forgetful(predictor), [row], Blockwise(TopK(), 4, aligned=True))
    assert whole.positions == 14 * 20


def test_blocks_begin_where_the_model_has_them(tmp_path: Path) -> None:
    open = torch.tensor([[False] * 6 + [True] * 14])
    seen = [
        Blockwise(TopK(), 4, aligned=aligned).sees(open, open)[0].nonzero().flatten().tolist() for aligned in (True, False)
    ]
    assert seen == [[6, 7], [6, 7, 8, 9]]
    words = word_tokenizer(special=False)
    assert Rule(rule="low-confidence").made(words, 4) == Blockwise(TopK(), 4, aligned=True)
    assert Rule(rule="low-confidence", block_length=2).made(words, 4) == Blockwise(TopK(), 2, aligned=True)
    with pytest.raises(ValueError, match="trained on blocks of 4, which --block-length 32 does not divide"):
        Rule(block_length=32).made(words, 4)


def test_decoding_at_the_command_line(tmp_path: Path) -> None:
    config = SDAR | {"mask_token_id": 1, "eos_token_id": 39}
    folder = write(tmp_path / "model", config, weights_of(config))
    word_tokenizer(special=False).save_pretrained(folder)
    out, prompts = tmp_path / "o.jsonl", write_prompts(tmp_path / "p.jsonl")
    call(decode_command, folder, file=prompts, out=out, gen_length=12, batch=2)
    told = json.loads((tmp_path / "o.jsonl.receipt.json").read_text())
    assert (told["rule"]["length"], told["rule"]["aligned"]) == (4, True)
    with pytest.raises(
        ValueError, match="trained on blocks, and its finished ones are kept as they are; leave the cache out"
    ):
        call(decode_command, folder, file=prompts, out=out, gen_length=12, cache="dual")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (SDAR | {"attention_bias": True}, "this SDAR has attention_bias = True"),
        ({key: value for key, value in SDAR.items() if key != "block_size"}, "does not say its block_size"),
        (SDAR | {"block_size": 0}, "block_size = 0, which is no length of a block"),
        (FAST_DLLM | {"rope_scaling": {"type": "yarn"}}, "this Fast-dLLM v2 has rope_scaling"),
        (LLADA2 | {"score_function": "softmax"}, "this LLaDA2 has score_function = 'softmax'; only 'sigmoid'"),
        (LLADA2 | {"num_key_value_heads": 4}, "do not fit"),
        (LLADA2 | {"n_group": 3}, "chooses 3 of 16 experts from 2 of 3 groups, which cannot be"),
        (LLADA2 | {"num_experts_per_tok": 9}, "chooses 9 of 16 experts"),
    ],
)
def test_other_variants_are_refused_by_name(config: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        load_text(write(tmp_path, config, weights_of(config)))


def test_no_approximate_cache_over_an_exact_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="trained on blocks"):
        Cached(loaded("sdar", tmp_path), Dual())
