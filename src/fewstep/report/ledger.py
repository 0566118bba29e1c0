"""The ledger: what a change gained and lost, with every interval drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ..core.words import counted
from .charts import Bars, Reach, in_parts, reach
from .pictures import Picture, strips
from .section import Figure, Found, Section, percent, receipt_in, short

WORDS = {  # a verdict in words, and the sign that stands beside it
    "gained": ("gained", "▲"),
    "lost": ("lost", "▼"),
    "kept": ("kept", "✓"),
    "not known": ("not known", "?"),
    "another task": ("another task", "–"),
}


MEANS = {  # what the lines of a group are about
    "denoising": "Noise is added to real pictures, and the model guesses the clean ones. The figure is the error of the "
    "guess at each noise level σ; lower is better.",
    "agreement": "How far a sample is from the teacher’s sample of the same seed at many network calls; lower is better.",
    "at as few calls": "Distances to real pictures, with the teacher at as few network calls as the student; lower is "
    "better.",
    "quality": "How near the samples are to real pictures. Fréchet and MIND are distances, lower is better; precision and "
    "density say how many samples lie among real pictures, higher is better.",
    "variety": "How much of the variety of the data the samples have; higher is better.",
    "copying": "The share of samples that lie nearer to a picture of the data than real pictures lie to each other; lower "
    "is better.",
    "prompts": "How many pictures show what was asked for; higher is better.",
    "skill": "Share of right answers to questions that the model was tuned for; higher is better.",
    "knowledge": "Share of right answers to questions that the model could answer before; higher is better.",
    "text": "How unlikely the model finds ordinary text (perplexity); lower is better.",
    "confidence": "How far the model’s confidence is from its share of right answers; lower is better.",
    "form": "Length of the answers, best unchanged, and the share of them that repeats itself, best 0.",
    "cost": "Network calls and token positions that an answer takes; lower is better.",
    "looks": "Mean brightness, contrast and sharpness; best where equal to those of real pictures.",
    "classes": "How often each class is drawn, best as often as in the data; and how far its pictures are from real ones.",
}


@dataclass(frozen=True)
class Row:
    """A line: its name, values, the difference in words and as a drawing, and its verdict."""

    name: str
    before: str
    after: str
    difference: str
    strip: Reach
    verdict: str
    sign: str
    more: str
    n: int

    @property
    def kind(self) -> str:
        """The verdict as a class of the style sheet."""
        return self.verdict.replace(" ", "-")

    @property
    def said(self) -> str:
        """The drawing in words."""
        return f"difference {self.difference}"


@dataclass(frozen=True)
class Group:
    """Lines about one thing, and what they are about. A group of many lines without a gain or a loss is folded."""

    name: str
    means: str
    counts: str
    rows: tuple[Row, ...]
    folded: bool


@dataclass(frozen=True)
class Balance:
    """What the template shows.

    Attributes:
        counts: how many lines have which verdict.
        groups: the lines.
        advice: what to do.
        notes: what was left out, and what a figure means.
        within, level: the tolerance and the error level of the verdicts, in words.
        drift: bars by layer, if the weights were compared and any moved; `layers` holds the same in words.
        pictures: the same seeds before and after, each with a name and pictures.
    """

    counts: tuple[tuple[str, str, int], ...]
    groups: tuple[Group, ...]
    advice: tuple[str, ...]
    notes: tuple[str, ...]
    within: str
    level: str
    drift: Bars | None
    layers: tuple[tuple[str, str], ...]
    pictures: tuple[tuple[str, tuple[Picture, ...]], ...]


def ledger_section(found: Found) -> Section:
    """The section of a ledger.json, of pictures or of text."""
    content = found.content
    within, lines = float(content["within"]), content["lines"]
    said = [str(line["verdict"]) for line in lines]
    counts = tuple((*WORDS[name], said.count(name)) for name in WORDS if name in said)
    groups = [_group(name, list(each), within) for name, each in groupby(lines, key=lambda line: str(line["group"]))]
    found_says, advice = _sentences(content["sentences"])
    layers = [(str(layer["layer"]), float(layer["change"])) for layer in content.get("drift", ())]
    body = Balance(
        counts, tuple(groups), advice, tuple(map(str, content.get("notes", ()))), percent(within),
        percent(float(content.get("level", 0.05))), _drift(layers) if any(change for _, change in layers) else None,
        tuple((name, percent(change)) for name, change in layers),
        _beside(content, strips(content.get("pictures"), found.file.parent, count=found.pictures)),
    )  # fmt: skip
    known = ("lines", "sentences", "notes", "drift", "points", "pictures", "within", "level", "tables")
    title = "What the change gained and lost"
    return Section(title, found.source, found_says, "ledger.html", body, receipt_in(content, known))


def _sentences(said: Sequence[object]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The findings, gains and losses first, and the advice."""
    sentences = [str(sentence) for sentence in said]
    facts = ("Gained", "Lost", "No loss", "It takes", "Not known")
    told = [sentence for fact in facts for sentence in sentences if sentence.startswith(fact)]
    return tuple(told), tuple(sentence for sentence in sentences if sentence not in told)


