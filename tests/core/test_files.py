from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fewstep.core.files import atomic_file, atomic_folder, load_state, save_state, writable


def test_state_round_trip(tmp_path) -> None:
    state = {
        "step": 3,
        "weights": {"a": torch.randn(2, 3)},
        "optimizer": {"param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]},
    }
    save_state(tmp_path / "deep" / "state.pt", state)
    back = load_state(tmp_path / "deep" / "state.pt")
    assert torch.equal(back["weights"].pop("a"), state["weights"].pop("a")) and back == state


def test_failure_keeps_the_old_file_and_leaves_nothing(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write() -> None:
        with atomic_file(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_folder_is_replaced_whole_or_not_at_all(tmp_path) -> None:
    def write(content: str, fail: bool) -> None:
        with atomic_folder(tmp_path / "out") as folder:
            (folder / content).write_text(content)
            if fail:
                raise RuntimeError("half")

    write("first", fail=False)
    with pytest.raises(RuntimeError, match="half"):
        write("second", fail=True)
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["first"]
    write("third", fail=False)
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["third"]


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(tmp_path, monkeypatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "first").touch()
    replace, calls = os.replace, []

    def second_fails(source: object, target: object) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError("no space")
        replace(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(OSError, match="no space"), atomic_folder(tmp_path / "out") as folder:
        (folder / "second").touch()
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["first"]


def test_full_disk_is_an_oserror_and_loses_nothing(tmp_path) -> None:
    """A file size limit stands in for the full disk."""
    save_state(tmp_path / "state.pt", {"step": 1})
    program = """
import resource, signal, sys, torch
from fewstep.core.files import save_state
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_state(sys.argv[1], {"step": 2, "weights": torch.zeros(1_000_000)})
except OSError as error:
    print("refused:", error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "state.pt"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("refused:")
    assert load_state(tmp_path / "state.pt") == {"step": 1} and os.listdir(tmp_path) == ["state.pt"]


def test_code_in_a_state_never_runs(tmp_path) -> None:
    class Attack:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"step": Attack()}, tmp_path / "torch.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Attack()))
    for name in ("torch.pt", "raw.pt"):
        with pytest.raises(ValueError, match="not a saved state"):
            load_state(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_cut_and_missing_states_say_so(tmp_path) -> None:
    save_state(tmp_path / "state.pt", {"weights": torch.zeros(1000)})
    (tmp_path / "cut.pt").write_bytes((tmp_path / "state.pt").read_bytes()[:2000])
    with pytest.raises(ValueError, match="not a saved state"):
        load_state(tmp_path / "cut.pt")
    with pytest.raises(ValueError, match="no saved state"):
        load_state(tmp_path / "missing.pt")


def test_unwritable_folder_is_found_before_the_work(tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="--out"):
        writable(tmp_path / "file" / "run")
