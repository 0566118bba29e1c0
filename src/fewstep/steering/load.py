"""Loads the models of proxy-tuning: a large one, a small tuned one, and either its untuned version or its LoRA adapter."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..core import pretrained
from ..core.configuration import read_config
from ..core.device import on_device
from ..core.extras import needs
from ..core.private import builds
from ..core.source import folder_of, inside, read_json
from ..core.weights import check_finite, in_short, read_safetensors
from .tuning import ProxyTuning
from .vocabulary import same_tokens

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

MODEL = "folder of a causal language model"
ADAPTER = "folder of a LoRA adapter"
KEY = re.compile(r"base_model\.model\.(.+)\.lora_(?:embedding_)?[AB](?:\.weight)?")  # peft's names of an adapter's weights
# settings of a LoRA adapter; the names of its weights tell its modules
FOLLOWED = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out")
IGNORED = ("peft_type", "task_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision",
           "inference_mode", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout",
           "megatron_core", "qalora_group_size", "runtime_config")  # fmt: skip
INITIAL = (True, False, "gaussian")  # other initialisations change the base's weights, and so the antiexpert


class Trio(NamedTuple):
    """What proxy-tuning needs, loaded."""

    base: PreTrainedModel
    proxy: ProxyTuning
    tokenizer: PreTrainedTokenizerBase  # of the base
    small_tokenizer: PreTrainedTokenizerBase


def load_trio(
    base: str | Path,
    expert: str | Path,
    *,
    antiexpert: str | Path | None = None,
    adapter: str | Path | None = None,
    alpha: float | Sequence[float] = 1.0,
) -> Trio:
    """Loads models from folders or hub ids onto the best device; "bundled" stands for the package's model of each role.

    Args:
        base: the large model.
        expert: the small tuned model; with an adapter the small model that the adapter was trained on.
        antiexpert: the small model before tuning.
        adapter: a LoRA adapter, instead of an antiexpert.
        alpha: see `ProxyTuning`.

    Raises:
        ValueError: a model cannot be loaded, the vocabularies differ, or not exactly one of antiexpert, adapter is given.
    """
    if (antiexpert is None) == (adapter is None):
        raise ValueError("give either --antiexpert, the small model before tuning, or --adapter, its LoRA adapter")
    role = "small" if adapter else "expert"
    for source, part in ((base, "base"), (expert, role), (antiexpert, "small")):  # before minutes of loading
        if source is not None:
            _decoder(source, part)
    tokenizer, small_tokenizer = load_tokenizer(base), load_tokenizer(expert, role)
    common = same_tokens(tokenizer, small_tokenizer, *([load_tokenizer(antiexpert, "small")] if antiexpert else []))
    if common is not None and (tokenizer.eos_token_id or 0) >= common:
        raise ValueError(
            f"the small models lack the token {tokenizer.eos_token!r}, which ends a text of {base}, so no text would end; "
            "take small models that have it"
        )
    if common is not None:
        logger.info("the small models know the base's first %d tokens; none of the others is generated", common)
    small = on_device(load_causal(expert, role))
    pretrained.check_vocabulary(small_tokenizer, small)
    if adapter:
        proxy = ProxyTuning(load_adapter(small, adapter), alpha=alpha, common=common)
    else:
        plain = on_device(load_causal(str(antiexpert), "small"))
        proxy = ProxyTuning(small, plain, alpha=alpha, common=common)
    large = on_device(load_causal(base))  # last, as it takes longest
    pretrained.check_vocabulary(tokenizer, large)
    return Trio(large, proxy, tokenizer, small_tokenizer)


def load_causal(source: str | Path, role: str = "base", *, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """The causal language model in a folder or hub repository, in evaluation mode on the CPU.

    Args:
        source: folder or hub id; the weights must be safetensors. No code of the checkpoint runs.
        role: the part of the bundled trio that the source "bundled" stands for.
        dtype: of the weights; "auto" keeps the saved one.

    Raises:
        ValueError: the model is missing, broken, or not a causal language model.
    """
    from transformers import AutoModelForCausalLM

    folder, config = _decoder(source, role)
    return pretrained.load_network(folder, config, AutoModelForCausalLM, "causal language model", dtype=dtype)


def _decoder(source: str | Path, role: str) -> tuple[Path, PreTrainedConfig]:
    """A model's folder and its configuration. Raises ValueError if it is not a causal language model."""
    needs("text")
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    folder = folder_of(source, MODEL, bundled=f"trio/{role}")
    config = pretrained.load_config(folder, read_config(folder, MODEL))
    encoder = builds(AutoModelForMaskedLM, config) and not getattr(config, "is_decoder", False)
    if encoder or config.is_encoder_decoder:
        raise ValueError(f"{source} holds a {config.model_type}, which is or has an encoder; give the {MODEL}")
    if not builds(AutoModelForCausalLM, config):
        raise ValueError(f"{source} holds a {config.model_type}, which is not a causal language model")
    return folder, config


