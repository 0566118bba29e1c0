"""Runs of training: what a checkpoint learned from, for how long, and what was seen on the way."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .charts import Chart, over_numbers
from .pictures import encoded
from .section import Found, Section, counted, receipt_in, short

SHEETS = 6  # of samples that are shown, spread over the run
SIDE = 640  # pixels of a sheet


class Sheet(NamedTuple):
    """A sheet of samples as a data URI, and after how many images it was made."""

    data: str
    images: str


@dataclass(frozen=True)
class Trained:
    """What the template shows: facts in words, the loss by noise level, sheets of the same seeds on the way."""

    facts: tuple[tuple[str, str], ...]
    chart: Chart | None
    sheets: tuple[Sheet, ...]


def run_section(found: Found) -> Section:
    """Of the receipt.json in the folder of a run of `fewstep tune` or `train`."""
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
    facts += [(f"Network calls of the {who}", f"{calls:,}") for who, calls in (content.get("network_calls") or {}).items()]
    looks = _looks(found.file.parent / "watch.jsonl")
    says += [str(look["said"]) for look in looks[-1:] if look.get("said")]
    known = ("images", "seconds", "steps", "loss", "images_per_second", "teacher", "recipe_name", "source", "network_calls")
    body = Trained(tuple((name, told) for name, told in facts if told), _losses(looks), _sheets(looks, found.file.parent))
    return Section("A run of training", found.source, tuple(says), "run.html", body, receipt_in(content, known))


def _long(seconds: float) -> str:
    """Seconds, minutes or hours."""
    for size, name in ((3600, "hour"), (60, "minute")):
        if seconds >= 2 * size:
            return counted(seconds / size, name)
    return counted(seconds, "second")


def _looks(file: Path) -> list[Mapping[str, Any]]:
    """What was seen at each look at the run; what is not to be read is left out."""
    found: list[Mapping[str, Any]] = []
    for line in file.read_text(errors="replace").splitlines() if file.is_file() else ():
        try:
            look = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(look, dict) and isinstance(look.get("images"), int | float):
            found.append(look)
    return found


def _losses(looks: Sequence[Mapping[str, Any]]) -> Chart | None:
    """The loss over the images that were seen, a curve a range of noise levels."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for look in looks:
        for name, loss in (look.get("loss_by_level") or {}).items():
            if isinstance(loss, int | float) and loss > 0:
                xs, ys = curves.setdefault(str(name), ([], []))
                xs.append(float(look["images"]))
                ys.append(float(loss))
    if not curves or all(len(xs) < 2 for xs, _ in curves.values()):
        return None
    named = [(name, number + 1, xs, ys) for number, (name, (xs, ys)) in enumerate(curves.items())]
    told = [f"{name}: from {ys[0]:.3g} to {ys[-1]:.3g}." for name, (_, ys) in curves.items()]
    return over_numbers("loss, by noise level", "images seen", named, " ".join(told))


def _sheets(looks: Sequence[Mapping[str, Any]], folder: Path) -> tuple[Sheet, ...]:
    """Sheets that lie in the run's folder, spread evenly over the run, the first and the last among them."""
    from PIL import Image, UnidentifiedImageError

    there = [look for look in looks if look.get("sheet")]
    places = sorted({round(k * (len(there) - 1) / max(1, SHEETS - 1)) for k in range(min(SHEETS, len(there)))})
    found = []
    for look in (there[place] for place in places):
        file = folder / str(look["sheet"])
        if not file.resolve().is_relative_to(folder.resolve()) or not file.is_file():
            continue
        try:
            with Image.open(file, formats=["PNG"]) as picture:
                picture.load()
                found.append(Sheet(encoded(picture, side=SIDE), f"{look['images']:,.0f}"))
        except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
            continue
    return tuple(found)
