"""Weights as people have them: in halves, in shards, under other names, with a variance. The outputs say which is which."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from conftest import tiny
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DiTTransformer2DModel, UNet2DModel
from safetensors.torch import load_file, save_file

from fewstep.diffusion.formats.folder import load, save
from fewstep.diffusion.formats.network import OLD_NAMES
from fewstep.diffusion.model import Model
from fewstep.diffusion.walk import Heun

WEIGHTS = "diffusion_pytorch_model"


@pytest.fixture
def model(tmp_path) -> Path:
    save(Model(tiny(), Heun()), tmp_path / "model")
    return tmp_path / "model"


def estimates(denoiser) -> torch.Tensor:
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        return denoiser(torch.randn(2, *denoiser.space.shape, generator=rng), torch.tensor([0.5, 20.0]))


def rename(model: Path, names) -> None:
    file = model / "unet" / f"{WEIGHTS}.safetensors"
    save_file({new: weight.clone() for name, weight in load_file(file).items() for new in names(name)}, file)


def old(name: str) -> str:
    """The name that diffusers had for a weight of attention before 0.13."""
    for before, now in OLD_NAMES.items():
        name = name.replace(f".{now}.", f".{before}.")
    return name


@pytest.mark.parametrize(
    "names",
    [
        lambda name: [f"module.{name}"],
        lambda name: [f"_orig_mod.{name}"],
        lambda name: [f"module._orig_mod.{name}"],
        lambda name: [f"unet.{name}"],
        lambda name: [f"model.{name}"],
        lambda name: [f"ema.model.{name}"],
        lambda name: [name.replace("mid_block.", "mid_block._orig_mod.")],
        lambda name: [old(name)],
        lambda name: [f"module.{old(name)}"],
    ],
)
def test_wrappers_and_older_names_are_read(model, names) -> None:
    rename(model, names)
    assert torch.equal(estimates(load(model).denoiser), estimates(tiny()))


def test_a_configuration_of_the_first_diffusers(model) -> None:
    """It leaves out what there was no choice of yet and has a setting that is gone; whole defaults may be fractions."""
    file = model / "unet" / "config.json"
    config = json.loads(file.read_text())
    since = ("add_attention", "attn_norm_num_groups", "class_embed_type", "downsample_type", "upsample_type",
             "mid_block_type", "resnet_time_scale_shift", "time_embedding_dim", "num_train_timesteps", "dropout",
             "num_class_embeds")  # fmt: skip
    first = {name: value for name, value in config.items() if name not in since}
    file.write_text(json.dumps(first | {"resnet_num_groups": 32, "mid_block_scale_factor": 1.0, "norm_eps": 1e-05}))
    assert torch.equal(estimates(load(model).denoiser), estimates(tiny()))
    file.write_text(json.dumps(first | {"mid_block_scale_factor": 1.5}))
    assert not torch.equal(estimates(load(model).denoiser), estimates(tiny()))


def test_an_averaged_model_counts_beside_its_weights(model) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(tiny().network)
    save_file(dict(averaged.state_dict()), model / "unet" / f"{WEIGHTS}.safetensors")
    assert "n_averaged" in averaged.state_dict()
    assert torch.equal(estimates(load(model).denoiser), estimates(tiny()))


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (lambda name: [] if name.startswith("conv_out") else [name], "2 missing, such as conv_out.bias"),
        (lambda name: [name, "surplus.weight"] if name == "conv_in.bias" else [name], "1 unknown, such as surplus.weight"),
        (lambda name: [name, f"module.{name}"], "unknown, such as module."),
        (lambda name: ["conv_in.bias" if name == "conv_out.bias" else name] if name != "conv_in.bias" else [],
         "1 missing, such as conv_out.bias, 1 of another shape, such as conv_in.bias"),
        (lambda name: [f"{name[0]}.{name}"], "missing, such as conv_in.bias"),
    ],
)  # fmt: skip
def test_no_weight_is_made_up(model, names, sentence: str) -> None:
    rename(model, names)
    with pytest.raises(ValueError, match=sentence):
        load(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_are_finite(model, value: float) -> None:
    file = model / "unet" / f"{WEIGHTS}.safetensors"
    weights = load_file(file)
    weights["conv_out.weight"] = weights["conv_out.weight"].double()
    weights["conv_out.weight"][0, 0, 0, 0] = value
    save_file(weights, file)
    with pytest.raises(ValueError, match=r"conv_out\.weight in .* not finite"):
        load(model)


@pytest.mark.parametrize(
    "name", [f"{WEIGHTS}.fp16.safetensors", f"{WEIGHTS}.fp16.bin", f"{WEIGHTS}.ema.safetensors", f"{WEIGHTS}.bin"]
)
def test_a_variant_alone_is_found(model, name: str) -> None:
    whole = model / "unet" / f"{WEIGHTS}.safetensors"
    weights = {name: weight.half() for name, weight in load_file(whole).items()}
    whole.unlink()
    if name.endswith("bin"):
        torch.save(weights, whole.with_name(name))
    else:
        save_file(weights, whole.with_name(name))
    expected = tiny()
    expected.network.half().float()
    assert torch.equal(estimates(load(model).denoiser), estimates(expected))


def test_of_several_variants_the_whole_one_or_none(model) -> None:
    whole = model / "unet" / f"{WEIGHTS}.safetensors"
    for variant in ("fp16", "non_ema"):
        save_file({"other": torch.ones(1)}, whole.with_name(f"{WEIGHTS}.{variant}.safetensors"))
    load(model)
    whole.unlink()
    with pytest.raises(ValueError, match=r"fp16.* and .*non_ema.*rename"):
        load(model)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_as_diffusers_writes_them(model, variant: str | None) -> None:
    whole = model / "unet" / f"{WEIGHTS}.safetensors"
    whole.unlink()
    tiny().network.save_pretrained(model / "unet", max_shard_size="20KB", variant=variant)
    assert not whole.exists() and len(list((model / "unet").glob("*-of-*"))) > 1
    assert torch.equal(estimates(load(model).denoiser), estimates(tiny()))


def test_loading_is_quiet_and_leaves_random_numbers_alone(model, capfd, caplog) -> None:
    """Diffusers itself says that an error occurred wherever it finds a .bin only, and then loads it."""
    whole = model / "unet" / f"{WEIGHTS}.safetensors"
    torch.save(load_file(whole), whole.with_suffix(".bin"))
    whole.unlink()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    with caplog.at_level(logging.INFO):
        load(model)
    assert torch.equal(torch.rand(1), expected)
    assert capfd.readouterr() == ("", "") and not caplog.records


def learned_variance() -> UNet2DModel:
    return UNet2DModel(
        sample_size=8, in_channels=3, out_channels=6, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def test_a_learned_variance_is_cut_to_its_mean(tmp_path) -> None:
    """The network's own first channels are the oracle; and stock diffusers samples what is saved."""
    network = learned_variance()
    DDPMPipeline(network, DDPMScheduler(variance_type="learned_range")).save_pretrained(tmp_path / "published")
    denoiser = load(tmp_path / "published").denoiser
    x, time = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 700.0])
    with torch.no_grad():
        torch.testing.assert_close(denoiser.network(x, time).sample, network.eval()(x, time).sample[:, :3])
    save(Model(denoiser, Heun()), tmp_path / "saved")
    stock = DDPMPipeline.from_pretrained(tmp_path / "saved")
    stock.set_progress_bar_config(disable=True)
    images = stock(batch_size=1, num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 8, 8, 3)
    assert torch.equal(estimates(load(tmp_path / "saved").denoiser), estimates(denoiser))


