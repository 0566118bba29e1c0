"""What the flags of `fewstep tune` stand for: each of these takes flags, says what is wrong with them, gives a setting."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from .checks import at_least

if TYPE_CHECKING:
    from ..diffusion.average import Average
    from ..diffusion.data import Paths
    from ..diffusion.denoiser import Denoiser
    from ..diffusion.loss import Hop, Weight
    from ..diffusion.model import Model
    from ..diffusion.noise import Gap
    from ..diffusion.optim import Constant, Cosine, Dropout, InverseSqrt, LearningRate
    from ..diffusion.stages import Stage

Recipe = Literal["ect_demo", "ect_one_hour", "ect_cifar10", "ect_imagenet64"]
HopName = Literal["data", "euler", "heun", "addim", "addim-analytic"]
GapName = Literal["ect", "cosine", "karras", "full"]
WeightName = Literal["gap", "output"]


def check_guidance(guidance: float | None, null_label: int | None, taught: bool) -> None:
    """Raises ValueError unless both are given or none, with a teacher to guide."""
    at_least(0, guidance=guidance, null_label=null_label)
    if guidance is not None and not taught:
        raise ValueError("guidance is the teacher's: use it with --hop euler, heun or addim, or --data teacher or paths")
    if guidance is not None and null_label is None:
        raise ValueError('guidance needs --null-label, the class that means "no class" to this network')
    if null_label is not None and guidance is None:
        raise ValueError("--null-label belongs to --guidance; give both or none")


def check_batch(batch: int, accumulate: int) -> None:
    """Raises ValueError where a batch does not split into that many micro-batches."""
    if batch % accumulate:
        raise ValueError(
            f"a batch of {batch} does not split into --accumulate {accumulate}; use a multiple of {accumulate}"
        )


def check_start(start: Model, checkpoint: str, segments: int) -> None:
    """Raises ValueError where a student would have to unlearn a margin."""
    if segments == 1 and start.receipt.get("recipe", {}).get("margin"):
        raise ValueError(
            f"{checkpoint} was tuned with a margin, which a student of one segment does not unlearn; start from one that "
            "was tuned with --margin 0"
        )


def guided(diffusion: Denoiser, guidance: float | None, null_label: int | None) -> Denoiser:
    """The diffusion model, guided if the flags say so."""
    import torch

    from ..diffusion.cond import labelled
    from ..diffusion.denoiser import Guided

    if guidance is None or null_label is None:
        return diffusion
    return Guided(diffusion, guidance, labelled(torch.tensor([null_label])))


def margin_of(margin: float | None, segments: int) -> float | None:
    """The margin, if it was given and a student of so many segments may have it."""
    at_least(0, margin=margin)
    if margin and segments == 1:
        raise ValueError("--margin must be 0 for one segment, whose calls see what the last one drew")
    return margin


def dropout_of(share: float | None) -> Dropout | None:
    """Dropout of that share, if it was given."""
    from ..diffusion.optim import Dropout

    at_least(0, dropout=share)
    if share is not None and share >= 1:
        raise ValueError(f"--dropout must be below 1, got {share:g}")
    return None if share is None else Dropout(share)


def given(**settings: Any) -> dict[str, Any]:
    """Those that were given on the command line; a run that is resumed may go on with others of them."""
    return {name: value for name, value in settings.items() if value is not None}


def rate_of(ours: Constant | Cosine | InverseSqrt, peak: float | None, warmup: int | None) -> LearningRate:
    """The recipe's learning rate, changed as the flags say."""
    from ..diffusion.optim import Cosine

    changed = ours if peak is None else dataclasses.replace(ours, rate=peak)
    if warmup is not None and isinstance(changed, Cosine):
        return dataclasses.replace(changed, warmup=warmup)
    if warmup is not None:
        raise ValueError(f"--warmup belongs to the cosine rate of ect_demo; this recipe's is {changed}")
    return changed


