"""Masked language models in: any of transformers, LLaDA and Dream, without code of the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..core import pretrained
from ..core.configuration import read_config
from ..core.source import folder_of
from ..core.weights import in_short
from .predictor import NetworkPredictor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

MODEL = "folder of a masked language model"
LLADA_EOT = 126348  # <|eot_id|>: ends a turn of the instruction-tuned LLaDA; its config names <|endoftext|> only
# LLaDA's names -> Llama's, as regular expressions of at most one group, which is what transformers takes
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
# masked models that are decoded by the code they come with, and what of fewstep works there
ELSEWHERE = {
    "diffusion_gemma": "transformers' own DiffusionGemmaForBlockDiffusion generates with it, and stops early with "
    "fewstep.masked.ecosystem.GapStopping",
    "llada2_moe": "diffusers' LLaDA2Pipeline generates with it, and stops early with "
    "fewstep.masked.ecosystem.EarlyCommitScheduler",
}
PADDED_POSITIONS = ("roberta", "xlm-roberta", "camembert")  # they count positions from the one behind their padding token
# What a Llama can be; a checkpoint that says otherwise is another architecture.
LLADA_MUST = {
    "block_type": ("llama",), "layer_norm_type": ("rms",), "activation_type": ("silu",), "rope": (True,),
    "alibi": (False,), "include_bias": (False,), "include_qkv_bias": (False,), "bias_for_layer_norm": (False, None),
    "attention_layer_norm": (False,), "input_emb_norm": (False,), "scale_logits": (False,),
    "multi_query_attention": (False, None), "layer_norm_with_affine": (True,), "block_group_size": (1,),
}  # fmt: skip
DREAM_MUST = {
    "hidden_act": ("silu",), "use_sliding_window": (False,), "use_mrope": (False,), "rope_scaling": (None,),
}  # fmt: skip


def load_text(
    source: str | Path, *, mask_id: int | None = None, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> NetworkPredictor:
    """The mask predictor in a folder or hub repository.

    LLaDA becomes transformers' Llama and Dream its Qwen2, with renamed weights and full attention; everything else must
    be a model that AutoModelForMaskedLM knows. No code of the checkpoint runs.

    Args:
        source: a folder, the id of a hub repository, or "bundled" for the small model that comes with the package.
        mask_id: id of the mask token, where neither the configuration nor the tokenizer names it.
        dtype: of the weights.
        device: a device, or "auto" to spread the model over all there are.

    Returns:
        The predictor in evaluation mode.

    Raises:
        ValueError: nothing there, not a masked language model, a variant that is not supported, or no mask token.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    folder = _folder(source)
    config = read_config(folder, MODEL)
    kind = str(config["model_type"]).lower()
    maker = {"llada": _llada, "dream": _dream}.get(kind)
    options: dict[str, Any] = {"dtype": dtype, "device": device}
    if maker:
        made, names = maker(config)
        network = pretrained.load_network(
            folder, made, AutoModelForCausalLM, "causal language model", names=names, exact=True, **options
        )
        for module in network.modules():  # where nothing is padded there is no mask; then some kernels ask this
            if hasattr(module, "is_causal"):
                module.is_causal = False
    elif kind in ELSEWHERE:
        raise ValueError(f"{source} holds a {config['model_type']}; {ELSEWHERE[kind]}")
    else:
        made = pretrained.load_config(folder, config)
        network = pretrained.load_network(
            folder, made, AutoModelForMaskedLM, "masked language model", pickled=True, **options
        )
    eos_ids, pad_ids = _ids(config, "eos_token_id"), _ids(config, "pad_token_id")
    if kind == "llada" and network.config.vocab_size > LLADA_EOT:
        eos_ids.append(LLADA_EOT)
    mask_id = _mask_id(folder, config) if mask_id is None else mask_id
    if not 0 <= mask_id < network.get_input_embeddings().num_embeddings:
        raise ValueError(f"the mask token {mask_id} is not in the model's vocabulary; give another mask id")
    return NetworkPredictor(
        network,
        mask_id=mask_id,
        eos_ids=eos_ids,
        pad_id=[*pad_ids, *eos_ids, 0][0],
        shift=kind == "dream",
        max_length=_max_length(config),
        decoder=maker is not None,
    ).eval()


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model, without code of the checkpoint: Dream's is Qwen2's, all others AutoTokenizer's.

    Raises:
        ValueError: there is none, or it only exists as code.
    """
    from transformers import Qwen2Tokenizer

    folder = _folder(source)
    dream = read_config(folder, MODEL)["model_type"].lower() == "dream"
    return pretrained.load_tokenizer(folder, Qwen2Tokenizer if dream else None)


def _folder(source: str | Path) -> Path:
    return folder_of(source, MODEL, bundled="text", pickles=True)


def _demand(config: dict[str, Any], must: dict[str, tuple[Any, ...]], what: str) -> None:
    for key, allowed in must.items():
        if key in config and config[key] not in allowed:
            raise ValueError(f"this {what} has {key} = {config[key]!r}; only {allowed[0]!r} is supported")


def _llada(config: dict[str, Any]) -> tuple[PreTrainedConfig, dict[str, str]]:
    from transformers import LlamaConfig

    if config.get("num_experts"):
        raise ValueError(
            f"this LLaDA is a mixture of {config['num_experts']} experts (LLaDA-MoE), which the library dInfer runs; "
            "fewstep reads those without experts"
        )
    _demand(config, LLADA_MUST, "LLaDA")
    entries = {
        "vocab_size": ("embedding_size", "vocab_size"), "hidden_size": ("d_model",), "num_hidden_layers": ("n_layers",),
        "intermediate_size": ("mlp_hidden_size",), "num_attention_heads": ("n_heads",),
        "num_key_value_heads": ("n_kv_heads", "n_heads"), "max_position_embeddings": ("max_sequence_length",),
        "rms_norm_eps": ("rms_norm_eps",), "tie_word_embeddings": ("weight_tying",), "rope_theta": ("rope_theta",),
    }  # fmt: skip
    if config.get("mlp_hidden_size") is None and isinstance(config.get("mlp_ratio"), int):
        config = config | {"mlp_hidden_size": config["mlp_ratio"] * _said(config, ("d_model",), "LLaDA")}
    return _bidirectional(LlamaConfig, {name: _said(config, keys, "LLaDA") for name, keys in entries.items()}), LLADA_NAMES


def _dream(config: dict[str, Any]) -> tuple[PreTrainedConfig, dict[str, str]]:
    from transformers import Qwen2Config

    _demand(config, DREAM_MUST, "Dream")
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rope_theta",
            "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")  # fmt: skip
    return _bidirectional(Qwen2Config, {key: _said(config, (key,), "Dream") for key in same}), {}


def _said(config: dict[str, Any], keys: tuple[str, ...], what: str) -> float:
    """The first of these entries that the configuration has."""
    value = next((config[key] for key in keys if config.get(key) is not None), None)
    if value is None:
        raise ValueError(f"this {what}'s config.json does not say its {keys[0]}")
    if not isinstance(value, (int, float)):
        raise ValueError(f"this {what}'s config.json has {keys[0]} = {value!r}, which is no number")
    return value


def _bidirectional(maker: Any, entries: dict[str, Any]) -> PreTrainedConfig:
    """A decoder's configuration under which everybody sees everybody."""
    rope = {"rope_type": "default", "rope_theta": entries.pop("rope_theta")}
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    try:
        made: PreTrainedConfig = maker(**entries, **special, rope_parameters=rope, is_causal=False, use_cache=False)
    except Exception as error:  # transformers checks each entry in a way of its own
        raise ValueError(f"this config.json makes no network: {in_short(error)}") from error
    return made


def _ids(config: dict[str, Any], key: str) -> list[int]:
    """The token ids under a name that may be absent, one or a list."""
    value = config.get(key)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(number) is int and number >= 0 for number in ids):
        raise ValueError(f"the config.json has {key} = {value!r}, which is no token id")
    return list(ids)


def _mask_id(folder: Path, config: dict[str, Any]) -> int:
    named = _ids(config, "mask_token_id")
    if named:
        return named[0]
    try:
        mask_id = load_tokenizer(folder).mask_token_id
    except ValueError:
        mask_id = None
    if mask_id is None:
        raise ValueError(f"neither the configuration nor a tokenizer in {folder} names the mask token; give its id")
    return int(mask_id)


def _max_length(config: dict[str, Any]) -> int | None:
    longest = config.get("max_sequence_length") or config.get("max_position_embeddings")
    if not isinstance(longest, int) or longest < 1:
        return None
    padding = _ids(config, "pad_token_id")
    return longest - ([*padding, 1][0] + 1 if config.get("model_type") in PADDED_POSITIONS else 0)
