from __future__ import annotations

import json
import shutil

import pytest
import torch
from conftest import noise_images, tiny
from diffusers import (
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DiTTransformer2DModel,
    ScoreSdeVePipeline,
    ScoreSdeVeScheduler,
    UNet2DModel,
)

from fewstep.diffusion.cond import Classes
from fewstep.diffusion.data import Images
from fewstep.diffusion.denoiser import edm, flow, vp
from fewstep.diffusion.formats import schedulers
from fewstep.diffusion.formats.folder import load, save
from fewstep.diffusion.formats.pipelines import stock_pipeline
from fewstep.diffusion.model import Model
from fewstep.diffusion.prediction import Preconditioned, unit_score, v_prediction, velocity
from fewstep.diffusion.recipes import ect_cifar10
from fewstep.diffusion.schedule import DiscreteVP, Exploding, Karras, Rectified
from fewstep.diffusion.space import Latents
from fewstep.diffusion.tuning import tune
from fewstep.diffusion.walk import Consistency, Heun, Segments


@pytest.mark.parametrize("parametrisation", ["vp", "edm"])
def test_save_and_load(tmp_path, parametrisation: str) -> None:
    denoiser = tiny(parametrisation)
    save(Model(denoiser, Heun()), tmp_path / "model")
    model = load(tmp_path / "model")
    back = model.denoiser
    x, sigma = torch.randn(4, 1, 8, 8), torch.tensor([0.1, 1.0, 10.0, 80.0])
    assert (back.schedule, back.prediction) == (denoiser.schedule, denoiser.prediction)
    assert model.walk == Heun() and not model.is_student
    with torch.no_grad():
        assert torch.equal(back(x, sigma), denoiser(x, sigma))


