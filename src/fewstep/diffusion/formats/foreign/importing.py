"""import_checkpoint(): a file of another code base becomes a folder that load() reads, without its code."""

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
OFFSET = 0.002  # where openai's consistency models are the identity, and where their sampling ends
# what a file is trained for, as its network's class or loss says, or how its published name begins
CLASSES: dict[str, Kind] = {"EDMPrecond": "diffusion", "EDM2Loss": "diffusion", "EDMLoss": "diffusion",
                            "ECMPrecond": "consistency", "ECMLoss": "consistency"}  # fmt: skip
BEGINNINGS: dict[str, Kind] = {"edm": "diffusion", "cd_": "consistency", "ct_": "consistency", "ecm": "consistency",
                               "ect": "consistency"}  # fmt: skip
OTHERS = {"VPPrecond": "VP", "VEPrecond": "VE", "iDDPMPrecond": "iDDPM"}
DEEPEST, MOST = 4, 100_000  # dicts of tensors within dicts, and what is in all of them

logger = logging.getLogger("fewstep")


@dataclass(frozen=True)
class Content:
    """What a file holds: tensors by their names, and what it says of the network they belong to."""

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
    """Writes the network in a file of EDM, EDM2, ECT, FastGen or openai/consistency_models as a folder that `load` reads.

    No code of the file runs: a .pkl is read by a machine that knows a dozen names, .pt and .pth by torch's reader of plain
    tensors. ADM networks become diffusers' UNet2DModel, others a network of fewstep with the published names.

    Args:
        file: a .pkl, .pt, .pth or .safetensors.
        out: the folder to write; nothing may be there.
        kind: what it was trained for, where neither the file nor its name says it.
        size: side of its pictures, where the tensors do not say it.
        head: channels of an attention head, 64 in all published files.
        part: what the names of its weights begin with, where it holds several networks and not one average of them.
        consistency_time: an ADM network that was told ln σ/4 is told 250·ln σ afterwards, as stock pipelines tell it.

    Returns:
        The model that was written.

    Raises:
        ValueError: there is no such file, it is broken or holds no network that is known, or what was asked for does not
            go with it.
    """
    file, out = Path(file), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already; choose another folder with --out")
    writable(out.parent)
    try:
        content = _content(file)
        if sum(tensor.nbytes for tensor in content.tensors.values()) > 2 * file.stat().st_size:
            raise RefusedError("has tensors that are larger together than the file, so it is broken; fetch it again")
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
    """What is in a file, by how its name ends."""
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
    raise ValueError(f"{file} is no .pkl, .pt, .pth or .safetensors, which fewstep import reads")


def _flat(held: Any) -> dict[str, Tensor]:
    """The tensors in dicts within dicts, by their dotted names."""
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
    """The averaged network in a pickle, which is alone or with what trained it."""
    network = held.get("ema") if isinstance(held, dict) else held
    beside = [value.kind for value in held.values() if isinstance(value, Node)] if isinstance(held, dict) else []
    if not isinstance(network, Node) or "_modules" not in network.state:
        raise RefusedError("holds no network, alone or as ema")
    told = network.state.get("_init_kwargs")
    if not (isinstance(told, dict) and all(isinstance(name, str) for name in told)):
        raise RefusedError("does not say how its network was made (_init_kwargs)")
    return Content(weights_of(network), told, (network.kind, *beside))


def _trained(file: Path, content: Content) -> Kind:
    """What the network in a file was trained for, as the file or its name says."""
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
    raise RefusedError("does not say whether it is a diffusion model or a consistency model; say it with --kind")


def _network(layout: Layout) -> nn.Module:
    """The network with its weights, in float32."""
    try:
        with torch.device("meta"):  # costs no memory, whatever the sizes
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
        raise RefusedError(f"has {', '.join(said)}, so it is no {layout.kind} as published; fetch it again")
    with torch.random.fork_rng(devices=[]):  # the first weights are drawn, and all are replaced
        network: nn.Module = class_of(layout.kind)(**layout.settings)
    network.load_state_dict({name: weight.float() for name, weight in found.items()})
    return network


def _denoiser(
    file: Path, network: nn.Module, layout: Layout, told: Mapping[str, Any], trained: Kind, *, consistency_time: bool
) -> Denoiser:
    """The network with EDM's preconditioning, or that of consistency models."""
    data = told.get("sigma_data", 0.5)
    if isinstance(data, bool) or not isinstance(data, int | float) or not 0 < data < 1e6:
        raise ValueError(f"{file} says sigma_data = {reprlib.repr(data):.40}, which is no spread of data; fetch it again")
    schedule = Karras(float(data), time_scale=250.0 if layout.thousandfold else 0.25)
    # ECT trains without an offset, whatever its network does when it is evaluated; openai's code has one in both
    offset = OFFSET if layout.thousandfold and trained == "consistency" else 0.0
    if consistency_time and not layout.thousandfold:
        if layout.kind != "UNet2DModel":
            raise ValueError(f"no stock pipeline samples the {layout.kind} in {file}; leave --consistency-time out")
        off = in_consistency_time(network, schedule)
        logger.info("told 250·ln σ, its time embedding differs by %.1e of its largest value", off)
        schedule = Karras(float(data))
    return Denoiser(network, schedule, Preconditioned(float(data), offset))
