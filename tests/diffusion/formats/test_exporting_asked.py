from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest
import torch
from tiny_pipelines import CALLS, FAMILIES
from torch import Tensor

from fewstep.diffusion.cond import Cond
from fewstep.diffusion.data.examples import Samples
from fewstep.diffusion.formats import exporting_asked as module
from fewstep.diffusion.formats.exporting import export
from fewstep.diffusion.formats.folder import load, save
from fewstep.diffusion.formats.pipelines import few_step_scheduler
from fewstep.diffusion.model import Model
from fewstep.diffusion.recipes import ect_cifar10
from fewstep.diffusion.tuning import tune
from fewstep.diffusion.two_times import TwoTimes
from fewstep.diffusion.walk import Consistency, Heun, Segments

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries alone


@dataclass(frozen=True)
class Told(Samples):
    """Latents and what they are about, in memory."""

    latents: Tensor
    told: Cond

    classes = null = fingerprint = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.latents.shape[1:])

    @property
    def shared(self):
        return self.told.shared

    @property
    def label_range(self) -> tuple[int, int] | None:
        return (0, len(self) - 1) if "class_labels" in self.told.rows else None

    def __len__(self) -> int:
        return len(self.latents)

    def cond(self, k: int):
        return {name: rows[k] for name, rows in self.told.rows.items()}

    def raw(self, rows) -> Tensor:
        return self.latents[list(rows)]


def tuned(model: Model) -> Model:
    """Two steps of consistency tuning on random rows."""
    pipeline = model.pipeline
    cond, _ = pipeline.conditions(pipeline.examples(4))
    data = Told(torch.randn(4, *model.denoiser.space.shape), cond)
    *_, last = tune(model.denoiser, data, **(ect_cifar10(4) | {"batch": 2}))
    return Model(last.emas[0] if last.emas else last.student, Consistency(2), pipeline=pipeline)


@pytest.mark.usefixtures("stock_here")
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "dance_diffusion"])
def test_every_family_is_tuned_saved_sampled_and_exported(folders, tmp_path, family: str) -> None:
    """Stock diffusers samples in few steps from the exported folder what we sample, in one segment and in several."""
    teacher = load(folders(family), call=CALLS.get(family, {}))
    before = [weight.clone() for weight in teacher.denoiser.network.parameters()]
    student = tuned(teacher)
    assert any(not torch.equal(a, b) for a, b in zip(before, student.denoiser.network.parameters(), strict=True))
    save(student, tmp_path / "student")
    student = load(tmp_path / "student")
    cond, _ = student.pipeline.conditions(student.pipeline.examples(2))
    assert student.sample([0, 1], cond).dtype in (torch.uint8, torch.int16)
    for walk in (Consistency(2), Segments(4 if family in ("dit", "wan", "flux") else 3)):
        closeness = export(student, tmp_path / str(walk.steps), walk=walk)
        assert closeness.largest < 1e-3, walk
        card = (tmp_path / str(walk.steps) / "README.md").read_text()
        assert f"num_inference_steps={walk.steps}" in card and "DiffusionPipeline.from_pretrained(" in card
        back = load(tmp_path / str(walk.steps))
        assert (back.walk, back.denoiser.schedule) == (walk, student.denoiser.schedule)


@pytest.mark.usefixtures("stock_here")
@pytest.mark.parametrize("family", ["stable_diffusion", "flux", "stable_diffusion_3"])
def test_a_student_of_any_number_of_calls_becomes_a_plain_pipeline(folders, tmp_path, family: str) -> None:
    teacher = load(folders(family), call=CALLS.get(family, {}))
    denoiser = TwoTimes(teacher.denoiser)
    for end in denoiser.ends:
        torch.nn.init.normal_(end.linear_2.weight, std=0.1)
    student = Model(denoiser.eval(), Segments(4), pipeline=teacher.pipeline)
    save(student, tmp_path / "student")
    assert export(load(tmp_path / "student"), tmp_path / "out", walk=Segments(3)).largest < 1e-3


@pytest.mark.usefixtures("stock_apart")
def test_another_process_samples_the_same(folders, tmp_path) -> None:
    """With nothing of ours; and the folder is an earlier export that the next one replaces."""
    model = load(folders("z_image"), call=CALLS["z_image"])
    for _ in range(2):
        assert export(Model(model.denoiser, Segments(3), pipeline=model.pipeline), tmp_path / "out").largest < 1e-3
    assert json.loads((tmp_path / "out" / "model_index.json").read_text())["scheduler"][1].startswith("FlowMatchEuler")


@pytest.mark.usefixtures("stock_here")
def test_other_latents_mean_no_folder(folders, tmp_path, monkeypatch) -> None:
    model = load(folders("stable_diffusion"))
    monkeypatch.setattr(module, "_stock_latents", lambda *given: torch.zeros(2, 4, 8, 8))
    with pytest.raises(ValueError, match="nothing was exported"):
        export(Model(model.denoiser, Consistency(), pipeline=model.pipeline), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_no_stock_scheduler_carries_says_so(folders, tmp_path) -> None:
    model = load(folders("dance_diffusion"))
    with pytest.raises(ValueError, match="no stock scheduler takes few steps on the TrigFlow schedule"):
        export(Model(model.denoiser, Consistency(), pipeline=model.pipeline), tmp_path / "out")


def test_walks_that_no_stock_scheduler_takes_say_so(folders) -> None:
    model = load(folders("flux"), call=CALLS["flux"])
    with pytest.raises(ValueError, match="only few-step generators"):
        few_step_scheduler(model.denoiser, Heun(), model.pipeline)
    manner = model.pipeline.manner
    assert manner.sigmas is not None
    few_step_scheduler(model.denoiser, Segments(2), model.pipeline)
    model.pipeline._manner = replace(manner, sigmas=(1.0, 0.9, 0.2, 0.1))
    with pytest.raises(ValueError, match="noise levels of its own"):
        few_step_scheduler(model.denoiser, Segments(2), model.pipeline)