def averages_of(ours: Average, decays: tuple[float, ...], *, warmup: bool) -> tuple[Average, ...]:
    """The averages of these decays, or the recipe's own; from new weights they need a warm-up."""
    from ..diffusion.average import Exponential

    averages = tuple(map(Exponential, decays)) or (ours,)
    return tuple(dataclasses.replace(a, warmup=warmup) if isinstance(a, Exponential) else a for a in averages)


def gap_of(ours: Gap, kind: GapName | None, q: float | None, stages: int | None, grid: tuple[int, int] | None) -> Gap:
    """The recipe's gap, changed as the flags say."""
    from ..diffusion.noise import CosineGap, ECTGap, FullGap, KarrasGap

    kind = kind or "ect"  # the gap of every published recipe here
    if kind != "ect" and (q is not None or stages is not None):
        raise ValueError(f"--q and --stages belong to the ect gap; the {kind} gap does not take them")
    if kind in ("ect", "full") and grid is not None:
        raise ValueError(f"--grid belongs to the cosine and karras gaps; the {kind} gap does not take it")
    if kind == "full":
        return FullGap()
    if kind != "ect":
        made = CosineGap if kind == "cosine" else KarrasGap
        return made(*grid) if grid else made()
    base = ours if isinstance(ours, ECTGap) else ECTGap()
    return dataclasses.replace(base, q=base.q if q is None else q, stages=base.stages if stages is None else stages)


def weight_of(kind: WeightName | None, power: float | None) -> Weight | None:
    """The gap's weight if the flags ask for one; that of the output's scale is known with the checkpoint."""
    from ..diffusion.loss import InverseGap

    if kind == "output":
        if power is not None:
            raise ValueError("--power belongs to the gap's weight; --weight output does not take it")
        return None
    return None if kind is None and power is None else InverseGap(1.0 if power is None else power)


def hop_of(name: HopName, diffusion: Denoiser) -> Hop:
    """The hop called `name`, with the frozen diffusion model as its teacher."""
    from ..diffusion.hop import ADDIM, Euler, Heun
    from ..diffusion.loss import from_data

    if name == "data":
        return from_data
    teacher = diffusion.requires_grad_(False).eval()
    hops: dict[str, Hop] = {
        "euler": Euler(teacher), "heun": Heun(teacher), "addim": ADDIM(teacher),
        "addim-analytic": ADDIM(teacher, analytic=True),
    }  # fmt: skip
    return hops[name]


def renewed(denoiser: Denoiser, seed: int) -> Denoiser:
    """The same parametrisation around a network with new random weights."""
    import torch

    torch.manual_seed(seed)
    denoiser.network = type(denoiser.network).from_config(denoiser.network.config)  # type: ignore[attr-defined]
    return denoiser


def check_teacher(student: Denoiser, teacher: Denoiser, segments: int, *, along_paths: bool) -> None:
    """Raises ValueError where `teacher` cannot teach `student`."""
    if student.space != teacher.space:
        ours, theirs = ("x".join(map(str, model.space.shape)) for model in (student, teacher))
        raise ValueError(f"the teacher makes samples of {theirs}, the checkpoint of {ours}; name the teacher it came from")
    if along_paths and not student.schedule.grid(segments).equal(teacher.schedule.grid(segments)):
        raise ValueError("the teacher's noise levels are not those of the checkpoint, so its paths lead nowhere here")


def midtraining(images: int, paths: Paths, settings: dict[str, Any], clip: float | None, *, warmup: bool) -> Stage:
    """Path regression, before what `settings` say."""
    from ..diffusion.recipes import ect_demo, path_regression
    from ..diffusion.stages import Stage

    recipe = ect_demo(images) | path_regression()
    recipe |= {name: settings[name] for name in ("batch", "segments", "seed", "workers", "compile")}
    recipe |= {"average": averages_of(recipe["average"], (), warmup=warmup), "max_grad_norm": clip}
    named = {"title": "midtrain", "remedy": "a --clip", "source": "teacher", "changing": given(max_grad_norm=clip)}
    return Stage("midtrain", recipe, paths, named)
