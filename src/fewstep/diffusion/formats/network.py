"""Reads a diffusers network from its folder and checks that all weights are there, of the right shape and finite."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.source import inside, read_json
from ...core.weights import TooLargeError, at_most, check_finite, elements, read_weights
from ..denoiser import takes_of
from .parts import NETWORKS, OURS, WERE_CALLED

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")  # diffusers' names
MOST = 1 << 20  # largest number in a network's configuration
TABLES = 256 << 20  # bytes of a network's buffers at most, such as positional embeddings
WIDEST = 1 << 14  # pixels of a picture's side at most
# diffusers' names for the weights of attention before 0.13
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
WRAPPERS = {"module", "_orig_mod"}  # parts that torch adds anywhere in a name


def read_network(folder: Path) -> nn.Module:
    """Reads the network in `folder`, in float32 on the CPU, in evaluation mode.

    The output channels of a learned variance are removed. The mean is unchanged, and stock pipelines can sample it.

    Args:
        folder: folder with config.json and weights.

    Raises:
        ValueError: the configuration describes no supported network, or the weights do not fit it or are not finite.
    """
    config = read_json(inside(folder, "config.json"), "it says how the network is built")
    kind = _kind(folder, config)
    settings = _settings(folder, kind, config)
    weights = read_weights(folder, WEIGHTS)
    _check_depth(folder, settings, len(weights))
    with torch.device("meta"):  # takes no memory
        plan = _build(folder, kind, settings)
        _try(folder, plan)
    weights = _named(weights, plan)
    _check_names(folder, plan.state_dict(), weights)
    if kind not in OURS and plan.config["out_channels"] == 2 * plan.config["in_channels"]:
        settings["out_channels"] = plan.config["in_channels"]
        weights |= _mean(weights, kind, plan.config["in_channels"])
    with torch.random.fork_rng(devices=[]):  # the initial weights are random and are replaced
        network: nn.Module = _build(folder, kind, settings)
    network.load_state_dict(weights)
    check_finite(network.state_dict().items(), folder)
    return network.eval()


def read_any_network(folder: Path, kind: str) -> nn.Module:
    """Reads any denoising network of diffusers unchanged, in float32 on the CPU, in evaluation mode.

    Args:
        folder: folder with config.json and weights.
        kind: class of the network by its pipeline.

    Raises:
        ValueError: the configuration describes no such network, or the weights do not fit it or are not finite.
    """
    import diffusers
    from accelerate import init_empty_weights

    config = read_json(inside(folder, "config.json"), "it says how the network is built")
    said = config.get("_class_name")
    if not isinstance(said, str) or WERE_CALLED.get(said, said) != kind:
        raise ValueError(f"config.json in {folder} describes a {said!r:.80}, but its pipeline says that it is a {kind}")
    _check_bits(folder, config)
    known = inspect.signature(getattr(diffusers, kind).__init__).parameters
    settings = {name: value for name, value in config.items() if name in known and name != "self"}
    for name, value in settings.items():
        if not _is_sound(value):
            raise ValueError(f"config.json in {folder} says {name} = {value!r:.80}, which no {kind} has")
    weights = read_weights(folder, WEIGHTS)
    try:
        with (
            init_empty_weights(include_buffers=False),
            at_most(2 * elements(weights.values()) + (1 << 26), 4 * len(weights) + 1000),
        ):
            network: nn.Module = _build(folder, kind, settings)
    except TooLargeError:
        raise ValueError(
            f"config.json in {folder} describes a network far larger than the {elements(weights.values()):,} numbers of "
            "its weights"
        ) from None
    weights = _named(weights, network)
    _check_names(folder, network.state_dict(), weights)
    for name, value in weights.items():
        check_finite([(name, value)], folder)
        weights[name] = value.to(torch.float32, copy=True) if value.is_floating_point() else value.clone()
    network.load_state_dict(weights, assign=True)
    return network.eval()


def _is_sound(value: Any, depth: int = 0) -> bool:
    """Whether a setting holds texts, numbers within ± MOST, and short lists or dictionaries of them."""
    if isinstance(value, list | dict):
        inner = value.values() if isinstance(value, dict) else value
        return depth < 4 and len(value) <= 1000 and all(_is_sound(each, depth + 1) for each in inner)
    return not isinstance(value, int | float) or -MOST <= value <= MOST


def class_of(kind: str) -> Any:
    """The class of a network that fewstep reads, of diffusers or of fewstep."""
    import diffusers

    return getattr(import_module(OURS[kind], __package__), kind) if kind in OURS else getattr(diffusers, kind)


def _kind(folder: Path, config: Mapping[str, Any]) -> str:
    said = config.get("_class_name")
    kind = WERE_CALLED.get(said, said) if isinstance(said, str) else None
    if kind not in NETWORKS or (kind != said and config.get("norm_type") != "ada_norm_zero"):
        raise ValueError(f"config.json in {folder} describes a {said!r}; fewstep tunes a {' or '.join(NETWORKS)}")
    _check_bits(folder, config)
    return str(kind)


def _check_bits(folder: Path, config: Mapping[str, Any]) -> None:
    if config.get("quantization_config") is not None:
        raise ValueError(f"the network in {folder} is quantised (quantization_config); give a checkpoint in full precision")


def _settings(folder: Path, kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `config` that are arguments of the network, checked."""
    known = inspect.signature(class_of(kind).__init__).parameters
    settings = {name: value for name, value in config.items() if name in known and name != "self"}
    for name, value in settings.items():
        items = value if isinstance(value, list) else [value]
        if not _like(value, known[name].default) or any(not _is_setting(item) for item in items):
            raise ValueError(f"config.json in {folder} says {name} = {value!r:.80}, which no {kind} has")
    return settings


