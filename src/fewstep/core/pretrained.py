"""Everything of transformers that is loaded from a checkpoint is loaded here.

transformers never sees the folder. It gets a configuration and tensors that were read and checked here, and a cleaned copy
of the tokenizer's files. So no code of a checkpoint can run, and no prompt asks to run it. No native kernel is fetched,
and no other repository is followed. A network is built only if its size fits the weights.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .configuration import cleaned
from .extras import needs
from .private import builds
from .source import inside, read_json
from .weights import TooLargeError, at_most, check_finite, elements, in_short, read_weights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
SETTINGS = ("config.json", "tokenizer_config.json")
TOKENS = ("special_tokens_map.json", "added_tokens.json")
TOKENIZER_FILES = (*SETTINGS, *TOKENS, *VOCABULARIES, "merges.txt", "chat_template.jinja")
LARGEST_VOCABULARY = 128 << 20  # bytes; the largest published vocabularies have a quarter of that


def load_config(folder: Path, content: Mapping[str, Any]) -> PreTrainedConfig:
    """transformers' configuration object for the entries of `read_config`.

    Raises:
        ValueError: transformers does not know this kind of model, or an entry has a wrong type.
    """
    needs("text")
    from transformers import CONFIG_MAPPING, AutoConfig

    kind = content["model_type"]
    if kind not in CONFIG_MAPPING:
        raise ValueError(
            f"transformers does not know {kind}, or only with the code of the checkpoint, which fewstep does not run"
        )
    with TemporaryDirectory() as place:
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
    changed: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
    bias: bool = False,
    eight_bit: bool = False,
    pickled: bool = False,
    exact: bool = False,
) -> PreTrainedModel:
    """The network of a folder, in evaluation mode, with all of its weights.

    Args:
        folder: of the model.
        config: of the model, from `load_config`.
        auto: one of transformers' auto classes, such as AutoModelForCausalLM.
        what: what that class stands for, for the error messages, such as "causal language model".
        dtype: of the weights; "auto" keeps the saved one.
        device: of the network; "auto" spreads it over all devices, None is the CPU.
        names: regular expression on the file's weight names -> replacement, which gives transformers' names.
        changed: turns the file's weights into transformers', where renaming is not enough.
        bias: the last layer has a bias, lm_head.bias, which transformers' class lacks.
        eight_bit: bitsandbytes rounds the linear layers' weights to 8 bits, except the head's; the rest is float16.
        pickled: also take pytorch_model.bin, if it holds plain tensors only; its pickle is never executed.
        exact: refuse weights that the network does not have.

    Raises:
        ValueError: the files are broken, do not fit the configuration, or hold values that are not finite; or `eight_bit`
            is set for a mixture of experts.
        ModuleNotFoundError: 8 bits are asked for, and bitsandbytes is not installed.
    """
    rounding = _eight_bits() if eight_bit else None
    weights = read_weights(folder, ("model.safetensors", *(["pytorch_model.bin"] if pickled else [])))
    weights = changed(weights) if changed else weights
    if not builds(auto, config):
        raise ValueError(f"{folder} holds a {config.model_type}, which is not a {what}")
    last = weights.pop("lm_head.bias", None) if bias else None
    if eight_bit:
        check_finite(weights.items(), folder)  # rounding to 8 bits hides infinities
    skeleton = _skeleton(folder, config, auto, weights)
    file = inside(folder, "generation_config.json")
    generation = _generation(file) if file.is_file() else None
    try:
        network, info = type(skeleton).from_pretrained(
            None, config=skeleton.config, state_dict=weights, dtype=torch.float16 if eight_bit else dtype,
            device_map=device or ("cpu" if eight_bit else None), quantization_config=rounding,
            key_mapping=dict(names) if names else None, generation_config=generation, output_loading_info=True,
            ignore_mismatched_sizes=True, local_files_only=True, trust_remote_code=False,
        )  # fmt: skip
    except Exception as error:  # each misfit raises an error of its own kind
        raise ValueError(f"the weights in {folder} could not be loaded: {in_short(error)}") from error
    lost = [*sorted(info["missing_keys"]), *(key for key, *_ in sorted(info["mismatched_keys"]))]
    lost += sorted(info["unexpected_keys"]) if exact else []
    lost += _of_more_layers(network, info["unexpected_keys"])
    if lost:  # transformers fills what is missing with random numbers
        raise ValueError(f"the weights in {folder} do not fit its config.json, for example {lost[0]}")
    if eight_bit and any(value.ndim == 3 for value in network.parameters()):
        raise ValueError(
            f"{folder} holds a mixture of experts, which bitsandbytes leaves in 16 bits; load it in bf16, without 8 bits"
        )
    if last is not None:
        head: Any = network.get_output_embeddings()
        head.bias = torch.nn.Parameter(last.to(head.weight).clone())
    check_finite(network.named_parameters(), folder)
    network.config.name_or_path = network.name_or_path = str(folder)
    loaded: PreTrainedModel = network.eval()
    return loaded


def _eight_bits() -> Any:
    """The setting with which transformers rounds weights while it loads them."""
    from transformers import BitsAndBytesConfig

    needs("quantize")
    return BitsAndBytesConfig(load_in_8bit=True)


def _of_more_layers(network: PreTrainedModel, unused: Iterable[str]) -> list[str]:
    """The unused weights that would belong to further layers of the network."""
    kinds = {re.sub(r"\d+", "N", name) for name in network.state_dict()}
    return [name for name in sorted(unused) if re.sub(r"\d+", "N", name) in kinds]


def _skeleton(folder: Path, config: PreTrainedConfig, auto: Any, weights: Mapping[str, Tensor]) -> PreTrainedModel:
    """The network without memory for its weights. Raises ValueError if it is far larger than the weights."""
    with torch.device("meta"), at_most(2 * elements(weights.values()) + (1 << 26), 4 * len(weights) + 1000):
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


def _generation(file: Path) -> Any:
    from transformers import GenerationConfig

    content = cleaned(read_json(file, ""), file)
    try:
        return GenerationConfig.from_dict(content)
    except Exception as error:
        raise ValueError(f"{file} makes no generation settings: {in_short(error)}") from error


def load_tokenizer(folder: Path, maker: Any = None, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer in a model's folder.

    Args:
        folder: of the model.
        maker: a tokenizer class of transformers; by default AutoTokenizer chooses.
        options: for the tokenizer, such as padding_side.

    Raises:
        ValueError: the tokenizer is missing, broken, or exists only as code.
    """
    needs("text")
    from transformers import AutoTokenizer

    if not any(inside(folder, name).is_file() for name in VOCABULARIES):  # transformers would make up an empty one
        raise ValueError(f"there is no tokenizer in {folder}; save the model's tokenizer there")
    settings = inside(folder, "tokenizer_config.json")
    coded = settings.is_file() and "auto_map" in read_json(settings, "it says how to read the vocabulary")
    if coded and not maker and not inside(folder, "tokenizer.json").is_file():
        raise ValueError(
            f"the tokenizer in {folder} is code of the checkpoint, which fewstep does not run; put a tokenizer.json there"
        )
    with TemporaryDirectory() as place:
        _copy_tokenizer(folder, Path(place))
        try:
            tokenizer: PreTrainedTokenizerBase = (maker or AutoTokenizer).from_pretrained(
                place, local_files_only=True, trust_remote_code=False, **options
            )
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library underneath panics on some files with a BaseException
            reason = in_short(error).replace(place, str(folder))
            raise ValueError(f"the tokenizer in {folder} could not be loaded: {reason}") from error
    if not isinstance(tokenizer.model_max_length, (int, float)):
        raise ValueError(f"the tokenizer in {folder} has model_max_length = {tokenizer.model_max_length!r}, not a number")
    tokenizer.name_or_path = str(folder)
    return tokenizer


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, network: PreTrainedModel) -> None:
    """Refuses a tokenizer with tokens beyond the network's embeddings: it belongs to another model.

    Added tokens do not count: some models have no embedding for them and never see them.

    Raises:
        ValueError: names one such token.
    """
    known = network.get_input_embeddings().num_embeddings
    added = set(tokenizer.get_added_vocab())
    beyond = [name for name, number in tokenizer.get_vocab().items() if number >= known and name not in added]
    if beyond:
        raise ValueError(
            f"the tokenizer in {tokenizer.name_or_path} has the token {min(beyond)!r} beyond the {known} that the model "
            "knows; put the tokenizer of this model there"
        )


def _copy_tokenizer(folder: Path, place: Path) -> None:
    """Copies a tokenizer's files; settings lose the entries that name code or other files."""
    for file in filter(Path.is_file, [inside(folder, name) for name in TOKENIZER_FILES]):
        if file.stat().st_size > LARGEST_VOCABULARY:
            raise ValueError(f"{file} is larger than {LARGEST_VOCABULARY >> 20} MiB, so it is no part of a tokenizer")
        if file.name in SETTINGS:
            content = cleaned(read_json(file, "it says how to read the vocabulary"), file)
            said = {key: value for key, value in content.items() if value is not None}  # of some a null warns, too
            (place / file.name).write_text(json.dumps(said), encoding="utf-8")
        else:
            shutil.copyfile(file, place / file.name)
