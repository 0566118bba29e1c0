"""The layouts of published masked diffusion models as transformers' own classes, so no code of a checkpoint is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..core.weights import in_short

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

LLADA_EOT = 126348  # <|eot_id|>: ends a turn of the instruction-tuned LLaDA; its config names <|endoftext|> only
# LLaDA's names -> Llama's, as regular expressions of at most one group, as transformers demands
LLADA_NAMES = {
    r"^model\.transformer\.wte\.": "model.embed_tokens.",
    r"^model\.transformer\.ln_f\.": "model.norm.",
    r"^model\.transformer\.ff_out\.": "lm_head.",
    r"^model\.transformer\.blocks\.(\d+)\.attn_norm\.": r"model.layers.\1.input_layernorm.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_norm\.": r"model.layers.\1.post_attention_layernorm.",
    r"^model\.transformer\.blocks\.(\d+)\.q_proj\.": r"model.layers.\1.self_attn.q_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.k_proj\.": r"model.layers.\1.self_attn.k_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.v_proj\.": r"model.layers.\1.self_attn.v_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.attn_out\.": r"model.layers.\1.self_attn.o_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_proj\.": r"model.layers.\1.mlp.gate_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.up_proj\.": r"model.layers.\1.mlp.up_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_out\.": r"model.layers.\1.mlp.down_proj.",
}
# settings that Llama has; a checkpoint with others is another architecture
LLADA_MUST = {
    "block_type": ("llama",), "layer_norm_type": ("rms",), "activation_type": ("silu",), "rope": (True,),
    "alibi": (False,), "include_bias": (False,), "include_qkv_bias": (False,), "bias_for_layer_norm": (False, None),
    "attention_layer_norm": (False,), "input_emb_norm": (False,), "scale_logits": (False,),
    "multi_query_attention": (False, None), "layer_norm_with_affine": (True,), "block_group_size": (1,),
}  # fmt: skip
DREAM_MUST = {
    "hidden_act": ("silu",), "use_sliding_window": (False,), "use_mrope": (False,), "rope_scaling": (None,),
}  # fmt: skip
QWEN_MUST = {
    "hidden_act": ("silu",), "use_sliding_window": (False,), "rope_scaling": (None,), "attention_bias": (False,),
}  # fmt: skip
LLADA2_MUST = {
    "hidden_act": ("silu",), "score_function": ("sigmoid",), "norm_topk_prob": (True,), "use_qk_norm": (True,),
    "use_bias": (False,), "use_qkv_bias": (False,), "norm_head": (False,), "rope_scaling": (None,),
    "moe_router_enable_expert_bias": (True,), "use_sliding_window": (False,), "num_nextn_predict_layers": (0, None),
}  # fmt: skip
LLADA2_NAMES = {
    "model.word_embeddings.": "model.embed_tokens.", ".attention.dense.": ".self_attn.o_proj.",
    ".attention.query_layernorm.": ".self_attn.q_norm.", ".attention.key_layernorm.": ".self_attn.k_norm.",
    ".mlp.gate.expert_bias": ".mlp.gate.e_score_correction_bias",
}  # fmt: skip
LLADA2_BLOCK, LLADA2_MASK = 32, 156895  # not in its config.json; the mask token is LLaDA-MoE's, too
LLADA_MOE_MUST = {
    "hidden_act": ("silu",), "qk_layernorm": (True,), "moe_router_enable_expert_bias": (False, None), "clip_qkv": (None,),
    "shared_expert_intermediate_size": (None,), "attention_bias": (False,), "rope_scaling": (None,),
    "norm_topk_prob": (False, None), "partial_rotary_factor": (1, None),
}  # fmt: skip
MDLM_MUST = {"time_conditioning": (False,), "causal": (False,)}
MDLM_END = 50256  # GPT-2's <|endoftext|>, which ends a document; its mask token is the last of the vocabulary
NEMOTRON_MUST = {
    "hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,), "sliding_window": (None,),
    "dlm_paradigm": ("bidirectional", "block_diff", "sbd_block_diff"),
}  # fmt: skip
NEMOTRON_NAMES = {r"^encoder\.": "model.", r"^diffusion_head\.": "lm_head."}
FAST_DLLM_MASK = 151665  # |<MASK>|: not in its config.json, and a plain token of its tokenizer
QWEN_TURN = 151645  # <|im_end|>: ends a turn; SDAR's config.json names <|endoftext|> only


@dataclass(frozen=True)
class Layout:
    """A published model's config.json in terms of transformers.

    Attributes:
        config: of transformers' own class.
        names: regular expression on the file's weight names -> replacement, which gives transformers' names.
        changed: a further change of the weights; None if there is none.
        shift: whether the logits for position i stand at i − 1.
        block: length of the blocks that the model was trained on; None: no blocks.
        causal: whether a token of a finished block sees only the tokens before it.
        bias: whether the last layer has a bias, which transformers' class lacks.
        mask_id: the mask token, if config.json does not name it.
        ends: tokens that end a text, besides those in config.json, if the vocabulary has them.
    """

    config: PreTrainedConfig
    names: Mapping[str, str] = field(default_factory=dict)
    changed: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None
    shift: bool = False
    block: int | None = None
    causal: bool = False
    bias: bool = False
    mask_id: int | None = None
    ends: tuple[int, ...] = ()


def layout_of(kind: str, config: dict[str, Any]) -> Layout | None:
    """The layout of a model_type in lower case; None for every other one.

    Raises:
        ValueError: the model is a variant that transformers' class does not cover.
    """
    known = {
        "llada": _llada, "lladamoe": _llada_moe, "dream": _dream, "sdar": _sdar, "sdar_moe": _sdar_moe,
        "fast_dllm_qwen": _fast_dllm, "llada2_moe": _llada2, "llada21_moe": _llada2, "mdlm": _mdlm, "bd3lm": _mdlm,
        "nemotron_labs_diffusion": _nemotron,
    }  # fmt: skip
    return known[kind](config) if kind in known else None


def _demand(config: dict[str, Any], must: dict[str, tuple[Any, ...]], what: str) -> None:
    for key, allowed in must.items():
        if key in config and config[key] not in allowed:
            raise ValueError(f"this {what} has {key} = {config[key]!r}; only {allowed[0]!r} is supported")


def _llada(config: dict[str, Any]) -> Layout:
    """LLaDA and LLaDA 1.5, and LLaDA-MoE under the same model_type."""
    from transformers import LlamaConfig

    if config.get("num_experts"):
        return _llada_moe(config)
    _demand(config, LLADA_MUST, "LLaDA")
    entries = {
        "vocab_size": ("embedding_size", "vocab_size"), "hidden_size": ("d_model",), "num_hidden_layers": ("n_layers",),
        "intermediate_size": ("mlp_hidden_size",), "num_attention_heads": ("n_heads",),
        "num_key_value_heads": ("n_kv_heads", "n_heads"), "max_position_embeddings": ("max_sequence_length",),
        "rms_norm_eps": ("rms_norm_eps",), "tie_word_embeddings": ("weight_tying",), "rope_theta": ("rope_theta",),
    }  # fmt: skip
    if config.get("mlp_hidden_size") is None and isinstance(config.get("mlp_ratio"), int):
        config = config | {"mlp_hidden_size": config["mlp_ratio"] * _said(config, ("d_model",), "LLaDA")}
    made = _bidirectional(LlamaConfig, {name: _said(config, keys, "LLaDA") for name, keys in entries.items()})
    return Layout(made, LLADA_NAMES, ends=(LLADA_EOT,))


def _llada_moe(config: dict[str, Any]) -> Layout:
    """LLaDA-MoE. The weights of its experts are not normalised, whatever its config.json says."""
    from transformers import Qwen3MoeConfig

    what = "LLaDA-MoE"
    _demand(config, LLADA_MOE_MUST, what)
    named = config | {"intermediate_size": config.get("dense_intermediate_size") or 1}
    entries = _of_qwen(named, what) | _of_experts(named, what, "expert_intermediate_size")
    sparse = config.get("moe_layer_freq", [1] * int(entries["num_hidden_layers"]))
    if not isinstance(sparse, list) or len(sparse) != entries["num_hidden_layers"]:
        raise ValueError(f"this {what}'s config.json has moe_layer_freq = {sparse!r}; it has one entry for each layer")
    dense = [n for n, times in enumerate(sparse) if not times]
    size = {"head_dim": int(entries["hidden_size"]) // max(int(entries["num_attention_heads"]), 1)}
    made = _bidirectional(Qwen3MoeConfig, entries | size | {"norm_topk_prob": False, "mlp_only_layers": dense})
    return Layout(made, mask_id=LLADA2_MASK)


def _dream(config: dict[str, Any]) -> Layout:
    """Dream, Dream-Coder and DiffuCoder."""
    from transformers import Qwen2Config

    _demand(config, DREAM_MUST, "Dream")
    return Layout(_bidirectional(Qwen2Config, _of_qwen(config, "Dream")), shift=True)


def _sdar(config: dict[str, Any]) -> Layout:
    from transformers import Qwen3Config

    _demand(config, QWEN_MUST, "SDAR")
    made = _bidirectional(Qwen3Config, _of_qwen(config, "SDAR") | {"head_dim": _said(config, ("head_dim",), "SDAR")})
    return Layout(made, block=_block(config, "block_size", "SDAR"), ends=(QWEN_TURN,))


def _sdar_moe(config: dict[str, Any]) -> Layout:
    from transformers import Qwen3MoeConfig

    what = "SDAR"
    _demand(config, QWEN_MUST, what)
    entries = _of_qwen(config, what) | _of_experts(config, what, "moe_intermediate_size")
    entries |= {"head_dim": _said(config, ("head_dim",), what)}
    kept = ("norm_topk_prob", "mlp_only_layers", "decoder_sparse_step")
    made = _bidirectional(Qwen3MoeConfig, entries | {key: config[key] for key in kept if key in config})
    return Layout(made, block=_block(config, "block_size", what), ends=(QWEN_TURN,))


def _fast_dllm(config: dict[str, Any]) -> Layout:
    from transformers import Qwen2Config

    _demand(config, QWEN_MUST, "Fast-dLLM v2")
    made = _bidirectional(Qwen2Config, _of_qwen(config, "Fast-dLLM v2"))
    return Layout(made, shift=True, block=_block(config, "bd_size", "Fast-dLLM v2"), mask_id=FAST_DLLM_MASK)


def _llada2(config: dict[str, Any]) -> Layout:
    from transformers import Glm4MoeConfig

    what = "LLaDA2"
    _demand(config, LLADA2_MUST, what)
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rope_theta",
            "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "head_dim",
            "moe_intermediate_size", "num_experts_per_tok", "routed_scaling_factor", "n_group", "topk_group",
            "first_k_dense_replace", "partial_rotary_factor")  # fmt: skip
    entries = {key: _said(config, (key,), what) for key in same}
    entries |= {"n_routed_experts": _said(config, ("num_experts",), what)}
    entries |= {"n_shared_experts": _said(config, ("num_shared_experts",), what)}
    each, groups, chosen, among = (
        int(entries[key]) for key in ("num_experts_per_tok", "n_group", "topk_group", "n_routed_experts")
    )  # fmt: skip
    if not (1 <= chosen <= groups and among % groups == 0 and 1 <= each <= among // groups * chosen and among > groups):
        raise ValueError(
            f"this LLaDA2's config.json chooses {each} of {among} experts from {chosen} of {groups} groups, which cannot be"
        )
    made = _bidirectional(Glm4MoeConfig, entries | {"use_qk_norm": True, "norm_topk_prob": True, "num_mtp_layers": 0})
    heads = [int(entries[name]) for name in ("num_attention_heads", "num_key_value_heads", "num_key_value_heads")]
    rows = [n * int(entries["head_dim"]) for n in heads]
    return Layout(
        made, changed=lambda weights: _llada2_weights(weights, rows), block=LLADA2_BLOCK, mask_id=LLADA2_MASK
    )  # fmt: skip


def _llada2_weights(weights: dict[str, Tensor], rows: list[int]) -> dict[str, Tensor]:
    """The weights under transformers' names; the table of queries, keys and values, `rows` of each, is split in three."""
    made = {}
    for given, value in weights.items():
        name = given
        for theirs, ours in LLADA2_NAMES.items():
            name = name.replace(theirs, ours)
        if ".attention.query_key_value." not in name:
            made[name] = value
        elif value.ndim == 0 or len(value) != sum(rows) or min(rows) < 1:
            raise ValueError(f"the weights do not fit their config.json, for example {name}")
        else:
            for letter, part in zip("qkv", value.split(rows), strict=True):
                made[name.replace(".attention.query_key_value.", f".self_attn.{letter}_proj.")] = part.contiguous()
    return made


