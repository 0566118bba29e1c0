"""The benchmarks at the size of a few steps, so that they never rot."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import zipfile
from io import BytesIO
from pathlib import Path
from types import ModuleType

import pytest
from conftest import noise_images
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from fewstep.cli.language import train_text
from fewstep.diffusion.data import load_images

ROOT = Path(__file__).parent.parent


def benchmark(name: str, folder: str = "benchmarks") -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / folder / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pictures(tmp_path) -> str:
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for index, pixels in enumerate(noise_images(40, channels=3, size=32).pixels):
            file = BytesIO()
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "PNG")
            archive.writestr(f"{index % 2}/{index}.png", file.getvalue())
    return str(tmp_path / "pictures.zip")


def test_cifar10(pictures, tmp_path, capsys) -> None:
    """A few steps of the teacher, students of one and four segments, scores at their own numbers of calls."""
    cifar10, out = benchmark("cifar10"), tmp_path / "bench"
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=224, patch_size=56)
    Dinov2Model(config).save_pretrained(tmp_path / "features")
    cifar10.train(data=pictures, out=out, images=32, batch=8, widths=(8, 16))
    cifar10.tune(data=pictures, out=out, images=128, segments=(1, 4))
    cifar10.tune(data=pictures, out=out, images=128, segments=(1, 4), resume=True)  # all there: nothing to do
    cifar10.score(data=pictures, out=out, n=20, calls=(2,), features=str(tmp_path / "features"))
    scores = json.loads((out / "scores.json").read_text())
    assert [(point["name"], point["nfe"]) for point in scores] == [
        ("teacher", 2), ("s1", 1), ("s1", 2), ("s1", 4), ("s4", 4),
    ]  # fmt: skip
    cifar10.speed(batch=4, steps=1, widths=(8, 16), kinds=("float32", "bfloat16, channels last"))
    assert "channels last" in capsys.readouterr().out


def test_trio(tmp_path, capsys) -> None:
    """Models of a few steps: the same system gives the same scores whichever way it is put together."""
    script, trio = benchmark("train_trio", "scripts"), benchmark("bundled_trio")
    for name in ("base", "small"):
        sizes = {"people": 12, "n": 16, "batch": 8, "rate": 1e-2, "resume": False}
        script.pretrain("tiny", tmp_path / name, tmp_path, **sizes)
    ways = {"expert": ("small",), "adapter": ("small", "--lora"), "tuned": ("base",), "tuned_lora": ("base", "--lora")}
    for name, (source, *lora) in ways.items():
        options = ["--name", name, "--runs", str(tmp_path), "--items", "16", "--batch", "8"]
        script.main(["tune", source, *lora, *options])
    folders = [str(tmp_path / name) for name in ("tuned", "tuned_lora")]
    small = ["--problems", "6", "--facts", "8", "--alphas", "0", "1"]
    trio.main(["--trio", str(tmp_path), "--tuned", *folders, *small, "--out", str(tmp_path / "measured")])
    told = json.loads((tmp_path / "measured" / "trio.json").read_text())
    for name, point in (("base", told["alpha"][0]), ("proxy-tuned", told["alpha"][1])):
        assert point["facts"] == told["accuracy"][name]["facts"]
        assert point["skill"] == told["accuracy"][name]["skill"]
        assert point["changed"] == told["changed"][name]
    assert told["changed"]["base"] == told["changed"]["base, tuned_lora"] == 0
    assert (tmp_path / "measured" / "alpha.png").read_bytes()[:4] == b"\x89PNG"
    assert "| base, tuned_lora |" in capsys.readouterr().out


def test_table(tmp_path, capsys) -> None:
    """A training from forty rows; what is looked up in /proc is there."""
    table = benchmark("table")
    table.make(tmp_path, 40)
    table.train(str(tmp_path), 1, 0)
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["written", "started", "images/s"]
    rows = load_images(tmp_path, channels=3, size=64)
    assert len(rows) == 40 and int(rows.raw(range(40)).sum()) > 0
    whole, mapped = table.memory(os.getpid()), table.memory(os.getpid(), "smaps", str(tmp_path))
    assert whole["Rss"] > whole["Anonymous"] > 0 and whole["Rss"] > mapped["Rss"] >= 40 * 12 and mapped["Anonymous"] == 0


def test_text(tmp_path, capsys) -> None:
    """Every rule on a model of a few training steps, and the intervals where they are known."""
    text = benchmark("text")
    train_text(out=tmp_path / "run", items=32, batch=8, hidden=16, layers=1, heads=2, intermediate=16)
    text.main(["--model", str(tmp_path / "run" / "model"), "--families", "facts", "--n", "24", "--calibration", "60",
               "--epsilon", "0.05", "--timed", "4", "--rounds", "1", "--out", str(tmp_path / "text.json")])  # fmt: skip
    found = json.loads((tmp_path / "text.json").read_text())["families"]["facts"]
    full, *others = found["rules"]
    assert (full["kind"], full["n"], full["nfe"], full["gained"], full["lost"]) == ("full", 24, 12, 0, 0)
    assert {rule["kind"] for rule in others} == {"fewer", "threshold", "parallel", "early", "calibrated"}
    assert all(rule["nfe"] <= 12 for rule in others) and found["plain"]["rows_with_the_same_ids"] == 1
    assert all(rule.get("decoded_again", 1) == 1 for rule in found["rules"])
    assert full["batch 16"]["of_full"] == 1 and "over threshold 0.9, calibrated 0.05" in capsys.readouterr().out
    text.main(["--prompts", str(tmp_path), "--n", "3", "--calibration", "5"])
    lines = [json.loads(line) for line in (tmp_path / "word_problems.jsonl").read_text().splitlines()]
    assert len(lines) == 3 and all(line["prompt"].endswith("have ?") and line["answer"].isdigit() for line in lines)
    asked = json.loads((tmp_path / "calibration" / "sudoku.jsonl").read_text().splitlines()[4])["prompt"]
    assert asked.count("<mask>") == 24 and asked.startswith("r1 ")


def test_caches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Eight masks behind a prompt of four, in blocks of four, one token a step: what is computed is counted by hand."""
    sizes = {"width": 64, "layers": 1, "prompt": 4, "length": 8, "block": 4, "rounds": 1}
    flags = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    asked = ["--caches", "none", "prefix", "dual", "blocks-none", "blocks"]
    benchmark("cache").main([*flags, *asked, "--out", str(tmp_path / "cache.json")])
    (found,) = json.loads((tmp_path / "cache.json").read_text())["rounds"]
    positions = {name: counted for name, (_, counted) in found.items()}
    assert positions == {
        "none": 8 * 12, "prefix": 12 + 3 * 8 + 12 + 3 * 4, "dual": 2 * (12 + 3 * 4), "blocks-none": 8 * 12,
        "blocks": (8 + 3 * 4) + (8 + 3 * 4),
    }  # fmt: skip
    assert all(spent > 0 for spent, _ in found.values()) and "x none" in capsys.readouterr().out


def test_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Facts are answered in one call; what is kept is read again."""
    sizes = ["--learning", "4", "--calibration", "5", "--test", "4", "--epsilon", "0.5", "--delta", "0.4", "--every", "6"]
    made, seen = benchmark("rules"), list[str]()
    for _ in range(2):
        made.main(["--families", "facts", "--out", str(tmp_path), *sizes])
        seen.append(capsys.readouterr().out)
    assert seen[0] == seen[1]
    lines = {line["rule"]: line for line in json.loads((tmp_path / "facts.json").read_text())}
    assert lines["one a step"]["calls"] == 12 and lines["one a step"]["changed"] == 0
    assert {"threshold 0.9", "WINO 0.6, 0.9", "credit 0.9", "learned, calibrated"} <= lines.keys()
    assert all(1 <= line["calls"] <= 12 and line["n"] == 4 for line in lines.values())
    assert lines["threshold, calibrated"]["chosen"] < 0.9 and seen[0].count("\n| ") == len(lines)
