"""`import_checkpoint`: converts a file of another code base into a folder for `load`, without running its code."""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ....core.files import writable
from ....core.weights import check_finite, read_safetensors, read_torch
from ...denoiser import Denoiser
from ...model import Model
from ...prediction import Preconditioned
from ...schedule import Karras
from ...walk import Consistency, Heun, Walk
from ..folder import save
from ..network import class_of
from .fold import in_consistency_time
from .layouts import Layout, recognised
from .pickles import Node, RefusedError, read_pickle, weights_of

Kind = Literal["diffusion", "consistency"]
OFFSET = 0.002  # noise level at which openai's consistency models are the identity and their sampling ends
# training of a file, by the class of its network or loss, or by the beginning of its published name
CLASSES: dict[str, Kind] = {"EDMPrecond": "diffusion", "EDM2Loss": "diffusion", "EDMLoss": "diffusion",
                            "ECMPrecond": "consistency", "ECMLoss": "consistency"}  # fmt: skip
BEGINNINGS: dict[str, Kind] = {"edm": "diffusion", "cd_": "consistency", "ct_": "consistency", "ecm": "consistency",
                               "ect": "consistency"}  # fmt: skip
OTHERS = {"VPPrecond": "VP", "VEPrecond": "VE", "iDDPMPrecond": "iDDPM"}
DEEPEST, MOST = 4, 100_000  # nesting of dictionaries of tensors, and entries in all of them

logger = logging.getLogger("fewstep")


@dataclass(frozen=True)
class Content:
    """The content of a file: tensors by name, settings of their network, and names of classes."""

    tensors: Mapping[str, Tensor]
    told: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()


def import_checkpoint(
    file: str | Path,
    out: str | Path,
    *,
    kind: Kind | None = None,
    size: int | None = None,
    head: int | None = None,
    part: str | None = None,
    consistency_time: bool = False,
) -> Model:
    """Converts the network in a file of EDM, EDM2, ECT, FastGen or openai/consistency_models into a folder for `load`.

    No code of the file runs: fewstep reads .pkl files by its own interpreter, which knows a dozen names, and .pt and .pth
    files by torch's reader of plain tensors. ADM networks become diffusers' UNet2DModel; others become a network of fewstep
    with the published parameter names.

    Args:
        file: a .pkl, .pt, .pth or .safetensors file.
        out: folder to write; it must be empty or not exist.
        kind: "diffusion" or "consistency", if neither the file nor its name says it.
        size: side of the pictures, if the tensors do not determine it.
        head: channels of an attention head; 64 in all published files.
        part: prefix of the weights' names, if the file holds several networks and not a single average.
        consistency_time: converts an ADM network with the time ln σ/4 to the time of stock pipelines, 250·ln σ.

    Returns:
        The model that was written.

    Raises:
        ValueError: the file does not exist, is broken or holds no known network, or an argument does not fit it.
    """
    file, out = Path(file), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists; choose another folder with --out")
    writable(out.parent)
    try:
        content = _content(file)
        if sum(tensor.nbytes for tensor in content.tensors.values()) > 2 * file.stat().st_size:
            raise RefusedError("has tensors that are larger in total than the file, so it is broken; download it again")
        trained = kind or _trained(file, content)
        layout = recognised(content.tensors, content.told, size=size, head=head, part=part)
        network = _network(layout)
    except RefusedError as said:
        raise ValueError(f"{file} {said}") from None
    check_finite(network.state_dict().items(), file)
    denoiser = _denoiser(file, network, layout, content.told, trained, consistency_time=consistency_time)
    walk: Walk = Consistency() if trained == "consistency" else Heun()
    model = Model(denoiser.eval(), walk)
    save(model, out)
    return model


def _content(file: Path) -> Content:
    """Reads a file by its suffix."""
    if not file.is_file():
        there = f"{file} is a folder" if file.is_dir() else f"there is no file {file}"
        raise ValueError(f"{there}; give a .pkl, .pt, .pth or .safetensors file of a network")
    ending = file.suffix.lower()
    if ending == ".safetensors":
        return Content(read_safetensors(file))
    if ending in (".pt", ".pth", ".bin", ".ckpt"):
        return Content(_flat(read_torch(file)))
    if ending == ".pkl":
        return _unpickled(read_pickle(file))
    raise ValueError(f"{file} is no .pkl, .pt, .pth or .safetensors; fewstep import reads only those")


