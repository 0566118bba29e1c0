"""A ledger is made: both checkpoints are sampled from the same seeds and asked the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ...core.drift import Drift
from ...core.ledger import Ledger, Line
from ..asked import in_turn
from ..cond import CLASS, Cond
from ..data import Samples
from ..denoiser import Denoiser, Guided
from ..model import Model
from ..pipeline import Pipeline
from ..two_times import TwoTimes
from ..walk import DDIM
from .comparing import told
from .denoising import errors, levels_of
from .dial import Looks, Point, Setting, scores
from .drift import drift
from .features import View
from .lines import Numbers, Pair, agreement, classes, copying, denoising, looks, matching, quality, shown, variety
from .matching import Match

MOST_CLASSES = 20  # with lines of their own
CLASSIFIED = 2000  # real images whose classes a classifier is asked for
ANOTHER_TASK = (
    "A consistency function answers with where the path ends and not with the mean of what may be there, so its denoising "
    "error exceeds a diffusion model's by as much as ends differ; those lines inform and are not judged."
)
GUIDED = (
    "Guidance makes an answer sharper than the mean of what may be there, so a guided checkpoint's denoising error exceeds "
    "that of one that is not; those lines inform and are not judged."
)

ADVICE = {
    "denoising": "It denoises worse than before: tune less, with a lower rate, "
    "--freeze or --lora, or lower its --strength.",
    "agreement": "It left the teacher's own solutions: tune longer by the teacher's hops, or take more calls.",
    "at as few calls": "It is worse than the checkpoint it came from at as many calls, so nothing was gained by it: tune "
    "again with a lower rate.",
    "quality": "Its pictures are further from real ones: take more calls or tune longer.",
    "variety": "It shows less of what there is: take more calls, lower the guidance, or tune on more data.",
    "classes": "Some classes suffered more than others: see whether the data hold enough of them.",
    "copying": "It copies training images: tune on more of them, or for a shorter time.",
    "prompts": "It shows less of what it is asked for: raise the guidance that it is tuned with, or tune on more prompts.",
    "looks": "Its look changed where scores may not mind: compare pictures side by side, and take an earlier state.",
}


def take_stock(
    before: Setting,
    after: Setting,
    images: Samples,
    views: Sequence[View],
    *,
    n: int,
    denoises: bool,
    prompts: Sequence[str] | None = None,
    judge: Match | None = None,
    seed: int = 0,
    batch: int = 250,
    precision: str = "no",
    within: float = 0.1,
) -> tuple[Ledger, list[Point]]:
    """What the change from one model to the other gained and lost.

    Args:
        before: a diffusion model, as it is sampled.
        after: its student, or the same diffusion model after another change.
        images: real ones, in an order of chance.
        views: representations, at least two.
        n: samples; half as many real images are denoised.
        denoises: whether the second was made to denoise; see `made_to_denoise`.
        prompts: what pipelines are asked for in turn; classes as often as the real images have them if left out.
        judge: says how well a picture matches its prompt.
        seed: of the first sample and of the noise.
        batch: samples at once.
        precision: "no" (float32) or "bf16" in the models.
        within: see `Ledger`.

    Returns:
        The ledger; and the points of the first, of the first in as few calls as the second where those are fewer, and of
        the second.
    """
    known: dict[Pipeline, Cond] = {}
    cond = partial(told, images=images, n=n, prompts=prompts, known=known)
    settings = [before, after]
    if after.walk.calls < before.walk.calls:
        settings.insert(1, replace(before, walk=DDIM(after.walk.calls)))
    points = scores(settings, range(seed, seed + n), views, batch=batch, precision=precision, cond=cond)
    own, as_few, changed = points[0], points[-2], points[-1]
    guided = isinstance(before.denoiser, Guided) != isinstance(after.denoiser, Guided)
    pair, notes = Pair(own, changed, views), [ANOTHER_TASK] * (not denoises) + [GUIDED] * guided
    x0 = _clean(before, images, own.images, min(len(images), max(20, n // 2)))
    levels, made = levels_of(before.denoiser, after.denoiser), []
    for setting in (before, after):
        told_of = cond(setting).part(slice(len(x0)))
        made.append(errors(setting.denoiser, x0, told_of, levels, seed=seed, batch=batch, precision=precision))
    lines, said = lines_of(pair, as_few, images, cond(before))
    lines = denoising(made[0], made[1], levels, asked=denoises and not guided) + lines
    if judge is not None and prompts:
        lines.append(matching(pair, judge, in_turn(prompts, range(n))))
    moved = _drift(before.denoiser, after.denoiser, notes)
    return Ledger(tuple(lines), within, tuple(moved), (own.nfe, changed.nfe), (*notes, said), ADVICE), points


def lines_of(pair: Pair, as_few: Point, images: Samples, cond: Cond) -> tuple[list[Line], str]:
    """All lines that samples show, and what held-out images say of copying.

    Args:
        pair: samples before and after.
        as_few: those before in as few calls as after; the same as before where that takes no fewer.
        images: real ones.
        cond: what the samples are about.
    """
    copied, said = copying(pair, pair.first.real.features)
    lines = agreement(pair, as_few)
    if as_few is not pair.before:
        lines += quality(Pair(as_few, pair.after, pair.views), "at as few calls")
    lines += quality(pair) + variety(pair, _alike(cond))
    lines += [copied, *looks(pair, Looks.over(images)), *_classes(pair, images, cond)]
    groups = [line.group for line in lines]
    return sorted(lines, key=lambda line: groups.index(line.group)), said


def made_to_denoise(model: Model) -> bool:
    """Whether a model answers with the mean of what may be there: diffusion models, and students just below the level."""
    return not model.is_student or isinstance(model.denoiser, TwoTimes)


def _clean(before: Setting, images: Samples, own: Tensor, count: int) -> Tensor:
    """What is denoised, (count, *): real images, or what a pipeline makes of its own pictures, whose prompts are known."""
    if before.pipeline is None:
        return torch.stack([images.x0(k) for k in range(count)])
    return before.pipeline.encode(own[:count]).float().cpu()


def _alike(cond: Cond) -> Numbers | None:
    """Which samples have the same condition, as integers; None if all have."""
    if not cond.rows:
        return None
    rows = torch.cat([value.reshape(len(value), -1).double().cpu() for value in cond.rows.values()], 1)
    kinds: Numbers = np.unique(rows.numpy(), axis=0, return_inverse=True)[1].ravel()
    return kinds


def _classes(pair: Pair, images: Samples, cond: Cond) -> list[Line]:
    """Lines of each class that a classifier sees, or that was asked for; none where nobody knows classes."""
    count = min(len(images), CLASSIFIED)
    classify = getattr(pair.first.network, "classify", None)
    if classify is not None:
        device = next(pair.first.network.parameters()).device
        seen = [shown(classify, point.images.to(device)) for point in pair[:2]]
        real = shown(classify, images.raw(range(count)).to(device))
    elif CLASS in cond.rows and images.label_range is not None:
        seen = [cond.rows[CLASS].cpu().numpy()] * 2
        real = torch.stack([images.cond(k)[CLASS] for k in range(count)]).numpy()
    else:
        return []
    kinds = int(max(real.max(), *(each.max() for each in seen))) + 1
    if kinds > MOST_CLASSES:
        return []  # a line of each would say nothing at this n
    unnamed = tuple(f"class {k}" for k in range(kinds))
    names = getattr(pair.first.network, "classes", None) or images.classes or unnamed
    return classes(pair, seen, real, names, free=not cond.rows)


def _drift(before: Denoiser, after: Denoiser, notes: list[str]) -> list[Drift]:
    plain = [each.denoiser if isinstance(each, Guided) else each for each in (before, after)]
    try:
        return drift(*plain)
    except ValueError as error:
        notes.append(f"No drift of weights is given: {error}.")
        return []
