"""The benchmark runs, and its loops do the same work."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).parents[2] / "benchmarks" / "proxy.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_proxy", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
