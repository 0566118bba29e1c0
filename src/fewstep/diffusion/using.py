"""Sampling and exporting a checkpoint: what `fewstep sample` and `fewstep export` do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..core.checks import at_least
from ..core.device import best_device
from ..core.files import writable
from ..core.nfe import NFE, count_nfe
from .choices import SamplerName
from .cond import Cond, labelled
from .deciding import decided_by
from .denoiser import Denoiser
from .drawing import Wanted, arguments, draw, save_in_parts
from .formats.exporting import check_free, export
from .formats.exporting_adapters import Form, check_adapter, export_adapter, usual_form
from .formats.folder import load
from .formats.pipelines import check_exportable
from .formats.verifying import Agreement
from .measure.seen import Setting
from .measuring import scores_in
from .model import Model
from .two_times import TwoTimes
from .walk import DDIM, Consistency, Heun, Walk
from .walk import sample as walked

SAID = ("teacher", "source", "classes", "recipe_name", "recipe", "versions")  # entries of a receipt for a model card


@dataclass(frozen=True)
class Sampled:
    """The result of `sample_checkpoint`: the model, the number of samples, and the network calls of each."""

    model: Model
    count: int
    calls: float


@dataclass(frozen=True)
class Exported:
    """An exported folder: its student, its number of steps, and how well it agrees with the student."""

    model: Model
    steps: int
    agreement: Agreement


def sample_checkpoint(
    checkpoint: str,
    out: Path,
    *,
    n: int | None = None,
    steps: int | None = None,
    sampler: SamplerName | None = None,
    middle: float | None = None,
    label: int | None = None,
    number: float | None = None,
    prompt: str | None = None,
    prompts: Path | None = None,
    guidance: float | None = None,
    strength: float | None = None,
    call: Sequence[str] = (),
    seed: int = 0,
    batch: int = 250,
) -> Sampled:
    """Draws and saves samples with a receipt. Pictures become one PNG per seed and a sheet.

    Args:
        checkpoint: a run, a diffusers folder or a hub id, tuned or not.
        out: folder for the samples.
        n: number of samples; by default 16, or one per prompt.
        steps, middle: as for `Model.walk_in`.
        sampler: replaces the default sampler: the model's own walk, or the stock pipeline of a diffusion model.
        label: class of the samples, for conditional models.
        number: the number for networks that take one in place of a class.
        prompt, prompts: a prompt, or a text file with one per line; they take turns.
        guidance: scale of the classifier-free guidance of a diffusion pipeline.
        strength: strength of a LoRA student: 0 is its base, 1 the student.
        call: arguments for a stock pipeline, such as "height=256".
        seed: seed of the first sample. Sample k has seed + k and does not depend on the batch.
        batch: number of samples at once.

    Raises:
        ValueError: a number is out of its range, `out` holds a run, the checkpoint does not exist, or it does not take the
            sampler, label or prompt.
    """
    at_least(1, n=n, steps=steps, batch=batch)
    at_least(0, seed=seed, label=label, strength=strength, guidance=guidance)
    wanted = Wanted(prompt, prompts, label, guidance)
    if middle is not None and (steps == 1 or sampler not in (None, "consistency")):
        raise ValueError("--middle is the second of two consistency steps; leave it out with one step or another --sampler")
    writable(out)
    if (out / "state.pt").exists():  # its receipt would be overwritten
        raise ValueError(f"there is a run in {out}; choose another folder for the samples")
    model = load(checkpoint, call=arguments(call) if call else None).to(best_device())
    model = model if strength is None else model.at(strength)
    if model.pipeline is not None:
        own = sampler is None and not model.is_student
        if own and middle is not None:
            raise ValueError("--middle is the second of two consistency steps; leave it out, or take --sampler consistency")
        chosen = None if own else _walk(model, sampler, steps, middle)
        drawn = draw(model, wanted, out, n=n, walk=chosen, seed=seed, steps=steps, batch=batch, checkpoint=checkpoint)
        return Sampled(model, *drawn)
    if wanted.is_any or call:
        raise ValueError("this checkpoint has no pipeline; leave --prompt, --prompts, --guidance and --call out")
    chosen, count = _walk(model, sampler, steps, middle), 16 if n is None else n
    asked = {"label": label, "number": number} | ({} if strength is None else {"strength": strength})
    cond = condition_of(model.denoiser, count, label, number)
    calls = _save_samples(model.denoiser, chosen, cond, out, range(seed, seed + count), batch, checkpoint, asked)
    return Sampled(model, count, calls)


def _save_samples(
    denoiser: Denoiser,
    walk: Walk,
    cond: Cond,
    out: Path,
    seeds: range,
    batch: int,
    checkpoint: str,
    asked: Mapping[str, object],
) -> float:
    """Draws and saves samples with a receipt. Returns the network calls per sample."""
    levels, n = walk.levels(denoiser).tolist(), len(seeds)
    facts = {"checkpoint": checkpoint, "walk": walk, "levels": levels, **asked, "seed": seeds[0], "n": n}

    def make(part: range, done: Callable[[int], None]) -> tuple[Tensor, NFE]:
        with count_nfe(denoiser.network, done) as nfe:
            x0 = walked(denoiser, seeds[part.start : part.stop], walk, cond.part(slice(part.start, part.stop)), batch=batch)
        return denoiser.space.decode(x0), nfe

    rows = save_in_parts(
        make, lambda raw: denoiser.space, out, seeds, batch=batch, calls=walk.calls, facts=facts,
        decided=decided_by([Setting("", denoiser, walk)]),
    )  # fmt: skip
    return rows / n


def export_checkpoint(
    checkpoint: str,
    out: Path,
    *,
    steps: Sequence[int] = (),
    middle: float | None = None,
    measured: Path | None = None,
    form: Form | None = None,
    strength: float | None = None,
) -> Mapping[Path, Exported]:
    """Exports a tuned model with a model card from its receipt; see `export`.

    Args:
        checkpoint: a run or the model in it.
        out: the folder to write; several numbers of steps become folders in it.
        steps: numbers of steps; by default that which the model was tuned for.
        middle: noise level of the second of two steps, for EDM students only.
        measured: a measure.json whose scores go into the model card.
        form: "pipeline", in which a LoRA student is fused with its base; "adapter", the file that `load_lora_weights` of
            diffusers loads; or "comfyui", that file and a second one with ComfyUI's names. By default "adapter" for a LoRA
            student whose adapter stock diffusers loads, else "pipeline".
        strength: strength of a LoRA student: 0 is its base, 1 the student.

    Returns:
        The folders that were written.

    Raises:
        ValueError: the checkpoint is a diffusion model or does not take these steps; and what `export` raises.
    """
    at_least(1, steps=steps)
    at_least(0, strength=strength)
    if middle is not None and 1 in steps:
        raise ValueError("--middle is the second of two consistency steps; leave it out with --steps 1")
    folders = {out / f"{each}-step": each for each in steps} if len(steps) > 1 else {out: steps[0] if steps else None}
    for folder in folders:
        check_free(folder)
    card: dict[str, object] = {"checkpoint": checkpoint, **(scores_in(measured) if measured else {})}
    model = load(checkpoint)
    model = model if strength is None else model.at(strength)
    if not model.is_student:
        raise ValueError(f"{checkpoint} is a diffusion model; tune it first, then export the few-step generator")
    walks = {folder: model.walk_in(each, middle) for folder, each in folders.items()}
    card |= {name: model.receipt[name] for name in SAID if model.receipt.get(name) is not None}
    card |= {} if strength is None else {"strength": strength}
    form = form or usual_form(model)
    if form != "pipeline":
        check_adapter(model, form)
        return {
            folder: Exported(model, walk.steps, export_adapter(model, folder, walk=walk, form=form, card=card))
            for folder, walk in walks.items()
        }
    for walk in walks.values():
        check_exportable(model.denoiser, walk, model.pipeline)  # before the first is written
    return {
        folder: Exported(model, walk.steps, export(model, folder, walk=walk, card=card)) for folder, walk in walks.items()
    }


def condition_of(denoiser: Denoiser, n: int, label: int | None, number: float | None) -> Cond:
    """The conditions of `n` samples of one class or number; ValueError if the checkpoint takes something else."""
    if number is not None and not math.isfinite(number):
        raise ValueError(f"--number must be a number, got {number}")
    takes_number = "number" in denoiser.takes
    for flag, given, takes in (
        ("label", label, bool(denoiser.takes) and not takes_number),
        ("number", number, takes_number),
    ):
        if takes != (given is not None):
            raise ValueError(f"this checkpoint {'needs a' if takes else 'takes no'} --{flag}")
    if number is not None:
        return Cond({"number": torch.full((n,), number)})
    return labelled(None if label is None else torch.full((n,), label))


def _walk(model: Model, sampler: SamplerName | None, steps: int | None, middle: float | None) -> Walk:
    """The model's own walk, or that of the sampler, in `steps` steps."""
    kinds: dict[str, Callable[..., Walk]] = {"consistency": Consistency, "heun": Heun, "ddim": DDIM}
    walk = model.walk
    if sampler == "heun" and isinstance(model.denoiser, TwoTimes):
        raise ValueError("--sampler heun is for diffusion models; this student takes --sampler ddim or consistency")
    if sampler is not None and kinds[sampler] is not type(walk):
        walk = DDIM(walk.steps) if sampler == "ddim" else kinds[sampler]()
    return dataclasses.replace(model, walk=walk).walk_in(steps, middle)
