"""Settling: how early a trajectory of pictures, or a text, no longer changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.words import counted
from .charts import Chart, over_shares
from .section import Found, Section, percent, receipt_in


@dataclass(frozen=True)
class Curves:
    """What the template shows: charts with the same curves, their meaning, and the figures as a table."""

    charts: tuple[Chart, ...]
    how: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def settling_section(found: Found) -> Section:
    """The section of a settle.json of pictures."""
    content = found.content
    quantiles = {float(name): [float(value) for value in values] for name, values in content["quantiles"].items()}
    low, middle, high = (quantiles[name] for name in sorted(quantiles))
    sigmas, within, n = content["sigmas"], float(content["within"]), int(content["n"])
    shares = [(k + 1) / len(middle) for k in range(len(middle))]
    says = (
        f"The median distance falls from {middle[0]:.2f} after the first call to {middle[len(middle) // 2]:.2f} after half "
        "of the calls."
    )
    curves = [("median of the seeds; the band holds eight of ten", 1, shares, middle)]
    level = (within, f"settled: {within:g}")
    chart = over_shares(
        "distance to the final picture", f"share of the {len(middle)} network calls", curves, says,
        between=(low, high), level=level,
    )  # fmt: skip
    how = (
        "The model is stopped after each network call and asked for its best guess of the finished picture. The line shows "
        f"how far that guess still is from the finished picture, over {counted(n, 'seed')}: 0 is the finished picture, 1 "
        "an unrelated one. If the line is flat early, few calls may be enough."
    )
    every = max(1, len(middle) // 10)
    rows = tuple(
        (str(k + 1), f"{float(sigmas[k]):.3g}", f"{low[k]:.3f}", f"{middle[k]:.3f}", f"{high[k]:.3f}")
        for k in range(every - 1, len(middle), every)
    )
    head = ("network calls", "noise level σ", "a tenth of the seeds are below", "median", "nine tenths are below")
    known = ("quantiles", "sigmas", "sentence", "settled_after_calls", "within")
    body = Curves((chart,), how, head, rows)
    title = "How early the model knows its picture"
    return Section(title, found.source, (str(content["sentence"]),), "curves.html", body, receipt_in(content, known))


def emergence_section(found: Found) -> Section:
    """The section of a file of `fewstep settle-text`."""
    content = found.content
    groups = content["emergence"]
    every = groups["all"]
    says = [
        f"By {percent(float(share))} of the steps, {percent(row['first'])} of the {every['n']} answers had been shown, "
        f"{percent(row['stable'])} for good."
        for share, row in every["by"].items()
    ]
    charts = tuple(_emerged(name, int(groups[name]["n"]), points) for name, points in (content.get("curves") or {}).items())
    how = (
        "A text is decoded step by step, and after each step the model’s answer so far is read. One line counts the texts "
        "that had shown their final answer by then, the other those whose answer never changed again. Decoding may stop "
        "where the second line is high. Where only the first line is high, an answer may still change."
    )
    rows = tuple(
        (str(name), f"{group['n']}", percent(float(share)), percent(row["first"]), percent(row["stable"]))
        for name, group in groups.items()
        for share, row in group["by"].items()
    )
    head = ("answers", "number", "by this share of the steps", "shown", "shown for good")
    title = "How early the model knows its answer"
    receipt = receipt_in(content, ("emergence", "curves"))
    return Section(title, found.source, tuple(says), "curves.html", Curves(charts, how, head, rows), receipt)


def _emerged(name: str, n: int, points: Sequence[Mapping[str, Any]]) -> Chart:
    shares = [0.0, *(float(point["share"]) for point in points)]
    kinds = (("first", "shown"), ("stable", "shown for good"))
    curves = [
        (words, number + 1, shares, [0.0, *(float(point[kind]) for point in points)])
        for number, (kind, words) in enumerate(kinds)
    ]
    half = next((point for point in points if abs(point["share"] - 0.5) < 1e-6), None)
    says = f"By half of the steps {percent(half['first'])} had shown their answer." if half else "The lines rise to 100 %."
    title = f"share of {'all' if name == 'all' else 'the'} {n} {'' if name == 'all' else name + ' '}answers"
    return over_shares(title, "share of the steps", curves, says, shares=True)
