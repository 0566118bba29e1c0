"""The benchmark runs, and its loops do the same work."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from fewstep.core.source import ASSETS

FOLDER = Path(__file__).parents[2] / "benchmarks"


def of_file(name: str):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def benchmark():
    return of_file("proxy")


def test_all_proxy_tuned_loops_say_the_same(benchmark) -> None:
    timed, held = benchmark.loops("tiny ")
    ids = torch.tensor([[5, 6, 7], [9, 8, 4]])
    texts = {name: loop(ids, 12) for name, loop in timed.items()}
    assert torch.equal(texts["plain loop"], texts["ours, two models"])
    assert torch.equal(texts["plain loop"], texts["ours, adapter"])
    assert texts["base alone"].shape == texts["plain loop"].shape
    assert benchmark.megabytes(held["ours, adapter"]) < 0.6 * benchmark.megabytes(held["ours, two models"])


def test_it_reports_ratios(benchmark, capsys) -> None:
    benchmark.main(["--tiny", "--tokens", "4", "--rounds", "2", "--batch", "1", "2"])
    told = capsys.readouterr().out
    assert re.findall(r"batch (\d)  base alone .* 1.00 x base", told) == ["1", "2"]
    assert len(re.findall(r"x base \(", told)) == 8
    assert "with an adapter" in told


def test_ledgers_of_the_bundled_models(tmp_path, monkeypatch, capsys) -> None:
    """The base itself stands for a tuned one: nothing is lost, and nothing is found where its parts are put back."""
    monkeypatch.syspath_prepend(FOLDER)
    base = ASSETS / "trio" / "base"
    few = "--problems 2 --facts 2 --texts 2 --alphas 0.5"
    of_file("bundled_ledger").main(["--tuned", str(base), "--out", str(tmp_path), *few.split()])
    told, kept = capsys.readouterr().out, json.loads((tmp_path / "ledgers.json").read_text())
    assert told.count("| base") == 4 and told.count("| proxy") == 2
    assert {line["verdict"] for line in kept["base"]["lines"]} == {"kept"} and set(kept["base"]["depths"].values()) == {0}
    assert kept["proxy, α = 0.5"]["lines"][0]["line"] == "right: skill"
