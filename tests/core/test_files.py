from __future__ import annotations

import errno
import os
import pickle
import resource
import signal
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE

import pytest
import torch
from forked import Forked
from safetensors import SafetensorError
from safetensors.torch import save_file

from fewstep.core import files
from fewstep.core.files import (
    alone_in,
    atomic_file,
    atomic_folder,
    clear,
    disk_errors,
    load_state,
    save_state,
    writable,
    writable_file,
)


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
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if target == tmp_path / "out" and source.name == "new":
            raise OSError("no space")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"), atomic_folder(tmp_path / "out") as folder:
        (folder / "second").touch()
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["first"]


def test_all_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch) -> None:
    """Each file and folder first, then the name, then the folder that holds the name."""
    seen, fsync, replace = [], os.fsync, os.replace

    def synced(descriptor: int) -> None:
        seen.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def replaced(source: Path, target: Path) -> None:
        if source.name == "new":
            seen.append(f"-> {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    save_state(tmp_path / "state.pt", {"step": 1})
    assert seen == [(tmp_path / "state.pt").stat().st_ino, "-> state.pt", tmp_path.stat().st_ino]
    seen.clear()
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "part").mkdir()
        (folder / "part" / "weights").touch()
    parts = [(tmp_path / "model" / part).stat().st_ino for part in ("", "part", "part/weights")]
    assert sorted(seen[:3]) == sorted(parts) and seen[3:] == ["-> model", tmp_path.stat().st_ino]


