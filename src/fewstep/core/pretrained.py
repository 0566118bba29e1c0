"""Everything of transformers that is loaded from a checkpoint is loaded here.

transformers never sees the folder. It gets a configuration and tensors that were read and checked here, and a cleaned copy
of the tokenizer's files. So no code of a checkpoint can run and nothing asks whether it may, no native kernel is fetched,
no other repository is followed, and no size is believed before the weights bear it out.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .source import inside, read_json
from .weights import check_finite, elements, in_short, read_weights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("float64", "float32", "float16", "bfloat16")
# How attention and experts are computed is up to PyTorch, not to the checkpoint; a name with a slash is one of native code.
WAYS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
# entries that name code, other files or other repositories; nobody follows them
DROPPED = ("auto_map", "custom_pipelines", "custom_generate", "configuration_files", "transformers_weights", "name_or_path",
           "_name_or_path", "init_inputs", "tp_plan", "distributed_config", "fusion_config", *WAYS)  # fmt: skip
REFUSED = {
    "quantization_config": "its weights are quantised; give the model that they were made from, in 16 or 32 bits",
    "compression_config": "its weights are compressed; give the model that they were made from, in 16 or 32 bits",
    "use_kernels": "it asks for native code from elsewhere, which fewstep does not load; take that entry out",
    "kernel_config": "it asks for native code from elsewhere, which fewstep does not load; take that entry out",
    "backbone": "it takes a part of the network from elsewhere; give a model that is complete",
    "use_timm_backbone": "it takes a part of the network from timm; give a model of transformers alone",
}
COUNTED = ("layer", "depth", "block", "label", "types")  # what a configuration makes lists of
MOST_COUNTED = 1_000_000  # token ids stand in lists, too
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
SETTINGS = ("config.json", "tokenizer_config.json")
TOKENS = ("special_tokens_map.json", "added_tokens.json")
TOKENIZER_FILES = (*SETTINGS, *TOKENS, *VOCABULARIES, "merges.txt", "chat_template.jinja")
LARGEST_VOCABULARY = 128 << 20  # bytes; the largest published ones have a quarter of it


def read_config(folder: Path, what: str) -> dict[str, Any]:
    """A model's config.json without what names code, kernels or other places.

    Args:
        folder: of the model.
        what: should be in it, for the error if there is no config.json, such as "folder of a language model".

    Raises:
        ValueError: there is none, or it asks for what fewstep does not do.
    """
    file = inside(folder, "config.json")
    content: dict[str, Any] = _cleaned(read_json(file, f"give a {what}"), file)
    if not isinstance(content.get("model_type"), str):
        raise ValueError(f"{file} does not say its model_type; give a {what}")
    return content


def _cleaned(value: Any, file: Path, name: str = "") -> Any:
    """The same entries, at any depth, without those that nobody follows; refused ones raise."""
    if isinstance(value, dict):
        _check(value, file)
        return {
            key: _cleaned(entry, file, key)
            for key, entry in value.items()
            if key not in DROPPED and key not in REFUSED and not key.endswith("_file")
        }
    if isinstance(value, list):
        return [_cleaned(entry, file, "types") for entry in value]
    if isinstance(value, int) and value > MOST_COUNTED and any(part in name for part in COUNTED):
        raise ValueError(f"{file} has {name} = {value}, more than any network; the file is broken")
    return value


def _check(entries: dict[str, Any], file: Path) -> None:
    for key, entry in entries.items():
        if key in REFUSED and entry:
            raise ValueError(f"{file} has {key}: {REFUSED[key]}")
        if key in WAYS and "/" in json.dumps(entry):
            raise ValueError(f"{file} has {key} = {entry!r}, native code from elsewhere, which fewstep does not load")
        if key in ("dtype", "torch_dtype") and entry is not None and entry not in DTYPES:
            raise ValueError(f"{file} has {key} = {entry!r}; fewstep computes in {', '.join(DTYPES)}")
    if str(entries.get("model_type", "")).startswith("timm"):
        raise ValueError(f"{file} describes a model of timm; fewstep reads those of transformers")


def load_config(folder: Path, content: Mapping[str, Any]) -> PreTrainedConfig:
    """What transformers makes of a configuration from `read_config`.

    Raises:
        ValueError: transformers does not know this kind of model, or an entry is of a wrong type.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    kind = content["model_type"]
    if kind not in CONFIG_MAPPING:
        raise ValueError(
            f"transformers does not know this {kind}, or only with the code of the checkpoint, which fewstep does not run"
        )
    with TemporaryDirectory() as place, _quiet():
        Path(place, "config.json").write_text(json.dumps(dict(content)))
        try:
            config: PreTrainedConfig = AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # a wrong type can fail anywhere in there
            raise ValueError(f"{folder / 'config.json'} makes no {kind}: {in_short(error)}") from error
    config.name_or_path = str(folder)
    return config


