"""The notebooks in examples/ run from their first cell to their last, with small budgets."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import fewstep

EXAMPLES = Path(fewstep.__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", sorted(file.stem for file in EXAMPLES.glob("*.ipynb")))
@pytest.mark.filterwarnings("default")  # of the packages that run a notebook
def test_a_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_IMAGES", "64")
    monkeypatch.setenv("FEWSTEP_ITEMS", "60")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLES.parent / "src"), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "save it without outputs"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert ("2 steps, loss" if name == "first_student" else "calls instead of 32") in said