def dit(**settings) -> DiTTransformer2DModel:
    return DiTTransformer2DModel(
        **{"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 1,
           "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 10} | settings,
    )  # fmt: skip


def test_a_published_dit_bears_the_older_name(tmp_path) -> None:
    """Its transformer says Transformer2DModel and has settings that today's class does not know, and a learned variance."""
    network = dit()
    network.save_pretrained(tmp_path / "transformer", safe_serialization=False)
    config = json.loads((tmp_path / "transformer" / "config.json").read_text())
    config |= {"_class_name": "Transformer2DModel", "cross_attention_dim": None, "num_vector_embeds": None,
               "only_cross_attention": False, "use_linear_projection": False}  # fmt: skip
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config))
    DDIMScheduler().save_pretrained(tmp_path / "scheduler")
    index = {"_class_name": "DiTPipeline", "scheduler": ["diffusers", "DDIMScheduler"],
             "transformer": ["diffusers", "Transformer2DModel"], "id2label": {"0": "tench"}}  # fmt: skip
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    denoiser = load(tmp_path).denoiser
    x, time, labels = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 700.0]), torch.tensor([1, 10])
    with torch.no_grad():
        ours = denoiser.network(x, time, class_labels=labels).sample
        theirs = network.eval()(x, time, class_labels=labels).sample
    torch.testing.assert_close(ours, theirs[:, :4])
    assert not torch.allclose(ours, theirs[:, 4:])
    config["sample_size"] = 5000  # whose table of places alone would take 400 MB
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="sample_size = 5000, which takes too much memory"):
        load(tmp_path)


@pytest.mark.parametrize(("pipeline", "part"), [("DiTPipeline", "vae"), ("LDMPipeline", "vqvae")])
def test_parts_that_are_missing_are_named(model, pipeline: str, part: str) -> None:
    index = json.loads((model / "model_index.json").read_text())
    index |= {"_class_name": pipeline, part: ["diffusers", "AutoencoderKL"]}
    (model / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=f"its {part} is a AutoencoderKL, but has no folder {part};"):
        load(model)
    (model / "model_index.json").write_text(json.dumps(index | {part: [None, None]}))
    load(model)
