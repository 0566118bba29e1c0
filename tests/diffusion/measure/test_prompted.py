"""Students of pipelines beside their teacher: the same prompts and seeds, decoded by the pipeline itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny
from tiny_pipelines import tiny_pipeline

from fewstep.diffusion.asked import in_turn
from fewstep.diffusion.checkpoints import tune_checkpoint
from fewstep.diffusion.choices import Lessons, Run, Training
from fewstep.diffusion.data import Images, save_images
from fewstep.diffusion.denoiser import Guided
from fewstep.diffusion.formats.folder import load
from fewstep.diffusion.measure.comparing import common_shape
from fewstep.diffusion.measure.seen import Setting
from fewstep.diffusion.measuring import _teacher_settings, dial_checkpoints, ledger_checkpoints, measure_checkpoint
from fewstep.diffusion.objective import Loss
from fewstep.diffusion.scoring import Scoring
from fewstep.diffusion.walk import DDIM, sample

PROMPTS = ["a red boot", "a small house beside a large tree at night", "a blue dress"]
N = 20
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries alone


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A teacher, its student of two segments under guidance, prompts, and pictures to be held against."""
    here = tmp_path_factory.mktemp("prompted")
    tiny_pipeline("stable_diffusion", here)
    (here / "prompts.txt").write_text("\n".join(PROMPTS))
    lessons = Lessons("teacher", prompts=here / "prompts.txt", guidance=3.0, teacher_images=4, teacher_steps=1)
    run = Run(here / "run", precision="no")
    tune_checkpoint(str(here / "pipeline"), lessons, run, loss=Loss(segments=2), training=Training(images=8, batch=8))
    pixels = torch.randint(0, 256, (24, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    save_images(Images(pixels), here / "data.npz")
    return here


def test_teacher_and_student_are_asked_for_the_same_on_the_same_seeds(place, tmp_path) -> None:
    """Each picture is what the model makes of its prompt and seed; the teacher is guided as it was in the tuning."""
    scoring = Scoring(str(place / "data.npz"), tmp_path / "scores", n=N, seed=5, batch=8, prompts=place / "prompts.txt")
    measured = measure_checkpoint(str(place / "run"), scoring, teacher=str(place / "pipeline"), teacher_calls=(2,))
    teacher, student = measured.found.points
    assert (teacher.name, teacher.nfe, student.name, student.nfe) == ("teacher", 4, "student", 2)
    model, seeds = load(place / "run"), range(5, 5 + N)
    cond, _ = model.pipeline.conditions(in_turn(PROMPTS, range(N)))
    assert torch.equal(student.images, model.sample(seeds, cond))
    stock = load(place / "pipeline")
    cond, null = stock.pipeline.conditions(in_turn(PROMPTS, range(N)))
    theirs = stock.decode(sample(stock.pipeline.guided(stock.denoiser, 3.0, null), seeds, DDIM(2), cond))
    assert (teacher.images.int() - theirs.int()).abs().max() <= 1
    receipt = json.loads((tmp_path / "scores" / "measure.json").read_text())
    assert receipt["guidance"] == 3.0 and receipt["asked_in"] == str(place / "prompts.txt")


def test_the_dial_takes_pipelines(place, tmp_path) -> None:
    scoring = Scoring(str(place / "data.npz"), tmp_path / "dial", n=N, prompts=place / "prompts.txt", guidance=1.5)
    found = dial_checkpoints([str(place / "run")], str(place / "pipeline"), scoring, teacher_calls=(1, 3)).found
    assert [point.nfe for point in found.points] == [2, 6, 2] and found.recommended
    assert json.loads((tmp_path / "dial" / "measure.json").read_text())["guidance"] == 1.5


def test_a_ledger_of_pipelines_asks_both_for_the_same(place, tmp_path) -> None:
    """The guided teacher and its student, on pictures of the teacher's, whose prompts are known; and the teacher beside
    itself, where nothing is lost."""
    scoring = Scoring(str(place / "data.npz"), tmp_path / "ledger", n=N, batch=8, prompts=place / "prompts.txt")
    pipeline = str(place / "pipeline")
    found = ledger_checkpoints(pipeline, str(place / "run"), scoring, teacher_calls=3).ledger
    denoising = [line for line in found.lines if line.group == "denoising"]
    assert len(denoising) == 12 and not any(line.asked for line in denoising) and found.calls == (6, 2)
    assert any(note.startswith("Guidance makes predictions sharper") for note in found.notes)
    assert {"agreement", "at as few calls", "quality", "variety", "copying", "looks"} <= {
        line.group for line in found.lines
    }
    same = ledger_checkpoints(pipeline, pipeline, scoring, teacher_calls=2).ledger
    assert {verdict.said for verdict in same.verdicts} == {"kept"} and all(line.asked for line in same.lines)
    assert (tmp_path / "ledger" / "ledger.json").exists()


def test_the_teachers_guidance_is_that_of_its_students(place, folders) -> None:
    """Where these differ, or the teacher has none, it has to be said."""
    students = [replace(load(place / "run"), receipt={"guidance": scale}) for scale in (1.5, 3.0)]
    scoring = Scoring("missing.npz", place / "none", n=N)
    (setting,) = _teacher_settings(str(place / "pipeline"), [2], scoring, students[:1], PROMPTS)
    assert isinstance(setting.denoiser, Guided) and setting.calls == 4
    with pytest.raises(ValueError, match=r"tuned with different guidance, .*--guidance"):
        _teacher_settings(str(place / "pipeline"), [2], scoring, students, PROMPTS)
    with pytest.raises(ValueError, match="leave --guidance out"):
        _teacher_settings(str(folders("ldm")), [2], replace(scoring, guidance=2.0), [], None)


def test_settings_of_several_shapes_are_not_compared(place, folders) -> None:
    model = load(place / "pipeline")
    settings = [Setting("a", model.denoiser, DDIM(1), model.pipeline), Setting("b", tiny(channels=3), DDIM(1))]
    with pytest.raises(ValueError, match="b makes images of another shape than a"):
        common_shape(settings)
    with pytest.raises(ValueError, match=r"samples of 4x8x8 that are no pictures"):
        common_shape([Setting("a", model.denoiser, DDIM(1))])


def test_what_cannot_be_asked_is_one_sentence(place, tmp_path) -> None:
    data, run = str(place / "data.npz"), str(place / "run")
    for checkpoint, settings, sentence in (
        (run, {}, "takes prompts; give a text file with one per line, with --prompts"),
        (run, {"prompts": place}, "is a folder; give a text file"),
        ("bundled", {"prompts": place / "prompts.txt"}, "leave --prompts and --prompt out"),
    ):
        with pytest.raises(ValueError, match=sentence):
            measure_checkpoint(checkpoint, Scoring(data, tmp_path / "scores", n=N, **settings))
    for settings, sentence in (
        ({"steps": ()}, "at least one number"),
        ({"teacher": str(place / "pipeline"), "teacher_calls": ()}, "at least one number"),
    ):
        with pytest.raises(ValueError, match=sentence):
            measure_checkpoint(run, Scoring(data, tmp_path / "scores", n=N), **settings)
    with pytest.raises(ValueError, match="at least one run"):
        dial_checkpoints([], run, Scoring(data, tmp_path / "scores", n=N))
    with pytest.raises(ValueError, match="--guidance is for teachers that are pipelines"):
        measure_checkpoint("bundled", Scoring("bundled", tmp_path / "scores", n=N, guidance=2.0), teacher="bundled")
    assert not (tmp_path / "scores").exists()
