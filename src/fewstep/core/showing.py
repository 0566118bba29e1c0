"""What a person sees of a ledger: its table, and how far each layer was moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from .drift import Drift
from .ledger import LEVEL, Ledger, Line, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STILL = "No weight moved."
NAMED = 20  # parts of a network that a legend names; more would leave no room for the bars


def ledger_table(ledger: Ledger, *, folded: str | None = None) -> Table:
    """A table of 80 columns, a row a line; of the group `folded` only the gained and lost lines, and a row for the rest."""
    said = (
        f"difference: after − before, 95 % interval; kept: all of it within {ledger.within:.0%}; gained, lost: if nothing "
        f"has changed, {LEVEL:.0%} of tables say so somewhere; ? +N: not known, take about N more samples"
    )
    rows = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, caption=said)
    rows.add_column("line", no_wrap=True)
    for column in ("before", "after", "difference"):
        rows.add_column(column, justify="right", no_wrap=True)
    rows.add_column("verdict", no_wrap=True)
    group, hidden = "", list[str]()
    for line, verdict in zip(ledger.lines, ledger.verdicts, strict=True):
        if line.group == folded and verdict.said not in ("gained", "lost"):
            hidden.append(verdict.said)
            continue
        if line.group != group:
            group = line.group
            rows.add_row(f"[b]{group}[/b]")
        rows.add_row(*_cells(line, verdict))
    if hidden:
        kept = hidden.count("kept")
        rows.add_row(f"[b]{folded}[/b], {len(hidden)} other lines", "", "", f"{kept} kept, {len(hidden) - kept} ?")
    return rows


def _cells(line: Line, verdict: Verdict) -> tuple[str, ...]:
    told = f"? +{verdict.more:,}" if verdict.said == "not known" else verdict.said
    style = {"lost": "[red]lost[/red]", "gained": "[green]gained[/green]"}.get(told, told)
    d, up = line.difference, line.difference.high - line.difference.value
    even = abs(up - (d.value - d.low)) <= 0.01 * up
    shown = f"{_figure(d.value)} ± {_figure(up)}" if even else f"{_figure(d.low)} to {_figure(d.high)}"
    return f" {line.name}", _figure(line.before), _figure(line.after), shown, style


def _figure(value: float) -> str:
    """At most three figures, and at most seven characters."""
    if 0 < abs(value) < 0.001:
        mantissa, power = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(power)}"
    return f"{value:.{2 if abs(value) < 0.1 else 3}g}" if abs(value) < 1000 else f"{value:,.0f}"


def show_drift(axes: Axes, drift: Sequence[Drift], *, last: bool = False) -> None:
    """Bars, one a layer from the input to the output, coloured by the first part of the layer's name, or by the last.

    Where no layer moved there are no bars, and a sentence says so.
    """
    if drift and not any(layer.change for layer in drift):
        axes.set_axis_off()
        axes.text(0.5, 0.5, STILL, ha="center", va="center", transform=axes.transAxes)
        return
    kinds = [layer.layer.split(".")[-1 if last else 0] for layer in drift]
    for kind in dict.fromkeys(kinds):
        of = [(k, layer.change) for k, layer in enumerate(drift) if kinds[k] == kind]
        axes.bar(*zip(*of, strict=True), label=kind.lstrip("_") or "network")  # a legend leaves out "" and "_name"
    axes.set(xlabel="layer, from input to output", ylabel="change of the weights over their norm")
    if drift:
        most = max(drift, key=lambda layer: layer.change)
        axes.set_title(f"most: {most.layer}", fontsize=9)
        if len(set(kinds)) <= NAMED:
            axes.legend(fontsize=7, ncols=2)
    axes.grid(alpha=0.3, axis="y")
