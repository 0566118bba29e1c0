"""Runs that are watched: the same as unwatched ones, what they leave, and samples that collapse."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from conftest import fewstep, fresh, launch, noise_images, tiny
from PIL import Image

from fewstep.core.files import load_state
from fewstep.core.intervals import jackknifed
from fewstep.core.resuming import LOOKS
from fewstep.diffusion import runs, sheets
from fewstep.diffusion.average import Exponential
from fewstep.diffusion.collapse import SOME, TIMES, Signs, collapsed, signs
from fewstep.diffusion.cond import Cond
from fewstep.diffusion.data import Images, Paths, Table, load_images
from fewstep.diffusion.data.order import Order
from fewstep.diffusion.formats.folder import load
from fewstep.diffusion.measure.features import RandomFeatures, View, extract
from fewstep.diffusion.model import Model
from fewstep.diffusion.noise import ECTGap
from fewstep.diffusion.optim import Adam, Constant
from fewstep.diffusion.space import Latents, Pixels, Video
from fewstep.diffusion.tracking import Tracking
from fewstep.diffusion.two_times import TwoTimes
from fewstep.diffusion.walk import DDIM, Segments, sample
from fewstep.diffusion.watcher import EDGES, Watch, Watcher, watch_of
from fewstep.diffusion.watching import Watching

RECIPE = {"images": 48, "batch": 8, "gap": ECTGap(q=256, stages=1), "rate": Constant(1e-3), "optimizer": Adam(),
          "average": Exponential(0.5)}  # fmt: skip
WATCHING = Watching(look_every=16, look_n=3)


class Means(torch.nn.Module):
    """Two features a picture, which tell one from another and cost nothing."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.stack([images.float().mean((1, 2, 3)), images.float().std((1, 2, 3))], 1)


def run(out: Path, watching: Watching | None = WATCHING, recipe: dict | None = None, scored: bool = False, **options):
    data, teacher = noise_images(), tiny()
    watch = None
    if watching:
        view = View.of("means", Means(), data)
        watch = Watch(watching, [Segments(1), Segments(2)], teacher, DDIM(3), [view] if scored else [])
    return runs.run(TwoTimes(tiny()), data, out, RECIPE | {"segments": (1, 2)} | (recipe or {}), watch=watch,
                    **{"precision": "no"} | options)  # fmt: skip


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / LOOKS).read_text().splitlines()]


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> Path:
    """A run that nothing happened to; whoever changes it takes a copy."""
    fresh()
    out = tmp_path_factory.mktemp("watched") / "run"
    run(out, Watching(look_every=16, look_n=3, look_score=20, track=("tensorboard",)), scored=True)
    return out


def test_a_watched_run_is_the_same_bit_for_bit(tmp_path, watched) -> None:
    run(tmp_path / "alone", None)
    ours, theirs = (load_state(out / "state.pt") for out in (watched, tmp_path / "alone"))
    for name, weight in theirs["student"].items():
        assert torch.equal(weight, ours["student"][name]), name
    for name, weight in theirs["emas"][0]["weights"].items():
        assert torch.equal(weight, ours["emas"][0]["weights"][name]), name
    receipts = [json.loads((out / "receipt.json").read_text()) for out in (watched, tmp_path / "alone")]
    for name in ("loss", "network_calls", "network_rows"):
        assert receipts[0][name] == receipts[1][name]
    assert sorted(os.listdir(tmp_path / "alone")) == ["model", "receipt.json", "state.pt"]
    assert sorted(os.listdir(watched)) == ["model", "receipt.json", "state.pt", "track", "watch", "watch.jsonl"]


def test_a_line_says_what_was_seen(watched) -> None:
    """Against the samples themselves, drawn again from what the run has saved."""
    seen = rows(watched)
    assert [row["images"] for row in seen] == [0, 16, 32, 48]
    first, last = seen[0], seen[-1]
    assert [(each["name"], each["calls"]) for each in first["samples"]] == [("teacher", 3), ("student", 1), ("student", 2)]
    assert [(each["name"], each["calls"]) for each in last["samples"]] == [("student", 1), ("student", 2)]
    drawn = sample(load(watched).denoiser, range(20), Segments(2))
    assert last["samples"][1]["spread"] == pytest.approx(signs(drawn, 1.0).spread, rel=1e-5)
    score = last["samples"][1]["frechet"]["means"]
    (again,) = jackknifed([score["value"]], torch.tensor(score["left_out"])[:, None])
    assert again == pytest.approx((score["value"], score["low"], score["high"]), rel=1e-5) and len(score["left_out"]) == 20
    assert last["network_rows"] == 20 * 3 and first["network_rows"] == 20 * (3 + 3)
    with Image.open(watched / last["sheet"]) as sheet:
        assert sheet.size == (3 * 8 * 8, 2 * 8 * 8)  # three seeds, two numbers of calls, eight times as large


