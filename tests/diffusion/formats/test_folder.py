from __future__ import annotations

import json
import shutil

import pytest
import torch
from conftest import tiny
from diffusers import DDPMPipeline, DDPMScheduler, DiTTransformer2DModel, UNet2DModel

from fewstep.diffusion.data import Images
from fewstep.diffusion.denoiser import EDM, VP, Flow
from fewstep.diffusion.formats.folder import few_step_grid, few_step_pipeline, load, save, segments_of, wrap
from fewstep.diffusion.recipes import ect_cifar10
from fewstep.diffusion.tuning import tune


@pytest.mark.parametrize("parametrisation", ["vp", "edm"])
def test_save_and_load(tmp_path, parametrisation: str) -> None:
    denoiser = tiny(parametrisation)
    save(denoiser, tmp_path / "model")
    back = load(tmp_path / "model")
    x, sigma = torch.randn(4, 1, 8, 8), torch.tensor([0.1, 1.0, 10.0, 80.0])
    assert type(back) is type(denoiser) and back.sigma_max == denoiser.sigma_max
    with torch.no_grad():
        assert torch.equal(back(x, sigma), denoiser(x, sigma))


def test_schedulers_say_what_the_network_is() -> None:
    network = tiny().network
    assert wrap(network, {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085,
                          "beta_end": 0.012, "prediction_type": "v_prediction"}).prediction == "v_prediction"  # fmt: skip
    edm = wrap(network, {"_class_name": "EDMEulerScheduler", "sigma_data": 0.7, "sigma_max": 50.0})
    assert isinstance(edm, EDM) and (edm.sigma_data, edm.sigma_max, edm.time_scale) == (0.7, 50.0, 0.25)
    published = {"_class_name": "CMStochasticIterativeScheduler", "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}
    consistency = wrap(network, published)
    assert isinstance(consistency, EDM) and (consistency.offset, consistency.time_scale) == (0.002, 250.0)
    assert isinstance(wrap(network, {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}), Flow)
    with pytest.raises(ValueError, match="MysteryScheduler"):
        wrap(network, {"_class_name": "MysteryScheduler"})


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
    denoiser.scheduler.save_pretrained(tmp_path)
    x, sigma = torch.randn(2, 1, 8, 8), torch.ones(2)
    with torch.no_grad():
        assert torch.equal(load(tmp_path)(x, sigma), denoiser(x, sigma))


def test_code_in_a_bin_never_runs(tmp_path) -> None:
    class Attack:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    save(tiny(), tmp_path / "model")
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
    save(VP(network, DDPMScheduler()), tmp_path / "model")
    denoiser = load(tmp_path / "model")
    assert isinstance(denoiser, VP) and denoiser.conditional and denoiser.shape == (4, 8, 8)
    data = Images(torch.randn(16, 4, 8, 8), torch.randint(0, 10, (16,)))
    steps = list(tune(denoiser, data, **(ect_cifar10(16) | {"batch": 8})))
    assert len(steps) == 2
    with pytest.raises(ValueError, match="DiTTransformer2DModel"):
        few_step_pipeline(denoiser)


def test_public_cifar10_ddpm_format_tunes_and_resumes(tmp_path) -> None:
    """35.7 million parameters, three channels, 32×32: the format of the public CIFAR-10 DDPM, with random weights."""
    network = UNet2DModel(
        sample_size=32, in_channels=3, out_channels=3, layers_per_block=2, block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6,
    )  # fmt: skip
    assert 35e6 < sum(p.numel() for p in network.parameters()) < 36e6
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(tmp_path)
    data = Images(torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8))
    settings = ect_cifar10(10) | {"batch": 1}
    denoiser = load(tmp_path)
    state = next(step for step in tune(denoiser, data, **settings) if step.step == 5).state()
    rest = list(tune(load(tmp_path), data, state=state, **settings))
    assert [step.step for step in rest] == [6, 7, 8, 9, 10]
    moved = (rest[-1].student.network.conv_in.weight - network.conv_in.weight).abs().max()
    assert 0 < moved < 0.01


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_few_step_grid_starts_at_sigma_max_and_falls(steps: int) -> None:
    for denoiser in (tiny("vp"), tiny("edm"), tiny("vp", classes=3), Flow(tiny().network)):
        grid = few_step_grid(denoiser, steps)
        assert len(grid) == steps and float(grid[0]) == pytest.approx(denoiser.sigma_max)
        assert (grid[1:] < grid[:-1]).all() and (grid > 0).all()


def test_published_rho() -> None:
    """ρ = 16.21 puts the second of two steps at .821 with sigma_min .002 and sigma_max 80."""
    scheduler = few_step_pipeline(EDM(tiny("edm").network, offset=0.002), middle=0.821).scheduler
    assert scheduler.config.rho == pytest.approx(16.21, abs=0.005)
    assert float(few_step_grid(tiny("edm"), 2, middle=1.5)[1]) == pytest.approx(1.5, rel=1e-5)


def test_what_has_no_stock_pipeline_says_so() -> None:
    with pytest.raises(ValueError, match="no classes"):
        few_step_pipeline(tiny(classes=3))
    with pytest.raises(ValueError, match="middle timestep"):
        few_step_grid(tiny(), 2, middle=0.8)
    with pytest.raises(ValueError, match="own time"):
        few_step_pipeline(EDM(tiny().network, time_scale=0.25))
    with pytest.raises(ValueError, match="Flow"):
        few_step_pipeline(Flow(tiny().network))
    with pytest.raises(ValueError, match="between"):
        few_step_grid(tiny("edm"), 2, middle=79.0)


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
    save(tiny(), tmp_path / "model")
    breakage(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "model")


def test_a_student_knows_its_segments(tmp_path) -> None:
    save(tiny(), tmp_path / "teacher")
    save(tiny(), tmp_path / "student", segments=4)
    assert segments_of(tmp_path / "teacher") is None and segments_of(tmp_path / "student") == 4
    (tmp_path / "student" / "fewstep.json").write_text('{"segments": "many"}')
    with pytest.raises(ValueError, match="does not say how many segments"):
        segments_of(tmp_path / "student")


@pytest.mark.parametrize("denoiser", [Flow(tiny().network, sigma_max=80.0), EDM(tiny("edm").network, time_scale=0.25)])
def test_what_no_pipeline_samples_is_saved_as_its_parts(tmp_path, denoiser) -> None:
    save(denoiser, tmp_path / "model")
    back, x, sigma = load(tmp_path / "model"), torch.randn(2, 1, 8, 8), torch.tensor([0.5, 20.0])
    with torch.no_grad():
        torch.testing.assert_close(back(x, sigma), denoiser.eval()(x, sigma))
    assert back.sigma_max == denoiser.sigma_max
