"""The magnitude-preserving network of EDM2's checkpoints, with its published parameter names."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from .ladder import Rung, doubled, halved, ladder


def normalized(x: Tensor, dims: Sequence[int] = ()) -> Tensor:
    """`x` divided by its root mean square along `dims`, by default all but the first. Reference: eq. 30, ε = 1e-4."""
    along = tuple(dims) or tuple(range(1, x.ndim))
    size = math.prod(x.shape[dim] for dim in along)
    length: Tensor = torch.linalg.vector_norm(x, dim=along, keepdim=True, dtype=torch.float32) / size**0.5
    even: Tensor = x / (length + 1e-4).to(x.dtype)
    return even


def silu(x: Tensor) -> Tensor:
    """SiLU divided by the magnitude of its output for a standard normal input. Reference: eq. 81."""
    return nn.functional.silu(x) / 0.596


def blend(a: Tensor, b: Tensor, share: float) -> Tensor:
    """(1 − share)·a + share·b, scaled to the magnitude of either for independent a and b. Reference: eq. 88."""
    return torch.lerp(a, b, share) / math.hypot(1 - share, share)


def joined(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Concatenates a and b with shares 1 − share and share of the magnitude. Reference: eq. 103."""
    scale = math.sqrt(a.shape[1] + b.shape[1]) / math.hypot(1 - share, share)
    return torch.cat([a * (scale * (1 - share) / a.shape[1] ** 0.5), b * (scale * share / b.shape[1] ** 0.5)], 1)


