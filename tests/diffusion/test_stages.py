"""A training in stages against its stages run by hand, and against itself interrupted."""

from __future__ import annotations

import shutil

import pytest
import torch
from conftest import noise_images, tiny

from fewstep.core.interrupts import Interrupted
from fewstep.diffusion.average import Exponential
from fewstep.diffusion.optim import Dropout
from fewstep.diffusion.recipes import ect_demo
from fewstep.diffusion.runs import run
from fewstep.diffusion.saving import Saver
from fewstep.diffusion.stages import Stage, run_stages


def stages(first: int = 16, last: int = 32) -> list[Stage]:
    shared = {"batch": 8, "dropout": Dropout(0.2), "average": Exponential(0.5)}
    wide = ect_demo(first) | shared | {"segments": 2}
    return [
        Stage("two", wide, noise_images(), {"title": "two segments"}),
        Stage("", ect_demo(last) | shared, noise_images()),
    ]


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.denoiser.parameters()])


def test_each_stage_begins_with_what_the_last_one_made(tmp_path) -> None:
    first, last = stages()
    model = run_stages(tiny(), stages(), tmp_path / "whole", resume=True)  # of nothing, so it begins
    between = run(tiny(), first.data, tmp_path / "first", first.recipe)
    assert torch.equal(weights(model), weights(run(between.denoiser, last.data, tmp_path / "last", last.recipe)))
    assert (tmp_path / "whole" / "two" / "model").exists() and (tmp_path / "whole" / "model").exists()


def test_stages_resume_bit_equal(tmp_path, monkeypatch) -> None:
    """Stopped in the last stage, killed between the two, or asked for more of the last one."""
    whole = weights(run_stages(tiny(), stages(), tmp_path / "whole"))
    out, saves = tmp_path / "stopped", Saver.__call__

    def stop(self: Saver, step, *, sound: bool = False) -> None:
        if self.file == out / "state.pt" and step.step == 2 and not self.file.exists():
            self.interrupt.by = 2
        saves(self, step, sound=sound)

    monkeypatch.setattr(Saver, "__call__", stop)
    with pytest.raises(Interrupted):
        run_stages(tiny(), stages(), out)
    assert torch.equal(weights(run_stages(tiny(), stages(), out, resume=True)), whole)
    for part in ("model", "state.pt", "receipt.json"):
        path = out / part
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    monkeypatch.undo()
    assert torch.equal(weights(run_stages(tiny(), stages(), out, resume=True)), whole)


def test_only_the_last_stage_may_be_made_longer(tmp_path) -> None:
    run_stages(tiny(), stages(), tmp_path)
    run_stages(tiny(), stages(last=40), tmp_path, resume=True)
    with pytest.raises(ValueError, match="began with 16 images"):
        run_stages(tiny(), stages(first=24), tmp_path, resume=True)