def _like(value: Any, default: Any) -> bool:
    """Whether a setting has the type of its default: a list for a tuple, a number for a number."""
    if value is None or default is None:
        return True
    kinds = {tuple: list, int: int | float, float: int | float}
    return isinstance(value, kinds.get(type(default), type(default))) and isinstance(value, bool) == isinstance(
        default, bool
    )


def _is_setting(item: Any) -> bool:
    return not isinstance(item, dict | list) and (not isinstance(item, int | float) or 0 <= item <= MOST)


def _check_depth(folder: Path, settings: Mapping[str, Any], weights: int) -> None:
    """Raises ValueError if there are more layers than weights, before time is spent on building them."""
    layers = [settings[name] for name in ("layers_per_block", "num_layers") if isinstance(settings.get(name), int)]
    blocks = [len(value) for value in settings.values() if isinstance(value, list)]
    if max(layers, default=1) * max(blocks, default=1) > weights:
        raise ValueError(f"config.json in {folder} describes more layers than it has weights ({weights})")


def _build(folder: Path, kind: str, settings: Mapping[str, Any]) -> Any:
    try:
        return class_of(kind)(**settings)
    except TooLargeError:
        raise
    except Exception as error:  # constructors raise anything for arguments that they do not support
        raise ValueError(f"config.json in {folder} describes no {kind} ({_said(error)})") from error


@torch.no_grad()
def _try(folder: Path, plan: Any) -> None:
    """Checks by a call without data that the network returns as many channels as it takes, or twice as many."""
    config = plan.config
    channels, size = config["in_channels"], config["sample_size"]
    sides = [size, size] if isinstance(size, int) else size
    if sides is None:
        return  # a missing size is reported where it is needed
    if not (isinstance(sides, list | tuple) and len(sides) == 2 and all(_is_side(side) for side in sides)):
        raise ValueError(f"config.json in {folder} says sample_size = {size!r}, not a picture's side from 1 to {WIDEST}")
    cond = {name: torch.zeros(1, dtype=torch.long) for name in takes_of(plan)}
    try:
        given = plan(torch.empty(1, channels, *sides), torch.ones(1), **cond).sample.shape
    except Exception as error:  # networks with wrong settings raise anything
        raise ValueError(f"the network that config.json in {folder} describes cannot be called ({_said(error)})") from error
    if sum(table.nbytes for table in plan.buffers()) > TABLES:
        raise ValueError(f"config.json in {folder} says sample_size = {size!r}, which takes too much memory")
    if given not in [(1, outputs, *sides) for outputs in (channels, 2 * channels)]:
        raise ValueError(
            f"the network in {folder} makes {_times(given[1:])} of {_times((channels, *sides))}; "
            "a denoiser returns the shape that it takes"
        )


def _is_side(side: Any) -> bool:
    return isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= WIDEST


def _named(weights: Mapping[str, Tensor], plan: nn.Module) -> dict[str, Tensor]:
    """`weights` under the network's names: without prefixes of wrappers, and with the new names of attention."""
    expected = plan.state_dict().keys()
    names = {name: _unwrapped(name) for name in weights if name != "n_averaged"}  # the count of torch's AveragedModel
    while not expected & set(names.values()) and len({name.partition(".")[0] for name in names.values()}) == 1:
        names = {name: short.partition(".")[2] for name, short in names.items()}
    names = {name: short if short in expected else _new_name(short) for name, short in names.items()}
    if len(set(names.values())) < len(names):  # two copies, one of them wrapped; `_check_names` reports them
        return dict(weights)
    return {short: weights[name] for name, short in names.items()}


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _new_name(name: str) -> str:
    return ".".join(OLD_NAMES.get(part, part) for part in name.split("."))


def _check_names(folder: Path, expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    both = expected.keys() & weights.keys()
    faults = {
        "missing": expected.keys() - weights.keys(),
        "unknown": weights.keys() - expected.keys(),
        "of another shape": {name for name in both if expected[name].shape != weights[name].shape},
        "quantised": {name for name in both if expected[name].is_floating_point() != weights[name].is_floating_point()},
    }
    said = [f"{len(names)} {fault}, such as {min(names)}" for fault, names in faults.items() if names]
    if said:
        raise ValueError(
            f"the weights in {folder} are not those of the network in its config.json: {', '.join(said)}; "
            "save the network again with save_pretrained()"
        )


def _mean(weights: Mapping[str, Tensor], kind: str, channels: int) -> dict[str, Tensor]:
    """The last layer without the rows of the variance: the second half of the channels, for each pixel of a patch."""
    last = {"UNet2DModel": "conv_out", "DiTTransformer2DModel": "proj_out_2"}[kind]
    names = [f"{last}.weight", f"{last}.bias"]
    return {name: weights[name].unflatten(0, (-1, 2 * channels))[:, :channels].flatten(0, 1) for name in names}


def _said(error: Exception) -> str:
    return (str(error).strip().partition("\n")[0] or type(error).__name__)[:200]


def _times(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))
