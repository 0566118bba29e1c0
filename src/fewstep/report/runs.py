"""Runs of training: data, duration, samples and scores during the run, and how much more training would help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..core.resuming import looks_in
from ..core.words import counted
from .charts import Chart, Point, over_numbers, with_intervals
from .pictures import encoded
from .section import Figure, Found, Section, receipt_in, short

SHEETS = 6  # of samples that are shown, spread over the run
SIDE = 640  # pixels of a sheet


class Sheet(NamedTuple):
    """A sheet of samples as a data URI, the number of images before it, and what its rows are."""

    data: str
    images: str
    rows: str


@dataclass(frozen=True)
class Trained:
    """What the template shows: facts in words, the loss by noise level, scores, and sheets of the same seeds."""

    facts: tuple[tuple[str, str], ...]
    chart: Chart | None
    scores: tuple[Chart, ...]
    sheets: tuple[Sheet, ...]


def run_section(found: Found) -> Section:
    """The section of the receipt.json in the folder of a run of `fewstep tune` or `train`."""
    content = found.content
    images, seconds = float(content["images"]), float(content["seconds"])
    taught = f", taught by {content['teacher']}" if content.get("teacher") else ""
    steps = counted(float(content["steps"]), "step")
    says = [f"The run saw {counted(images, 'image')} in {steps} and {_long(seconds)}{taught}."]
    facts = [
        ("Recipe", str(content.get("recipe_name") or "of its own")),
        ("Data", str(content.get("source", ""))),
        ("Loss at the end", short(float(content["loss"]))),
        ("Images a second", short(float(content["images_per_second"]))),
    ]
    spent = content.get("network_calls") or {}
    facts += [(f"Network calls during training, {who}", f"{calls:,}") for who, calls in spent.items()]
    looks = looks_in(found.file.parent)
    known = ("images", "seconds", "steps", "loss", "images_per_second", "teacher", "recipe_name", "source", "network_calls")
    body = Trained(
        tuple((name, told) for name, told in facts if told),
        _losses(looks),
        _scores(looks),
        _sheets(looks, found.file.parent),
    )
    return Section("A run of training", found.source, tuple(says), "run.html", body, receipt_in(content, known))


def _long(seconds: float) -> str:
    """Seconds, minutes or hours."""
    for size, name in ((3600, "hour"), (60, "minute")):
        if seconds >= 2 * size:
            return counted(seconds / size, name)
    return counted(seconds, "second")


def _losses(looks: Sequence[Mapping[str, Any]]) -> Chart | None:
    """The loss against training images, a curve a range of noise levels."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for look in looks:
        for level in look.get("levels") or ():
            if float(level["loss"]) > 0:
                xs, ys = curves.setdefault(_range(level["low"], level["high"]), ([], []))
                xs.append(float(look["images"]))
                ys.append(float(level["loss"]))
    curves = {name: curve for name, curve in curves.items() if len(curve[0]) > 1}
    if not curves:
        return None
    named = [(name, number + 1, xs, ys) for number, (name, (xs, ys)) in enumerate(curves.items())]
    told = [f"{name}: from {ys[0]:.3g} to {ys[-1]:.3g}." for name, (_, ys) in curves.items()]
    return over_numbers("loss, by noise level", "images seen", named, " ".join(told))


def _range(low: float, high: float | None) -> str:
    return f"σ above {low:g}" if high is None else f"σ {low:g} to {high:g}" if low else f"σ below {high:g}"


def _scores(looks: Sequence[Mapping[str, Any]]) -> tuple[Chart, ...]:
    """Fréchet distances at the looks, if those were scored: a chart a representation, a curve a number of calls."""
    scored = [look for look in looks if look["images"] and any("frechet" in each for each in look.get("samples", ()))]
    charts = []
    for view in dict.fromkeys(view for look in scored for each in look["samples"] for view in each.get("frechet", ())):
        curves: dict[str, list[Point]] = {}
        for look in scored:
            for each in look["samples"]:
                if view in each.get("frechet", ()):
                    figure, name = Figure.of(each["frechet"][view]), counted(each["calls"], "network call")
                    says = f"{name} after {look['images']:,} images: {figure}"
                    curves.setdefault(name, []).append(Point(float(look["images"]), *figure, says))
        named = [(name, number + 1, points) for number, (name, points) in enumerate(curves.items())]
        told = [f"{name}: from {short(points[0].y)} to {short(points[-1].y)}." for name, points in curves.items()]
        charts.append(with_intervals(f"Fréchet distance, {view} features", "images seen", named, " ".join(told)))
    return tuple(charts)


@dataclass(frozen=True)
class Learning:
    """What the template shows: learning curves, each with the goal."""

    charts: tuple[Chart, ...]


def forecast_section(found: Found) -> Section:
    """The section of a forecast.json of `fewstep forecast`."""
    charts = []
    for forecast in found.content["forecasts"]:
        points = [
            Point(float(each["images"]), *Figure.of(each), f"after {each['images']:,.0f} images: {Figure.of(each)}")
            for each in forecast["points"]
        ]
        calls, goal = counted(forecast["calls"], "network call"), 1 + float(forecast["within"])
        title = f"times the teacher’s distance, {calls}, {forecast['view']} features"
        level = (goal, f"goal: {goal:g} times")
        charts.append(with_intervals(title, "images seen", [(calls, 1, points)], str(forecast["sentence"]), level))
    says = tuple(str(forecast["sentence"]) for forecast in found.content["forecasts"])
    receipt = receipt_in(found.content, ("forecasts",))
    return Section(
        "How much more training would help", found.source, says, "forecast.html", Learning(tuple(charts)), receipt
    )


def _sheets(looks: Sequence[Mapping[str, Any]], folder: Path) -> tuple[Sheet, ...]:
    """Sheets in the run's folder, spread evenly over the run, with the first and the last."""
    from PIL import Image, UnidentifiedImageError

    there = [look for look in looks if look.get("sheet")]
    count = min(SHEETS, len(there))
    places = [round(k * (len(there) - 1) / max(1, count - 1)) for k in range(count)]
    found = []
    for look in (there[place] for place in places):
        file = folder / str(look["sheet"])
        if not file.resolve().is_relative_to(folder.resolve()) or not file.is_file():
            continue
        try:
            with Image.open(file, formats=["PNG"]) as picture:
                picture.load()
                rows = ", ".join(f"{each['name']} at {counted(each['calls'], 'call')}" for each in look.get("samples", ()))
                found.append(Sheet(encoded(picture, side=SIDE), f"{look['images']:,.0f}", rows))
        except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
            continue
    return tuple(found)
