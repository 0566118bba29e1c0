"""The commands that measure."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional

from ..diffusion.scoring import Scoring
from .after import after_measuring, say_next

if TYPE_CHECKING:
    from ..diffusion.measuring import Measured


def measure(
    checkpoint: Positional[str],
    /,
    *,
    scoring: Annotated[Scoring, OmitArgPrefixes],
    teacher: str | None = None,
    steps: tuple[int, ...] = (1, 2, 4, 8),
    teacher_calls: tuple[int, ...] = (1, 2, 4, 8, 35),
    middle: float | None = None,
) -> None:
    """Score a tuned model, and its teacher beside it, at several numbers of network calls.

    Several processes share the samples: start them with `torchrun --nproc-per-node 2 -m -- fewstep.cli measure …`, or with
    `accelerate launch` on GPUs. The figures are those of one process. A command that was killed goes on when it is run
    again.

    Args:
        checkpoint: a run, or the tuned model.
        scoring: against which data, and how.
        teacher: the diffusion checkpoint that the model came from, scored on the same seeds.
        steps: step counts of the tuned model; one of several segments has its own number.
        teacher_calls: network calls of the teacher: DDIM for few, Heun's method from 20 on.
        middle: noise level of the second of two steps, EDM students only.
    """
    from ..diffusion.measuring import measure_checkpoint

    measured = measure_checkpoint(
        checkpoint, scoring, teacher=teacher, steps=steps, teacher_calls=teacher_calls, middle=middle
    )
    _show(measured, scoring)
    after_measuring(checkpoint, measured.models["student"], scoring.data, scoring.out / "measure.json")


def dial(
    runs: Positional[tuple[str, ...]],
    /,
    *,
    teacher: str,
    scoring: Annotated[Scoring, OmitArgPrefixes],
    within: str = "5%",
    steps: tuple[int, ...] = (1, 2, 4, 8),
    strengths: tuple[float, ...] = (),
    teacher_calls: tuple[int, ...] = (1, 2, 4, 8, 16, 35),
) -> None:
    """Compare students with their teacher at each number of network calls, and say how few calls are enough.

    Several processes share the samples, and a command that was killed goes on, as with fewstep measure.

    Args:
        runs: folders of tuned models; each is sampled as it was tuned.
        teacher: the diffusion checkpoint that they came from.
        scoring: against which data, and how.
        within: how much worse than the teacher's best is good enough: 5% or .05.
        steps: step counts of students of one segment or of any number of calls.
        strengths: of LoRA students, such as 0 .5 1: 0 is the base, 1 the student.
        teacher_calls: network calls of the teacher: DDIM for few, Heun's method from 20 on.
    """
    from ..diffusion.measuring import dial_checkpoints

    measured = dial_checkpoints(
        runs, teacher, scoring, within=read_share(within), steps=steps, strengths=strengths, teacher_calls=teacher_calls
    )
    _show(measured, scoring)
    found, names = measured.found, list(measured.models)
    students = [point for point in found.points if point.name in names]
    best = min(students, key=lambda point: math.prod(distance.value for distance in point.frechet.values()))
    if found.recommended and found.recommended.point.name in names:
        best = found.recommended.point
    run, strength = list(product(runs, strengths or (None,)))[names.index(best.name)]  # each run at each strength
    at = ("--steps", round(best.nfe), *(() if strength is None else ("--strength", f"{strength:g}")))
    after_measuring(run, measured.models[best.name], scoring.data, scoring.out / "measure.json", *at)


def ledger(
    before: Positional[str],
    after: Positional[str],
    /,
    *,
    scoring: Annotated[Scoring, OmitArgPrefixes],
    within: str = "10%",
    steps: int | None = None,
    strength: float | None = None,
    teacher_calls: int = 35,
) -> None:
    """Say what a change to a diffusion checkpoint gained and lost, how sure that is, and what to do.

    Several processes share the samples, and a command that was killed goes on, as with fewstep measure.

    Args:
        before: the diffusion checkpoint.
        after: a student of it, or the same checkpoint after another change.
        scoring: against which data, and how.
        within: a difference up to this share of the value before counts as kept: 10% or .1.
        steps: of the student, by default its own number.
        strength: of a LoRA student: 0 is its base, 1 the student.
        teacher_calls: network calls of a diffusion checkpoint: DDIM for few, Heun's method from 20 on.
    """
    from rich.console import Console

    from ..core.showing import ledger_table
    from ..diffusion.measuring import ledger_checkpoints

    found = ledger_checkpoints(
        before, after, scoring, within=read_share(within), steps=steps, strength=strength, teacher_calls=teacher_calls
    )
    console = Console(highlight=False)
    console.print(ledger_table(found.ledger, folded="classes"))
    for sentence in (*found.ledger.sentences(), *found.ledger.notes):
        console.print(sentence, markup=False)
    _say_features(found.features, scoring.features is None)
    out = scoring.out
    print(f"all figures, plots and pictures: {out / 'ledger.json'}, {out / 'ledger.png'}, {out / 'samples.png'}")
    say_next("report", out)


def forecast(
    runs: Positional[tuple[str, ...]],
    /,
    *,
    within: str = "30%",
    calls: tuple[int, ...] = (),
    out: Path | None = None,
) -> None:
    """Say how many more images a student needs, by a power law through the scores of its run.

    Args:
        runs: a run that was tuned with --look-score, or several runs of different lengths, of which the final scores count.
        within: the goal: how much worse than the checkpoint's own samples at many calls is good enough; 30% means 1.3
            times their Fréchet distance.
        calls: numbers of network calls, by default all that were scored.
        out: the file for the figures, by default forecast.json in the first run's folder.
    """
    from ..diffusion.forecasting import forecast_runs

    for found in forecast_runs(runs, within=read_share(within), calls=calls, out=out):
        print(found.sentence)
    print(f"curves, laws and intervals: {out or Path(runs[0]) / 'forecast.json'}")
    say_next("report", out or runs[0])


def settle(
    checkpoint: Positional[str],
    /,
    *,
    out: Path,
    steps: int = 50,
    within: float = 0.1,
    n: int = 500,
    features: str | None = None,
    label: int | None = None,
    seed: int = 0,
    batch: int = 250,
    precision: Literal["no", "bf16"] = "no",
) -> None:
    """Measure how early the trajectories of a diffusion checkpoint settle, and so how few steps could be enough.

    Several processes share the trajectories, and a command that was killed goes on, as with fewstep measure.

    Args:
        checkpoint: a diffusers folder or hub id.
        out: folder for settle.json and settle.png.
        steps: network calls of a trajectory (DDIM).
        within: feature distance to the final image that counts as settled, as a share of that between unrelated images.
        n: trajectories.
        features: inception, the folder or hub id of a DINOv2 model, random (untrained) or fashion (bundled); by default
            fashion for grey images of 28 pixels and random for all others.
        label: class of the images, for conditional models.
        seed: of the first trajectory.
        batch: trajectories at once.
        precision: no (float32) or bf16.
    """
    from ..diffusion.settling import settle_checkpoint

    found = settle_checkpoint(
        checkpoint, out, steps=steps, within=within, n=n, features=features, label=label, seed=seed, batch=batch,
        precision=precision,
    )  # fmt: skip
    print(found.settling.sentence())
    _say_features(found.features, features is None)
    print(f"curve and figures: {out / 'settle.png'}, {out / 'settle.json'}")
    say_next("tune", checkpoint, "--data", "teacher", "--out", "student")


def read_share(within: str) -> float:
    """The number of a share such as "5%" or ".05"; ValueError if it is not between 0 and 1."""
    try:
        tolerance = float(within.removesuffix("%")) / (100 if within.endswith("%") else 1)
    except ValueError:
        tolerance = math.nan
    if not 0 <= tolerance <= 1:
        raise ValueError(f"--within takes a share such as 5% or .05, at most 100%, not {within!r}")
    return tolerance


def _show(measured: Measured, scoring: Scoring) -> None:
    """Prints the table, the recommendation and the paths of the files."""
    from rich.console import Console

    from ..diffusion.report import table

    Console().print(table(measured.found.points, measured.found.real))
    if measured.found.recommended:
        print(measured.found.recommended.sentence)
    _say_features(measured.features, scoring.features is None)
    out = scoring.out
    print(f"table, plot and pictures: {out / 'measure.json'}, {out / 'quality.png'}, {out / 'samples.png'}")


def _say_features(features: str, unnamed: bool) -> None:
    if unnamed and features == "random":
        print("--features was left out, so untrained (random) ones were taken; inception and DINOv2 are better known")
