"""Runs on disk: told to stop, out of room, diverged, resumed, two at once. Steps are those of tiny networks."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import fresh, launch, noise_images, tiny

from fewstep.core.files import load_state, save_state
from fewstep.core.interrupts import Interrupted
from fewstep.diffusion import runs, saving
from fewstep.diffusion.average import Exponential
from fewstep.diffusion.data import Images, Table, make_table, save_images
from fewstep.diffusion.formats.folder import load, save
from fewstep.diffusion.hop import Heun
from fewstep.diffusion.model import Model
from fewstep.diffusion.noise import ECTGap
from fewstep.diffusion.optim import Adam, Constant
from fewstep.diffusion.walk import DDIM

RECIPE = {"images": 48, "batch": 8, "gap": ECTGap(q=256, stages=1), "rate": Constant(1e-3), "optimizer": Adam(),
          "average": (Exponential(0.5), Exponential(0.9))}  # fmt: skip


def run(out: Path, recipe: dict | None = None, **options):
    return runs.run(tiny(), noise_images(), out, RECIPE | (recipe or {}), **{"precision": "no"} | options)


def weights(folder: Path) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in load(folder).denoiser.parameters()])


def receipt(out: Path) -> dict:
    return json.loads((out / "receipt.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing happened to; whoever changes it takes a copy."""
    fresh()
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(out)
    return out


def same(out: Path, whole: Path) -> bool:
    return all(torch.equal(weights(out / name), weights(whole / name)) for name in ("model", "model-0.9"))


@pytest.fixture
def at_step(monkeypatch):
    """Something happens in step n of each run that follows."""

    def plan(n: int, happens) -> None:
        tune = runs.tune

        def tuned(*args, **options):
            for step in tune(*args, **options):
                if step.step == n:
                    happens()
                yield step

        monkeypatch.setattr(runs, "tune", tuned)

    return plan


@contextmanager
def full(monkeypatch, *names: str):
    """A disk that has no room for files and folders of these names."""
    replace = os.replace

    def replaced(source: Path, target: Path) -> None:
        if Path(source).name == "new" and Path(target).name in names:
            raise OSError(28, "No space left on device", str(source))
        replace(source, target)

    with monkeypatch.context() as disk:
        disk.setattr(os, "replace", replaced)
        yield


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_a_run_saves_and_goes_on_bit_equal(tmp_path, whole, at_step, monkeypatch, number: int) -> None:
    at_step(3, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted, match=r"24 images.*--resume") as stopped:
        run(tmp_path / "run", save_every=1e9)
    assert stopped.value.signal == number
    assert os.listdir(tmp_path / "run") == ["state.pt"] and load_state(tmp_path / "run" / "state.pt")["step"] == 3
    at_step(3, lambda: pytest.fail("this step is done"))
    run(tmp_path / "run", resume=True)
    assert same(tmp_path / "run", whole)
    for name in ("steps", "images", "loss", "network_calls", "network_rows"):
        assert receipt(tmp_path / "run")[name] == receipt(whole)[name]
    assert receipt(tmp_path / "run")["resumed"] and not receipt(whole)["resumed"]


def test_told_to_stop_after_its_last_step_a_run_is_complete_and_what_follows_is_not_begun(tmp_path, at_step) -> None:
    at_step(6, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted, match="after the last step"):
        run(tmp_path)
    assert receipt(tmp_path)["images"] == 48 and (tmp_path / "model").exists()


def test_all_processes_stop_at_the_same_step(tmp_path) -> None:
    """One of two is told to, and it is not the one that writes."""
    launch("stopped_worker", tmp_path, 2)
    assert [(tmp_path / f"stopped-{rank}").read_text() for rank in range(2)] == ["16 15"] * 2
    state = load_state(tmp_path / "run" / "state.pt")
    assert state["step"] == 2 and state["calls"] == {"student": [2 * 2 * 2, 2 * 16]}  # two calls a step, on each of two


def test_states_are_saved_as_often_as_asked(tmp_path, monkeypatch) -> None:
    steps, save = [], saving.save_state
    monkeypatch.setattr(saving, "save_state", lambda file, state: (steps.append(state["step"]), save(file, state)))
    run(tmp_path / "often", save_every=0)
    assert steps == [1, 2, 3, 4, 5, 6]
    steps.clear()
    run(tmp_path / "seldom", save_every=1e9)
    assert steps == [6]


def test_numbers_that_cannot_be_leave_nothing(tmp_path) -> None:
    for recipe, options, said in (({}, {"save_every": -1.0}, "save_every"), ({"batch": 0}, {}, "batch")):
        with pytest.raises(ValueError, match=said):
            run(tmp_path / "run", recipe, **options)
    assert not (tmp_path / "run").exists()