def load_network(
    folder: Path,
    config: PreTrainedConfig,
    auto: Any,
    what: str,
    *,
    dtype: torch.dtype | str = "auto",
    device: str | None = None,
    names: Mapping[str, str] | None = None,
    pickled: bool = False,
    exact: bool = False,
) -> PreTrainedModel:
    """The network of a folder, in evaluation mode, with all of its weights.

    Args:
        folder: of the model.
        config: what it is.
        auto: one of transformers' auto classes, such as AutoModelForCausalLM.
        what: that class stands for, for the errors, such as "causal language model".
        dtype: of the weights; "auto" as they were saved.
        device: where to, or "auto" to spread it over all there are; None is the CPU.
        names: regular expressions and what they turn into, from the file's names of weights to transformers'.
        pickled: also take pytorch_model.bin, if it holds plain tensors only; its pickle is never executed.
        exact: refuse weights that the network does not have.

    Raises:
        ValueError: the files are broken, do not fit the configuration, or hold values that are not finite.
    """
    weights = read_weights(folder, ("model.safetensors", *(["pytorch_model.bin"] if pickled else [])))
    if type(config) not in auto._model_mapping:
        raise ValueError(f"{folder} holds a {config.model_type}, which is not a {what}")
    skeleton = _skeleton(folder, config, auto, weights)
    file = inside(folder, "generation_config.json")
    generation = _generation(file) if file.is_file() else None
    with _quiet():
        try:
            network, info = type(skeleton).from_pretrained(
                None, config=skeleton.config, state_dict=weights, dtype=dtype, device_map=device,
                key_mapping=dict(names) if names else None, generation_config=generation, output_loading_info=True,
                ignore_mismatched_sizes=True, local_files_only=True, trust_remote_code=False,
            )  # fmt: skip
        except Exception as error:  # whatever does not fit fails in its own way
            raise ValueError(f"the weights in {folder} could not be loaded: {in_short(error)}") from error
    lost = [*sorted(info["missing_keys"]), *(key for key, *_ in sorted(info["mismatched_keys"]))]
    lost += sorted(info["unexpected_keys"]) if exact else []
    if lost:  # transformers fills them with random numbers
        raise ValueError(f"the weights in {folder} do not fit its config.json, for example {lost[0]}")
    check_finite(network.named_parameters(), folder)
    network.config.name_or_path = network.name_or_path = str(folder)
    loaded: PreTrainedModel = network.eval()
    return loaded


def _skeleton(folder: Path, config: PreTrainedConfig, auto: Any, weights: Mapping[str, Tensor]) -> PreTrainedModel:
    """The network without memory for its weights, if it is about as large as they are."""
    with _quiet(), torch.device("meta"), _at_most(2 * elements(weights.values()) + (1 << 26), 4 * len(weights) + 1000):
        try:
            skeleton: PreTrainedModel = auto.from_config(config, trust_remote_code=False)
        except TooLargeError:
            raise ValueError(
                f"{folder / 'config.json'} describes a network far larger than the {elements(weights.values()):,} numbers "
                "that the weights beside it hold"
            ) from None
        except Exception as error:
            raise ValueError(f"{folder / 'config.json'} makes no {config.model_type}: {in_short(error)}") from error
    return skeleton


class TooLargeError(Exception):
    """More parameters than there are weights."""


@contextmanager
def _at_most(numbers: int, tensors: int) -> Iterator[None]:
    """Inside, modules that register more parameters and buffers than that fail with a TooLargeError."""
    from torch.nn.modules.module import (
        register_module_buffer_registration_hook,
        register_module_parameter_registration_hook,
    )

    left = {"numbers": numbers, "tensors": tensors}

    def count(module: torch.nn.Module, name: str, value: Tensor | None) -> None:
        left["numbers"] -= 0 if value is None else value.numel()
        left["tensors"] -= 1
        if min(left.values()) < 0:
            raise TooLargeError

    hooks = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _generation(file: Path) -> Any:
    from transformers import GenerationConfig

    content = _cleaned(read_json(file, ""), file)
    try:
        return GenerationConfig.from_dict(content)
    except Exception as error:
        raise ValueError(f"{file} makes no generation settings: {in_short(error)}") from error


def load_tokenizer(folder: Path, maker: Any = None, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer in a model's folder.

    Args:
        folder: of the model.
        maker: a tokenizer class of transformers, by default what its AutoTokenizer finds.
        options: for the tokenizer, such as padding_side.

    Raises:
        ValueError: there is none, it is broken, or it only exists as code.
    """
    from transformers import AutoTokenizer

    if not any(inside(folder, name).is_file() for name in VOCABULARIES):  # transformers would make up an empty one
        raise ValueError(f"there is no tokenizer in {folder}; save the model's tokenizer there")
    settings = inside(folder, "tokenizer_config.json")
    coded = settings.is_file() and "auto_map" in read_json(settings, "it says how to read the vocabulary")
    if coded and not maker and not inside(folder, "tokenizer.json").is_file():
        raise ValueError(
            f"the tokenizer in {folder} is code of the checkpoint, which fewstep does not run; put a tokenizer.json there"
        )
    with TemporaryDirectory() as place, _quiet():
        _copy_tokenizer(folder, Path(place))
        try:
            tokenizer: PreTrainedTokenizerBase = (maker or AutoTokenizer).from_pretrained(
                place, local_files_only=True, trust_remote_code=False, **options
            )
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library underneath panics on some files, with errors of a class of its own
            reason = in_short(error).replace(place, str(folder))
            raise ValueError(f"the tokenizer in {folder} could not be loaded: {reason}") from error
    tokenizer.name_or_path = str(folder)
    return tokenizer


def _copy_tokenizer(folder: Path, place: Path) -> None:
    """Copies what a tokenizer is made of; its settings without what names code or other files."""
    for file in filter(Path.is_file, [inside(folder, name) for name in TOKENIZER_FILES]):
        if file.stat().st_size > LARGEST_VOCABULARY:
            raise ValueError(f"{file} is larger than {LARGEST_VOCABULARY >> 20} MiB, so it is no part of a tokenizer")
        if file.name in SETTINGS:
            content = read_json(file, "it says how to read the vocabulary")
            (place / file.name).write_text(json.dumps(_cleaned(content, file)), encoding="utf-8")
        else:
            shutil.copyfile(file, place / file.name)


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without progress bars and reports, which our errors replace."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
