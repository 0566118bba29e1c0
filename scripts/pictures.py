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
    """The table of quality against calls, in both representations, with where it comes from."""
    points = measured["points"]
    first, second = points[0]["frechet"]
    calls = sorted({point["nfe"] for point in points})
    rows = [
        f"| {name} | " + " | ".join(_cell(points, name, nfe) for nfe in calls) + " |"
        for name in dict.fromkeys(point["name"] for point in points)
    ]
    return "\n".join([
        "# The figures of the demo",
        "",
        f"Made by `make pictures` of what `fewstep demo` left. Fréchet distance ± 95 %, lower is better: first on {first},",
        f"then on {second} features; n = {points[0]['n']}, seeds from {measured['seed']}, {points[0]['device']}, "
        f"{measured['precision']}.",
        "",
        "| network calls | " + " | ".join(f"{nfe:g}" for nfe in calls) + " |",
        "|---" * (len(calls) + 1) + "|",
        *rows,
        "",
    ])  # fmt: skip


def _cell(points: list[dict[str, Any]], name: str, nfe: float) -> str:
    found = [point["frechet"] for point in points if (point["name"], point["nfe"]) == (name, nfe)]
    distances = found[0].values() if found else ()
    return ", ".join(f"{each['value']:.1f} ± {each['high'] - each['value']:.1f}" for each in distances)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