def test_without_a_terminal_a_line_is_logged_now_and_then(tmp_path, monkeypatch, caplog) -> None:
    clock = iter(range(0, 1000, 20))  # a step takes 20 seconds, and a line comes after more than 30
    monkeypatch.setattr(runs, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with caplog.at_level("INFO", "fewstep"):
        run(tmp_path / "run", save_every=1e9)
    lines = [message for message in caplog.messages if "images, " in message and "loss" in message]
    assert [line.split(",")[0] for line in lines] == ["16 images", "32 images", "48 images"]


def test_resuming_what_never_saved_starts_it(tmp_path, whole, caplog) -> None:
    with caplog.at_level(logging.INFO):
        run(tmp_path / "run", resume=True)
    assert same(tmp_path / "run", whole) and not receipt(tmp_path / "run")["resumed"]
    assert "nothing is saved" in caplog.text


def test_a_model_without_its_state_is_not_overwritten(tmp_path, whole) -> None:
    whole = shutil.copytree(whole, tmp_path / "run")
    (whole / "state.pt").unlink()
    for resume in (True, False):
        with pytest.raises(ValueError, match=r"no state.pt.*another folder"):
            run(whole, resume=resume)
    assert (whole / "model" / "model_index.json").exists()


def test_a_finished_run_is_left_as_it_is(whole, caplog) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    with caplog.at_level(logging.INFO):
        again = run(whole, resume=True)
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before
    assert "is complete: it has seen all its" in caplog.text
    assert torch.equal(torch.cat([p.detach().flatten() for p in again.denoiser.parameters()]), weights(whole / "model"))


@pytest.mark.parametrize("names", [("model",), ("model", "model-0.9"), ("state.pt",), ("receipt.json",)])
def test_what_a_full_disk_kept_out_comes_by_resuming(tmp_path, whole, monkeypatch, names: tuple[str, ...]) -> None:
    """Whatever has no room at the end, the rest is written, and the sentence says what is missing."""
    out = tmp_path / "run"
    with full(monkeypatch, *names), pytest.raises(OSError, match="No space left") as failed:
        run(out, save_every=1e9)
    for name in ("state.pt", "model", "model-0.9"):
        assert (out / name).exists() == (name not in names)
        if names != ("receipt.json",):
            assert str(out / name) in str(failed.value) and "--resume" in str(failed.value)
    assert not [path for path in os.listdir(out) if path.startswith(".")]
    if "state.pt" in names:
        return  # nothing was saved before: the model is there, and the run could only start again
    monkeypatch.setattr(
        "fewstep.diffusion.tuning.consistency_loss", lambda *args, **options: pytest.fail("nothing is left")
    )
    run(out, resume=True)
    assert same(out, whole)
    for name in ("steps", "images", "loss", "network_calls", "network_rows"):
        assert receipt(out)[name] == receipt(whole)[name]


def test_a_longer_run_that_could_not_write_its_model_has_the_longer_one_by_resuming(tmp_path, whole, monkeypatch) -> None:
    """What stands there then is the shorter run's model and receipt."""
    run(tmp_path / "run", {"images": 24})
    with full(monkeypatch, "model"), pytest.raises(OSError, match="No space left"):
        run(tmp_path / "run", resume=True)
    run(tmp_path / "run", resume=True)
    assert same(tmp_path / "run", whole)


def test_a_full_disk_on_the_way_costs_nothing(tmp_path, whole, monkeypatch, at_step, caplog) -> None:
    with full(monkeypatch, "state.pt"), pytest.raises(OSError, match=r"state\.pt"):
        run(tmp_path / "run", save_every=0)
    assert same(tmp_path / "run", whole)
    assert caplog.text.count("free some disk space; the next save tries again") == 5


def test_stopped_with_a_full_disk_a_run_says_so(tmp_path, monkeypatch, at_step) -> None:
    at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with full(monkeypatch, "state.pt"), pytest.raises(OSError, match=r"stopped, but .*No space left.*--resume"):
        run(tmp_path / "run", save_every=1e9)


def test_a_run_that_diverged_goes_on_with_another_rate(tmp_path) -> None:
    """From its last good state, when told so, and the receipt keeps what it began with."""
    run(tmp_path, {"images": 16})
    wild = {"rate": Constant(1e30)}
    with pytest.raises(FloatingPointError, match=r"step 3: .*--resume and a lower --rate or a --clip"):
        run(tmp_path, wild, resume=True, changing=["rate"], save_every=0)
    assert load_state(tmp_path / "state.pt")["step"] == 2
    calm = {"rate": Constant(1e-4), "max_grad_norm": 1.0}
    with pytest.raises(ValueError, match="began with max_grad_norm"):
        run(tmp_path, calm, resume=True, changing=["rate"])
    run(tmp_path, calm, resume=True, changing=["rate", "max_grad_norm"])
    changes = [{"step": 2, "rate": {"name": "Constant", "rate": 1e-3}, "max_grad_norm": None}]
    assert receipt(tmp_path)["changes"] == changes and receipt(tmp_path)["recipe"]["rate"]["rate"] == 1e-4
    run(tmp_path, calm | {"images": 56}, resume=True, changing=["rate", "max_grad_norm"])  # the same again is no change
    assert receipt(tmp_path)["changes"] == changes


def test_a_run_whose_last_update_is_infinite_fails(tmp_path) -> None:
    with pytest.raises(FloatingPointError, match="step 1: the weights after it are not finite"):
        run(tmp_path, {"images": 8, "rate": Constant(1e30)}, save_every=0)
    assert os.listdir(tmp_path) == []


def test_a_state_that_holds_infinities_is_not_gone_on_from(tmp_path, whole) -> None:
    whole = shutil.copytree(whole, tmp_path / "run")
    state = load_state(whole / "state.pt")
    next(iter(state["student"].values()))[0] = float("inf")
    save_state(whole / "state.pt", state)
    with pytest.raises(ValueError, match="not finite"):
        run(whole, {"images": 96}, resume=True)


def test_a_run_goes_on_with_the_table_that_it_began_with(tmp_path) -> None:
    """Another of as many rows in its place is another."""

    def table(n: int) -> Table:
        images = Images(noise_images().pixels.roll(n, -1))
        shutil.rmtree(tmp_path / "table", ignore_errors=True)
        save_images(images, tmp_path / "data.npz")
        return make_table(tmp_path / "data.npz", tmp_path / "table", channels=1, size=8)

    runs.run(tiny(), table(0), tmp_path / "run", RECIPE, precision="no")
    moved = (tmp_path / "table").rename(tmp_path / "moved")
    runs.run(tiny(), Table(moved), tmp_path / "run", RECIPE | {"images": 56}, resume=True, precision="no")
    with pytest.raises(
        ValueError,
        match=r"this run began with data_fingerprint = \w+ and would go on with data_fingerprint = \w+; resume it",
    ):
        runs.run(tiny(), table(1), tmp_path / "run", RECIPE | {"images": 64}, resume=True, precision="no")


def test_the_receipt_counts_student_and_teacher_apart(tmp_path) -> None:
    """Heun's step takes two calls of the teacher, the loss two of the student; what made the data comes on top."""
    run(tmp_path / "apart", {"hop": Heun(tiny().requires_grad_(False))}, made={"images": [35, 280]})
    assert receipt(tmp_path / "apart")["network_calls"] == {"student": 12, "teacher": 12, "teacher, for images": 35}
    assert receipt(tmp_path / "apart")["network_rows"] == {"student": 96, "teacher": 96, "teacher, for images": 280}
    denoiser = tiny()
    runs.run(denoiser, noise_images(), tmp_path / "one", RECIPE | {"hop": Heun(denoiser)}, precision="no")
    assert receipt(tmp_path / "one")["network_calls"] == {"student and teacher": 24}


# Holds the lock of a folder as another run would; python without torch is there in no time.
HOLDER = """
import fcntl, sys, time
lock = open(sys.argv[1] + "/.lock", "ab+")
fcntl.flock(lock, fcntl.LOCK_EX)
lock.write(b"process 1 on another machine")
lock.flush()
print("held", flush=True)
time.sleep(60)
"""


def test_two_runs_do_not_share_a_folder(tmp_path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(ValueError, match=r"process 1 on another machine is writing into .*--out"):
            run(tmp_path)
        holder.kill()
    run(tmp_path)


def test_what_a_killed_run_left_half_written_is_gone_at_the_next_start(tmp_path) -> None:
    (tmp_path / ".state.pt.abc12345.fewstep").mkdir()
    (tmp_path / ".state.pt.abc12345.fewstep" / "locked").touch()
    (tmp_path / ".state.pt.abc12345.fewstep" / "new").write_bytes(b"half")
    (tmp_path / ".lock").write_text("process 1 on this machine")  # of the dead, so free
    run(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["model", "model-0.9", "receipt.json", "state.pt"]


def test_a_run_that_goes_on_in_another_precision_keeps_what_it_was(tmp_path) -> None:
    run(tmp_path, {"images": 16})
    fresh()  # as a process of its own would have it
    run(tmp_path, {"images": 32}, resume=True, precision="bf16")
    assert receipt(tmp_path)["precision"] == "bf16"
    assert receipt(tmp_path)["changes"] == [{"step": 2, "precision": "no"}]


def test_a_run_is_no_pipeline_and_an_unfinished_one_no_checkpoint(tmp_path) -> None:
    """A run does not begin in an exported folder, and one that was stopped says how to go on."""
    exported, begun = tmp_path / "exported", tmp_path / "begun"
    save(Model(tiny(), DDIM(2)), exported)
    with pytest.raises(ValueError, match="holds a pipeline, which a run would mix its files with"):
        run(exported)
    assert not (exported / "state.pt").exists()
    begun.mkdir()
    (begun / "state.pt").touch()
    with pytest.raises(ValueError, match="is a run that has not finished; go on with it by --resume"):
        load(begun)