class MPFourier(nn.Module):
    """√2·cos(f·t + φ), with random f and φ, which are stored in the checkpoint. Reference: eq. 75."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def forward(self, time: Tensor) -> Tensor:
        freqs, phases = (self.get_buffer(name).float() for name in ("freqs", "phases"))
        waves: Tensor = 2**0.5 * torch.cos(time.float()[:, None] * freqs + phases)
        return waves.to(time.dtype)


class MPConv(nn.Module):
    """A linear layer or convolution with weights normalised to unit magnitude. Reference: eq. 47 and 66.

    In training the stored weights are normalised as well, because gradients would shrink as weights grow. This is done only
    in calls with gradient: a target that is computed between the student's call and its backward pass must not change the
    weights.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *[kernel] * 2 if kernel else ()))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        if self.training and torch.is_grad_enabled() and self.weight.requires_grad:
            with torch.no_grad():
                self.weight.copy_(normalized(self.weight.float()))
        weight = normalized(self.weight.float()) * (gain / self.weight[0].numel() ** 0.5)
        weight = weight.to(x.dtype)
        return (
            nn.functional.linear(x, weight)
            if weight.ndim == 2
            else nn.functional.conv2d(x, weight, padding=weight.shape[-1] // 2)
        )


class Block(nn.Module):
    """A block of the encoder or the decoder. Reference: fig. 21.

    Args:
        heads: number of attention heads; 0 for no attention.
        encodes: whether it is in the encoder.
        balances: share of the residual branch, and of attention, in its sum with the main branch.
        clip: bound on activations, ± clip; None for no bound.
    """

    def __init__(
        self, rung: Rung, embedded: int, *, heads: int, encodes: bool, dropout: float, taps: Sequence[int],
        balances: tuple[float, float], clip: float | None,
    ) -> None:  # fmt: skip
        super().__init__()
        inputs, outputs = rung.inputs, rung.outputs
        self.resample = rung.kind if rung.kind in ("down", "up") else ""
        self.heads, self.encodes, self.balances, self.clip = heads, encodes, balances, clip
        self.register_buffer("taps", torch.tensor(taps, dtype=torch.float32), persistent=False)
        self.emb_gain = nn.Parameter(torch.zeros(()))
        self.conv_res0 = MPConv(outputs if encodes else inputs, outputs, 3)
        self.emb_linear = MPConv(embedded, outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv_res1 = MPConv(outputs, outputs, 3)
        self.conv_skip = MPConv(inputs, outputs, 1) if inputs != outputs else None
        self.attn_qkv = MPConv(outputs, 3 * outputs, 1) if heads else None
        self.attn_proj = MPConv(outputs, outputs, 1) if heads else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.resample:
            x = (halved if self.resample == "down" else doubled)(x, self.get_buffer("taps"))
        if self.encodes:
            x = normalized(x if self.conv_skip is None else self.conv_skip(x), (1,))
        told = 1 + self.emb_linear(emb, self.emb_gain)
        y = silu(self.conv_res0(silu(x)) * told[:, :, None, None])
        y = self.conv_res1(self.dropout(y))
        if not self.encodes and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = blend(x, y, self.balances[0])
        if self.attn_qkv is not None and self.attn_proj is not None:
            parts = self.attn_qkv(x).flatten(2).unflatten(1, (self.heads, -1, 3))  # (B, heads, channels, 3, pixels)
            q, k, v = normalized(parts, (2,)).transpose(2, 4).unbind(3)
            seen = nn.functional.scaled_dot_product_attention(q, k, v).transpose(2, 3)
            x = blend(x, self.attn_proj(seen.reshape(x.shape)), self.balances[1])
        return x if self.clip is None else x.clamp(-self.clip, self.clip)


class EDM2UNet(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """F(x, time, class_labels) of EDM's preconditioning, where time is ln σ/4.

    Its settings are those in EDM2's files, some under diffusers' names; see `SongUNet`. EDM2's estimate of the uncertainty
    is left out, because it is not used in sampling or tuning.

    Reference: Karras et al. 2024, Analyzing and Improving the Training Dynamics of Diffusion Models.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sample_size: int = 64,
        in_channels: int = 3,
        out_channels: int = 3,
        num_class_embeds: int | None = None,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_noise: int | None = None,
        channel_mult_emb: int | None = None,
        layers_per_block: int = 3,
        attn_resolutions: Sequence[int] = (16, 8),
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        channels_per_head: int = 64,
        dropout: float = 0.0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float | None = 256.0,
        resample_filter: Sequence[int] = (1, 1),
    ) -> None:
        super().__init__()
        widths = [model_channels * each for each in channel_mult]
        told = widths[0] if channel_mult_noise is None else model_channels * channel_mult_noise
        embedded = max(widths) if channel_mult_emb is None else model_channels * channel_mult_emb
        self.out_gain = nn.Parameter(torch.zeros(()))
        self.emb_fourier = MPFourier(told)
        self.emb_noise = MPConv(told, embedded)
        self.emb_label = MPConv(num_class_embeds, embedded) if num_class_embeds else None
        down, up = ladder(sample_size, in_channels + 1, widths[0], widths, layers_per_block)

        def block(rung: Rung, *, encodes: bool) -> Block:
            attends = rung.kind == "in0" or (rung.kind == "block" and rung.size in attn_resolutions)
            heads = rung.outputs // channels_per_head if attends else 0
            return Block(
                rung, embedded, heads=heads, encodes=encodes, dropout=dropout, taps=resample_filter,
                balances=(res_balance, attn_balance), clip=clip_act,
            )  # fmt: skip

        first, *others = down
        self.enc = nn.ModuleDict({first.name: MPConv(first.inputs, first.outputs, 3)})
        self.enc.update({rung.name: block(rung, encodes=True) for rung in others})
        self.dec = nn.ModuleDict({rung.name: block(rung, encodes=False) for rung in up})
        self.out_conv = MPConv(up[-1].outputs, out_channels, 3)

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> UNet2DOutput:
        """The output (B, C, H, W) of samples (B, C, H, W), times (B,) and classes (B,), if it takes any."""
        emb = self.emb_noise(self.emb_fourier(timestep))
        if self.emb_label is not None:
            assert class_labels is not None
            count = self.emb_label.weight.shape[1]
            label = self.emb_label(nn.functional.one_hot(class_labels, count).to(emb.dtype) * count**0.5)
            emb = blend(emb, label, self.config["label_balance"])
        emb = silu(emb)
        x = torch.cat([sample, torch.ones_like(sample[:, :1])], 1)  # a channel of ones in place of biases
        skips: list[Tensor] = []
        for name, part in self.enc.items():
            x = part(x) if name.endswith("conv") else part(x, emb)
            skips.append(x)
        for name, part in self.dec.items():
            x = part(joined(x, skips.pop(), self.config["concat_balance"]) if "block" in name else x, emb)
        return UNet2DOutput(sample=self.out_conv(x, self.out_gain))
