"""What a receipt says of the machine, also where something is missing on it."""

from __future__ import annotations

import json
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from fewstep.core import receipt as receipts
from fewstep.core.receipt import receipt


def written(folder: Path) -> dict:
    with receipt(folder / "receipt.json", seed=3):
        pass
    return json.loads((folder / "receipt.json").read_text())


def test_the_commit_is_that_of_the_working_directory(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert written(tmp_path)["git_commit"] is None  # no repository
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *words], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert written(tmp_path)["git_commit"] == head and re.fullmatch("[0-9a-f]{40}", head)


def test_without_git_or_a_package_there_is_a_receipt_still(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(receipts, "PACKAGES", ("torch", "no-such-package"))
    found = written(tmp_path)
    assert found["git_commit"] is None and found["seed"] == 3
    assert found["versions"].keys() == {"python", "torch", "no-such-package"}
    assert (found["versions"]["torch"], found["versions"]["no-such-package"]) == (version("torch"), None)


def test_what_failed_has_no_receipt(tmp_path) -> None:
    with pytest.raises(ValueError, match="wrong"), receipt(tmp_path / "receipt.json"):
        raise ValueError("wrong")
    assert not (tmp_path / "receipt.json").exists()
