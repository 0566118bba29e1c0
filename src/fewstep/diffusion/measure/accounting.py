"""A ledger is made: both checkpoints are sampled from the same seeds and asked the same questions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...core.drift import Drift
from ...core.ledger import Ledger, Line
from ..cond import CLASS
from ..data import Samples
from ..denoiser import Denoiser, Guided
from ..model import Model
from ..pipeline import Pipeline
from ..two_times import TwoTimes
from ..walk import DDIM
from .comparing import Telling, matches, told
from .denoising import errors, levels_of
from .dial import Looks, Point, check_enough, scored
from .drift import drift
from .features import View
from .lines import Numbers, Pair, agreement, apart, classes, copying, denoising, looks, matching, quality, shown, variety
from .matching import Match
from .scores import Array
from .seen import Seen, Setting, sampled

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
    networks = {view.name: view.network for view in views}
    check_enough(n, len(images))
    with observed(
        before, after, images, networks, n=n, prompts=prompts, judge=judge, seed=seed, batch=batch, precision=precision
    ) as found:
        return balanced(found, images, views, denoises=denoises, batch=batch, within=within)


class Observed(NamedTuple):
    """Both checkpoints as they were seen on the same seeds.

    Attributes:
        settings: the first, the first in as few calls as the second where those are fewer, and the second.
        seen: what was seen of each.
        told: what the samples are about.
        levels: σ of the denoising errors, which are of the first rows (m, K).
    """

    settings: list[Setting]
    seen: Callable[[int, int], Seen]
    told: Telling
    levels: Tensor


@contextmanager
def observed(
    before: Setting,
    after: Setting,
    images: Samples,
    networks: Mapping[str, nn.Module],
    *,
    n: int,
    prompts: Sequence[str] | None = None,
    judge: Match | None = None,
    seed: int = 0,
    batch: int = 250,
    precision: str = "no",
    folder: Path | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Iterator[Observed]:
    """Samples both checkpoints and denoises real images by them, batch by batch, by all processes of a command.

    Args:
        networks: extractors by name; the first one's classifier, if it has one, says which class a picture shows.
        folder, facts: as for `sampled`.
    """
    known: dict[Pipeline, Telling] = {}
    cond = partial(told, images=images, n=n, prompts=prompts, known=known)
    settings = [before, after]
    if after.walk.calls < before.walk.calls:
        settings.insert(1, replace(before, walk=DDIM(after.walk.calls)))
    classify = getattr(next(iter(networks.values())), "classify", None)
    levels, count = levels_of(before.denoiser, after.denoiser), min(len(images), max(20, n // 2))

    def extra(pictures: Sequence[Tensor], rows: range) -> list[dict[str, Array]]:
        found: list[dict[str, Any]] = apart(pictures)
        for each, shows in zip(found, pictures, strict=True):
            if classify is not None:
                each["class"] = shown(classify, shows.to(_place(networks)))
        some = range(rows.start, min(rows.stop, count))
        for place in (0, -1):
            found[place]["errors"] = np.empty((0, len(levels)))
            if some:
                x0, cond_of = _clean(before, images, pictures[0], some), cond(settings[place])
                found[place]["errors"] = errors(
                    settings[place].denoiser, x0, cond_of.part(slice(some.start, some.stop)), levels, seed=seed,
                    batch=batch, precision=precision, first=some.start,
                )  # fmt: skip
        return found

    made = sampled(
        [settings], range(seed, seed + n), networks, batch=batch, precision=precision, cond=cond, looks=Looks.each,
        match=matches(judge, prompts), extra=extra, folder=folder, facts={"seed": seed, **(facts or {})},
    )  # fmt: skip
    with made as seen:
        yield Observed(settings, seen, cond(before), levels)


def balanced(
    found: Observed, images: Samples, views: Sequence[View], *, denoises: bool, batch: int, within: float
) -> tuple[Ledger, list[Point]]:
    """The ledger that was observed, and the points of each setting; see `take_stock`."""
    points = [scored(setting, found.seen(0, k), views, batch=batch) for k, setting in enumerate(found.settings)]
    own, as_few, changed = points[0], points[-2], points[-1]
    before, after = (found.settings[place].denoiser for place in (0, -1))
    guided = isinstance(before, Guided) != isinstance(after, Guided)
    pair, notes = Pair(own, changed, views), [ANOTHER_TASK] * (not denoises) + [GUIDED] * guided
    lines, said = lines_of(pair, as_few, images, found.told)
    made = (own.each["errors"], changed.each["errors"])
    lines = denoising(*made, found.levels, asked=denoises and not guided) + lines
    if "match" in own.each:
        lines.append(matching(pair))
    moved = _drift(before, after, notes)
    return Ledger(tuple(lines), within, tuple(moved), (own.nfe, changed.nfe), (*notes, said), ADVICE), points


def lines_of(pair: Pair, as_few: Point, images: Samples, told: Telling) -> tuple[list[Line], str]:
    """All lines that samples show, and what held-out images say of copying.

    Args:
        pair: samples before and after.
        as_few: those before in as few calls as after; the same as before where that takes no fewer.
        images: real ones.
        told: what the samples are about.
    """
    copied, said = copying(pair, pair.first.real.features)
    lines = agreement(pair, as_few)
    if as_few is not pair.before:
        lines += quality(Pair(as_few, pair.after, pair.views), "at as few calls")
    lines += quality(pair) + variety(pair, _alike(told))
    lines += [copied, *looks(pair, Looks.over(images)), *_classes(pair, images, told)]
    groups = [line.group for line in lines]
    return sorted(lines, key=lambda line: groups.index(line.group)), said


def made_to_denoise(model: Model) -> bool:
    """Whether a model answers with the mean of what may be there: diffusion models, and students just below the level."""
    return not model.is_student or isinstance(model.denoiser, TwoTimes)


def _clean(before: Setting, images: Samples, own: Tensor, rows: range) -> Tensor:
    """What is denoised, (B, *): real images, or what a pipeline makes of its own pictures, whose prompts are known."""
    if before.pipeline is None:
        return torch.stack([images.x0(k) for k in rows])
    return before.pipeline.encode(own[: len(rows)]).float().cpu()


def _place(networks: Mapping[str, nn.Module]) -> torch.device:
    """Where the first of them looks at pictures."""
    return next(next(iter(networks.values())).parameters(), torch.empty(0)).device


def _alike(told: Telling) -> Numbers | None:
    """Which samples have the same condition, as integers; None if all have."""
    if not told.cond.rows:
        return None
    rows = torch.cat([value.reshape(len(value), -1).double().cpu() for value in told.cond.rows.values()], 1)
    kinds: Numbers = np.unique(rows.numpy(), axis=0, return_inverse=True)[1].ravel()
    of_each: Numbers = kinds[told.rows.numpy()]
    return of_each


def _classes(pair: Pair, images: Samples, told: Telling) -> list[Line]:
    """Lines of each class that a classifier sees, or that was asked for; none where nobody knows classes."""
    count = min(len(images), CLASSIFIED)
    if "class" in pair.before.each:
        classify: Any = pair.first.network.classify
        seen = [point.each["class"] for point in pair[:2]]
        real = shown(classify, images.raw(range(count)).to(_place({"": pair.first.network})))
    elif CLASS in told.cond.rows and images.label_range is not None:
        seen = [told.cond.rows[CLASS][told.rows].cpu().numpy()] * 2
        real = torch.stack([images.cond(k)[CLASS] for k in range(count)]).numpy()
    else:
        return []
    kinds = int(max(real.max(), *(each.max() for each in seen))) + 1
    if kinds > MOST_CLASSES:
        return []  # a line of each would say nothing at this n
    unnamed = tuple(f"class {k}" for k in range(kinds))
    names = getattr(pair.first.network, "classes", None) or images.classes or unnamed
    return classes(pair, seen, real, names, free=not told.cond.rows)


def _drift(before: Denoiser, after: Denoiser, notes: list[str]) -> list[Drift]:
    plain = [each.denoiser if isinstance(each, Guided) else each for each in (before, after)]
    try:
        return drift(*plain)
    except ValueError as error:
        notes.append(f"No drift of weights is given: {error}.")
        return []