def _mdlm(config: dict[str, Any]) -> Layout:
    """MDLM, and BD3LM, its variant with blocks; without time conditioning they are plain transformers."""
    from transformers import Starcoder2Config

    from .dit import of_decoder

    what = "BD3LM" if config["model_type"].lower() == "bd3lm" else "MDLM"
    _demand(config, MDLM_MUST, what)
    names = {
        "vocab_size": "vocab_size", "hidden_size": "hidden_dim", "num_hidden_layers": "n_blocks",
        "num_attention_heads": "n_heads", "num_key_value_heads": "n_heads", "max_position_embeddings": "model_length",
    }  # fmt: skip
    entries = {ours: _said(config, (theirs,), what) for ours, theirs in names.items()}
    fixed = {"intermediate_size": 4 * entries["hidden_size"], "rope_theta": 10_000.0, "tie_word_embeddings": False}
    made = _bidirectional(Starcoder2Config, entries | fixed)
    block = _block(config, "block_size", what) if what == "BD3LM" and config.get("cross_attn", True) else None
    if block is not None and block >= entries["max_position_embeddings"]:
        block = None  # a single block is no block
    return Layout(
        made, changed=of_decoder, bias=True, block=block, mask_id=int(entries["vocab_size"]) - 1, ends=(MDLM_END,)
    )  # fmt: skip


