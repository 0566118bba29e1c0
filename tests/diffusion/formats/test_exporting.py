from __future__ import annotations

import copy
import dataclasses
import json
import os

import pytest
import torch
from conftest import tiny
from diffusers import DDPMScheduler, UNet2DModel

from fewstep.diffusion.denoiser import edm, flow, vp
from fewstep.diffusion.formats import exporting as module
from fewstep.diffusion.formats.exporting import export
from fewstep.diffusion.formats.folder import load
from fewstep.diffusion.formats.pipelines import stock_pipeline
from fewstep.diffusion.model import Model
from fewstep.diffusion.walk import Consistency, Heun, Segments


@pytest.mark.parametrize(("parametrisation", "steps", "fresh"), [("vp", 2, True), ("edm", 3, False)])
def test_stock_diffusers_samples_the_same_images(tmp_path, request, parametrisation: str, steps: int, fresh: bool) -> None:
    """From the same seeds; the first in a fresh process with nothing of ours."""
    if not fresh:
        request.getfixturevalue("stock_here")
    denoiser = tiny(parametrisation)
    export(Model(denoiser, Consistency(steps)), tmp_path / "out", card={"teacher": "random weights"})
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: diffusers" in card and "random weights" in card and "largest difference" in card
    x, sigma = torch.randn(2, 1, 8, 8), torch.ones(2)
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "out").denoiser(x, sigma), denoiser(x, sigma))
    assert load(tmp_path / "out").walk == Consistency(steps)


@pytest.mark.usefixtures("stock_here")
@pytest.mark.parametrize("segments", [3, 4])
def test_multistep_students_walk_their_segments(tmp_path, segments: int) -> None:
    """A DDIMPipeline where the segments divide the timesteps, else a scheduler that takes the same steps."""
    export(Model(tiny(), Segments(segments)), tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["_class_name"] == ("DDIMPipeline" if 1000 % segments == 0 else "DDPMPipeline")
    assert f"num_inference_steps={segments}" in (tmp_path / "out" / "README.md").read_text()


def test_no_pipeline_walks_the_segments_of_an_edm_student(tmp_path) -> None:
    with pytest.raises(ValueError, match="sample this one with fewstep"):
        export(Model(tiny("edm"), Segments(2)), tmp_path / "out")


@pytest.mark.usefixtures("stock_here")
def test_segments_that_do_not_divide_a_schedule_of_pure_noise_have_no_pipeline() -> None:
    scheduler = DDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    student = vp(tiny().network, scheduler)
    assert type(stock_pipeline(student, Segments(4))).__name__ == "DDIMPipeline"
    with pytest.raises(ValueError, match="3 segments do not divide 1000 timesteps"):
        stock_pipeline(student, Segments(3))


def test_other_images_mean_no_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "sample", lambda denoiser, seeds, walk, cond: torch.zeros(len(seeds), 1, 8, 8))
    with pytest.raises(ValueError, match="nothing was exported"):
        export(Model(tiny(), Consistency()), tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_what_stock_diffusers_cannot_load_is_no_export(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module.stock, "__file__", str(tmp_path / "missing.py"))
    with pytest.raises(ValueError, match="stock diffusers cannot"):
        export(Model(tiny(), Consistency()), tmp_path / "out")
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("stock_here")
def test_a_class_conditional_student_keeps_its_classes(tmp_path) -> None:
    """The stock consistency pipeline takes class_labels; each class gives the picture that ours gives."""
    model = Model(tiny("edm", classes=3), Consistency(2))
    export(model, tmp_path / "out")
    assert "class_labels=0" in (tmp_path / "out" / "README.md").read_text()
    assert load(tmp_path / "out").denoiser.takes == model.denoiser.takes


@pytest.mark.usefixtures("stock_here")
def test_schedules_that_most_stock_schedulers_lack(tmp_path) -> None:
    """Their betas are written out; the cosine schedule's last level, σ = 20,291, is reached."""
    for betas, walk in (("sigmoid", Consistency(2)), ("sigmoid", Segments(3)), ("squaredcos_cap_v2", Segments(2))):
        model = Model(vp(tiny().network, DDPMScheduler(beta_schedule=betas, prediction_type="v_prediction")), walk)
        export(model, tmp_path / "out")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Model(tiny(), Heun()), "only few-step generators"),
        (Model(tiny(classes=3), Consistency()), "DDPMPipeline passes no class_labels"),
        (Model(tiny(classes=3), Segments(2)), "DDIMPipeline passes no class_labels"),
        (Model(edm(tiny().network, time_scale=0.25), Consistency()), "own time"),
        (Model(flow(tiny().network), Consistency()), "Rectified schedule"),
    ],
)
def test_what_has_no_stock_pipeline_says_so(tmp_path, model: Model, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / "out")
    assert os.listdir(tmp_path) == []


class Beside(Consistency):
    """Consistency whose second level is that of the timestep below."""

    def levels(self, denoiser):
        levels, known = super().levels(denoiser), denoiser.schedule.ln_sigmas.exp()
        levels[1] = known[(known - levels[1]).abs().argmin() - 1]
        return levels


def loud(prediction: str, size: int = 64) -> Model:
    """A network that answers loudly, on the schedule of the first DDPMs, whose σ goes up to 157."""
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=size, layers_per_block=1, block_out_channels=(16, 16, 32), norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    with torch.no_grad():
        torch._foreach_mul_(list(network.parameters()), 1.5)
    return Model(vp(network, DDPMScheduler(prediction_type=prediction)), Consistency(2))


@pytest.mark.usefixtures("stock_here")
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("walk", [Consistency(2), Segments(8)])
def test_rounding_is_no_error(tmp_path, prediction: str, walk) -> None:
    """Float32 moves what predicts the noise σ times as far as what predicts v; both are the same images."""
    agreement = export(dataclasses.replace(loud(prediction), walk=walk), tmp_path / "out")
    assert agreement.largest < agreement.allowed / 2
    assert agreement.allowed > 1e-2 if prediction == "epsilon" else agreement.allowed < 2e-2


@pytest.mark.usefixtures("stock_here")
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_another_timestep_is_an_error(tmp_path, prediction: str) -> None:
    with pytest.raises(
        ValueError, match=r"differ from ours by up to .* 8 times the effect of float32 rounding.*; nothing was exported"
    ):
        export(dataclasses.replace(loud(prediction), walk=Beside(2)), tmp_path / "out")
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("stock_here")
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ["conv_in.weight", "mid_block.resnets.0.conv1.weight", "conv_out.weight"])
def test_other_weights_are_an_error(tmp_path, monkeypatch, prediction: str, name: str) -> None:
    """Weights in the exported folder that are larger by a thousandth in one layer."""

    def other_weights(denoiser, walk):
        denoiser = copy.deepcopy(denoiser)
        with torch.no_grad():
            denoiser.network.get_parameter(name).mul_(1.001)
        return stock_pipeline(denoiser, walk)

    monkeypatch.setattr(module, "stock_pipeline", other_weights)
    with pytest.raises(ValueError, match="differ from ours"):
        export(loud(prediction), tmp_path / "out")


@pytest.mark.usefixtures("stock_here")
def test_many_steps_agree_as_well(tmp_path) -> None:
    """So many that they do not divide the timesteps."""
    export(Model(tiny(), Consistency(90)), tmp_path / "out")
