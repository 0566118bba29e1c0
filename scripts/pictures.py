"""Rebuilds the README's pictures and figures from what `fewstep demo` left: python scripts/pictures.py [DEMO]."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"


def main(demo: Path) -> None:
    measured = json.loads((demo / "measure.json").read_text())
    shutil.copyfile(demo / "samples.png", DOCS / "demo.png")
    shutil.copyfile(demo / "quality.png", DOCS / "quality.png")
    (DOCS / "demo.md").write_text(figures(measured))
    print(f"{DOCS / 'demo.png'}, {DOCS / 'quality.png'} and {DOCS / 'demo.md'} are those of {demo}")


def figures(measured: dict[str, Any]) -> str:
    """The table of quality against calls, in each representation, with where it comes from."""
    points = measured["points"]
    calls = sorted({point["nfe"] for point in points})
    rows = [
        f"| {name}, {features} features | " + " | ".join(_cell(points, name, features, nfe) for nfe in calls) + " |"
        for features in points[0]["frechet"]
        for name in dict.fromkeys(point["name"] for point in points)
    ]
    return "\n".join([
        "# The figures of the demo",
        "",
        "`make pictures` wrote this page from the output of `fewstep demo`. Fréchet distance ± 95 %, lower is better; "
        f"n = {points[0]['n']}, seeds",
        f"from {measured['seed']}, {points[0]['device']}, {measured['precision']}.",
        "",
        "| network calls | " + " | ".join(f"{nfe:g}" for nfe in calls) + " |",
        "|---" * (len(calls) + 1) + "|",
        *rows,
        "",
    ])  # fmt: skip


def _cell(points: list[dict[str, Any]], name: str, features: str, nfe: float) -> str:
    found = [point["frechet"][features] for point in points if (point["name"], point["nfe"]) == (name, nfe)]
    return f"{found[0]['value']:.1f} ± {found[0]['high'] - found[0]['value']:.1f}" if found else ""


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