def test_schedulers_say_what_the_network_is() -> None:
    config = {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    schedule, prediction = schedulers.read(config | {"prediction_type": "v_prediction"})
    assert schedule == DiscreteVP(1000, 0.00085, 0.012, "scaled_linear") and prediction is v_prediction
    own = schedulers.read({"_class_name": "EDMEulerScheduler", "sigma_data": 0.7, "sigma_max": 50.0})
    assert own == (Karras(0.7, sigma_max=50.0, time_scale=0.25), Preconditioned(0.7))
    published = {"_class_name": "CMStochasticIterativeScheduler", "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}
    assert schedulers.read(published) == (Karras(0.5, sigma_max=80.0), Preconditioned(0.5, offset=0.002))
    shifted = schedulers.read({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
    assert shifted == (Rectified(shift=3.0), velocity)
    with pytest.raises(ValueError, match="MysteryScheduler"):
        schedulers.read({"_class_name": "MysteryScheduler"})
    with pytest.raises(ValueError, match="positive number as sigma_data"):
        schedulers.read(published | {"sigma_data": "half"})


def test_a_score_sde_reads_samples_and_tunes(tmp_path) -> None:
    """A small NCSN++ as its pipeline writes it: the network sees and is told what the pipeline shows and tells it."""
    network = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(32, 32), norm_num_groups=None,
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"), up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        time_embedding_type="fourier", center_input_sample=True,
    ).eval()  # fmt: skip
    ScoreSdeVePipeline(network, ScoreSdeVeScheduler(sigma_max=50.0)).save_pretrained(tmp_path / "published")
    denoiser = load(tmp_path / "published").denoiser
    assert (denoiser.schedule, denoiser.prediction) == (Exploding(0.02, 100.0), unit_score)
    x, sigma = torch.randn(3, 3, 8, 8), torch.tensor([0.02, 1.0, 100.0])
    with torch.no_grad():
        score = network((x + 1) / 2, sigma / 2).sample
        shown = (x + 1) / 2 + (sigma / 2).view(3, 1, 1, 1) ** 2 * score
        torch.testing.assert_close(denoiser(x, sigma), 2 * shown - 1)
        assert torch.equal(denoiser(x, torch.zeros(3)), x)
    drawn = load(tmp_path / "published").sample([0, 1])
    assert drawn.shape[0] == 2 and len(list(tune(denoiser, noise_images(8, 3), **(ect_cifar10(16) | {"batch": 8})))) == 2
    save(Model(denoiser, Consistency(2)), tmp_path / "student")
    student = load(tmp_path / "student")
    with torch.no_grad():
        assert torch.equal(student.denoiser(x, sigma), denoiser.eval()(x, sigma))
    assert (student.walk, student.denoiser.schedule) == (Consistency(2), denoiser.schedule)


def test_old_layout_with_plain_tensors_in_bin(tmp_path) -> None:
    """The public DDPM repositories keep all files at the top, weights in a .bin."""
    denoiser = tiny()
    denoiser.network.save_pretrained(tmp_path, safe_serialization=False)
    (tmp_path / "model_index.json").write_text(
        json.dumps(
            {
                "_class_name": "DDPMPipeline",
                "unet": ["diffusers", "UNet2DModel"],
                "scheduler": ["diffusers", "DDPMScheduler"],
            }
        )
    )
    schedulers.write(denoiser).save_pretrained(tmp_path)
    x, sigma = torch.randn(2, 1, 8, 8), torch.ones(2)
    with torch.no_grad():
        assert torch.equal(load(tmp_path).denoiser(x, sigma), denoiser(x, sigma))


def test_code_in_a_bin_never_runs(tmp_path) -> None:
    class Attack:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    save(Model(tiny(), Heun()), tmp_path / "model")
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    torch.save({"conv_in.weight": Attack()}, weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match="more than plain tensors"):
        load(tmp_path / "model")
    assert not (tmp_path / "ran").exists()


def test_dit_loads_samples_and_tunes(tmp_path) -> None:
    """A latent, class-conditional transformer with learned variance."""
    network = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10, norm_type="ada_norm_zero", norm_elementwise_affine=False,
    )  # fmt: skip
    save(Model(vp(network, DDPMScheduler()), Heun()), tmp_path / "model")
    denoiser = load(tmp_path / "model").denoiser
    assert isinstance(denoiser.schedule, DiscreteVP) and denoiser.space == Latents((4, 8, 8))
    assert denoiser.takes == {"class_labels": Classes(10, null=10)}
    data = Images(torch.randn(16, 4, 8, 8), torch.randint(0, 10, (16,)))
    steps = list(tune(denoiser, data, **(ect_cifar10(16) | {"batch": 8})))
    assert len(steps) == 2
    with pytest.raises(ValueError, match="DiTTransformer2DModel"):
        stock_pipeline(denoiser, Consistency())


def test_public_cifar10_ddpm_format_tunes_and_resumes(tmp_path) -> None:
    """The format of the public CIFAR-10 DDPM, three channels, 32×32, at a quarter of its widths, with random weights."""
    network = UNet2DModel(
        sample_size=32, in_channels=3, out_channels=3, layers_per_block=2, block_out_channels=(32, 64, 64, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6,
    )  # fmt: skip
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(tmp_path)
    data = Images(torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8))
    settings = ect_cifar10(4) | {"batch": 1}
    denoiser = load(tmp_path).denoiser
    state = next(step for step in tune(denoiser, data, **settings) if step.step == 2).state()
    rest = list(tune(load(tmp_path).denoiser, data, state=state, **settings))
    assert [step.step for step in rest] == [3, 4]
    moved = (rest[-1].student.network.conv_in.weight - network.conv_in.weight).abs().max()
    assert 0 < moved < 0.01


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        (shutil.rmtree, "is not a folder"),
        (lambda folder: (folder / "model_index.json").unlink(), "no model_index.json"),
        (lambda folder: (folder / "model_index.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "model_index.json").write_text('{"vqvae": ["diffusers", "VQModel"]}'), "VQModel"),
        (lambda folder: shutil.rmtree(folder / "scheduler"), "scheduler_config.json"),
        (
            lambda folder: (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"x"),
            "cut off or no safetensors",
        ),
    ],
)
def test_broken_folders_say_what_is_wrong(tmp_path, breakage, message: str) -> None:
    save(Model(tiny(), Heun()), tmp_path / "model")
    breakage(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "model")


@pytest.mark.parametrize("walk", [Segments(4), Consistency(), Consistency(2, middle=1.5)], ids=repr)
def test_a_student_knows_how_it_is_sampled(tmp_path, walk) -> None:
    save(Model(tiny("edm"), walk), tmp_path / "student")
    assert load(tmp_path / "student").walk == walk and load(tmp_path / "student").is_student
    for note, message in (
        ('{"format": 1, "walk": {"name": "Segments", "steps": "many"}}', "does not say how the student is sampled"),
        ('{"format": 1, "walk": {"name": "Magic"}}', "does not say how the student is sampled"),
        ('{"format": 7}', "has format 7"),
        ('{"format": 1, "walk": "Segments"}', "does not say how the student is sampled"),
    ):
        (tmp_path / "student" / "fewstep.json").write_text(note)
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "student")


def test_a_published_consistency_model_is_a_student(tmp_path) -> None:
    """Its folder has no note of ours; the scheduler's sigma_min is where it is the identity."""
    stock_pipeline(edm(tiny("edm").network, offset=0.002), Consistency()).save_pretrained(tmp_path)
    assert load(tmp_path).walk == Consistency()


@pytest.mark.parametrize(
    "denoiser",
    [flow(tiny().network, sigma_max=80.0), flow(tiny().network, shift=3.0), edm(tiny("edm").network, time_scale=0.25)],
)
def test_what_no_pipeline_samples_is_saved_as_its_parts(tmp_path, denoiser) -> None:
    """Stock diffusers refuses them; a DDPMPipeline would draw wrong images of them and say nothing."""
    save(Model(denoiser, Heun()), tmp_path / "model")
    back, x, sigma = load(tmp_path / "model").denoiser, torch.randn(2, 1, 8, 8), torch.tensor([0.5, 20.0])
    with torch.no_grad():
        torch.testing.assert_close(back(x, sigma), denoiser.eval()(x, sigma))
    assert back.schedule == denoiser.schedule
    with pytest.raises(ValueError, match="DiffusionPipeline"):
        DiffusionPipeline.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    ("parametrisation", "classes", "runs"), [("vp", 0, True), ("edm", 0, True), ("vp", 3, False), ("edm", 3, True)]
)
def test_what_stock_diffusers_opens_it_samples(tmp_path, parametrisation: str, classes: int, runs: bool) -> None:
    save(Model(tiny(parametrisation, classes=classes), Heun()), tmp_path / "model")
    if not runs:
        with pytest.raises(ValueError, match="DiffusionPipeline"):
            DiffusionPipeline.from_pretrained(tmp_path / "model")
        return
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 1)