def _group(name: str, lines: Sequence[Mapping[str, Any]], within: float) -> Group:
    rows = [_row(line, within) for line in lines]
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in WORDS}
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    quiet = not counts["gained"] and not counts["lost"]
    return Group(name, MEANS.get(name, ""), told, tuple(rows), len(rows) > 8 and quiet)


def _row(line: Mapping[str, Any], within: float) -> Row:
    figure, best = Figure.of(line["difference"]), line["best"]
    before, after = float(line["before"]), float(line["after"])
    up = best == "more" or float(best) > before  # more is better
    verdict, sign = WORDS[str(line["verdict"])]
    more = f"about {counted(int(line['more']), 'more sample')} would tell" if line.get("more") else ""
    strip = reach(*figure, within * abs(float(line["unit"])), 1.0 if up else -1.0)
    told = _difference(figure, before, float(line["unit"]))
    return Row(str(line["line"]), short(before), short(after), told, strip, verdict, sign, more, int(line["n"]))


def _difference(figure: Figure, before: float, unit: float) -> str:
    """The difference in percent if it is judged as a share of the value before, else in its own unit."""
    if unit > 0 and abs(unit - before) <= 1e-6 * unit:
        size = Figure(*(100 * part / unit for part in figure))
        even = abs((size.high - size.value) - (size.value - size.low)) <= 0.02 * (size.high - size.low)
        if max(map(abs, size)) < 10_000:
            reach = f"± {size.high - size.value:,.0f}" if even else f"({size.low:+,.0f} to {size.high:+,.0f})"
            return f"{size.value:+,.0f} {reach} %".replace("-", "−")
    return f"+{figure}" if figure.value > 0 else str(figure)


def _drift(layers: Sequence[tuple[str, float]]) -> Bars:
    most = max(layers, key=lambda layer: layer[1])
    says = (
        f"The weights of {counted(len(layers), 'layer')} moved, from the input to the output. {most[0]} moved the most, by "
        f"{percent(most[1])} of its own length."
    )
    parts = [(name, part_of(name), change) for name, change in layers]
    return in_parts("change of the weights over their length", "layers, from the input to the output", says, parts)


def part_of(layer: str) -> str:
    """The part of the network that a layer belongs to: the first word of its name, or two after "model" and the like."""
    words = []
    for word in layer.split(".")[:2]:
        if word.isdigit():
            break
        words.append(word)
    return ".".join(words[:1] if len(words) > 1 and words[0] not in ("model", "transformer", "base_model") else words)


def _beside(
    content: Mapping[str, Any], shown: Sequence[tuple[Picture, ...]]
) -> tuple[tuple[str, tuple[Picture, ...]], ...]:
    names = [f"{point['name']}, {counted(point['nfe'], 'network call')}" for point in content.get("points", ())]
    return tuple((name, each) for name, each in zip(names, shown, strict=False) if each)
