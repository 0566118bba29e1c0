"""`export_adapter`: writes a LoRA student as a file for stock diffusers, and verifies it before it appears."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor

from ...core.files import atomic_folder
from ...core.source import folder_of
from ...core.weights import weight_files
from ..denoiser import Denoiser
from ..lora import base_of, factors_along, is_adapted, mark_of
from ..model import Model
from ..walk import Walk
from . import stock_adapter
from .adapters import check_for_comfyui, part_of, write_adapter, write_for_comfyui
from .exporting import check_free
from .folder import network_folder, write_note
from .network import WEIGHTS
from .parts import read_parts
from .pipelines import few_step_scheduler
from .rounding import STEP
from .verifying import Agreement, lines_of, said_by

Form = Literal["pipeline", "adapter", "comfyui"]


def export_adapter(
    model: Model,
    folder: str | Path,
    *,
    walk: Walk | None = None,
    form: Form = "adapter",
    card: Mapping[str, Any] | None = None,
) -> Agreement:
    """Writes the adapter of `model` for `load_lora_weights` of diffusers, and verifies it in a new process.

    The stock scheduler for a pipeline is written into scheduler/. The new process loads base and adapter with plain
    diffusers and calls the network at the levels of the walk. The folder appears only if the outputs agree.

    Args:
        model: a LoRA student, on the CPU.
        folder: folder to write; only an earlier export there is replaced.
        walk: replaces the model's own walk. A student of any number of calls becomes an adapter for this walk.
        form: "comfyui" writes a second file with ComfyUI's names of the layers.
        card: facts for the model card, one line each.

    Returns:
        The largest difference of the outputs, and the allowed one.

    Raises:
        ValueError: the model is no LoRA student, stock diffusers loads no adapters into its network, the outputs differ, or
            `folder` holds something else.
    """
    check_free(Path(folder))
    check_adapter(model, form)
    chosen, denoiser = walk or model.walk, model.denoiser
    network, levels = denoiser.network, chosen.levels(denoiser)
    scheduler = None if model.pipeline is None else few_step_scheduler(denoiser, chosen, model.pipeline)
    factors = factors_along(denoiser, levels)
    call, ours, moved = _said(denoiser, levels)
    with atomic_folder(Path(folder)) as temporary:
        write_adapter(temporary, network, factors)
        if form == "comfyui":
            write_for_comfyui(temporary, network, factors)
        base = {"source": base_of(network), "weights": mark_of(network)}
        write_note(temporary, chosen, base=base, pipeline=model.pipeline)
        theirs = _stock_said(temporary, network_folder(base_of(network), part_of(network)), part_of(network), call)
        agreement = Agreement.of(theirs, ours, moved, "network's largest output", size=float(ours.abs().max()))
        agreement.check("the base with the exported adapter differs from the student")
        facts = dict(card or {}) | {"verified": f"the network's output, largest difference {agreement.largest:.2g}"}
        if scheduler is not None:
            scheduler.save_pretrained(temporary / "scheduler")
        (temporary / "README.md").write_text(_card(Path(folder).name, model, chosen, scheduler, facts))
    return agreement


def check_adapter(model: Model, form: Form) -> None:
    """Raises ValueError if `model` is no LoRA student, or its adapter could not be loaded in this form."""
    if not is_adapted(model.denoiser.network):
        raise ValueError("only LoRA students have an adapter, and this model is none; leave --form out")
    if without_loader := _without_loader(model):
        raise ValueError(
            f"stock diffusers loads no adapters into a {without_loader}; use --form pipeline, which fuses it with its base"
        )
    if form == "comfyui":
        check_for_comfyui(model.denoiser.network)


def usual_form(model: Model) -> Form:
    """The default form: adapter if stock diffusers can load it, else pipeline."""
    return "adapter" if is_adapted(model.denoiser.network) and not _without_loader(model) else "pipeline"


def _without_loader(model: Model) -> str:
    """The class into which stock diffusers loads no adapters, or ""."""
    import diffusers

    kinds = {type(model.denoiser.network): "load_lora_adapter"}
    if model.pipeline is not None:
        kinds[getattr(diffusers, read_parts(model.pipeline.source).pipeline)] = "load_lora_weights"
    return next((kind.__name__ for kind, loads in kinds.items() if not hasattr(kind, loads)), "")


@torch.no_grad()
def _said(denoiser: Denoiser, levels: Tensor) -> tuple[tuple[Any, Any], Tensor, Tensor]:
    """The arguments and outputs of the network along a walk, and its outputs at levels one rounding step higher."""
    seen: list[tuple[Any, Any, Tensor]] = []

    def see(_: object, given: Any, named: Any, output: Any) -> None:
        said = output if isinstance(output, Tensor) else output[0]
        seen.append((given, named, torch.stack(said) if isinstance(said, list) else said))  # some return a list of samples

    lows = torch.cat([levels[1:], levels.new_zeros(1)]).float()
    cond = denoiser.blank.expand(len(levels)).until(lows)
    noise = torch.randn(len(levels), *denoiser.space.shape, generator=torch.Generator().manual_seed(0))
    hook = denoiser.network.register_forward_hook(see, with_kwargs=True)
    try:
        for sigma in (levels, levels * (1 + STEP)):
            denoiser(sigma.float().view(-1, *[1] * (noise.ndim - 1)) * noise, sigma, cond)
    finally:
        hook.remove()
    (given, named, ours), (*_, moved) = seen
    return (given, named), ours, moved


def _stock_said(adapter: Path, network: Path, part: str, call: tuple[Any, Any]) -> Tensor:
    """The outputs of base and adapter in a new process."""
    variants = [name.split("-")[0] for name in weight_files(network, WEIGHTS)[0].name.split(".")[1:-1]]
    with TemporaryDirectory() as scratch:
        calls = Path(scratch) / "calls.pt"
        torch.save(call, calls)
        return said_by(stock_adapter, network, adapter, part, *(variants or [""]), calls)


def _card(name: str, model: Model, walk: Walk, scheduler: Any, facts: Mapping[str, Any]) -> str:
    base = base_of(model.denoiser.network)
    on_hub = "" if Path(base).exists() else f"base_model: {base}\n"
    return f"""---