def test_the_loss_by_level_adds_up_to_the_loss(watched) -> None:
    for row in rows(watched)[1:]:
        assert sum(each["rows"] for each in row["levels"]) == 16
        assert sum(each["rows"] * each["loss"] for each in row["levels"]) == pytest.approx(16 * row["loss"], rel=1e-5)
        assert all(each["low"] in (0.0, *EDGES) and each["high"] in (*EDGES, None) for each in row["levels"])


def test_tensorboard_is_told_the_same(watched) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(watched / "track"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    spread = [row["samples"][-1]["spread"] for row in rows(watched)]
    told = events.Scalars("samples/spread, student, 2 calls")
    assert [event.step for event in told] == [0, 2, 4, 6]
    assert [event.value for event in told] == pytest.approx(spread, rel=1e-5)
    assert [event.step for event in events.Images("samples")] == [0, 2, 4, 6]


@pytest.mark.parametrize("step", [3, 4])
def test_a_resumed_run_goes_on_with_its_lines(tmp_path, monkeypatch, step: int) -> None:
    """Between two looks and right after one; what a later look had written before the kill is not there twice."""
    whole, out = tmp_path / "whole", tmp_path / "run"
    run(whole)
    tune = runs.tune

    def killed(*args, **options):
        for each in tune(*args, **options):
            yield each
            if each.step == step:
                raise RuntimeError("killed")

    monkeypatch.setattr(runs, "tune", killed)
    with pytest.raises(RuntimeError, match="killed"):
        run(out, save_every=0)
    if step == 3:  # a look was written of which no state was saved, and half of another
        with open(out / LOOKS, "a") as file:
            file.write(json.dumps(rows(out)[-1] | {"step": 4, "images": 32}) + '\n{"step": 6, "ima')
    monkeypatch.setattr(runs, "tune", tune)
    run(out, resume=True)
    assert (out / LOOKS).read_text() == (whole / LOOKS).read_text()
    assert not (out / "sound.pt").exists()


def test_the_state_of_the_last_look_is_copied_where_a_disk_has_no_second_names(tmp_path, monkeypatch) -> None:
    tune = runs.tune

    def killed(*args, **options):
        for each in tune(*args, **options):
            yield each
            if each.step == 3:
                raise RuntimeError("killed")

    def refused(*_) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(runs, "tune", killed)
    monkeypatch.setattr(os, "link", refused)
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "run")
    assert load_state(tmp_path / "run" / "sound.pt")["step"] == 2
    assert sorted(os.listdir(tmp_path / "run")) == ["sound.pt", "state.pt", "watch", "watch.jsonl"]


def test_looks_and_states_that_cannot_be_written_cost_the_run_nothing(tmp_path, monkeypatch, caplog, watched) -> None:
    """A disk that takes neither a row nor a second state: it is told, and the model is the same."""
    replace = os.replace

    def full(self, row, samples) -> None:
        if row["step"]:
            raise OSError(errno.ENOSPC, "No space left on device")

    def refused(old, new) -> None:
        if os.path.basename(new) == "sound.pt":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(old, new)

    monkeypatch.setattr(Watcher, "_write", full)
    monkeypatch.setattr(os, "replace", refused)
    run(tmp_path / "run", save_every=0)
    assert "could not be written" in caplog.text and "could not be kept for a collapse" in caplog.text
    ours, theirs = (load_state(out / "state.pt")["student"] for out in (tmp_path / "run", watched))
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    assert not list((tmp_path / "run").glob("sound*"))


def test_other_trackers_name_the_run_after_its_folder(tmp_path, monkeypatch) -> None:
    class Tracker:
        def __init__(self, project: str, name: str) -> None:
            told.append((project, name))

        def start(self) -> None: ...

        def log(self, values: dict, step: int) -> None:
            told.append((values, step))

        def finish(self) -> None:
            told.append("finished")

    told: list = []
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["wandb"])
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Tracker)
    tracking = Tracking(["wandb"], tmp_path / "my run" / "track")
    tracking.begin(3)
    tracking.log({"loss": 0.5}, 4)
    tracking.show(torch.zeros(2, 2, 3, dtype=torch.uint8), 4)  # this one takes no pictures
    tracking.end()
    assert told == [("fewstep", "my run"), ({"loss": 0.5}, 4), "finished"]


