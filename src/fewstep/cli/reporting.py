"""The command `fewstep report`: one page of what other commands left."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


def report(
    paths: Positional[tuple[Path, ...]],
    /,
    *,
    out: Annotated[Path, arg(aliases=["-o"])] = Path("report.html"),
) -> None:
    """Make one HTML page of the results of other commands: a single file, below 5 MB, that needs no network.

    The page shows the dial, with a slider through the numbers of network calls. It shows ledgers with their intervals,
    settling curves, runs, and answers with the step at which each token was decided. Below each result is its receipt.

    Args:
        paths: folders or files that fewstep measure, dial, ledger, settle, tune, forecast, decode --out, calibrate,
            settle-text, ledger-text or proxy --out has written.
        out: the file to write.
    """
    from ..report import write_report

    print(f"{write_report(paths, out)} shows {' '.join(map(str, paths))}; open it in any browser")