def _nemotron(config: dict[str, Any]) -> Layout:
    """Nemotron-Labs-Diffusion."""
    from transformers import Ministral3Config

    what = "Nemotron diffusion model"
    _demand(config, NEMOTRON_MUST, what)
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        raise ValueError(f"this {what}'s config.json does not say its rope_parameters")
    named = config | {"rope_theta": 0}  # it stands in rope_parameters
    entries = _of_qwen(named, what) | {"head_dim": _said(config, ("head_dim",), what), "rope_parameters": rope}
    made = _bidirectional(Ministral3Config, entries)
    return Layout(made, NEMOTRON_NAMES, block=_block(config, "block_size", what), causal=True)


def _of_experts(config: dict[str, Any], what: str, size: str) -> dict[str, float]:
    """The number of experts, and of those a token uses, as Qwen's entries; `size` is the entry with an expert's width."""
    entries = {key: _said(config, (key,), what) for key in ("num_experts", "num_experts_per_tok")}
    if not 1 <= entries["num_experts_per_tok"] <= entries["num_experts"]:
        raise ValueError(
            f"this {what}'s config.json chooses {entries['num_experts_per_tok']} of {entries['num_experts']} experts, "
            "which cannot be"
        )
    return entries | {"moe_intermediate_size": _said(config, (size,), what)}


