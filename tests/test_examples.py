"""Each file in examples/ runs, with small budgets and what comes along."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import stock_samples_here
from PIL import Image

import fewstep
from fewstep.core.source import ASSETS

EXAMPLES = Path(fewstep.__file__).parents[2] / "examples"


def example(name: str) -> Callable[..., Any]:
    main: Callable[..., Any] = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]
    return main


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What examples/tune_and_export.py leaves."""
    out = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        stock_samples_here(patch)
        example("tune_and_export")(out, images=64)
    return out / "student"


def test_tune_and_export(student: Path) -> None:
    assert (student.parent / "sample.png").is_file() and (student.parent / "few-step" / "unet").is_dir()


@pytest.fixture(scope="module")
def few_images(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Some of the bundled pictures: features of all of them take seconds."""
    file = tmp_path_factory.mktemp("data") / "few.npz"
    with np.load(ASSETS / "fashion_mnist" / "images.npz") as bundled:
        np.savez(file, images=bundled["images"][:200], labels=bundled["labels"][:200])
    return str(file)


def test_dial(student: Path, few_images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("dial")(student, tmp_path / "dial", few_images, n=20, calls=(1, 2))
    assert json.loads((tmp_path / "dial" / "measure.json").read_text())
    assert capsys.readouterr().out.count("Fréchet distance") >= 4


def test_ledger(student: Path, few_images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("ledger")(student, tmp_path / "ledger", few_images, n=20, teacher_calls=4)
    said = capsys.readouterr().out
    assert "kept       error at σ" in said and "No loss was found" in said  # 64 images change next to nothing


def test_own_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for k in range(8):
        Image.fromarray(rng.integers(0, 256, (40, 36, 3), np.uint8)).save(tmp_path / "pictures" / f"{k}.png")
    example("own_pictures")(tmp_path / "pictures", tmp_path / "own", images=64, tuned=64, widths=(8, 16))
    assert len(list((tmp_path / "own" / "samples").glob("*.png"))) == 17  # and a sheet of them


@pytest.mark.usefixtures("stock_here")
def test_lora_of_a_pipeline(tmp_path: Path) -> None:
    example("lora_of_a_pipeline")(tmp_path, images=64, latents=9)
    assert list((tmp_path / "few-step").rglob("*.safetensors"))


def test_decode_with_a_guarantee(capsys: pytest.CaptureFixture[str]) -> None:
    example("decode_with_a_guarantee")(calibration=60, work=4)
    said = capsys.readouterr().out
    assert "instead of 32" in said and said.count(" calls  ") == 4


def test_steer() -> None:
    plain, half, full = example("steer")()
    assert plain.strip() == "7 plus 5 is 12 ." and half == full and half.strip().endswith("the answer is 22 .")


def test_training_loop(tmp_path: Path) -> None:
    losses = example("training_loop")(tmp_path / "model", steps=4, batch=8)
    assert len(losses) == 4 and np.isfinite(losses).all()
    student, teacher = (
        fewstep.load(source).sample([0], walk=fewstep.Consistency(1)) for source in (tmp_path / "model", "bundled")
    )
    assert 0 < (student.float() - teacher.float()).abs().mean() < 64  # it has moved, and still draws


@pytest.mark.parametrize("name", sorted(file.stem for file in EXAMPLES.glob("*.py")))
def test_examples_are_short(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 40
    assert f"def test_{name}(" in Path(__file__).read_text(), "an example that no test runs"
