"""Makes a ledger of two checkpoints from samples of the same seeds and errors on the same images."""

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

MOST_CLASSES = 20  # classes at most that get lines of their own
CLASSIFIED = 2000  # real images that are classified
ANOTHER_TASK = (
    "A consistency function predicts the end of the path and not the mean of all possible samples, so its denoising error "
    "is larger than a diffusion model's; those lines inform and are not judged."
)
GUIDED = (
    "Guidance makes predictions sharper than the mean of all possible samples, so a guided checkpoint's denoising error is "
    "larger than that of an unguided one; those lines inform and are not judged."
)

ADVICE = {
    "denoising": "It denoises worse than before: tune less, with a lower rate, "
    "--freeze or --lora, or lower its --strength.",
    "agreement": "Its samples left those of the teacher: tune longer with a teacher's hops, or take more calls.",
    "at as few calls": "It is worse than the checkpoint it came from at as many calls, so nothing was gained: tune again "
    "with a lower rate.",
    "quality": "Its pictures are further from real ones: take more calls or tune longer.",
    "variety": "Its samples vary less: take more calls, lower the guidance, or tune on more data.",
    "classes": "Some classes got worse than others: see whether the data hold enough of them.",
    "copying": "It copies training images: tune on more of them, or for a shorter time.",
    "prompts": "Its pictures match their prompts less: raise the guidance in tuning, or tune on more prompts.",
    "looks": "Its pictures look different, which scores may miss: compare them side by side, or take an earlier state.",
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
    """Measures what the change from one model to another gained and lost.

    Args:
        before: a diffusion model and its sampler.
        after: its student, or the same diffusion model after another change.
        images: real images in random order.
        views: representations, at least two.
        n: number of samples; half as many real images are denoised.
        denoises: whether `after` is a denoiser; see `made_to_denoise`.
        prompts: prompts for pipelines, which take turns; by default classes as often as the real images have them.
        judge: scores how well a picture matches its prompt.
        seed: seed of the first sample and of the noise.
        batch: number of samples at once.
        precision: "no" (float32) or "bf16" in the models.
        within: see `Ledger`.

    Returns:
        The ledger, and the points of `before`, of `before` in as few calls as `after` if those are fewer, and of `after`.
    """
    networks = {view.name: view.network for view in views}
    check_enough(n, len(images))
    with observed(
        before, after, images, networks, n=n, prompts=prompts, judge=judge, seed=seed, batch=batch, precision=precision
    ) as found:
        return balanced(found, images, views, denoises=denoises, batch=batch, within=within)


class Observed(NamedTuple):
    """Statistics of both checkpoints on the same seeds.

    Attributes:
        settings: before, before in as few calls as after if those are fewer, and after.
        seen: returns the statistics of a setting.
        told: conditions of the samples.
        levels: σ of the denoising errors, which the first rows have, (m, K).
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
    """Samples both checkpoints and denoises real images by them, in batches and by all processes.

    Args:
        networks: extractors by name. The classifier of the first, if it has one, gives the classes of pictures.
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
    """The ledger of what was observed, and the points of the settings; see `take_stock`."""
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
    """All lines from samples, and a sentence on copying.

    Args:
        pair: samples before and after.
        as_few: those before in as few calls as after; `pair.before` if after takes no fewer.
        images: real images.
        told: conditions of the samples.
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
    """Whether a model predicts the mean of all possible samples: diffusion models, and a `TwoTimes` just below σ."""
    return not model.is_student or isinstance(model.denoiser, TwoTimes)


def _clean(before: Setting, images: Samples, own: Tensor, rows: range) -> Tensor:
    """The clean samples to denoise, (B, *): real images, or a pipeline's own pictures, whose prompts are known."""
    if before.pipeline is None:
        return torch.stack([images.x0(k) for k in rows])
    return before.pipeline.encode(own[: len(rows)]).float().cpu()


def _place(networks: Mapping[str, nn.Module]) -> torch.device:
    """The device of the first extractor."""
    return next(next(iter(networks.values())).parameters(), torch.empty(0)).device


def _alike(told: Telling) -> Numbers | None:
    """An integer for each sample, equal for equal conditions; None if there are no conditions."""
    if not told.cond.rows:
        return None
    rows = torch.cat([value.reshape(len(value), -1).double().cpu() for value in told.cond.rows.values()], 1)
    kinds: Numbers = np.unique(rows.numpy(), axis=0, return_inverse=True)[1].ravel()
    of_each: Numbers = kinds[told.rows.numpy()]
    return of_each


def _classes(pair: Pair, images: Samples, told: Telling) -> list[Line]:
    """Lines of each class, by a classifier or by the conditions; none if the classes are not known."""
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
        return []  # too few samples of each class
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
