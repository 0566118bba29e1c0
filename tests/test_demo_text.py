"""The demo of text-to-image, at a size at which it shows nothing but that it runs to its end."""

import json
from pathlib import Path

import pytest

from fewstep import demo_text
from fewstep.diffusion import measuring
from fewstep.diffusion.data import Images, load_images


@pytest.mark.usefixtures("stock_here")
def test_the_demo_runs_to_its_end(tmp_path: Path, monkeypatch, capsys) -> None:
    def few(*given: object, **named: object) -> Images:
        return Images(load_images(*given, **named).raw(range(60)))  # of 60,000

    monkeypatch.setattr(measuring, "load_images", few)
    monkeypatch.setattr(demo_text, "PICTURES", 16)
    demo_text.demo_text(tmp_path, images=32, n=20, seed=0)
    assert "Done in" in capsys.readouterr().out
    points = json.loads((tmp_path / "measure.json").read_text())["points"]
    assert [(p["name"], p["nfe"]) for p in points] == [
        *(("teacher", rows) for rows in (2, 4, 8, 16, 50)), *(("student", rows) for rows in (1, 2, 4)),
    ]  # fmt: skip
    assert all({"random", "pixels"} == p["frechet"].keys() and 0 <= p["match"]["value"] <= 1 for p in points)
    assert {"README.md", "pytorch_lora_weights.safetensors"} <= {file.name for file in (tmp_path / "exported").iterdir()}
    assert "a white t-shirt" in (tmp_path / "report.html").read_text()  # what the first seed was asked for
    for picture in ("samples.png", "quality.png"):
        assert (tmp_path / picture).stat().st_size > 10_000
