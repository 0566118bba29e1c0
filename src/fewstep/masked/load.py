"""Loads masked language models: those of transformers, LLaDA, Dream and their kin, without code of the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..core import pretrained
from ..core.configuration import read_config
from ..core.extras import needs
from ..core.source import folder_of
from .layouts import Layout, layout_of
from .predictor import NetworkPredictor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODEL = "folder of a masked language model"
# masked models that only their own code decodes, and what of fewstep works with that code
ELSEWHERE = {
    "diffusion_gemma": "it has no mask token, as its undecided positions hold random tokens; generate with transformers' "
    "DiffusionGemmaForBlockDiffusion, which stops early with fewstep.masked.ecosystem.GapStopping",
}
PADDED_POSITIONS = ("roberta", "xlm-roberta", "camembert")  # their positions start after the id of the padding token


def load_text(
    source: str | Path,
    *,
    mask_id: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    eight_bit: bool = False,
) -> NetworkPredictor:
    """The mask predictor in a folder or hub repository.

    Published models become transformers' own classes, with renamed weights and full attention: LLaDA and LLaDA 1.5 Llama;
    Dream, Dream-Coder and DiffuCoder Qwen2; LLaDA-MoE Qwen3Moe; MDLM Starcoder2. So do models that were trained on blocks,
    in which no block sees a later one: SDAR Qwen3 or Qwen3Moe, Fast-dLLM v2 Qwen2, LLaDA2 Glm4Moe, BD3LM Starcoder2,
    Nemotron-Labs-Diffusion Ministral3. AutoModelForMaskedLM must know every other model. No code of the checkpoint runs.

    Args:
        source: a folder, the id of a hub repository, or "bundled" for the small model that comes with the package.
        mask_id: id of the mask token, if neither the configuration nor the tokenizer names it.
        dtype: of the weights.
        device: a device, or "auto" to spread the model over all devices.
        eight_bit: round the weights of linear layers to 8 bits by bitsandbytes, half the memory of bfloat16; the head and
            all other weights become float16, whatever `dtype` says.

    Returns:
        The predictor in evaluation mode.

    Raises:
        ValueError: the model is missing, is not a masked language model, is a variant that is not supported, has no mask
            token, or is a mixture of experts with `eight_bit`.
        ModuleNotFoundError: 8 bits are asked for, and bitsandbytes is not installed.
    """
    needs("text")
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    folder = _folder(source)
    config = read_config(folder, MODEL)
    kind = str(config["model_type"]).lower()
    layout = layout_of(kind, config)
    options: dict[str, Any] = {"dtype": dtype, "device": device, "eight_bit": eight_bit}
    if layout:
        network = pretrained.load_network(
            folder, layout.config, AutoModelForCausalLM, "causal language model", names=layout.names,
            changed=layout.changed, bias=layout.bias, exact=True, **options,
        )  # fmt: skip
        for module in network.modules():  # some kernels use this where there is no mask
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
    size = network.get_input_embeddings().num_embeddings
    eos_ids += [token for token in (layout.ends if layout else ()) if token < size and token not in eos_ids]
    mask_id = _mask_id(folder, config, layout, size) if mask_id is None else mask_id
    if not 0 <= mask_id < size:
        raise ValueError(f"the mask token {mask_id} is not in the model's vocabulary; give another mask id")
    return NetworkPredictor(
        network,
        mask_id=mask_id,
        eos_ids=eos_ids,
        pad_id=[*pad_ids, *eos_ids, 0][0],
        shift=bool(layout and layout.shift),
        max_length=layout.config.max_position_embeddings if layout else _max_length(config),
        decoder=layout is not None,
        block=layout.block if layout else None,
        causal=bool(layout and layout.causal),
    ).eval()


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model, without code of the checkpoint: Qwen2's for Dream, AutoTokenizer's for all others.

    Raises:
        ValueError: the tokenizer is missing, or exists only as code.
    """
    needs("text")
    from transformers import Qwen2Tokenizer

    folder = _folder(source)
    dream = read_config(folder, MODEL)["model_type"].lower() == "dream"
    return pretrained.load_tokenizer(folder, Qwen2Tokenizer if dream else None)


def _folder(source: str | Path) -> Path:
    return folder_of(source, MODEL, bundled="text", pickles=True)


def _ids(config: dict[str, Any], key: str) -> list[int]:
    """The token ids under a name that may be absent, one or a list."""
    value = config.get(key)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(number) is int and number >= 0 for number in ids):
        raise ValueError(f"the config.json has {key} = {value!r}, which is no token id")
    return list(ids)


def _mask_id(folder: Path, config: dict[str, Any], layout: Layout | None, size: int) -> int:
    named = _ids(config, "mask_token_id")
    if named:
        return named[0]
    try:
        mask_id = load_tokenizer(folder).mask_token_id
    except ValueError:
        mask_id = None
    if mask_id is None and layout and layout.mask_id is not None and layout.mask_id < size:
        mask_id = layout.mask_id
    if mask_id is None:
        raise ValueError(f"neither the configuration nor a tokenizer in {folder} names the mask token; give its id")
    return int(mask_id)


def _max_length(config: dict[str, Any]) -> int | None:
    longest = config.get("max_position_embeddings")
    if not isinstance(longest, int) or longest < 1:
        return None
    padding = _ids(config, "pad_token_id")
    return longest - ([*padding, 1][0] + 1 if config.get("model_type") in PADDED_POSITIONS else 0)
