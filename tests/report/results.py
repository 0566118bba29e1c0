"""Results as the commands leave them in their folders, small and made by hand."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

SEEDS = 3
RECEIPT = {"command": ["fewstep", "measure", "run"], "wall_seconds": 1.5, "seed": 0, "versions": {"fewstep": "0.1.0"}}


def estimate(value: float, reach: float) -> dict[str, float]:
    return {"value": value, "low": value - reach, "high": value + reach}


def point(name: str, nfe: float, frechet: float) -> dict:
    return {
        "name": name, "sampler": "DDIM", "nfe": nfe, "n": 100, "seconds": 2 * nfe, "device": "cpu", "batch": 50,
        "recall": 0.5, "frechet": {"fashion": estimate(frechet, 0.5), "random": estimate(2 * frechet, 1.0)},
    }  # fmt: skip


def dial(folder: Path, *, name: str = "student", asked: str = "a red dress", side: int = 4) -> Path:
    """Teacher at 1, 4 and 35 calls, student at 1, 2 and 4; the grey of a picture is 10 times the place of its setting."""
    points = [point("teacher", calls, 40 / calls) for calls in (1, 4, 35)] + [point(name, c, 8 / c) for c in (1, 2, 4)]
    files = [f"pictures/{k:02}.png" for k in range(len(points))]
    (folder / "pictures").mkdir(parents=True)
    for k, file in enumerate(files):
        Image.new("L", (SEEDS * side, side), 10 * k).save(folder / file)
    pictures = {"seeds": list(range(SEEDS)), "width": side, "height": side, "files": files, "asked": [asked] * SEEDS}
    content = RECEIPT | {"points": points, "real": {"grey": 73.0}, "pictures": pictures, "recommendation": f"Take {name}."}
    (folder / "measure.json").write_text(json.dumps(content))
    return folder


def line(name: str, before: float, after: float, reach: float, verdict: str, best: float | str) -> dict:
    return {
        "group": "quality", "line": name, "before": before, "after": after, "difference": estimate(after - before, reach),
        "n": 50, "unit": before, "best": best, "p": 0.01, "p_adjusted": 0.1, "verdict": verdict, "more": 70,
    }  # fmt: skip


def ledger(folder: Path, *, name: str = "precision") -> Path:
    lines = [line("Fréchet", 2.0, 3.0, 0.2, "lost", 0.0), line(name, 0.8, 0.82, 0.3, "not known", "more")]
    lines += [line("MIND", 2.0, 2.01, 0.02, "kept", 0.0)]
    content = RECEIPT | {
        "within": 0.1, "level": 0.05, "calls": {"before": 35.0, "after": 4.0}, "lines": lines, "notes": ["A note."],
        "drift": [{"layer": "conv_in", "change": 0.1}, {"layer": f"{name}.0", "change": 0.3}],
        "sentences": [
            "Gained: looks (grey).", "It takes 4 network calls in place of 35.", "Lost: quality (Fréchet).",
            "Take more calls.",
        ],
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ledger.json").write_text(json.dumps(content))
    return folder


def texts(folder: Path, *, prompt: str = "two and two", piece: str = " four") -> Path:
    """Answers with their steps, a calibration, when answers emerged, and a steered text."""
    folder.mkdir(parents=True, exist_ok=True)
    answer = {"prompt": prompt, "text": "is" + piece, "tokens": 2, "nfe": 2.0, "pieces": ["is", piece], "steps": [1, 0]}
    (folder / "answers.jsonl").write_text(json.dumps(answer) + "\n")
    rule = {"name": "EarlyCommit", "rule": {"name": "Threshold", "threshold": 0.99}}
    told = {"epsilon": 0.1, "delta": 0.05, "n": 44, "factor": 1.0, "changed": 1, "bound": 0.08, "rule": rule}
    told |= {"full_steps": 8.0, "early_steps": 6.0, "beside": None}
    (folder / "rule.json").write_text(json.dumps(told))
    row = {"first": 0.8, "stable": 0.7}
    emerged = {
        "emergence": {"all": {"n": 44, "by": {"0.5": row}}},
        "curves": {"all": [{"share": s} | row for s in (0.5, 1)]},
    }
    (folder / "settled.json").write_text(json.dumps(RECEIPT | emerged))
    acted = {
        "tokens": [1, 2],
        "places": [1],
        "shift": [0.0, 0.9],
        "pieces": ["is", piece],
        "base_pieces": ["is", " five"],
        "choice_pieces": ["is", piece],
    }
    proxied = {"alpha": [1.0], "texts": [{"prompt": prompt, "text": "is four", "acted": acted}]}
    (folder / "proxy.json").write_text(json.dumps(RECEIPT | proxied))
    return folder


def settling(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    quantiles = {"0.1": [0.5, 0.1, 0.0], "0.5": [0.8, 0.3, 0.0], "0.9": [1.0, 0.6, 0.0]}
    content = RECEIPT | {"quantiles": quantiles, "sigmas": [80.0, 5.0, 0.1], "within": 0.1, "n": 9, "sentence": "Settled."}
    (folder / "settle.json").write_text(json.dumps(content))
    return folder


def run(folder: Path) -> Path:
    """A run that was looked at twice, with its scores, losses and sheets, and a forecast."""
    (folder / "watch").mkdir(parents=True)
    content = RECEIPT | {"recipe": {"images": 64}, "recipe_name": "any_step", "images": 64, "steps": 2, "loss": 1.5}
    content |= {"images_per_second": 8.0, "seconds": 8.0, "teacher": "bundled", "network_calls": {"student": 4096}}
    (folder / "receipt.json").write_text(json.dumps(content))
    looks = []
    for k, images in enumerate((0, 32, 64)):
        Image.new("L", (8, 8), 99).save(folder / "watch" / f"{images}.png")
        seen = {"name": "student", "calls": 2, "frechet": {"random": estimate(9.0 - k, 0.5)}}
        levels = [{"low": low, "high": high, "rows": 9, "loss": 4.0 - k} for low, high in ((0.0, 0.1), (0.1, None))]
        looks.append(
            {"images": images, "step": k, "sheet": f"watch/{images}.png", "samples": [seen], "levels": levels if k else []}
        )
    (folder / "watch.jsonl").write_text("".join(json.dumps(look) + "\n" for look in looks))
    points = [{"images": images} | estimate(3 - k, 0.2) for k, images in enumerate((32, 64))]
    told = {
        "calls": 2,
        "view": "random",
        "within": 0.3,
        "points": points,
        "sentence": "2 calls need about 900 more images.",
    }
    (folder / "forecast.json").write_text(json.dumps(RECEIPT | {"forecasts": [told]}))
    return folder


def changes(folder: Path, *, prompt: str = "two and two") -> Path:
    """Three answers before and after a change: one was lost, one is as it was, one is another and right both times."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = (("four", True, "four .", True), ("six", True, "six", True), ("two", True, "nine", False))
    rows = [
        {"prompt": prompt, "answer": a, "before": {"text": a, "right": x}, "after": {"text": b, "right": y}}
        for a, x, b, y in pairs
    ]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
