"""The notebooks in examples/ run from their first cell to their last, with small budgets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import nbformat
import pytest
from matplotlib import pyplot

import fewstep

EXAMPLES = Path(fewstep.__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", sorted(file.stem for file in EXAMPLES.glob("*.ipynb")))
@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of matplotlib and torch
def test_a_notebook_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a kernel runs it: one cell after another, in one namespace. They are plain Python, without magics."""
    monkeypatch.setenv("FEWSTEP_IMAGES", "64")
    monkeypatch.setenv("FEWSTEP_ITEMS", "60")
    monkeypatch.chdir(tmp_path)
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "save it without outputs"
    names: dict[str, Any] = {"__name__": "__main__"}
    mpl.use("agg")  # no windows
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            exec(compile(cell.source, f"{name}, cell {number}", "exec"), names)
    pyplot.close("all")
    assert ("2 steps, loss" if name == "first_student" else "calls instead of 32") in capsys.readouterr().out
