"""The network of EDM's CIFAR-10, FFHQ and AFHQ checkpoints, DDPM++ or NCSN++, with its published parameter names."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from .ladder import Rung, doubled, halved, ladder

HALF = 0.5**0.5  # scales the sum of a block and its input back to the variance of either
SMALL = 1e-5  # gain of initial weights of layers that start almost at zero


class Linear(nn.Linear):
    """A linear layer with Glorot's uniform initial weights and zero bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        _first(self)


class Conv(nn.Module):
    """A convolution with resampling before it, or resampling alone.

    Args:
        kernel: side of the kernel; 0 for no convolution.
        resample: "down", "up" or "".
        taps: taps of the resampling filter.
        fused: downsampling after the convolution, with one padding for both.
        gain: gain of the initial weights.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, resample: str = "", taps: Sequence[int] = (1, 1),
        fused: bool = False, gain: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.resample, self.fused, self.kernel = resample, fused, kernel
        self.register_buffer("taps", torch.tensor(taps, dtype=torch.float32), persistent=False)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel)) if kernel else None
        self.bias = nn.Parameter(torch.empty(outputs)) if kernel else None
        if kernel:
            _first(self, gain)

    def forward(self, x: Tensor) -> Tensor:
        taps, border = self.get_buffer("taps"), self.kernel // 2
        if self.weight is None or self.bias is None:
            return self._resampled(x)
        if self.fused:
            x = nn.functional.conv2d(x, self.weight, padding=border + (len(taps) - 1) // 2)
            return halved(x, taps, pad=False) + self.bias[:, None, None]
        return nn.functional.conv2d(self._resampled(x), self.weight, self.bias, padding=border)

    def _resampled(self, x: Tensor) -> Tensor:
        taps = self.get_buffer("taps")
        return halved(x, taps) if self.resample == "down" else doubled(x, taps) if self.resample == "up" else x


class Block(nn.Module):
    """A residual block, followed by self-attention if `attention`; each sum is scaled by 1/√2."""

    def __init__(self, rung: Rung, embedded: int, dropout: float, taps: Sequence[int], *, attention: bool) -> None:
        super().__init__()
        inputs, outputs = rung.inputs, rung.outputs
        resample = rung.kind if rung.kind in ("down", "up") else ""
        self.norm0 = norm(inputs)
        self.conv0 = Conv(inputs, outputs, 3, resample=resample, taps=taps)
        self.affine = Linear(embedded, outputs)
        self.norm1 = norm(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv1 = Conv(outputs, outputs, 3, gain=SMALL)
        self.skip = Conv(inputs, outputs, 1, resample=resample, taps=taps) if resample or inputs != outputs else None
        if attention:
            self.norm2 = norm(outputs)
            self.qkv = Conv(outputs, 3 * outputs, 1, gain=0.2**0.5)
            self.proj = Conv(outputs, outputs, 1, gain=SMALL)
        self.attention = attention

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv0(nn.functional.silu(self.norm0(x))) + self.affine(emb)[:, :, None, None]
        h = self.conv1(self.dropout(nn.functional.silu(self.norm1(h))))
        x = HALF * (h + (x if self.skip is None else self.skip(x)))
        return HALF * (x + self._attended(x)) if self.attention else x

    def _attended(self, x: Tensor) -> Tensor:
        """Self-attention with one head over all pixels; q, k and v are interleaved by channel."""
        q, k, v = self.qkv(self.norm2(x)).flatten(2).unflatten(1, (-1, 3)).transpose(1, 3).unbind(2)
        seen = nn.functional.scaled_dot_product_attention(q, k, v)
        attended: Tensor = self.proj(seen.transpose(1, 2).unflatten(2, x.shape[2:]))
        return attended


class Fourier(nn.Module):
    """cos and sin of 2π·f·t at random frequencies f, which are stored in the checkpoint."""

    def __init__(self, channels: int, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2) * scale)

    def forward(self, time: Tensor) -> Tensor:
        angles = 2 * math.pi * time[:, None] * self.get_buffer("freqs")
        return torch.cat([angles.cos(), angles.sin()], 1)


class Positional(nn.Module):
    """cos and sin of f·t, with f from 1 to exactly 1/10000, evenly spaced in ln f."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.waves = channels // 2

    def forward(self, time: Tensor) -> Tensor:
        freqs = 10_000 ** -torch.linspace(0, 1, self.waves, device=time.device)
        angles = time[:, None] * freqs.to(time.dtype)
        return torch.cat([angles.cos(), angles.sin()], 1)