def load_tokenizer(source: str | Path, role: str = "base") -> PreTrainedTokenizerBase:
    """The tokenizer beside a causal language model, which pads on the left; arguments and errors as of `load_causal`."""
    tokenizer = pretrained.load_tokenizer(folder_of(source, MODEL, bundled=f"trio/{role}"), padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def is_adapter(source: str | Path) -> bool:
    """Whether a folder or hub repository holds an adapter and no model."""
    folder = folder_of(source, MODEL, bundled="trio/base")
    return inside(folder, "adapter_config.json").is_file() and not inside(folder, "config.json").is_file()


def load_adapter(model: PreTrainedModel, source: str | Path) -> PeftModel:
    """`model` with the LoRA adapter in a folder or hub repository, in evaluation mode.

    The names of its weights tell its modules. The base model named in adapter_config.json is ignored.

    Raises:
        ValueError: the adapter is missing, is not plain LoRA, or belongs to another model.
    """
    from peft import PeftModel, set_peft_model_state_dict

    folder = folder_of(source, ADAPTER, bundled="trio/adapter")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not inside(folder, name).is_file():  # an adapter's pickled form is never read
            raise ValueError(f"{source} has no {name}; save the adapter with peft's save_pretrained")
    weights = read_safetensors(folder / "adapter_model.safetensors")
    check_finite(weights.items(), folder)
    settings = read_json(folder / "adapter_config.json", "save the adapter with peft's save_pretrained")
    config = _lora(_plain(settings, folder), weights, folder, {name for name, _ in model.named_modules()})
    with warnings.catch_warnings():  # some versions of peft use what transformers has deprecated
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        try:
            adapted = PeftModel(model, config)
            left = set_peft_model_state_dict(adapted, weights)
        except Exception as error:  # shapes, types and names that do not fit raise errors of many kinds
            raise ValueError(f"the adapter in {source} does not fit the model: {in_short(error)}") from error
    lost = [name for name in left.missing_keys if "lora_" in name] + list(left.unexpected_keys)
    if lost:
        raise ValueError(f"the adapter in {source} does not fit the model, for example {lost[0]}")
    loaded: PeftModel = adapted.eval()
    return loaded


def _plain(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The adapter's settings in `FOLLOWED`. Raises ValueError if another setting makes it more than plain LoRA."""
    if settings.get("peft_type") != "LORA":
        raise ValueError(f"the adapter in {folder} is of the kind {settings.get('peft_type')}; only LoRA can steer")
    for name, value in settings.items():
        off = value in INITIAL if name == "init_lora_weights" else not value or (name, value) == ("bias", "none")
        if name not in (*FOLLOWED, *IGNORED) and not off:
            raise ValueError(f"the adapter in {folder} has {name} = {value!r}; only plain LoRA can steer")
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = settings.get(name) or {}
        if not isinstance(pattern, dict) or not all(re.fullmatch(r"[\w.]+", module) for module in pattern):
            raise ValueError(
                f"the adapter in {folder} has a {name} with more than plain names of modules; only plain LoRA can steer"
            )
    return {name: settings[name] for name in FOLLOWED if settings.get(name) is not None}


def _lora(settings: dict[str, Any], weights: dict[str, Tensor], folder: Path, modules: set[str]) -> LoraConfig:
    """peft's configuration of the adapter. Raises ValueError if its weights do not belong to `modules`."""
    from peft import LoraConfig

    found = [(match, weights[match[0]]) for match in map(KEY.fullmatch, weights) if match]
    if not found:
        raise ValueError(f"the adapter in {folder} holds no weights of LoRA; save it with peft's save_pretrained")
    names = sorted({match[1] for match, _ in found})
    foreign = [name for name in names if name not in modules]
    if foreign:
        raise ValueError(f"the adapter in {folder} is of another model: the model has no {foreign[0]}")
    rank = max(weight.shape[0] if weight.ndim else 0 for _, weight in found)
    for asked in (settings.get("r"), *settings.get("rank_pattern", {}).values()):
        if not isinstance(asked, int) or not 0 < asked <= rank:  # peft would first allocate memory for it
            raise ValueError(
                f"the adapter in {folder} says that its rank is {asked}, and its weights do not bear out that rank"
            )
    try:
        return LoraConfig(target_modules=names, inference_mode=True, **settings)
    except Exception as error:
        raise ValueError(f"{folder / 'adapter_config.json'} makes no LoRA: {in_short(error)}") from error
