"""Masked language models in: any of transformers, LLaDA and Dream, without code of the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..core.source import folder_of, read_json
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
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
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
    be a model that AutoModelForMaskedLM knows. Weights are read shard by shard; no code of the checkpoint runs.

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
    from safetensors import SafetensorError

    folder = _folder(source)
    config = read_json(folder / "config.json", f"give a {MODEL}")
    kind = str(config.get("model_type", "")).lower()
    maker = {"llada": _llada, "dream": _dream}.get(kind)
    if maker:
        model_class, model_config, names = maker(config)
    else:
        model_class, model_config, names = _masked_lm(folder, config)
    try:
        network, info = model_class.from_pretrained(
            folder, config=model_config, key_mapping=names or None, dtype=dtype, device_map=device,
            local_files_only=True, output_loading_info=True, use_safetensors=True if maker else None,
        )  # fmt: skip
    except (OSError, RuntimeError, KeyError, SafetensorError) as error:
        raise ValueError(f"the model in {source} could not be loaded: {error}") from error
    lost = sorted(info["missing_keys"]) + sorted(info["mismatched_keys"])
    if lost or (maker and info["unexpected_keys"]):
        lost = lost or sorted(info["unexpected_keys"])
        raise ValueError(f"the weights in {source} do not fit its config.json, for example {lost[0]}")
    if maker:
        for module in network.modules():  # where nothing is padded there is no mask; then some kernels ask this
            if hasattr(module, "is_causal"):
                module.is_causal = False
    eos = config.get("eos_token_id")
    eos_ids = [] if eos is None else list(eos) if isinstance(eos, list) else [eos]
    if kind == "llada" and network.config.vocab_size > LLADA_EOT:
        eos_ids.append(LLADA_EOT)
    mask_id = _mask_id(folder, config) if mask_id is None else mask_id
    if not 0 <= mask_id < network.get_input_embeddings().num_embeddings:
        raise ValueError(f"the mask token {mask_id} is not in the model's vocabulary; give another mask id")
    pad_id = config.get("pad_token_id")
    return NetworkPredictor(
        network,
        mask_id=mask_id,
        eos_ids=eos_ids,
        pad_id=(eos_ids or [0])[0] if pad_id is None else pad_id,
        shift=kind == "dream",
        max_length=_max_length(config),
    ).eval()


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model, without code of the checkpoint: Dream's is Qwen2's, all others AutoTokenizer's.

    Raises:
        ValueError: there is none, or it only exists as code.
    """
    from transformers import AutoTokenizer, Qwen2Tokenizer

    folder = _folder(source)
    if not any((folder / name).exists() for name in VOCABULARIES):  # transformers would make up an empty one
        raise ValueError(f"there is no tokenizer in {source}; save the model's tokenizer there")
    dream = str(read_json(folder / "config.json", f"give a {MODEL}").get("model_type", "")).lower() == "dream"
    try:
        tokenizer: PreTrainedTokenizerBase = (Qwen2Tokenizer if dream else AutoTokenizer).from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ValueError(f"there is no tokenizer in {source} that loads without its own code: {error}") from error
    return tokenizer


def _folder(source: str | Path) -> Path:
    return folder_of(source, MODEL, bundled="text")


def _demand(config: dict[str, Any], must: dict[str, tuple[Any, ...]], what: str) -> None:
    for key, allowed in must.items():
        if key in config and config[key] not in allowed:
            raise ValueError(f"this {what} has {key} = {config[key]!r}; only {allowed[0]!r} is supported")


def _llada(config: dict[str, Any]) -> tuple[Any, PreTrainedConfig, dict[str, str]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    _demand(config, LLADA_MUST, "LLaDA")
    try:
        heads = config["n_heads"]
        model_config = LlamaConfig(
            vocab_size=config.get("embedding_size") or config["vocab_size"],
            hidden_size=config["d_model"],
            intermediate_size=config.get("mlp_hidden_size") or config["mlp_ratio"] * config["d_model"],
            num_hidden_layers=config["n_layers"],
            num_attention_heads=heads,
            num_key_value_heads=config.get("n_kv_heads") or heads,
            max_position_embeddings=config["max_sequence_length"],
            rms_norm_eps=config["rms_norm_eps"],
            rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]},
            tie_word_embeddings=config["weight_tying"],
            pad_token_id=None, bos_token_id=None, eos_token_id=None, is_causal=False,
        )  # fmt: skip
    except KeyError as error:
        raise ValueError(f"this LLaDA's config.json does not say its {error.args[0]}") from None
    return LlamaForCausalLM, model_config, LLADA_NAMES


def _dream(config: dict[str, Any]) -> tuple[Any, PreTrainedConfig, dict[str, str]]:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    _demand(config, DREAM_MUST, "Dream")
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")  # fmt: skip
    try:
        model_config = Qwen2Config(
            **{key: config[key] for key in same},
            rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]},
            pad_token_id=None, bos_token_id=None, eos_token_id=None, is_causal=False,
        )  # fmt: skip
    except KeyError as error:
        raise ValueError(f"this Dream's config.json does not say its {error.args[0]}") from None
    return Qwen2ForCausalLM, model_config, {}


def _masked_lm(folder: Path, config: dict[str, Any]) -> tuple[Any, PreTrainedConfig, dict[str, str]]:
    from transformers import AutoConfig, AutoModelForMaskedLM

    kind = config.get("model_type", "model without a type")
    try:
        model_config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"transformers does not know this {kind}; fewstep reads LLaDA, Dream and its masked models"
        ) from error
    if type(model_config) not in AutoModelForMaskedLM._model_mapping:
        raise ValueError(f"{folder} holds a {kind}, which is not a masked language model")
    return AutoModelForMaskedLM, model_config, {}


def _mask_id(folder: Path, config: dict[str, Any]) -> int:
    if config.get("mask_token_id") is not None:
        return int(config["mask_token_id"])
    try:
        mask_id = load_tokenizer(folder).mask_token_id
    except ValueError:
        mask_id = None
    if mask_id is None:
        raise ValueError(f"neither the configuration nor a tokenizer in {folder} names the mask token; give its id")
    return int(mask_id)


def _max_length(config: dict[str, Any]) -> int | None:
    longest = config.get("max_sequence_length") or config.get("max_position_embeddings")
    if longest is None or longest < 1:
        return None
    padding = config.get("pad_token_id")
    behind = (1 if padding is None else int(padding)) + 1 if config.get("model_type") in PADDED_POSITIONS else 0
    return int(longest) - behind