def test_of_a_film_the_middle_is_shown() -> None:
    film = torch.rand(2, 3, 5, 4, 6) * 2 - 1
    space = Video((3, 5, 4, 6), 8.0)
    assert torch.equal(sheets.pictures(film, space, None), Pixels((3, 4, 6)).decode(film[:, :, 2]))
    assert sheets.pictures(torch.zeros(1, 4, 2, 2), Latents((4, 2, 2)), None) is None


def test_processes_that_hold_a_student_together_watch_it_together(tmp_path) -> None:
    """Both take part in the average that is sampled, the rows of both are in the loss, and both stop."""
    launch("watched_worker", tmp_path, 2)
    seen = rows(tmp_path / "run")
    assert [row["images"] for row in seen] == [0, 16, 32]
    assert [sum(each["rows"] for each in row["levels"]) for row in seen[1:]] == [16, 16]
    for row in seen[1:]:
        assert sum(each["rows"] * each["loss"] for each in row["levels"]) == pytest.approx(16 * row["loss"], rel=1e-4)
    drawn = sample(load(tmp_path / "run").denoiser, range(3), Segments(2))
    assert seen[-1]["samples"][-1]["spread"] == pytest.approx(signs(drawn, 1.0).spread, rel=1e-4)
    told = [(tmp_path / f"stopped-{rank}").read_text() for rank in range(2)]
    assert all("the samples have collapsed" in each and "--resume" in each for each in told) and "planted" in told[0]
    assert not (tmp_path / "stopped" / "state.pt").exists()


def test_a_missing_library_is_a_sentence(place, monkeypatch, capsys) -> None:
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(SystemExit) as stopped:
        fewstep(monkeypatch, "tune teacher --data data.npz --out run --track wandb")
    assert stopped.value.code == 2 and "wandb needs a package that is not installed" in capsys.readouterr().err
    assert not Path("run").exists()


def test_signs_are_what_they_say() -> None:
    x0 = torch.tensor([[-1.3, 0.0, 0.5, 1.0], [-1.0, 0.5, 0.5, 0.995]])
    assert signs(x0, 1.0) == (1.0, pytest.approx((0.125 + 0.005**2 / 2) / 4), 0.5)
    assert signs(x0, None) == (1.0, pytest.approx((0.3**2 / 2 + 0.125 + 0.005**2 / 2) / 4), 1.0)
    assert signs(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), None).finite == 0.75
    with pytest.raises(ValueError, match="at least two"):
        signs(x0[:1], 1.0)


TEACHER = Signs(1.0, 0.4, 0.5)


@pytest.mark.parametrize(
    ("now", "before", "said"),
    [
        (Signs(0.9, 0.4, 0.5), [TEACHER], "not finite"),
        (Signs(1.0, 0.4 / TIMES * 0.99, 0.5), [TEACHER], "alike"),
        (Signs(1.0, 0.4 / TIMES * 1.01, 0.5), [TEACHER], ""),
        (Signs(1.0, 0.01, 0.9), [Signs(1.0, 0.01, 0.9)], ""),  # blurred from the start on, as one call is
        (Signs(1.0, 0.002, 0.9), [Signs(1.0, 0.01, 0.9)], "alike"),
        (Signs(1.0, 0.4, 0.5), [Signs(1.0, 3.0, 1.0), TEACHER], ""),  # was noise, is like the teacher
        (Signs(1.0, 0.4 * TIMES * 1.01, 1.0), [TEACHER], "blown up"),
        (Signs(1.0, 3.0, 1.0), [Signs(1.0, 3.1, 1.0)], ""),  # noise from the start on: new weights
        (Signs(1.0, 0.4, 0.5 / TIMES * 0.99), [TEACHER], "saturated"),
        (Signs(1.0, 0.4, 0.0), [Signs(1.0, 0.4, SOME * 0.9)], ""),  # black and white pictures
    ],
)  # fmt: skip
def test_what_is_a_collapse_and_what_is_not(now: Signs, before: list[Signs], said: str) -> None:
    found = collapsed(now, before, TEACHER)
    assert said in found if said else found == ""


@pytest.fixture(scope="module")
def bundled() -> Images:
    return Images(load_images("bundled", channels=1, size=28).raw(range(64)))


