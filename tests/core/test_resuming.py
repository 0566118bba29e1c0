"""What all runs keep to that can be resumed."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

import pytest

from fewstep.core.receipt import write_json
from fewstep.core.resuming import LOOKS, check_same, goes_on, is_complete, looks_in, running


def test_a_run_in_the_way_is_refused_and_a_missing_one_starts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(ValueError, match=r"there already is a run in .*--resume or choose another folder"):
        goes_on(tmp_path, saved=True, resume=False)
    assert goes_on(tmp_path, saved=True, resume=True) and not goes_on(tmp_path, saved=False, resume=False)
    assert not caplog.text
    assert not goes_on(tmp_path, saved=False, resume=True)
    assert "nothing is saved" in caplog.text


def test_what_may_change_is_told_and_the_rest_is_refused() -> None:
    before, now = {"rate": 1, "seed": 0, "images": 8}, {"rate": 2, "seed": 0, "images": 9, "clip": 1.0}
    assert check_same(before, now, free=["images"], changing=["rate", "clip", "seed"]) == {"rate": 1, "clip": None}
    with pytest.raises(ValueError, match=r"this run began with clip = None and would go on with clip = 1\.0"):
        check_same(before, now, free=["images"], changing=["rate"])
    with pytest.raises(ValueError, match="began with images = 8"):
        check_same(before, now, changing=["rate", "clip"])


def test_a_run_is_complete_when_all_is_there_and_the_receipt_says_so(tmp_path: Path) -> None:
    model = tmp_path / "model"
    assert not is_complete(tmp_path, [])
    write_json(tmp_path / "receipt.json", {"images": 8})
    assert is_complete(tmp_path, [], images=8) and not is_complete(tmp_path, [], images=16)
    assert not is_complete(tmp_path, [model], images=8)
    model.mkdir()
    assert is_complete(tmp_path, [model], images=8)


def test_a_run_notes_a_signal_and_only_the_process_that_writes_takes_the_folder(tmp_path: Path) -> None:
    with running(tmp_path / "run") as interrupt:
        assert (tmp_path / "run" / ".lock").exists() and not interrupt.by
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.by == signal.SIGTERM
    with running(tmp_path / "other", main=False):
        assert not (tmp_path / "other").exists()


def test_looks_are_what_can_be_read_of_them(tmp_path: Path) -> None:
    assert looks_in(tmp_path) == []
    (tmp_path / LOOKS).mkdir()
    assert looks_in(tmp_path) == []
    (tmp_path / LOOKS).rmdir()
    lines = [
        b'{"images": 0, "samples": []}',
        b"\xff\xfe",
        b"[" * 100_000,
        b"7",
        b'{"images": "many"}',
        b'{"images": 8}',
        b'{"ima',
    ]
    (tmp_path / LOOKS).write_bytes(b"\n".join(lines))
    assert looks_in(tmp_path) == [{"images": 0, "samples": []}, {"images": 8}]


def test_all_settings_that_one_option_decides_are_named() -> None:
    """With another number of segments the margin is another as well."""
    with pytest.raises(ValueError, match=r"margin = 0, segments = 2 and would go on with margin = 1, segments = 4; resume"):
        check_same({"segments": 2, "margin": 0, "seed": 1}, {"segments": 4, "margin": 1, "seed": 1})