def limited(root: Path) -> None:
    """Writes files that are larger than is allowed, and says what was said."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    def plain(out: Path) -> None:
        with atomic_file(out) as file:
            file.write(bytes(1_000_000))

    def state(out: Path) -> None:
        save_state(out, {"step": 2, "weights": torch.zeros(1_000_000)})

    def folder(out: Path) -> None:
        with atomic_folder(out) as temporary:
            save_file({"weights": torch.zeros(1_000_000)}, temporary / "model.safetensors")

    for kind in (plain, state, folder):
        try:
            kind(root / kind.__name__)
        except OSError as error:
            print("refused:", error.strerror, error.filename)


def test_a_full_disk_is_an_oserror_and_loses_nothing(tmp_path) -> None:
    """A limit of the size of files stands in for the full disk; torch and safetensors have words of their own for it."""
    for kind in ("plain", "state"):
        save_state(tmp_path / kind, {"step": 1})
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "first").touch()
    with Forked(limited, tmp_path, stdout=PIPE) as process:
        said = process.stdout.read()
        assert process.wait() == 0
    kinds = ("plain", "state", "folder")
    assert said == "".join(f"refused: File too large {tmp_path / kind}\n" for kind in kinds)
    assert sorted(os.listdir(tmp_path)) == sorted(kinds)
    assert load_state(tmp_path / "plain") == load_state(tmp_path / "state") == {"step": 1}
    assert os.listdir(tmp_path / "folder") == ["first"]


def write(out: Path) -> None:
    """Writes half of what it began, says so, and waits to be killed."""
    with ExitStack() as stack:
        stack.enter_context(alone_in(out))
        stack.enter_context(atomic_file(out / "state.pt")).write(b"half")
        (stack.enter_context(atomic_folder(out / "model")) / "weights").touch()
        print("begun", flush=True)
        signal.pause()


@pytest.fixture
def writer(tmp_path):
    with Forked(write, tmp_path, stdout=PIPE) as process:
        assert process.stdout.readline() == "begun\n"
        yield process


def hidden(folder: Path) -> list[str]:
    return sorted(name.rpartition(".")[0].rpartition(".")[0] for name in os.listdir(folder) if name.endswith(".fewstep"))


def test_what_a_killed_process_left_is_cleared_away_and_a_living_one_keeps_it(tmp_path, writer) -> None:
    (tmp_path / ".mine.fewstep").mkdir()  # no workshop of ours
    (tmp_path / ".mine.fewstep" / "thesis").touch()
    writable(tmp_path)
    assert hidden(tmp_path) == ["", ".model", ".state.pt"]
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    clear(tmp_path, "state.pt")
    assert hidden(tmp_path) == ["", ".model"]
    with atomic_folder(tmp_path / "model"):
        assert hidden(tmp_path) == ["", ".model"]  # its own alone
    writable(tmp_path)
    assert hidden(tmp_path) == [""] and (tmp_path / ".mine.fewstep" / "thesis").exists()


def test_what_was_put_aside_by_a_killed_process_comes_back(tmp_path) -> None:
    """Killed between the two renames, the old folder stands in the workshop; it goes only where a new one came."""
    for name in ("lost", "done"):
        workshop = tmp_path / f".{name}.abc12345.fewstep"
        (workshop / "old").mkdir(parents=True)
        (workshop / "old" / "first").touch()
        (workshop / "locked").touch()
    (tmp_path / "done").mkdir()
    writable(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["done", "lost"]
    assert os.listdir(tmp_path / "lost") == ["first"] and os.listdir(tmp_path / "done") == []


def test_one_process_has_a_folder_for_itself_until_it_dies(tmp_path, writer) -> None:
    with pytest.raises(ValueError, match=f"process {writer.pid} on .* is writing into .*--out"), alone_in(tmp_path):
        pass
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    twice = alone_in(tmp_path), alone_in(tmp_path / "." / "")  # the same process may come again
    with twice[0], twice[1], Forked(write, tmp_path, stderr=PIPE) as other:
        assert f"process {os.getpid()} on" in other.stderr.read()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("by_another", [False, True])
def test_a_lock_whose_owner_has_just_removed_its_file_is_none(tmp_path, monkeypatch, by_another: bool) -> None:
    """Whoever comes between the opening and the locking; a third may have made the file anew."""
    lock = files.fcntl.flock

    def late(file, how: int) -> None:
        (tmp_path / files.LOCK).unlink()
        if by_another:
            (tmp_path / files.LOCK).touch()
        lock(file, how)

    monkeypatch.setattr(files.fcntl, "flock", late)
    with pytest.raises(ValueError, match="another process is writing into"), alone_in(tmp_path):
        pass


def test_where_files_cannot_be_locked_nobody_is_kept_out(tmp_path, monkeypatch) -> None:
    def none(file, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "flock", none)
    with alone_in(tmp_path / "run"):
        (tmp_path / "run" / "state.pt").touch()
    assert os.listdir(tmp_path / "run") == ["state.pt"]


def test_only_what_the_disk_refuses_becomes_an_oserror(tmp_path) -> None:
    for error, kept in (
        (SafetensorError("os error 28, no space"), OSError), (SafetensorError("invalid header"), SafetensorError),
        (RuntimeError("shapes differ"), RuntimeError),
    ):  # fmt: skip
        with pytest.raises(kept), disk_errors(tmp_path / "a"):
            raise error


def test_a_folder_that_was_not_written_into_is_not_left_behind(tmp_path) -> None:
    with pytest.raises(ValueError, match="wrong"), alone_in(tmp_path / "run"):
        raise ValueError("wrong")
    with alone_in(tmp_path / "run"):
        (tmp_path / "run" / "state.pt").touch()
    assert os.listdir(tmp_path / "run") == ["state.pt"]


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
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="not a saved state"):
        load_state(tmp_path / "list.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "state.pt").read_bytes()[:2000])
    with pytest.raises(ValueError, match="not a saved state"):
        load_state(tmp_path / "cut.pt")
    with pytest.raises(ValueError, match="no saved state"):
        load_state(tmp_path / "missing.pt")


def test_a_folder_is_proved_to_be_writable_without_being_made(tmp_path) -> None:
    writable(tmp_path / "deep" / "run")
    writable_file(tmp_path / "deep" / "scores.json")
    assert os.listdir(tmp_path) == []
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="--out"):
        writable(tmp_path / "link")


def test_unwritable_folder_is_found_before_the_work(tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="--out"):
        writable(tmp_path / "file" / "run")
