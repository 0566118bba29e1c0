"""Scores of checkpoints, written into a folder: what `fewstep measure`, `dial` and `ledger` do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ..core.checks import at_least, given, positive
from ..core.device import best_device
from ..core.files import writable
from ..core.ledger import Ledger
from ..core.parts import hidden
from ..core.processes import together
from ..core.receipt import receipt
from ..core.weights import mark
from ..core.words import counted
from .asked import asked_of, once, prompts_in
from .data import Samples, load_images
from .deciding import decided_by
from .denoiser import Guided
from .formats.folder import load
from .measure.accounting import balanced, made_to_denoise, observed
from .measure.comparing import Comparison, common_shape, compare
from .measure.dial import check_enough
from .measure.features import View, fitting
from .measure.matching import Match, match
from .measure.seen import Setting
from .measure.settings import diffusion_settings, student_settings
from .model import Model
from .report import keep_pictures, plot_ledger, sheet
from .scoring import Scoring


@dataclass(frozen=True)
class Measured:
    """The scores of models.

    Attributes:
        found: the scores.
        features: name of the feature extractor.
        models: the students, by their names in the scores.
    """

    found: Comparison
    features: str
    models: Mapping[str, Model]


@dataclass(frozen=True)
class Balanced:
    """A ledger of two checkpoints, and the name of its features."""

    ledger: Ledger
    features: str


def measure_checkpoint(
    checkpoint: str,
    scoring: Scoring,
    *,
    teacher: str | None = None,
    steps: Sequence[int] = (1, 2, 4, 8),
    teacher_calls: Sequence[int] = (1, 2, 4, 8, 35),
    middle: float | None = None,
) -> Measured:
    """Scores a tuned model and its teacher at several numbers of network calls, on the same seeds.

    Args:
        checkpoint: a run, or a tuned model.
        scoring: the data, the scores and the folder for the results.
        teacher: the diffusion checkpoint that it came from; None scores the student alone.
        steps: numbers of steps of the tuned model; a student of several segments takes only its own number.
        teacher_calls: network calls of the teacher, by DDIM below 20 and by Heun's method from 20 on.
        middle: noise level of the second of two steps, for EDM students only.

    Raises:
        ValueError: a number is out of its range, something cannot be loaded, or models and data do not fit together.
    """
    prompts = _check(scoring, steps, teacher_calls)
    student = load(checkpoint).to(best_device())
    settings = student_settings(student, steps, middle=middle)
    if teacher:
        settings = _teacher_settings(teacher, teacher_calls, scoring, [student], prompts) + settings
    return _measured(settings, scoring, {"student": student}, prompts, checkpoint=checkpoint, teacher=teacher)


def dial_checkpoints(
    runs: Sequence[str],
    teacher: str,
    scoring: Scoring,
    *,
    within: float = 0.05,
    steps: Sequence[int] = (1, 2, 4, 8),
    strengths: Sequence[float] = (),
    teacher_calls: Sequence[int] = (1, 2, 4, 8, 16, 35),
) -> Measured:
    """Scores students and their teacher, and recommends a number of network calls.

    Args:
        runs: folders of tuned models, which are named by the ends of their paths.
        teacher: the diffusion checkpoint that they came from.
        scoring, steps, teacher_calls: as for `measure_checkpoint`.
        within: share by which a good enough distance may exceed the teacher's best.
        strengths: strengths at which LoRA students are scored: 0 is the base, 1 the student.

    Raises:
        ValueError: there is no run, or the same run twice; and what `measure_checkpoint` raises.
    """
    if not runs:
        raise ValueError("name at least one run to compare with the teacher")
    names = _names(runs)
    at_least(0, strengths=strengths)
    prompts = _check(scoring, steps, teacher_calls)
    settings: list[Setting] = []
    students: dict[str, Model] = {}
    for run, name in zip(runs, names, strict=True):
        student = load(run).to(best_device())
        for title, each in {f"{name} at {s:g}": student.at(s) for s in strengths}.items() or [(name, student)]:
            students[title] = each
            settings += student_settings(each, steps, name=title)
    settings = _teacher_settings(teacher, teacher_calls, scoring, list(students.values()), prompts) + settings
    facts = {"strengths": strengths} if strengths else {}
    return _measured(settings, scoring, students, prompts, within=within, runs=runs, teacher=teacher, **facts)


def ledger_checkpoints(
    before: str,
    after: str,
    scoring: Scoring,
    *,
    within: float = 0.1,
    steps: int | None = None,
    strength: float | None = None,
    teacher_calls: int = 35,
) -> Balanced:
    """Measures what a change to a diffusion checkpoint gained and lost. Writes ledger.json, two plots and pictures.

    Args:
        before: the diffusion checkpoint.
        after: a student of it, or the same diffusion checkpoint after another change.
        scoring: the data, the scores and the folder for the results.
        within: relative difference up to which a line counts as kept.
        steps: steps of a student; by default its own number.
        strength: strength of a LoRA student: 0 is its base, 1 the student.
        teacher_calls: network calls of a diffusion checkpoint, by DDIM below 20 and by Heun's method from 20 on.

    Raises:
        ValueError: a number is out of its range, something cannot be loaded, or models and data do not fit together.
    """
    positive(within=within)
    at_least(0, strength=strength)
    prompts = _check(scoring, [1 if steps is None else steps], [teacher_calls])
    model = load(after).to(best_device())
    model = model if strength is None else model.at(strength)
    settings = _teacher_settings(before, [teacher_calls], scoring, [model], prompts)
    if model.is_student:
        walk = model.walk_in(steps)
        settings.append(Setting("after", model.denoiser, walk, model.pipeline))
    elif steps is not None:
        raise ValueError(f"{after} is a diffusion model, and --steps is for students; leave it out")
    else:
        settings += _teacher_settings(after, [teacher_calls], scoring, [model], prompts)
    real = _compared(settings, scoring, prompts)
    check_enough(scoring.n, len(real.images))
    facts = {"before": before, "checkpoint": after, "data": scoring.data, "features": real.features, "seed": scoring.seed}
    facts |= {"n": scoring.n, "precision": scoring.precision} | given(strength=strength, match=real.named)
    made = observed(
        replace(settings[0], name="before"), replace(settings[1], name="after"), real.images, real.networks, n=scoring.n,
        prompts=prompts, judge=real.judge, seed=scoring.seed, batch=scoring.batch, precision=scoring.precision,
        folder=hidden(scoring.out / "ledger.json"),
        facts=facts | decided_by(settings) | _compared_by(scoring, real, prompts),
    )  # fmt: skip
    file, out = scoring.out / "ledger.json", scoring.out
    with together() as here, receipt(file if here.is_main else None, **facts) as entries, made as found:
        ledger: Ledger | None = None
        if here.is_main:
            bundled = scoring.data == "bundled"
            views = [View.of(name, network, real.images, bundled=bundled) for name, network in real.networks.items()]
            denoises = made_to_denoise(model)
            ledger, points = balanced(found, real.images, views, denoises=denoises, batch=scoring.batch, within=within)
            entries.update(ledger.summary(), points=[point.summary() for point in points])
            plot_ledger(ledger, out / "ledger.png")
            sheet(points, out / "samples.png")
            entries["pictures"] = keep_pictures(points, out, seed=scoring.seed, asked=prompts)
        told: Ledger = here.meet(ledger)
    return Balanced(told, real.features)


def scores_in(file: Path) -> dict[str, dict[str, float]]:
    """The Fréchet distances in a measure.json for a model card: representation -> model and calls -> distance.

    Raises:
        ValueError: the file does not exist or is something else.
    """
    if not file.exists():
        raise ValueError(f"there is no {file}; make one with fewstep measure")
    try:
        points = json.loads(file.read_text())["points"]
        return {
            f"Fréchet distance, {view} features": {
                f"{p['name']}, {counted(p['nfe'], 'call')}": round(p["frechet"][view]["value"], 2) for p in points
            }
            for view in points[0]["frechet"]
        }
    except (ValueError, KeyError, IndexError, TypeError, OSError) as error:
        raise ValueError(f"{file} is not what fewstep measure or dial wrote: {error!r}") from error


def diffusion_model(checkpoint: str, call: Mapping[str, object] | None = None) -> Model:
    """Loads the diffusion model of a run or checkpoint onto the best device; ValueError if it is a student.

    `call` is as for `load`.
    """
    model = load(checkpoint, call=call)
    if model.is_student:
        raise ValueError(f"{checkpoint} is a student and no diffusion model; name the one that it was tuned from")
    return model.to(best_device())


def _teacher_settings(
    checkpoint: str, calls: Sequence[int], scoring: Scoring, students: Sequence[Model], prompts: Sequence[str] | None
) -> list[Setting]:
    """The teacher's settings at each number of calls, with the guidance of `scoring` or of its students.

    Raises:
        ValueError: the teacher is a student or has no guidance, or the students were tuned with different guidance.
    """
    calls_of = [student.pipeline.call for student in students if student.pipeline is not None and student.pipeline.call]
    model = diffusion_model(checkpoint, call=calls_of[0] if calls_of else None)  # samples of the students' size
    denoiser, pipeline, guidance = model.denoiser, model.pipeline, scoring.guidance
    if pipeline is None and guidance is not None:
        raise ValueError("--guidance is for teachers that are pipelines; leave it out")
    if pipeline is not None:
        tuned = {student.receipt.get("guidance") for student in students}
        if guidance is None and len(tuned) > 1:
            raise ValueError(f"these students were tuned with different guidance, {tuned}; say the teacher's by --guidance")
        guidance = tuned.pop() if guidance is None else guidance
    if pipeline is not None and guidance is not None:
        asked = asked_of(pipeline, denoiser, prompts)
        null = pipeline.conditions([0] if denoiser.classes else once(asked))[1]  # as long as the longest prompt
        if null is None:
            raise ValueError("this teacher has no classifier-free guidance; leave --guidance out")
        denoiser = pipeline.guided(denoiser, guidance, null)
    return diffusion_settings(denoiser, calls, pipeline=pipeline)


def _check(scoring: Scoring, steps: Sequence[int], teacher_calls: Sequence[int]) -> list[str] | None:
    """Checks the numbers and the folder, and returns the prompts."""
    if not steps or not teacher_calls:
        raise ValueError("--steps and --teacher-calls each need at least one number")
    at_least(1, steps=steps, teacher_calls=teacher_calls)
    writable(scoring.out)
    return None if scoring.prompts is None else prompts_in(scoring.prompts)


def _measured(
    settings: list[Setting],
    scoring: Scoring,
    models: Mapping[str, Model],
    prompts: Sequence[str] | None,
    *,
    within: float | None = None,
    **facts: Any,
) -> Measured:
    """Scores `settings` against the data and writes the results into the folder."""
    real = _compared(settings, scoring, prompts)
    guidance = next((setting.denoiser.scale for setting in settings if isinstance(setting.denoiser, Guided)), None)
    facts |= given(guidance=guidance, match=real.named, asked_in=None if prompts is None else str(scoring.prompts))
    found = compare(
        settings, real.images, scoring.out, n=scoring.n, networks=real.networks, judge=real.judge,
        bundled=scoring.data == "bundled", seed=scoring.seed, batch=scoring.batch, precision=scoring.precision,
        within=within, prompts=prompts, data=scoring.data,
        decided_by=decided_by(settings) | _compared_by(scoring, real, prompts), **facts,
    )  # fmt: skip
    return Measured(found, real.features, models)


class _Against(NamedTuple):
    """Shuffled real images, extractors and the name of the first, the judge of matches and its name."""

    images: Samples
    networks: dict[str, nn.Module]
    features: str
    judge: Match | None
    named: str | None


def _compared(settings: Sequence[Setting], scoring: Scoring, prompts: Sequence[str] | None) -> _Against:
    """Loads the real images, the extractors and the judge of matches.

    Raises:
        ValueError: a setting cannot be sampled, or settings and data do not fit together.
    """
    for setting in settings:
        setting.walk.levels(setting.denoiser)  # raises before anything is sampled if a number of calls is impossible
        if setting.pipeline is not None or prompts is not None:
            asked_of(setting.pipeline, setting.denoiser, prompts)  # raises if the prompts do not fit
    channels, height, width = shape = common_shape(settings)
    taken = scoring.features or ("fashion" if scoring.data == "bundled" else "random")
    networks = fitting(taken, shape)
    if scoring.match and not prompts:
        raise ValueError("--match needs prompts; give --prompts as well, or leave it out")
    named = scoring.match or ("clothes" if scoring.data == "bundled-text" and prompts else None)
    judge = None if named is None else match(named)
    conditional = prompts is None and any(setting.denoiser.classes for setting in settings)
    images = load_images(scoring.data, channels=channels, size=(height, width), labels=conditional).shuffled()
    return _Against(images, networks, taken, judge, named)


def _compared_by(scoring: Scoring, real: _Against, prompts: Sequence[str] | None) -> dict[str, Any]:
    """What the statistics of samples depend on besides the models."""
    data = [scoring.data, len(real.images), real.images.fingerprint]
    extractors = {name: mark(network.state_dict()) for name, network in real.networks.items()}
    return {"data": data, "prompts": prompts, "extractors": extractors, "match": real.named}


def _names(runs: Sequence[str]) -> list[str]:
    """Names of the runs: the shortest ends of their paths that differ."""
    parts = [[part for part in Path(run).parts if part != "model"] or [run] for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-depth:]) for path in parts]
        if len({*names, "teacher"}) == len(names) + 1:
            return names
    raise ValueError(f"the same run is given twice among {', '.join(runs)}")
