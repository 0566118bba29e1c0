"""An ADM network that takes a number in place of a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from ...cond import Tokens


class ScalarUNet(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """F(x, time, number) of EDM's preconditioning, where time is 250·ln σ: a UNet2DModel and an embedding of a number.

    Its settings are those of `UNet2DModel`. The meaning of `number` (B,) depends on the training, such as the difficulty of
    a terrain.
    """

    takes: ClassVar[dict[str, Tokens]] = {"number": Tokens(())}

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sample_size: int = 64,
        in_channels: int = 3,
        out_channels: int = 3,
        block_out_channels: Sequence[int] = (192, 384, 576, 768),
        layers_per_block: int = 3,
        attention_head_dim: int = 64,
        down_block_types: Sequence[str] = ("ResnetDownsampleBlock2D", *["AttnDownBlock2D"] * 3),
        up_block_types: Sequence[str] = (*["AttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift: str = "scale_shift",
    ) -> None:
        super().__init__()
        self.unet = UNet2DModel(
            sample_size=sample_size, in_channels=in_channels, out_channels=out_channels,
            block_out_channels=block_out_channels, layers_per_block=layers_per_block,
            attention_head_dim=attention_head_dim, attn_norm_num_groups=32, down_block_types=down_block_types,
            up_block_types=up_block_types, downsample_type="resnet", upsample_type="resnet",
            resnet_time_scale_shift=resnet_time_scale_shift, class_embed_type="identity",
        )  # fmt: skip
        width = 4 * block_out_channels[0]
        self.label_emb = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, sample: Tensor, timestep: Tensor, number: Tensor) -> UNet2DOutput:
        """The output (B, C, H, W) of samples (B, C, H, W), times (B,) and numbers (B,)."""
        return self.unet(sample, timestep, self.label_emb(number.to(sample.dtype)[:, None]))