library_name: diffusers
{on_hub}tags: [lora, few-step, consistency, fewstep]
---
# {name}

An adapter, tuned with fewstep, that makes a few-step generator of its base:

```python
{_example(name, model, walk, scheduler)}
```

{lines_of(facts)}
"""


def _known_to_diffusers(base: str) -> str:
    """The name of a base for plain diffusers: a path for bundled models, whose names only fewstep knows."""
    bundled = base.startswith("bundled")
    return str(folder_of(base, "diffusers folder", bundled="teacher").resolve()) if bundled else base


def _example(name: str, model: Model, walk: Walk, scheduler: Any) -> str:
    """An example for plain diffusers. Guidance is off, because the student has it built in."""
    base = _known_to_diffusers(base_of(model.denoiser.network))
    load = f"""import torch
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{base}", torch_dtype=torch.float32)
pipeline.load_lora_weights("{name}")"""
    if model.pipeline is None:
        times = model.denoiser.schedule.time(walk.levels(model.denoiser)).tolist()
        return f"{load}  # the network is called at the times {', '.join(f'{time:.6g}' for time in times)}"
    kind, told = type(scheduler).__name__, model.pipeline.call | dict(model.pipeline.manner.off)
    asked = ['"a prompt"'] if model.pipeline.prompted else []
    given = ", ".join([*asked, f"num_inference_steps={walk.steps}", *(f"{key}={value!r}" for key, value in told.items())])
    load = load.replace("import DiffusionPipeline", f"import DiffusionPipeline, {kind}")
    return f"""{load}
pipeline.scheduler = {kind}.from_pretrained("{name}", subfolder="scheduler")
pipeline({given})"""