def _of_qwen(config: dict[str, Any], what: str) -> dict[str, float]:
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rope_theta",
            "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")  # fmt: skip
    return {key: _said(config, (key,), what) for key in same}


def _block(config: dict[str, Any], key: str, what: str) -> int:
    size = _said(config, (key,), what)
    if type(size) is not int or size < 1:
        raise ValueError(f"this {what}'s config.json has {key} = {size!r}, which is no length of a block")
    return size


def _said(config: dict[str, Any], keys: tuple[str, ...], what: str) -> float:
    """The first of these entries that the configuration has."""
    value = next((config[key] for key in keys if config.get(key) is not None), None)
    if value is None:
        raise ValueError(f"this {what}'s config.json does not say its {keys[0]}")
    if not isinstance(value, (int, float)):
        raise ValueError(f"this {what}'s config.json has {keys[0]} = {value!r}, which is no number")
    return value


def _bidirectional(maker: Any, entries: dict[str, Any]) -> PreTrainedConfig:
    """A decoder's configuration with bidirectional attention."""
    plain = {"rope_type": "default", "rope_theta": entries.pop("rope_theta")}
    rope = entries.pop("rope_parameters", plain)
    if "partial_rotary_factor" in entries:
        rope["partial_rotary_factor"] = entries.pop("partial_rotary_factor")
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    try:
        made: PreTrainedConfig = maker(**entries, **special, rope_parameters=rope, is_causal=False, use_cache=False)
    except Exception as error:  # transformers checks each entry in a way of its own
        raise ValueError(f"this config.json makes no network: {in_short(error)}") from error
    return made
