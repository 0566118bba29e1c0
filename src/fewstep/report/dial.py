"""The dial: the same seeds at each number of network calls, with scores, intervals and times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..core.words import counted
from .charts import Chart, Point, with_intervals
from .pictures import Picture, strips
from .section import Figure, Found, Section, percent, receipt_in, short


class Scored(NamedTuple):
    """The name of a representation, and the distance of the samples to real pictures in it."""

    view: str
    figure: Figure


@dataclass(frozen=True)
class Card:
    """A model at one number of network calls.

    Attributes:
        model: its name.
        number: its colour.
        calls: network calls a sample.
        sampler: how it is sampled.
        n: samples that were scored.
        scores: distances to real pictures.
        match: share of pictures that show what was asked for, if that was judged.
        recall: share of real pictures that have a sample near.
        seconds: time a picture.
        apart: difference to the teacher's best, a representation each.
        pictures: the first seeds.
    """

    model: str
    number: int
    calls: float
    sampler: str
    n: int
    scores: tuple[Scored, ...]
    match: str
    recall: str
    seconds: str
    apart: tuple[Scored, ...]
    pictures: tuple[Picture, ...]

    @property
    def said_calls(self) -> str:
        return counted(self.calls, "network call")


@dataclass(frozen=True)
class Dial:
    """What the template shows.

    Attributes:
        stops: the numbers of calls at which the slider stops.
        start: the index of the stop at which the slider begins.
        models: names with their colours.
        cards: by model, from few calls to many.
        charts: quality against calls, one a representation.
        small: whether the pictures are shown with sharp pixels, as they have few.
        where: the device, and how many samples it made at once.
        asked: whether the samples have prompts.
    """

    stops: tuple[float, ...]
    start: int
    models: tuple[tuple[str, int], ...]
    cards: tuple[Card, ...]
    charts: tuple[Chart, ...]
    small: bool
    where: str
    asked: bool


def dial_section(found: Found) -> Section:
    """The section of a measure.json."""
    content = found.content
    points = content["points"]
    models = _models(points)
    shown = strips(content.get("pictures"), found.file.parent, count=found.pictures)
    apart = {(each["name"], each["nfe"]): each for each in content.get("minus_best_teacher", ())}
    cards = [
        _card(point, models[point["name"]], shown[k] if k < len(shown) else (), apart.get((point["name"], point["nfe"])))
        for k, point in enumerate(points)
    ]
    cards.sort(key=lambda card: (card.number, card.calls))
    stops = sorted({card.calls for card in cards})
    body = Dial(
        tuple(stops), _start(cards, stops), tuple(models.items()), tuple(cards), charts_of(cards),
        any(picture.small for card in cards for picture in card.pictures),
        f"{points[0].get('device', 'the device')}, {points[0].get('batch', 'several')} pictures at once",
        bool((content.get("pictures") or {}).get("asked")),
    )  # fmt: skip
    says = [content["recommendation"]] if content.get("recommendation") else []
    shown_entries = ("points", "pictures", "minus_best_teacher", "recommendation", "real", "ratios")
    title = "Quality at each number of network calls"
    return Section(title, found.source, (*says, *_says(cards)), "dial.html", body, receipt_in(content, shown_entries))


def _models(points: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Names with their colours. The teacher comes first and has 0."""
    names = list(dict.fromkeys(str(point["name"]) for point in points))
    others = [name for name in names if name != "teacher"]
    teacher = {"teacher": 0} if "teacher" in names else {}
    return teacher | {name: index + 1 for index, name in enumerate(others)}


def _card(point: Mapping[str, Any], number: int, pictures: Sequence[Picture], apart: Mapping[str, Any] | None) -> Card:
    n, views = int(point["n"]), list(point["frechet"])
    match = point.get("match")
    return Card(
        str(point["name"]), number, float(point["nfe"]), str(point["sampler"]), n,
        tuple(Scored(view, Figure.of(point["frechet"][view])) for view in views),
        _match(Figure.of(match)) if match else "",
        percent(float(point["recall"])) if "recall" in point else "",
        _time(float(point["seconds"]) / n),
        tuple(Scored(view, Figure.of(apart[view])) for view in views if view in apart) if apart else (),
        tuple(pictures),
    )  # fmt: skip


def _match(found: Figure) -> str:
    """A share in percent. A CLIP score, which is above 1, is not changed."""
    if found.value > 1:
        return str(found)
    return f"{100 * found.value:.1f} ± {100 * (found.high - found.value):.1f} %"


def _time(seconds: float) -> str:
    return f"{short(seconds)}\N{NO-BREAK SPACE}s" if seconds >= 1 else f"{short(1000 * seconds)}\N{NO-BREAK SPACE}ms"


def _start(cards: Sequence[Card], stops: Sequence[float]) -> int:
    """The slider begins at the largest number of calls up to four."""
    return max((place for place, calls in enumerate(stops) if calls <= 4), default=0)


def _says(cards: Sequence[Card]) -> list[str]:
    """The best student of few calls beside the best teacher, in the first representation, and the time of both."""
    teachers, few = (
        [card for card in cards if not card.number],
        [card for card in cards if card.number and card.calls <= 4],
    )

    def best(each: Sequence[Card]) -> Card:
        return min(each, key=lambda card: card.scores[0].figure.value)

    said = []
    if few:
        student = best(few)
        name = "The student" if student.model == "student" else f"The student “{student.model}”"
        said.append(
            f"{name} has a Fréchet distance of {student.scores[0].figure} at {student.said_calls} "
            f"({student.scores[0].view} features; lower is better)."
        )
    if teachers:
        teacher = best(teachers)
        said.append(f"The teacher’s best is {teacher.scores[0].figure} at {teacher.said_calls} ({teacher.scores[0].view}).")
    if few and teachers:
        said.append(f"A picture takes the student {student.seconds}, and the teacher {teacher.seconds}.")
    return said


def charts_of(cards: Sequence[Card]) -> tuple[Chart, ...]:
    """Quality against network calls, a chart a representation."""
    charts = []
    for place, scored in enumerate(cards[0].scores):
        named, told = [], []
        for name, number in dict.fromkeys((card.model, card.number) for card in cards):
            each = [card for card in cards if card.model == name]
            points = []
            for card in each:
                figure = card.scores[place].figure
                says = f"{name} at {card.said_calls}: {figure}"
                points.append(Point(card.calls, figure.value, figure.low, figure.high, says))
            named.append((name, number, points))
            told.append(
                f"{name}: {', '.join(f'{short(card.scores[place].figure.value)} at {card.said_calls}' for card in each)}."
            )
        title = f"Fréchet distance, {scored.view} features"
        charts.append(with_intervals(title, "network calls a sample", named, f"Lower is better. {' '.join(told)}"))
    return tuple(charts)
