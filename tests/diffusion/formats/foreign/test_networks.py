"""What tuning asks of the networks that diffusers does not have."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DModel

from fewstep.diffusion.cond import labelled
from fewstep.diffusion.denoiser import edm
from fewstep.diffusion.formats.foreign.edm2 import EDM2UNet, MPConv
from fewstep.diffusion.formats.foreign.fold import in_consistency_time
from fewstep.diffusion.formats.foreign.song import SongUNet
from fewstep.diffusion.schedule import Karras
from fewstep.diffusion.two_times import TwoTimes

SONG = {"sample_size": 8, "model_channels": 16, "channel_mult": (1, 2), "layers_per_block": 1, "attn_resolutions": (4,)}
EDM2 = SONG | {"model_channels": 64, "num_class_embeds": 3}


def networks() -> list[torch.nn.Module]:
    torch.manual_seed(0)
    made = [SongUNet(**SONG, encoder_type="residual", resample_filter=(1, 3, 3, 1)), EDM2UNet(**EDM2)]
    made[1].out_gain.data.fill_(1.0)
    return made


def called(network: torch.nn.Module) -> torch.Tensor:
    labels = {"class_labels": torch.tensor([0, 2])} if network.config["num_class_embeds"] else {}
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return network(x, torch.tensor([-1.0, 0.5]), **labels).sample


@pytest.mark.parametrize("network", networks(), ids=lambda network: type(network).__name__)
def test_half_precision_is_near_and_every_weight_learns(network: torch.nn.Module) -> None:
    whole = called(network.train())
    whole.square().mean().backward()
    idle = [name for name, weight in network.named_parameters() if weight.grad is None]
    assert not idle
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = called(network)
    assert float((half - whole).detach().square().mean() / whole.detach().square().mean()) < 1e-3


@torch.no_grad()
def test_edm2s_weights_are_set_to_unit_magnitude_in_training_alone() -> None:
    layer = MPConv(8, 4, 3)
    layer.weight.mul_(torch.tensor([1.0, 2.0, 5.0, 0.1])[:, None, None, None])
    x, before = torch.randn(2, 8, 5, 5), layer.weight.clone()
    wanted = layer.eval()(x)
    assert layer.weight.equal(before)
    layer.train()(x)
    assert layer.weight.equal(before), "a target leaves them alone"
    with torch.enable_grad():
        made = layer(x)
    torch.testing.assert_close(made, wanted, atol=3e-3, rtol=0)
    torch.testing.assert_close(layer.weight.square().mean((1, 2, 3)), torch.ones(4), atol=5e-3, rtol=0)


def test_a_target_between_a_students_call_and_its_gradient_changes_nothing() -> None:
    network = networks()[1].train()
    student = called(network)
    with torch.no_grad():
        target = called(network)
    (student - target - 1).square().mean().backward()
    assert network.emb_noise.weight.grad.isfinite().all()


def test_a_second_time_has_no_place_in_them() -> None:
    with pytest.raises(ValueError, match="no time embedding to which a second time could be added"):
        TwoTimes(edm(networks()[0], time_scale=0.25))


def test_they_are_denoisers_like_all_others() -> None:
    denoiser = edm(networks()[1], time_scale=0.25)
    x = torch.randn(2, 3, 8, 8)
    assert denoiser(x, torch.zeros(2), labelled(torch.tensor([0, 1]))).equal(x)
    with pytest.raises(ValueError, match="knows the labels 0 to 2"):
        denoiser.check(labelled(torch.tensor([3, 0])))


@pytest.mark.parametrize("channels", [32, 192])
def test_the_change_of_time_is_as_exact_as_float32(channels: int) -> None:
    torch.manual_seed(0)
    blocks = {"block_out_channels": (channels,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    network = UNet2DModel(sample_size=8, layers_per_block=1, **blocks)
    before = network.time_embedding.linear_1.weight.abs().max()
    levels = torch.tensor([0.0007, 0.002, 0.5, 80.0]).log()
    with torch.no_grad():
        wanted = network.time_embedding(network.time_proj(levels / 4))
        assert in_consistency_time(network, Karras(time_scale=0.25)) < 5e-7
        found = network.time_embedding(network.time_proj(250 * levels))
    torch.testing.assert_close(found, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=0)
    assert network.time_embedding.linear_1.weight.abs().max() < 5 * before, "nor does a large weight wait for its gradient"


def test_published_sizes_are_met() -> None:
    """Millions of weights of EDM2-XS to XXL (Karras et al. 2024, table 2) and of EDM's DDPM++ for CIFAR-10."""
    channels = (128, 192, 256, 320, 384, 448)
    latents = {"in_channels": 4, "out_channels": 4, "num_class_embeds": 1000}
    with torch.device("meta"):
        made = [EDM2UNet(sample_size=64, model_channels=each, **latents) for each in channels]
        made.append(SongUNet(channel_mult=(2, 2, 2)))
    counts = [sum(weight.numel() for weight in network.parameters()) / 1e6 for network in made]
    assert counts == pytest.approx([125, 280, 498, 777, 1119, 1523, 55.7], abs=0.6)
