"""Adapters in stock diffusers: its own loader, a second adapter beside ours, one file for each number of calls."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from families import FAMILIES
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.diffusion.cond import Cond, Tokens
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.formats import exporting_adapters
from fewstep.diffusion.formats.adapters import COMFY, FILE, write_adapter, write_for_comfyui
from fewstep.diffusion.formats.exporting_adapters import export_adapter
from fewstep.diffusion.lora import LoRA, adapt, at_strength, factors_along, factors_of, layers_of
from fewstep.diffusion.model import Model
from fewstep.diffusion.prediction import epsilon
from fewstep.diffusion.schedule import DiscreteVP
from fewstep.diffusion.two_times import TwoTimes
from fewstep.diffusion.walk import Segments, sample

SETTINGS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture
def stock(tmp_path, monkeypatch) -> StableDiffusionPipeline:
    """A pipeline with random weights, saved in base/, that is told embeddings and gives latents."""
    torch.manual_seed(1)
    monkeypatch.chdir(tmp_path)
    network = FAMILIES["UNet2DCondition"]()[0].network
    assert isinstance(network, UNet2DConditionModel)
    scheduler = DDIMScheduler(
        **SETTINGS, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True, steps_offset=1
    )
    nothing = dict.fromkeys(("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    pipeline = StableDiffusionPipeline(unet=network, scheduler=scheduler, requires_safety_checker=False, **nothing)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained("base")
    return pipeline


def student(*, any_steps: bool = False, targets: tuple[str, ...] = (), rank: int = 3) -> Denoiser:
    """Around the network in base/, with an adapter and a second time that say something."""
    network = UNet2DConditionModel.from_pretrained("base/unet").eval()
    row = Cond({"encoder_hidden_states": embeddings(1)})
    takes = {"encoder_hidden_states": Tokens((5, 12))}
    made = Denoiser(network, DiscreteVP(**SETTINGS), epsilon, takes=takes, blank=row)
    made = TwoTimes(made) if any_steps else made
    adapt(made, LoRA(rank, targets), base="base")
    spoken(made)
    return made.eval()


def spoken(denoiser: Denoiser, std: float = 0.2) -> None:
    for layer in layers_of(denoiser.network).values():
        nn.init.normal_(layer.lora_B["fewstep"].weight, std=std)
    for end in denoiser.embeddings() if isinstance(denoiser, TwoTimes) else ():
        nn.init.normal_(end.linear_2.weight, std=std)
        nn.init.normal_(end.linear_2.bias, std=std)


def embeddings(count: int) -> Tensor:
    return torch.randn(1, 5, 12, generator=torch.Generator().manual_seed(3)).expand(count, -1, -1)


def noise(seeds: range) -> Tensor:
    return torch.stack([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def latents(pipeline: StableDiffusionPipeline, steps: int) -> Tensor:
    """What the stock pipeline makes of seeds 0 and 1, with guidance off."""
    return pipeline(
        prompt_embeds=embeddings(2), latents=noise(range(2)), num_inference_steps=steps, guidance_scale=1.0,
        output_type="latent",
    ).images  # fmt: skip


def ours(denoiser: Denoiser, steps: int) -> Tensor:
    return sample(denoiser, range(2), Segments(steps), Cond({"encoder_hidden_states": embeddings(2)}))


def assert_same(theirs: Tensor, ours: Tensor) -> None:
    off = float((theirs - ours).abs().max() / ours.abs().max())
    assert off < 1e-5, f"{off:.2g} of the largest"


@pytest.mark.parametrize("targets", [(), ("conv1", "ff.net.0.proj", "to_q")])
def test_the_file_of_a_run_is_what_load_lora_weights_takes(stock, stock_here, targets) -> None:
    made = student(targets=targets)
    before = latents(stock, 4)
    Path("few").mkdir()
    write_adapter(Path("few"), made.network, factors_of(made.network))
    stock.load_lora_weights("few", adapter_name="few")
    assert_same(latents(stock, 4), ours(made, 4))
    stock.set_adapters(["few"], [0.5])
    assert_same(latents(stock, 4), ours(at_strength(made, 0.5), 4))
    assert not torch.allclose(before, latents(stock, 4), atol=1e-2)
    stock.set_adapters(["few"], [0.0])
    assert_same(latents(stock, 4), before)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_a_style_acts_beside_it(stock) -> None:
    made, style = student(), student(targets=("conv1", "to_k"), rank=2)
    for name, each in (("few", made), ("style", style)):
        Path(name).mkdir()
        write_adapter(Path(name), each.network, factors_of(each.network))
        stock.load_lora_weights(name, adapter_name=name)
    stock.set_adapters(["few", "style"], [1.0, 0.7])
    with torch.no_grad():  # by hand: the sum of both changes
        for place, layer in layers_of(style.network).items():
            base = made.network.get_submodule(place)
            weight = getattr(base, "base_layer", base).weight
            weight += 0.7 * layer.get_delta_weight("fewstep")
    assert_same(latents(stock, 4), ours(made, 4))
    both = latents(stock, 4)
    stock.set_adapters(["few"], [1.0])
    assert not torch.allclose(both, latents(stock, 4), atol=1e-2)


@pytest.mark.parametrize("targets", [(), ("time_embedding.linear_2", "to_q")])
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_each_point_of_an_any_step_student_is_an_ordinary_adapter(stock, stock_here, steps: int, targets) -> None:
    made = student(any_steps=True, targets=targets)
    model = Model(made, Segments(4))
    likeness = export_adapter(model, "few", walk=Segments(steps))
    assert likeness.largest <= likeness.allowed <= 1e-4
    file = load_file(f"few/{FILE}")
    a, b = (file[f"unet.time_embedding.linear_2.lora_{factor}.weight"] for factor in "AB")
    own = 3 if targets else 0
    assert a.shape == (steps + own, 32) and b.shape == (32, steps + own)
    stock.load_lora_weights("few")
    assert_same(latents(stock, steps), ours(made, steps))


def test_without_our_metadata_the_factors_say_the_same(stock) -> None:
    """Other tools read the tensors alone, in which the ranks differ."""
    made = student(any_steps=True)
    levels = made.schedule.grid(4)
    stock.load_lora_weights({f"unet.{name}": factor for name, factor in factors_along(made, levels).items()})
    assert_same(latents(stock, 4), ours(made, 4))


def test_kohyas_names_for_comfyui(stock, stock_here) -> None:
    """Diffusers reads them back for attention, which is all that its converter knows; the rest is compared by hand."""
    made = student()
    export_adapter(Model(made, Segments(2)), "few", form="comfyui")
    stock.load_lora_weights("few", weight_name=COMFY)
    assert_same(latents(stock, 2), ours(made, 2))
    told = student(any_steps=True)
    factors = factors_along(told, told.schedule.grid(2))
    write_for_comfyui(Path(), told.network, factors)
    named = load_file(COMFY)
    assert len(named) == 3 * len(factors) / 2
    assert torch.equal(
        named["lora_unet_time_embedding_linear_2.lora_up.weight"], factors["time_embedding.linear_2.lora_B.weight"]
    )
    assert named["lora_unet_time_embedding_linear_2.alpha"] == 2
    assert all(key.startswith("lora_unet_") and "." not in key.partition(".")[0] for key in named)


@pytest.mark.parametrize(("family", "known"), [("SD3", True), ("Flux", True), ("Wan", False), ("UNet2D, VP", False)])
def test_transformers_keep_diffusers_names_in_comfyui_if_it_knows_them(tmp_path, family: str, known: bool) -> None:
    network = FAMILIES[family]()[0]
    adapt(network, LoRA(2))
    factors = factors_of(network.network)
    if not known:
        with pytest.raises(ValueError, match="ComfyUI does not know"):
            write_for_comfyui(tmp_path, network.network, factors)
        return
    write_for_comfyui(tmp_path, network.network, factors)
    named = load_file(tmp_path / COMFY)
    assert {name for name in named if not name.endswith(".alpha")} == {f"transformer.{name}" for name in factors}


def test_an_export_is_verified_in_another_process_and_replaces_only_an_export(stock, stock_apart) -> None:
    model = Model(student(any_steps=True), Segments(2))
    export_adapter(model, "few")
    assert json.loads(Path("few/fewstep.json").read_text())["base"]["source"] == "base"
    assert {path.name for path in Path("few").iterdir()} == {FILE, "fewstep.json", "README.md"}
    export_adapter(model, "few", form="comfyui")
    shutil.copytree("base", "other")
    with pytest.raises(ValueError, match="no earlier export"):
        export_adapter(model, "other")


def test_an_export_that_says_other_things_does_not_appear(stock, stock_here, monkeypatch) -> None:
    def halved(folder, network, factors):
        write_adapter(folder, network, {name: factor / 2 for name, factor in factors.items()})

    monkeypatch.setattr(exporting_adapters, "write_adapter", halved)
    with pytest.raises(ValueError, match="nothing was exported"):
        export_adapter(Model(student(), Segments(2)), "few")
    assert not Path("few").exists()


def test_what_has_no_adapter_or_no_loader_is_refused() -> None:
    plain = FAMILIES["UNet2D, VP"]()[0]
    with pytest.raises(ValueError, match="only LoRA students have an adapter"):
        export_adapter(Model(plain, Segments(2)), "nowhere")
    adapt(plain, LoRA(2))
    with pytest.raises(ValueError, match="loads no adapters into a UNet2DModel; use --form pipeline"):
        export_adapter(Model(plain, Segments(2)), "nowhere")
