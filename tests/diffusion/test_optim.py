from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DModel

from fewstep.diffusion.optim import Adam, Constant, Cosine, Dropout, InverseSqrt, RAdam


def test_learning_rates() -> None:
    assert Constant(0.1)(7, 0.5) == 0.1
    cosine = Cosine(1.0, warmup=9)
    assert [cosine(0, 0.0), cosine(9, 0.0), cosine(99, 0.5), cosine(99, 1.0)] == pytest.approx([0.1, 1.0, 0.5, 0.0])
    assert [InverseSqrt(1.0, 100)(step, 0.0) for step in (0, 100, 400)] == pytest.approx([1.0, 1.0, 0.5])


@pytest.mark.parametrize("factory", [RAdam((0.8, 0.9)), Adam((0.8, 0.9))])
def test_optimizers_have_no_decay(factory) -> None:
    optimizer = factory([torch.nn.Parameter(torch.ones(1))])
    assert optimizer.defaults["betas"] == (0.8, 0.9) and optimizer.defaults["weight_decay"] == 0


def test_dropout_by_size_needs_sizes() -> None:
    layers = torch.nn.Sequential(torch.nn.Dropout(0.1), torch.nn.Linear(1, 1))
    Dropout(0.4)(layers)
    assert layers[0].p == 0.4
    with pytest.raises(ValueError, match="needs a UNet"):
        Dropout(0.4, max_size=16)(layers)


def test_dropout_only_at_low_resolutions() -> None:
    network = UNet2DModel(
        sample_size=32, in_channels=1, out_channels=1, block_out_channels=(8, 8, 8), norm_num_groups=8, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 3, up_block_types=("UpBlock2D",) * 3,
    )  # fmt: skip
    Dropout(0.4, max_size=16)(network)
    found = {name: layer.p for name, layer in network.named_modules() if isinstance(layer, torch.nn.Dropout)}
    wide = {name for name in found if name.startswith(("down_blocks.0", "up_blocks.2"))}
    assert wide and all(found[name] == 0 for name in wide)
    assert all(found[name] == 0.4 for name in found.keys() - wide)