def _flat(held: Any) -> dict[str, Tensor]:
    """The tensors in nested dictionaries, by dotted names."""
    found: dict[str, Tensor] = {}
    waiting, seen = [("", held, 0)], 0
    while waiting:
        prefix, value, depth = waiting.pop()
        if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized:
            found[prefix] = value
        elif isinstance(value, dict) and depth < DEEPEST:
            seen += len(value)
            if seen > MOST:
                raise RefusedError("has more parts than any network")
            waiting += [(f"{prefix}.{name}" if prefix else str(name), inner, depth + 1) for name, inner in value.items()]
    return found


def _unpickled(held: Any) -> Content:
    """The network of a pickle, or the averaged one (`ema`) of a training."""
    network = held.get("ema") if isinstance(held, dict) else held
    beside = [value.kind for value in held.values() if isinstance(value, Node)] if isinstance(held, dict) else []
    if not isinstance(network, Node) or "_modules" not in network.state:
        raise RefusedError("holds no network, neither alone nor as ema")
    told = network.state.get("_init_kwargs")
    if not (isinstance(told, dict) and all(isinstance(name, str) for name in told)):
        raise RefusedError("does not hold the settings of its network (_init_kwargs)")
    return Content(weights_of(network), told, (network.kind, *beside))


def _trained(file: Path, content: Content) -> Kind:
    """Whether the network was trained for diffusion or consistency, by its classes or its name."""
    for said in content.classes:
        if said in OTHERS:
            raise RefusedError(
                f"has the preconditioning of {OTHERS[said]} ({said}); fewstep reads that of EDM, EDM2 and ECT"
            )
    known = {CLASSES[said] for said in content.classes if said in CLASSES}
    if known:
        return "consistency" if "consistency" in known else "diffusion"
    for begins, kind in BEGINNINGS.items():
        if file.name.lower().startswith(begins):
            return kind
    raise RefusedError("does not say whether it is a diffusion model or a consistency model; give --kind")


def _network(layout: Layout) -> nn.Module:
    """The network with its weights, in float32."""
    try:
        with torch.device("meta"):  # takes no memory
            plan: nn.Module = class_of(layout.kind)(**layout.settings)
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError, ZeroDivisionError) as error:
        raise RefusedError(f"describes no {layout.kind} ({error!s:.200})") from None
    expected, found = plan.state_dict(), layout.weights
    wrong = {
        "no": expected.keys() - found.keys(),
        "an unknown": found.keys() - expected.keys(),
        "another shape of": {name for name in expected.keys() & found.keys() if expected[name].shape != found[name].shape},
    }
    said = [f"{fault} {min(names):.100}" for fault, names in wrong.items() if names]
    if said:
        raise RefusedError(f"has {', '.join(said)}, so it is no published {layout.kind}; download it again")
    with torch.random.fork_rng(devices=[]):  # the initial weights are random and are replaced
        network: nn.Module = class_of(layout.kind)(**layout.settings)
    network.load_state_dict({name: weight.float() for name, weight in found.items()})
    return network


def _denoiser(
    file: Path, network: nn.Module, layout: Layout, told: Mapping[str, Any], trained: Kind, *, consistency_time: bool
) -> Denoiser:
    """The network as a denoiser with the preconditioning of EDM or of consistency models."""
    data = told.get("sigma_data", 0.5)
    if isinstance(data, bool) or not isinstance(data, int | float) or not 0 < data < 1e6:
        raise ValueError(
            f"{file} says sigma_data = {reprlib.repr(data):.40}, which is no standard deviation; download it again"
        )
    schedule = Karras(float(data), time_scale=250.0 if layout.thousandfold else 0.25)
    # ECT trains without an offset, even if its network has one in evaluation; openai's code has one in both
    offset = OFFSET if layout.thousandfold and trained == "consistency" else 0.0
    if consistency_time and not layout.thousandfold:
        if layout.kind != "UNet2DModel":
            raise ValueError(f"no stock pipeline samples the {layout.kind} in {file}; leave --consistency-time out")
        off = in_consistency_time(network, schedule)
        logger.info("given the time 250·ln σ, the time embedding differs by %.1e of its largest value", off)
        schedule = Karras(float(data))
    return Denoiser(network, schedule, Preconditioned(float(data), offset))
