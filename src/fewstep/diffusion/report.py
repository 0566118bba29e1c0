"""Tables, plots and sheets of samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..core.files import atomic_file, atomic_folder
from ..core.intervals import Estimate
from ..core.ledger import Ledger
from ..core.showing import show_drift
from ..core.words import counted
from .measure.dial import Looks, Point
from .measure.settling import QUANTILES, Settling


def table(points: Sequence[Point], real: Looks) -> Table:
    """A table with one row per point and its Fréchet distances with 95 % intervals in each view. It fits 80 columns.

    If matches with prompts were measured, they replace grey and contrast.
    """
    looks = f"real images: grey {real.grey:.0f}, contrast {real.contrast:.0f}"
    said = f"Fréchet distances ± 95 %; n = {points[0].n}, same seeds; {points[0].device}; {looks}"
    rows = Table(box=SIMPLE_HEAD, padding=0, show_edge=False, caption=said)
    for column in ("model", "sampler"):
        rows.add_column(column, no_wrap=True)
    judged = points[0].match is not None
    seen = ("match",) if judged else ("grey", "contr.")
    for column in ("calls", *(Path(name).name for name in points[0].frechet), *seen, "recall", "img/s"):
        rows.add_column(column, justify="right", no_wrap=True)
    for p in points:
        rows.add_row(
            p.name, p.sampler, f"{p.nfe:.0f}",
            *(f"{_short(d.value)} ± {_short(d.high - d.value)}" for d in p.frechet.values()),
            *((_match(p.match),) if p.match else (f"{p.looks.grey:.0f}", f"{p.looks.contrast:.0f}")),
            f"{p.coverage.recall:.2f}", f"{p.images_per_second:.0f}",
        )  # fmt: skip
    return rows


def _match(found: Estimate) -> str:
    """A share as 0.912 or a CLIP score as 27.3, with its interval."""
    digits = 3 if found.value <= 1 else 1
    return f"{found.value:.{digits}f} ± {found.high - found.value:.{digits}f}"


def _short(value: float) -> str:
    """The value in at most four characters up to 9999, with at most two decimals."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def plot(points: Sequence[Point], path: Path) -> None:
    """Plots Fréchet distance against network calls as a PNG: one panel per view, one line per model, 95 % intervals."""
    names = list(points[0].frechet)
    from matplotlib.figure import Figure  # a second to import
    from matplotlib.ticker import FuncFormatter, NullLocator, ScalarFormatter

    figure = Figure(figsize=(5 * len(names), 4), layout="constrained")
    for number, features in enumerate(names):
        axes = figure.add_subplot(1, len(names), number + 1)
        for name in dict.fromkeys(point.name for point in points):
            line = sorted((p for p in points if p.name == name), key=lambda p: p.nfe)
            values = [p.frechet[features].value for p in line]
            reach = [p.frechet[features].high - p.frechet[features].value for p in line]
            axes.errorbar([p.nfe for p in line], values, yerr=reach, marker="o", capsize=3, label=name)
        axes.set(xscale="log", yscale="log", xlabel="network calls per sample (NFE)")
        axes.set(xticks=sorted({p.nfe for p in points}))
        axes.set_ylabel(f"Fréchet distance ({features} features, n = {points[0].n})")
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda y, _: f"{y:g}" if f"{y:e}"[0] in "235" else ""))
        axes.grid(alpha=0.3, which="both")
    axes.legend()
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=150)


def plot_settling(settling: Settling, path: Path, *, features: str) -> None:
    """Plots the distance to the final image against the share of network calls as a PNG: quantiles over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    low, middle, high = (settling.curve(quantile) for quantile in QUANTILES)
    axes.fill_between(settling.shares, low, high, alpha=0.25, label="a tenth to nine tenths of the seeds")
    axes.plot(settling.shares, middle, label="median")
    axes.axhline(settling.within, color="grey", linestyle="--", linewidth=1, label=f"settled: {settling.within:g}")
    axes.set(xlim=(0, 1), ylim=(0, None), xlabel=f"share of the {len(settling.sigmas)} network calls (DDIM)")
    axes.set_ylabel(
        f"distance to the final image ({features} features;\n1 = an unrelated image), n = {len(settling.distances)}"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=150)


def sheet(points: Sequence[Point], path: Path, *, columns: int = 16) -> None:
    """Writes a PNG with one row per point: the first `columns` samples, of the same seeds in each row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.2 + 0.5 * columns, 0.55 * len(points)), layout="constrained")
    for index, point in enumerate(points):
        axes = figure.add_subplot(len(points), 1, index + 1)
        row = torch.cat(list(point.images[:columns]), dim=-1)  # (C, H, columns·W)
        axes.imshow(row.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        label = f"{point.name}, {counted(point.nfe, 'call')}"
        axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
        axes.spines[:].set_visible(False)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=150, bbox_inches="tight")


def keep_pictures(
    points: Sequence[Point], out: Path, *, seed: int, asked: Sequence[str] | None = None, count: int = 12, side: int = 128
) -> dict[str, Any]:
    """Writes the first samples of each point side by side into one PNG per point, in the folder `out`/pictures.

    Args:
        points: points whose pictures have one size.
        out: folder of the results.
        seed: seed of the first sample.
        asked: prompts, which take turns.
        count: number of samples per point.
        side: longest side in pixels; larger pictures are scaled down.

    Returns:
        Entries for the JSON: the seeds, the size of one picture, the file of each point, and the prompts.
    """
    from PIL import Image

    height, width = points[0].images.shape[-2:]
    shrunk = min(1.0, side / max(height, width))
    size = max(1, round(width * shrunk)), max(1, round(height * shrunk))
    files = [f"pictures/{index:02}.png" for index in range(len(points))]
    with atomic_folder(out / "pictures") as folder:
        for point, file in zip(points, files, strict=True):
            pictures = point.images[:count].permute(0, 2, 3, 1).squeeze(-1).cpu().numpy()
            strip = Image.new("L" if pictures.ndim == 3 else "RGB", (size[0] * len(pictures), size[1]))
            for place, picture in enumerate(pictures):
                strip.paste(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS), (place * size[0], 0))
            strip.save(folder / Path(file).name)
    seeds = range(seed, seed + min(count, points[0].n))
    said = {} if asked is None else {"asked": [asked[k % len(asked)] for k in range(len(seeds))]}
    return {"seeds": list(seeds), "width": size[0], "height": size[1], "files": files} | said


def plot_ledger(ledger: Ledger, path: Path) -> None:
    """Plots the denoising error of both checkpoints by noise level and the change of each layer, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    errors, layers = figure.subplots(1, 2)
    lines = [line for line in ledger.lines if line.group == "denoising"]
    levels = [line.level for line in lines]
    errors.plot(levels, [line.before for line in lines], marker="o", label="before")
    after = [line.after for line in lines]
    reach = [line.difference.high - line.difference.value for line in lines]
    errors.errorbar(levels, after, yerr=reach, marker="o", capsize=3, label="after (95 % of the paired difference)")
    errors.set(xscale="log", yscale="log", xlabel="noise level σ", ylabel="denoising error (mean square)")
    errors.grid(alpha=0.3, which="both")
    errors.legend()
    show_drift(layers, ledger.drift)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=150)
