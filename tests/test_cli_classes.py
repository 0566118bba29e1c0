"""The image commands on pictures with classes: what is told, what is kept, and when unclear ones matter."""

from __future__ import annotations

import json
import logging

import pytest
from conftest import fewstep
from pictures import png, put

from fewstep.diffusion.formats.folder import load

PETS = {f"{name}/{k}.png": png(k, (28, 28)) for name in ("dog", "ant") for k in range(4)}


@pytest.mark.usefixtures("stock_here")
def test_the_names_of_classes_are_told_and_go_into_receipt_and_card(place, monkeypatch, capsys, caplog) -> None:
    put(place / "pets", PETS)
    with caplog.at_level(logging.INFO):
        fewstep(monkeypatch, "tune teacher --data pets --out run --images 8 --batch 8")
    assert "pets: 2 classes: 0 ant, 1 dog" in caplog.text
    assert json.loads((place / "run" / "receipt.json").read_text())["classes"] == ["ant", "dog"]
    fewstep(monkeypatch, "export run --out exported")
    assert '- **classes**: ["ant", "dog"]\n' in (place / "exported" / "README.md").read_text()
    put(place / "pets", {"cat/0.png": png(0, (28, 28))})
    with pytest.raises(SystemExit):
        fewstep(monkeypatch, "tune teacher --data pets --out run --images 16 --batch 8 --resume")
    assert "began with classes = ['ant', 'dog']" in capsys.readouterr().err


def test_unclear_classes_end_only_what_needs_them(place, monkeypatch, capsys, caplog) -> None:
    put(place / "pets", PETS | {"stray.png": png(0, (28, 28))})
    with pytest.raises(SystemExit) as stopped:
        fewstep(monkeypatch, "train pets --out run0 --conditional --images 8 --batch 8 --widths 8 16")
    assert stopped.value.code == 2 and "which folders of pets are classes?" in capsys.readouterr().err
    fewstep(monkeypatch, "train pets --out run0 --images 8 --batch 8 --widths 8 16")
    assert "taken without classes" in caplog.text
    (place / "pets" / "stray.png").unlink()
    fewstep(monkeypatch, "train pets --out run1 --conditional --images 8 --batch 8 --widths 8 16")
    assert load(place / "run1" / "model").denoiser.takes["class_labels"].count == 2
