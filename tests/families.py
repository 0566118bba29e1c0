"""Tiny networks of many families with random weights, each with one row of what it is called with."""

from __future__ import annotations

import torch
from conftest import tiny
from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet1DModel,
    UNet2DConditionModel,
    WanTransformer3DModel,
)
from torch import nn

from fewstep.diffusion.cond import NOTHING, Cond, labelled
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.prediction import velocity
from fewstep.diffusion.schedule import Rectified
from fewstep.diffusion.space import Latents


def foreign(network: nn.Module, *shape: int, **rows: torch.Tensor) -> tuple[Denoiser, Cond]:
    """A flow model around any network, with one row of what it is called with."""
    denoiser = Denoiser(network.eval(), Rectified(), velocity, space=Latents(shape), takes={})
    return denoiser, Cond({name: value[None] for name, value in rows.items()})


def unet_2d(parametrisation: str, classes: int = 0) -> tuple[Denoiser, Cond]:
    denoiser = tiny(parametrisation, classes=classes)
    return denoiser, labelled(torch.zeros(1, dtype=torch.long)) if classes else NOTHING


def unet_condition() -> tuple[Denoiser, Cond]:
    network = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12, attention_head_dim=2,
    )  # fmt: skip
    return foreign(network, 4, 8, 8, encoder_hidden_states=torch.randn(5, 12))


def unet_1d() -> tuple[Denoiser, Cond]:
    network = UNet1DModel(
        sample_size=32, in_channels=2, out_channels=2, time_embedding_type="positional", use_timestep_embedding=True,
        block_out_channels=(8, 8, 8), down_block_types=("DownResnetBlock1D",) * 3, up_block_types=("UpResnetBlock1D",) * 2,
        mid_block_type="MidResTemporalBlock1D", out_block_type="OutConv1DBlock", act_fn="swish", norm_num_groups=8,
        layers_per_block=1,
    )  # fmt: skip
    return foreign(network, 2, 32)


def dit() -> tuple[Denoiser, Cond]:
    network = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=8, patch_size=2,
        num_embeds_ada_norm=3, norm_type="ada_norm_zero", norm_elementwise_affine=False,
    )  # fmt: skip
    return foreign(network, 4, 8, 8, class_labels=torch.tensor(1))


def pixart() -> tuple[Denoiser, Cond]:
    network = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=2, sample_size=8,
        cross_attention_dim=16, caption_channels=12,
    )  # fmt: skip
    denoiser, cond = foreign(network, 4, 8, 8, encoder_hidden_states=torch.randn(5, 12))
    return denoiser, Cond(cond.rows, {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}})


def sd3() -> tuple[Denoiser, Cond]:
    network = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=10, out_channels=4,
    )  # fmt: skip
    return foreign(network, 4, 8, 8, encoder_hidden_states=torch.randn(5, 12), pooled_projections=torch.randn(10))


def flux() -> tuple[Denoiser, Cond]:
    network = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=12, pooled_projection_dim=10, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    rows = {"encoder_hidden_states": torch.randn(5, 12), "pooled_projections": torch.randn(10)}
    denoiser, cond = foreign(network, 16, 4, **rows)
    return denoiser, Cond(cond.rows, {"img_ids": torch.randn(16, 3), "txt_ids": torch.zeros(5, 3)})


def sana() -> tuple[Denoiser, Cond]:
    network = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2, sample_size=8,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=12, patch_size=1,
    )  # fmt: skip
    return foreign(network, 4, 8, 8, encoder_hidden_states=torch.randn(5, 12))


def wan() -> tuple[Denoiser, Cond]:
    network = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=12,
        freq_dim=16, ffn_dim=24, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip
    return foreign(network, 4, 3, 8, 8, encoder_hidden_states=torch.randn(5, 12))


FAMILIES = {
    "UNet2D, VP": lambda: unet_2d("vp"), "UNet2D, EDM": lambda: unet_2d("edm"),
    "UNet2D with classes": lambda: unet_2d("vp", classes=3), "UNet2DCondition": unet_condition, "UNet1D": unet_1d,
    "DiT, a time embedding in each block": dit, "PixArt": pixart, "SD3": sd3, "Flux": flux, "Sana": sana, "Wan": wan,
}  # fmt: skip
