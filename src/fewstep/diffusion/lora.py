"""LoRA students: low-rank changes of the frozen layers of a checkpoint's network, by peft."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..core.extras import needs
from ..core.weights import mark
from .average import copied
from .cond import Cond
from .denoiser import Denoiser
from .depth import blocks_of
from .two_times import TwoTimes, check_solved, told_along

Model = TypeVar("Model", bound=nn.Module)

NAME = "fewstep"  # name of our adapter in a network
# the attention projections that diffusers' training scripts choose; the last four are those of text tokens
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
RESIDUAL = ("conv1", "conv2", "conv_shortcut", "time_emb_proj")  # for UNets with attention in few blocks
MOST = 1 << 12  # rank


@dataclass(frozen=True)
class LoRA:
    """Replaces the weights W of some layers by W + B·A. A (rank, in) starts random, B (out, rank) starts at zero.

    Attributes:
        rank: rank of the change, 1 to 4096.
        targets: ends of the layers' names, such as `to_q`; by default the attention projections, and for a UNet2DModel the
            layers of its residual blocks too.

    Reference: Hu et al. 2021, LoRA.
    """

    rank: int
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= MOST:
            raise ValueError(f"the rank of a LoRA must be between 1 and {MOST}, got {self.rank}")


def places_of(network: nn.Module, targets: Collection[str] = (), *, frozen: int = 0) -> list[str]:
    """The names of the layers that a LoRA changes.

    Args:
        network: a network without an adapter.
        targets: ends of names, as in `LoRA`.
        frozen: number of first blocks that are left out.

    Raises:
        ValueError: no layer outside the frozen blocks has such a name.
    """
    chosen = tuple(targets) or ATTENTION + (RESIDUAL if type(network).__name__ == "UNet2DModel" else ())
    without = tuple(f"{block}." for block in blocks_of(network)[:frozen])
    found, reached = [], set()
    for name, layer in network.named_modules():
        ends = [end for end in chosen if f".{name}".endswith(f".{end}")]
        if ends and isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            reached.update(ends)
            if not name.startswith(without):
                found.append(name)
    missed = [end for end in targets if end not in reached]
    if missed or not found:
        kind, what = type(network).__name__, " or ".join(missed or chosen)
        where = "outside of its frozen blocks " if frozen and not missed else ""
        raise ValueError(
            f"no layer of this {kind} {where}has a name that ends in {what}; name others with --lora-targets, "
            f"such as {', '.join(_ends(network)[:5])}"
        )
    return found


def adapt(denoiser: Denoiser, lora: LoRA, *, base: str = "", seed: int = 0, frozen: int = 0) -> None:
    """Adds a new LoRA to the network of `denoiser`. The function stays the same, and only the LoRA trains.

    Args:
        denoiser: a denoiser without an adapter. The second time of a `TwoTimes` trains as well.
        lora: rank and layers.
        base: folder or hub id of the network, for `load`.
        seed: seed of the random factors.
        frozen: number of first blocks that get no LoRA.

    Raises:
        ValueError: see `places_of`.
    """
    ranks = dict.fromkeys(places_of(denoiser.network, lora.targets, frozen=frozen), lora.rank)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _inject(denoiser.network, ranks, base)


def _inject(network: Any, ranks: Mapping[str, int], base: str) -> None:
    """Adds factors of these ranks to the layers of these names, with scale 1."""
    needs("lora")
    from peft import LoraConfig, inject_adapter_in_model

    most = max(ranks.values())
    others = {f"^{place}": rank for place, rank in ranks.items() if rank != most}
    exactly = "|".join(map(re.escape, ranks))  # a list would match the ends of names
    inject_adapter_in_model(
        LoraConfig(
            r=most, lora_alpha=most, rank_pattern=others, alpha_pattern=others, target_modules=exactly,
            base_model_name_or_path=base,
        ),
        network, adapter_name=NAME,
    )  # fmt: skip


def layers_of(network: nn.Module) -> dict[str, Any]:
    """The layers with factors of our adapter, by name; {} without an adapter."""
    if not is_adapted(network):
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: part for name, part in network.named_modules() if isinstance(part, LoraLayer) and NAME in part.lora_A}


def is_adapted(network: nn.Module) -> bool:
    """Whether the network has our LoRA."""
    return NAME in getattr(network, "peft_config", {})


def base_of(network: Any) -> str:
    """Folder or hub id of the network under the adapter."""
    return str(network.peft_config[NAME].base_model_name_or_path)


def factors_of(network: nn.Module) -> dict[str, Tensor]:
    """A and B of each layer, as PLACE.lora_A.weight and PLACE.lora_B.weight."""
    return {
        f"{place}.{factor}.weight": getattr(layer, factor)[NAME].weight.detach()
        for place, layer in layers_of(network).items()
        for factor in ("lora_A", "lora_B")
    }


def put_factors(denoiser: Denoiser, factors: Mapping[str, Tensor], *, base: str) -> None:
    """Adds an adapter with these factors, named as in `factors_of`, to the network of `denoiser`.

    Raises:
        ValueError: the factors do not fit the layers of the network.
    """
    network = denoiser.network
    ranks = {name.removesuffix(".lora_A.weight"): len(a) for name, a in factors.items() if name.endswith(".lora_A.weight")}
    _check_factors(network, factors, ranks)
    with torch.random.fork_rng(devices=[]):  # peft draws factors, which are replaced below
        _inject(network, ranks, base)
    with torch.no_grad():
        for place, layer in layers_of(network).items():
            for factor in ("lora_A", "lora_B"):
                getattr(layer, factor)[NAME].weight.copy_(factors[f"{place}.{factor}.weight"])


def _check_factors(network: nn.Module, factors: Mapping[str, Tensor], ranks: Mapping[str, int]) -> None:
    kind, layers = type(network).__name__, dict(network.named_modules())
    wanted = {f"{place}.{factor}.weight" for place in ranks for factor in ("lora_A", "lora_B")}
    wrong = sorted(wanted ^ factors.keys())
    for place, rank in ranks.items():
        layer: Any = layers.get(place)
        if not (isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and 1 <= rank <= MOST):
            wrong.append(place)
            continue
        forms = {"lora_A": (rank, *layer.weight.shape[1:]), "lora_B": (len(layer.weight), rank)}
        for factor, form in forms.items():
            found = factors.get(f"{place}.{factor}.weight")
            if found is not None and (
                tuple(found.shape) != form + (1,) * (found.ndim - 2) * (factor == "lora_B")
                or found.ndim != layer.weight.ndim
                or not found.is_floating_point()
            ):
                wrong.append(f"{place}.{factor}.weight")
    if wrong or not ranks:
        raise ValueError(
            f"the adapter does not fit this {kind} at {min(wrong, default='any layer')}; use it with the base that it was "
            "tuned on"
        )


@torch.no_grad()
def factors_along(student: Denoiser, levels: Tensor, cond: Cond | None = None) -> dict[str, Tensor]:
    """The factors of the adapter for one walk, named as in `factors_of`.

    The second time of a student of any number of calls becomes a change of the last layer of its time embedding, of rank S
    for S levels: ΔW·h(t) = C(lo), the least-norm solution in float64. The bias stays unchanged, because adapter files hold
    no biases.

    Args:
        student: a denoiser with an adapter, on the CPU.
        levels: noise levels of the walk, falling, (S,).
        cond: see `baked`.

    Raises:
        ValueError: there are more levels than the hidden layer can tell apart.
    """
    factors = factors_of(student.network)
    if not isinstance(student, TwoTimes):
        return factors
    for place, (hidden, shift) in told_along(student, levels, cond).items():
        u, s, v = torch.linalg.svd(hidden, full_matrices=False)
        known = s > 1e-12 * s[0]
        a, b = v[known], (shift.T @ u / s)[:, known]
        check_solved(hidden @ (b @ a).T, shift, hidden.shape[1])
        for name, factor, along in ((f"{place}.lora_A.weight", a, 0), (f"{place}.lora_B.weight", b, 1)):
            before = [factors[name].double()] if name in factors else []
            factors[name] = torch.cat([*before, factor], along).float()
    return factors


def shared(denoiser: Model) -> Model:
    """A copy with its own modules around the same tensors."""
    return copied(denoiser, {**dict(denoiser.named_parameters()), **dict(denoiser.named_buffers())})


@torch.no_grad()
def fused(denoiser: Denoiser) -> Denoiser:
    """The same function without an adapter, with weights W + B·A; all other tensors are shared."""
    plain = _without(shared(denoiser))
    for place, layer in layers_of(denoiser.network).items():
        bare: Any = plain.network.get_submodule(place)
        bare.weight = nn.Parameter(bare.weight + layer.get_delta_weight(NAME).to(bare.weight.dtype), requires_grad=False)
    return plain


@torch.no_grad()
def at_strength(denoiser: Denoiser, strength: float) -> Denoiser:
    """The student with its adapter and its second time scaled by `strength`: 0 is the base, 1 the student itself.

    Raises:
        ValueError: the denoiser has no adapter.
    """
    if not is_adapted(denoiser.network):
        raise ValueError("only LoRA students have a strength, and this model is none; leave --strength out")
    made = shared(denoiser) if strength else _without(shared(denoiser))
    lasts = [layer.lora_B[NAME] for layer in layers_of(made.network).values()]
    lasts += [end.linear_2 for end in made.embeddings()] if isinstance(made, TwoTimes) else []
    for last in lasts:
        for name, p in list(last.named_parameters()):
            setattr(last, name, nn.Parameter(strength * p, p.requires_grad))
    return made


def _without(denoiser: Denoiser) -> Denoiser:
    """Removes the adapter from a denoiser's network."""
    network: Any = denoiser.network
    for place, layer in layers_of(network).items():
        network.set_submodule(place, layer.get_base_layer())
    network.__dict__.pop("peft_config", None)
    return denoiser


def mark_of(network: nn.Module) -> str:
    """A hash that identifies a base: names, shapes and some values of all its weights, rounded to bfloat16.

    It ignores an adapter in the network and the precision of the weights.
    """
    held = {}
    for name, weight in network.state_dict().items():
        if ".lora_A." not in name and ".lora_B." not in name:
            held[name.replace(".base_layer.", ".")] = weight
    return mark(held)


def _ends(network: nn.Module) -> list[str]:
    """The last parts of the names of its layers, the most frequent first."""
    names = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    short = [name.rpartition(".")[2] for name in names if not name.rpartition(".")[2].isdigit()]
    return sorted(set(short), key=lambda end: (-short.count(end), end))
