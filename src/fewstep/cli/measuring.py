"""The commands that measure."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from ..core.checks import at_least, positive
from .after import after_measuring, say_next

if TYPE_CHECKING:
    from ..diffusion.denoiser import Denoiser
    from ..diffusion.measure.dial import Point, Setting


def measure(
    checkpoint: Positional[str],
    /,
    *,
    data: str,
    out: Path,
    teacher: str | None = None,
    steps: tuple[int, ...] = (1, 2, 4, 8),
    teacher_calls: tuple[int, ...] = (1, 2, 4, 8, 35),
    middle: float | None = None,
    n: int = 1000,
    features: str | None = None,
    seed: int = 0,
    batch: int = 250,
    precision: Literal["no", "bf16"] = "no",
) -> None:
    """Score a tuned model, and its teacher beside it, at several numbers of network calls.

    Args:
        checkpoint: a run, or the tuned model.
        data: real images to compare with: an .npz, a folder or zip, a .parquet, a hub data set, or `bundled`.
        out: folder for measure.json, quality.png and samples.png.
        teacher: the diffusion checkpoint it came from, scored on the same seeds.
        steps: step counts of the tuned model; one of several segments has its own number.
        teacher_calls: network calls of the teacher: DDIM for few, Heun's method from 20 on.
        middle: noise level of the second of two steps, EDM students only.
        n: samples for each score; scores compare only at the same n.
        features: inception, the folder or hub id of a DINOv2 model, random (untrained) or fashion (bundled); by default
            fashion for `bundled` data and random for all other.
        seed: of the first sample.
        batch: samples at once.
        precision: no (float32) or bf16.
    """
    from ..core.device import best_device
    from ..diffusion.formats.folder import load
    from ..diffusion.measure.settings import diffusion_settings, student_settings

    _check_scores(out, n=n, seed=seed, steps=steps, teacher_calls=teacher_calls, batch=batch)
    student = load(checkpoint).to(best_device())
    settings = student_settings(student, steps, middle=middle)
    if teacher:
        settings = diffusion_settings(_diffusion(teacher), teacher_calls) + settings
    _score(
        settings, data, out, n=n, features=features, seed=seed, batch=batch, precision=precision,
        checkpoint=checkpoint, teacher=teacher,
    )  # fmt: skip
    after_measuring(checkpoint, student, data, out / "measure.json")


def dial(
    runs: Positional[tuple[str, ...]],
    /,
    *,
    teacher: str,
    data: str,
    out: Path,
    within: str = "5%",
    steps: tuple[int, ...] = (1, 2, 4, 8),
    teacher_calls: tuple[int, ...] = (1, 2, 4, 8, 16, 35),
    n: int = 1000,
    features: str | None = None,
    seed: int = 0,
    batch: int = 250,
    precision: Literal["no", "bf16"] = "no",
) -> None:
    """Compare students with their teacher at each number of network calls, and say where on the dial to stand.

    Args:
        runs: folders of tuned models; each is sampled as it was tuned.
        teacher: the diffusion checkpoint that they came from.
        data: real images to compare with: an .npz, a folder or zip, a .parquet, a hub data set, or `bundled`.
        out: folder for measure.json, quality.png and samples.png.
        within: how much worse than the teacher's best is good enough: 5% or .05.
        steps: step counts of students of one segment.
        teacher_calls: network calls of the teacher: DDIM for few, Heun's method from 20 on.
        n: samples for each score; scores compare only at the same n.
        features: inception, the folder or hub id of a DINOv2 model, random (untrained) or fashion (bundled); by default
            fashion for `bundled` data and random for all other.
        seed: of the first sample.
        batch: samples at once.
        precision: no (float32) or bf16.
    """
    from ..core.device import best_device
    from ..diffusion.formats.folder import load
    from ..diffusion.measure.settings import diffusion_settings, student_settings

    try:
        tolerance = float(within.removesuffix("%")) / (100 if within.endswith("%") else 1)
    except ValueError:
        raise ValueError(f"--within takes a share such as 5% or .05, not {within!r}") from None
    if not 0 <= tolerance < float("inf"):
        raise ValueError(f"--within takes a share such as 5% or .05, not {within!r}")
    if not runs:
        raise ValueError("name at least one run to compare with the teacher")
    names = _names(runs)
    _check_scores(out, n=n, seed=seed, steps=steps, teacher_calls=teacher_calls, batch=batch)
    settings, students = diffusion_settings(_diffusion(teacher), teacher_calls), {}
    for run, name in zip(runs, names, strict=True):
        students[name] = run, load(run).to(best_device())
        settings += student_settings(students[name][1], steps, name=name)
    points = _score(
        settings, data, out, n=n, features=features, seed=seed, batch=batch, precision=precision, within=tolerance,
        runs=runs, teacher=teacher,
    )  # fmt: skip
    rest = [point for point in points if point.name in students]
    best = min(rest, key=lambda point: math.prod(distance.value for distance in point.frechet.values()))
    after_measuring(*students[best.name], data, out / "measure.json")


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
    """Measure how early a diffusion checkpoint's trajectories know their ends: what few steps could be enough.

    Args:
        checkpoint: a diffusers folder or hub id.
        out: folder for settle.json and settle.png.
        steps: network calls of a trajectory (DDIM).
        within: feature distance to the final image, as a share of that between unrelated images, that counts as settled.
        n: trajectories.
        features: inception, the folder or hub id of a DINOv2 model, random (untrained) or fashion (bundled); by default
            fashion for grey images of 28 pixels and random for all other.
        label: class of the images, for conditional models.
        seed: of the first trajectory.
        batch: trajectories at once.
        precision: no (float32) or bf16.
    """
    import torch

    from ..core.files import writable
    from ..core.nfe import count_nfe
    from ..core.receipt import receipt
    from ..diffusion.cond import labelled
    from ..diffusion.measure import settling
    from ..diffusion.measure.comparing import image_shape
    from ..diffusion.measure.features import fitting
    from ..diffusion.report import plot_settling

    at_least(2, n=n, steps=steps)
    at_least(1, batch=batch)
    at_least(0, seed=seed, label=label)
    positive(within=within)
    writable(out)
    denoiser = _diffusion(checkpoint)
    shape = image_shape(denoiser)
    if bool(denoiser.takes) != (label is not None):
        raise ValueError("this checkpoint " + ("needs a --label" if denoiser.takes else "takes no --label"))
    cond = labelled(None if label is None else torch.full((n,), label))
    taken = features or ("fashion" if shape == (1, 28, 28) else "random")
    network = fitting(taken, shape)[taken]
    with receipt(out / "settle.json", checkpoint=checkpoint, features=taken, seed=seed, n=n) as entries:
        with count_nfe(denoiser.network) as nfe:
            result = settling.settle(
                denoiser, range(seed, seed + n), network, steps=steps, within=within, batch=batch, precision=precision,
                cond=cond,
            )  # fmt: skip
        entries |= {"within": within, "sigmas": result.sigmas.tolist(), "nfe_per_sample": nfe.rows / n,
                    "quantiles": {str(q): result.curve(q).tolist() for q in settling.QUANTILES},
                    "settled_after_calls": result.settled_at().tolist(), "sentence": result.sentence()}  # fmt: skip
        plot_settling(result, out / "settle.png", features=taken)
    print(result.sentence())
    _say_features(taken, features is None)
    print(f"curve and figures: {out / 'settle.png'}, {out / 'settle.json'}")
    say_next("tune", checkpoint, "--data", "teacher", "--out", "few-step")


def _check_scores(
    out: Path, *, n: int, seed: int, steps: tuple[int, ...], teacher_calls: tuple[int, ...], batch: int
) -> None:
    """Raises ValueError where scores cannot be made or not be written."""
    from ..core.files import writable

    if not steps or not teacher_calls:
        raise ValueError("--steps and --teacher-calls each need at least one number")
    at_least(20, n=n)  # for an interval
    at_least(1, steps=steps, teacher_calls=teacher_calls, batch=batch)
    at_least(0, seed=seed)
    writable(out)


def _diffusion(checkpoint: str) -> Denoiser:
    """The diffusion model of a run or any other checkpoint, on the best device."""
    from ..core.device import on_device
    from ..diffusion.formats.folder import load

    model = load(checkpoint)
    if model.is_student:
        raise ValueError(f"{checkpoint} is a student, no diffusion model any more; name the one that it was tuned from")
    return on_device(model.denoiser)


def _names(runs: tuple[str, ...]) -> list[str]:
    """The shortest ends of the paths that tell the runs apart."""
    parts = [[part for part in Path(run).parts if part != "model"] or [run] for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-depth:]) for path in parts]
        if len({*names, "teacher"}) == len(names) + 1:
            return names
    raise ValueError(f"the same run is named twice among {', '.join(runs)}")


def _score(
    settings: list[Setting], data: str, out: Path, *, n: int, features: str | None, seed: int, batch: int, precision: str,
    within: float | None = None, **facts: object,
) -> list[Point]:  # fmt: skip
    """Scores `settings` against `data` and prints what was found."""
    from rich.console import Console

    from ..diffusion.data import load_images
    from ..diffusion.measure.comparing import common_shape, compare
    from ..diffusion.measure.features import fitting
    from ..diffusion.report import table

    channels, size, _ = shape = common_shape(settings)
    bundled = data == "bundled"
    taken = features or ("fashion" if bundled else "random")
    networks = fitting(taken, shape)
    conditional = any(setting.denoiser.takes for setting in settings)
    images = load_images(data, channels=channels, size=size, labels=conditional).shuffled()
    found = compare(
        settings, images, out, n=n, networks=networks, bundled=bundled, seed=seed, batch=batch, precision=precision,
        within=within, data=data, **facts,
    )  # fmt: skip
    Console().print(table(found.points, found.real))
    if found.recommendation:
        print(found.recommendation)
    _say_features(taken, features is None)
    print(f"table, plot and pictures: {out / 'measure.json'}, {out / 'quality.png'}, {out / 'samples.png'}")
    return found.points


def _say_features(features: str, unnamed: bool) -> None:
    if unnamed and features == "random":
        print("--features was left out, so untrained (random) ones were taken; inception and DINOv2 are better known")