def tuned(out: Path, data: Images, *, seed: int, rate: float, resume: bool = False, images: int = 64, stop: bool = True):
    """A few steps of the bundled checkpoint, of which a quarter of the average is new after each."""
    start = load("bundled")
    model = Model(TwoTimes(start.denoiser), Segments(4))
    watch = watch_of(Watching(look_every=32, look_steps=(4,), look_n=4, stop_collapsed=stop), model, data,
                     start.denoiser, DDIM(4))  # fmt: skip
    recipe = RECIPE | {"images": images, "batch": 8, "segments": (1, 2, 4), "rate": Constant(rate), "seed": seed,
                       "average": Exponential(0.75)}  # fmt: skip
    return runs.run(model.denoiser, data, out, recipe, watch=watch, precision="no", resume=resume, changing=["rate"])


@pytest.mark.parametrize("seed", [1, 2])  # 0 is in the test after this one
def test_a_healthy_run_is_left_alone(tmp_path, bundled, seed: int) -> None:
    tuned(tmp_path / "run", bundled, seed=seed, rate=1e-3)
    assert [row["images"] for row in rows(tmp_path / "run")] == [0, 32, 64]


def test_a_collapse_stops_the_run_and_the_state_before_stays(tmp_path, bundled, caplog) -> None:
    out = tmp_path / "run"
    tuned(out, bundled, seed=0, rate=1e-3, images=32)
    before = load_state(out / "state.pt")
    shutil.copytree(out, tmp_path / "warned")
    sentence = r"after \d+ images the samples have collapsed: .*watch/\d+\.png.*--resume and a lower --rate or a --clip"
    with pytest.raises(FloatingPointError, match=sentence):
        tuned(out, bundled, seed=0, rate=0.3, resume=True)
    after = load_state(out / "state.pt")
    assert after["step"] == before["step"] and all(
        torch.equal(after["student"][k], v) for k, v in before["student"].items()
    )
    tuned(out, bundled, seed=0, rate=1e-3, resume=True, images=40)
    tuned(tmp_path / "warned", bundled, seed=0, rate=0.3, resume=True, images=64, stop=False)
    assert "the samples have collapsed" in caplog.text


@pytest.mark.filterwarnings("ignore")  # of the libraries alone
def test_a_pipelines_samples_are_shown_by_its_decoder_where_that_is_small(folders, tmp_path, monkeypatch) -> None:
    """A LoRA for any number of calls, from classes; what is shown is what the pipeline makes of the samples."""
    base, out = folders("dit"), tmp_path / "run"
    learns = (
        "--data teacher --teacher-images 8 --teacher-steps 2 --segments any --lora 2 --images 8 --batch 4 --precision no"
    )
    fewstep(monkeypatch, f"tune {base} {learns} --precision no --look-every 4 --look-n 2 --out {out}")
    assert [row["images"] for row in rows(out)] == [0, 4, 8]
    student, cond, order = load(out), Table(out / "latents").cond, Order(8, 0)
    told = Cond({"class_labels": torch.stack([cond(order(k))["class_labels"] for k in range(2)])})
    drawn = [student.decode(sample(student.denoiser, range(2), Segments(n), told)) for n in (1, 2, 4)]
    with Image.open(out / rows(out)[-1]["sheet"]) as sheet:
        shown = torch.from_numpy(np.asarray(sheet).copy()).permute(2, 0, 1)
    times = shown.shape[1] // (3 * drawn[0].shape[-2])
    expected = torch.cat([torch.cat(list(row), -1) for row in drawn], -2)
    assert (shown[:, ::times, ::times].int() - expected.int()).abs().max() <= 1
    monkeypatch.setattr(sheets, "CHEAP", 10)
    assert not sheets.decodes(student.pipeline)


def test_samples_are_scored_against_what_the_run_learns_from() -> None:
    """The reference is that of the data's pictures; paths, which are no pictures, make none."""
    data, student = noise_images(40), Model(TwoTimes(tiny()), Segments(2))
    watch = watch_of(Watching(look_score=20, look_steps=(1,)), student, data, tiny(), DDIM(3))
    assert [view.name for view in watch.views] == ["random", "pixels"]
    seen = extract(RandomFeatures(), data.raw(range(40)))
    assert np.allclose(watch.views[0].real.mean, seen.mean(0))
    paths = Paths(torch.zeros(4, 3, 1, 8, 8).half(), torch.tensor([2.0, 1.0, 0.0]), torch.zeros(1))
    with pytest.raises(ValueError, match="--look-score needs data that are pictures"):
        watch_of(Watching(look_score=20), student, paths, tiny(), DDIM(3))