class SongUNet(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """F(x, time, class_labels) of EDM's preconditioning, where time is ln σ/4.

    Its settings are those in EDM's files, three of them under diffusers' names: `sample_size` is img_resolution,
    `num_class_embeds` is label_dim, and `layers_per_block` is num_blocks. Augmentation labels are left out, because they
    are not used in sampling.

    Reference: Song et al. 2021, Score-Based Generative Modeling through SDEs, app. H; Karras et al. 2022, Elucidating the
    Design Space, app. F.2.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        out_channels: int = 3,
        num_class_embeds: int | None = None,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        layers_per_block: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[int] = (1, 1),
    ) -> None:
        super().__init__()
        said = (embedding_type, encoder_type, decoder_type)
        if any(word not in KINDS[place] for place, word in enumerate(said)):
            raise ValueError(f"a SongUNet does not support the embedding, encoder and decoder {', '.join(map(str, said))}")
        told, embedded = model_channels * channel_mult_noise, model_channels * channel_mult_emb
        self.map_noise = Fourier(told) if embedding_type == "fourier" else Positional(told)
        self.map_label = Linear(num_class_embeds, told) if num_class_embeds else None
        self.map_layer0, self.map_layer1 = Linear(told, embedded), Linear(embedded, embedded)
        widths = [model_channels * each for each in channel_mult]
        down, up = ladder(sample_size, in_channels, model_channels, widths, layers_per_block)

        def block(rung: Rung, *, attention: bool) -> Block:
            return Block(rung, embedded, dropout, resample_filter, attention=attention)

        self.enc, aside = nn.ModuleDict(), in_channels
        for rung in down:
            if rung.kind == "conv":
                self.enc[rung.name] = Conv(rung.inputs, rung.outputs, 3)
                continue
            self.enc[rung.name] = block(rung, attention=rung.kind == "block" and rung.size in attn_resolutions)
            if rung.kind == "down" and encoder_type != "standard":
                self.enc.update(_beside(encoder_type, rung, aside, resample_filter))
                aside = rung.outputs if encoder_type == "residual" else aside
        self.dec = nn.ModuleDict()
        for rung in up:
            attends = rung.kind == "in0" or (rung.last and rung.size in attn_resolutions)
            self.dec[rung.name] = block(rung, attention=attends)
            if rung.last and (decoder_type == "skip" or rung.size == sample_size):
                name = f"{rung.size}x{rung.size}_aux"
                if decoder_type == "skip" and rung.size != down[-1].size:
                    self.dec[f"{name}_up"] = Conv(out_channels, out_channels, 0, resample="up", taps=resample_filter)
                self.dec[f"{name}_norm"] = norm(rung.outputs)
                self.dec[f"{name}_conv"] = Conv(rung.outputs, out_channels, 3, gain=SMALL)

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> UNet2DOutput:
        """The output (B, C, H, W) of samples (B, C, H, W), times (B,) and classes (B,), if it takes any."""
        emb = self._embedded(timestep, class_labels)
        x = aside = sample
        skips: list[Tensor] = []
        for name, part in self.enc.items():
            if "aux_down" in name:
                aside = part(aside)
            elif "aux_skip" in name:
                x = skips[-1] = x + part(aside)
            elif "aux_residual" in name:
                x = skips[-1] = aside = HALF * (x + part(aside))
            else:
                x = part(x, emb) if isinstance(part, Block) else part(x)
                skips.append(x)
        made: Tensor | None = None
        for name, part in self.dec.items():
            if "aux_up" in name:
                made = part(made)
            elif "aux_norm" in name:
                normed = nn.functional.silu(part(x))
            elif "aux_conv" in name:
                made = part(normed) if made is None else made + part(normed)
            else:
                x = part(torch.cat([x, skips.pop()], 1) if "block" in name else x, emb)
        return UNet2DOutput(sample=made)

    def _embedded(self, time: Tensor, labels: Tensor | None) -> Tensor:
        waves = self.map_noise(time)
        emb = torch.cat(waves.chunk(2, 1)[::-1], 1)  # sin, then cos, as in the code of score SDEs
        if self.map_label is not None:
            assert labels is not None
            count = self.map_label.in_features
            emb = emb + self.map_label(nn.functional.one_hot(labels, count).to(emb.dtype) * count**0.5)
        made: Tensor = nn.functional.silu(self.map_layer1(nn.functional.silu(self.map_layer0(emb))))
        return made


KINDS = (("positional", "fourier"), ("standard", "skip", "residual"), ("standard", "skip"))


def norm(channels: int) -> nn.GroupNorm:
    """A group norm of at most 32 groups, of at least four channels each."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps=1e-6)


def _beside(kind: str, rung: Rung, aside: int, taps: Sequence[int]) -> dict[str, Conv]:
    """The layers that bring the picture itself to a smaller size."""
    name = f"{rung.size}x{rung.size}_aux"
    if kind == "residual":
        return {f"{name}_residual": Conv(aside, rung.outputs, 3, resample="down", taps=taps, fused=True)}
    return {
        f"{name}_down": Conv(aside, aside, 0, resample="down", taps=taps),
        f"{name}_skip": Conv(aside, rung.outputs, 1),
    }


@torch.no_grad()
def _first(layer: nn.Module, gain: float = 1.0) -> None:
    """Sets Glorot's uniform weights times `gain`, and zero bias."""
    nn.init.xavier_uniform_(layer.weight, gain)  # type: ignore[arg-type]
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
