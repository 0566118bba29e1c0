"""What four published networks compute, read from their papers and public descriptions, step by step and without classes.

Each function asks its weights for a tensor by the published name and shape. Weights that are new are drawn at random, so
one call on empty weights makes a checkpoint, and its output is what whoever reads that checkpoint must get.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as nnf


class Weights(dict):
    """Named tensors, drawn when they are first asked for."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, name: str, *shape: int, about: float = 0.0) -> Tensor:
        if name not in self:
            spread = math.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.3
            self[name] = about + spread * torch.randn(shape, generator=self.generator)
        assert self[name].shape == shape, name
        return self[name]


def fir(x: Tensor, taps: tuple[int, ...], *, up: bool = False, pad: int | None = None) -> Tensor:
    """The separable filter, written as a sum over its taps: every second pixel, or twice as many."""
    side, at = len(taps), (len(taps) - 1) // 2 if pad is None else pad
    if up:
        height, width = x.shape[2:]
        wide = x.new_zeros(*x.shape[:2], 2 * height, 2 * width)
        wide[:, :, ::2, ::2] = x
        return 4 * _filtered(nnf.pad(wide, [side - 1 - at, side - 2 - at] * 2), taps)
    return _filtered(nnf.pad(x, [at] * 4), taps)[:, :, ::2, ::2]


def _filtered(x: Tensor, taps: tuple[int, ...]) -> Tensor:
    share = [tap / sum(taps) for tap in taps]
    rows = sum(s * x[:, :, k : x.shape[2] - len(taps) + 1 + k] for k, s in enumerate(share))
    return sum(s * rows[:, :, :, k : x.shape[3] - len(taps) + 1 + k] for k, s in enumerate(share))


# --- EDM: DDPM++, NCSN++ and ADM


def _conv(w: Weights, name: str, x: Tensor, out: int, side: int = 3) -> Tensor:
    return nnf.conv2d(x, w(f"{name}.weight", out, x.shape[1], side, side), w(f"{name}.bias", out), padding=side // 2)


def _norm(w: Weights, name: str, x: Tensor, eps: float, groups: int | None = None) -> Tensor:
    count = x.shape[1]
    return nnf.group_norm(
        x, groups or min(32, count // 4), w(f"{name}.weight", count, about=1.0), w(f"{name}.bias", count), eps
    )


def _linear(w: Weights, name: str, x: Tensor, out: int, *, bias: bool = True) -> Tensor:
    y = x @ w(f"{name}.weight", out, x.shape[1]).T
    return y + w(f"{name}.bias", out) if bias else y


def _attention(qkv: Tensor, heads: int) -> Tensor:
    """EDM's: of each head the channels, of each channel q, k and v."""
    b, c3, height, width = qkv.shape
    parts = qkv.reshape(b, heads, c3 // 3 // heads, 3, height * width)
    q, k, v = parts[:, :, :, 0], parts[:, :, :, 1], parts[:, :, :, 2]
    seen = torch.softmax(torch.einsum("bhcq,bhck->bhqk", q, k) / q.shape[2] ** 0.5, -1)
    return torch.einsum("bhqk,bhck->bhcq", seen, v).reshape(b, c3 // 3, height, width)


def _edm_block(w, name, x, emb, out, *, resample="", attend=False, taps=(1, 1), song: bool) -> Tensor:
    eps, scale = (1e-6, 0.5**0.5) if song else (1e-5, 1.0)

    def sized(h: Tensor) -> Tensor:
        return {"down": lambda: fir(h, taps), "up": lambda: fir(h, taps, up=True), "": lambda: h}[resample]()

    h = _conv(w, f"{name}.conv0", sized(nnf.silu(_norm(w, f"{name}.norm0", x, eps))), out)
    told = _linear(w, f"{name}.affine", emb, out if song else 2 * out)[:, :, None, None]
    if song:
        h = _norm(w, f"{name}.norm1", h + told, eps)
    else:
        h = _norm(w, f"{name}.norm1", h, eps) * (1 + told[:, :out]) + told[:, out:]
    h = _conv(w, f"{name}.conv1", nnf.silu(h), out)
    skip = sized(x)
    if x.shape[1] != out or (song and resample):
        skip = _conv(w, f"{name}.skip", skip, out, 1)
    x = scale * (h + skip)
    if attend:
        made = _attention(_conv(w, f"{name}.qkv", _norm(w, f"{name}.norm2", x, eps), 3 * out, 1), 1 if song else out // 64)
        x = scale * (x + _conv(w, f"{name}.proj", made, out, 1))
    return x


def song(
    w: Weights, x: Tensor, time: Tensor, onehot: Tensor | None, *, channels: int, mult: tuple[int, ...], blocks: int,
    attn: tuple[int, ...], fourier: bool = False, encoder: str = "standard", decoder: str = "standard",
    taps: tuple[int, ...] = (1, 1),
) -> Tensor:  # fmt: skip
    """EDM's SongUNet. Karras et al. 2022, app. F.2; Song et al. 2021, app. H."""
    size, colours, told = x.shape[2], x.shape[1], channels * (2 if fourier else 1)
    if fourier:
        angles = time[:, None] * 2 * math.pi * w("map_noise.freqs", told // 2)
    else:
        angles = time[:, None] / 10_000 ** (torch.arange(told // 2) / (told // 2 - 1))
    emb = torch.cat([angles.sin(), angles.cos()], 1)
    if onehot is not None:
        emb = emb + _linear(w, "map_label", onehot * onehot.shape[1] ** 0.5, told)
    emb = nnf.silu(_linear(w, "map_layer0", emb, 4 * channels))
    emb = nnf.silu(_linear(w, "map_layer1", emb, 4 * channels))
    settings = {"taps": taps, "song": True}
    picture, skips = x, []
    for level, times in enumerate(mult):
        side = f"{size >> level}x{size >> level}"
        if level == 0:
            x = _conv(w, f"enc.{side}_conv", x, channels)
        else:
            x = _edm_block(w, f"enc.{side}_down", x, emb, x.shape[1], resample="down", **settings)
            if encoder == "skip":
                picture = fir(picture, taps)
                x = x + _conv(w, f"enc.{side}_aux_skip", picture, x.shape[1], 1)
            if encoder == "residual":  # the convolution, then the filter, with the borders of both around the picture
                name, border = f"enc.{side}_aux_residual", 1 + (len(taps) - 1) // 2
                wide = nnf.conv2d(picture, w(f"{name}.weight", x.shape[1], picture.shape[1], 3, 3), padding=border)
                x = picture = (x + fir(wide, taps, pad=0) + w(f"{name}.bias", x.shape[1])[:, None, None]) * 0.5**0.5
        skips.append(x)
        for k in range(blocks):
            attend = size >> level in attn
            x = _edm_block(w, f"enc.{side}_block{k}", x, emb, channels * times, attend=attend, **settings)
            skips.append(x)
    made = None
    for level in reversed(range(len(mult))):
        side = f"{size >> level}x{size >> level}"
        if level == len(mult) - 1:
            x = _edm_block(w, f"dec.{side}_in0", x, emb, x.shape[1], attend=True, **settings)
            x = _edm_block(w, f"dec.{side}_in1", x, emb, x.shape[1], **settings)
        else:
            x = _edm_block(w, f"dec.{side}_up", x, emb, x.shape[1], resample="up", **settings)
        for k in range(blocks + 1):
            x, attend = torch.cat([x, skips.pop()], 1), k == blocks and size >> level in attn
            x = _edm_block(w, f"dec.{side}_block{k}", x, emb, channels * mult[level], attend=attend, **settings)
        if decoder == "skip" or level == 0:
            made = None if made is None else fir(made, taps, up=True)
            shown = _conv(w, f"dec.{side}_aux_conv", nnf.silu(_norm(w, f"dec.{side}_aux_norm", x, 1e-6)), colours)
            made = shown if made is None else made + shown
    return made


def adm(
    w: Weights, x: Tensor, time: Tensor, onehot: Tensor | None, *, channels: int, mult: tuple[int, ...], blocks: int,
    attn: tuple[int, ...],
) -> Tensor:  # fmt: skip
    """EDM's DhariwalUNet. Karras et al. 2022, app. F.2; Dhariwal and Nichol 2021."""
    size, colours = x.shape[2:], x.shape[1]
    angles = time[:, None] / 10_000 ** (torch.arange(channels // 2) / (channels // 2))
    emb = nnf.silu(_linear(w, "map_layer0", torch.cat([angles.cos(), angles.sin()], 1), 4 * channels))
    emb = _linear(w, "map_layer1", emb, 4 * channels)
    if onehot is not None:
        emb = emb + _linear(w, "map_label", onehot, 4 * channels, bias=False)
    emb, skips = nnf.silu(emb), []
    for level, times in enumerate(mult):
        side = f"{size[0] >> level}x{size[0] >> level}"
        if level == 0:
            x = _conv(w, f"enc.{side}_conv", x, channels * times)
        else:
            x = _edm_block(w, f"enc.{side}_down", x, emb, x.shape[1], resample="down", song=False)
        skips.append(x)
        for k in range(blocks):
            attend = size[0] >> level in attn
            x = _edm_block(w, f"enc.{side}_block{k}", x, emb, channels * times, attend=attend, song=False)
            skips.append(x)
    for level in reversed(range(len(mult))):
        side = f"{size[0] >> level}x{size[0] >> level}"
        if level == len(mult) - 1:
            x = _edm_block(w, f"dec.{side}_in0", x, emb, x.shape[1], attend=True, song=False)
            x = _edm_block(w, f"dec.{side}_in1", x, emb, x.shape[1], song=False)
        else:
            x = _edm_block(w, f"dec.{side}_up", x, emb, x.shape[1], resample="up", song=False)
        for k in range(blocks + 1):
            x, attend = torch.cat([x, skips.pop()], 1), size[0] >> level in attn
            x = _edm_block(w, f"dec.{side}_block{k}", x, emb, channels * mult[level], attend=attend, song=False)
    return _conv(w, "out_conv", nnf.silu(_norm(w, "out_norm", x, 1e-5)), colours)


# --- openai/consistency_models


def openai(
    w: Weights, x: Tensor, time: Tensor, labels: Tensor | None, *, channels: int, mult: tuple[int, ...], blocks: int,
    attn: tuple[int, ...], classes: int = 0, shift: bool = True, head: int = 64,
) -> Tensor:  # fmt: skip
    """The UNetModel of guided diffusion with ResNet blocks that resample; `attn` are levels. Dhariwal and Nichol 2021."""
    colours, wide = x.shape[1], 4 * channels

    def block(name: str, x: Tensor, out: int, resample: str = "") -> Tensor:
        def sized(h: Tensor) -> Tensor:
            if resample == "up":
                return nnf.interpolate(h, scale_factor=2, mode="nearest")
            return nnf.avg_pool2d(h, 2) if resample else h

        h = sized(nnf.silu(_norm(w, f"{name}.in_layers.0", x, 1e-5, 32)))
        h = _conv(w, f"{name}.in_layers.2", h, out)
        told = _linear(w, f"{name}.emb_layers.1", nnf.silu(emb), 2 * out if shift else out)[:, :, None, None]
        if shift:
            h = _norm(w, f"{name}.out_layers.0", h, 1e-5, 32) * (1 + told[:, :out]) + told[:, out:]
        else:
            h = _norm(w, f"{name}.out_layers.0", h + told, 1e-5, 32)
        h = _conv(w, f"{name}.out_layers.3", nnf.silu(h), out)
        x = sized(x)
        return h + (x if x.shape[1] == out else _conv(w, f"{name}.skip_connection", x, out, 1))

    def attended(name: str, x: Tensor) -> Tensor:
        """All q, then all k, then all v; of each the heads one behind the other."""
        b, c, height, width = x.shape
        flat = _norm(w, f"{name}.norm", x, 1e-5, 32).flatten(2)
        qkv = torch.einsum("oc,bcn->bon", w(f"{name}.qkv.weight", 3 * c, c, 1)[..., 0], flat)
        q, k, v = (qkv + w(f"{name}.qkv.bias", 3 * c)[:, None]).reshape(b, 3, c // head, head, -1).unbind(1)
        seen = torch.softmax(torch.einsum("bhcq,bhck->bhqk", q, k) / head**0.5, -1)
        made = torch.einsum("bhqk,bhck->bhcq", seen, v).reshape(b, c, -1)
        made = torch.einsum("oc,bcn->bon", w(f"{name}.proj_out.weight", c, c, 1)[..., 0], made)
        return x + (made + w(f"{name}.proj_out.bias", c)[:, None]).reshape(b, c, height, width)

    angles = time[:, None] / 10_000 ** (torch.arange(channels // 2) / (channels // 2))
    emb = nnf.silu(_linear(w, "time_embed.0", torch.cat([angles.cos(), angles.sin()], 1), wide))
    emb = _linear(w, "time_embed.2", emb, wide)
    if labels is not None:
        emb = emb + w("label_emb.weight", classes, wide)[labels]
    x = _conv(w, "input_blocks.0.0", x, channels * mult[0])
    skips, at = [x], 1
    for level, times in enumerate(mult):
        for _ in range(blocks):
            x = block(f"input_blocks.{at}.0", x, channels * times)
            x = attended(f"input_blocks.{at}.1", x) if level in attn else x
            skips, at = [*skips, x], at + 1
        if level < len(mult) - 1:
            x = block(f"input_blocks.{at}.0", x, x.shape[1], "down")
            skips, at = [*skips, x], at + 1
    x = block("middle_block.0", x, x.shape[1])
    x = block("middle_block.2", attended("middle_block.1", x), x.shape[1])
    at = 0
    for level in reversed(range(len(mult))):
        for k in range(blocks + 1):
            x = block(f"output_blocks.{at}.0", torch.cat([x, skips.pop()], 1), channels * mult[level])
            x = attended(f"output_blocks.{at}.1", x) if level in attn else x
            if level and k == blocks:
                x = block(f"output_blocks.{at}.{1 + (level in attn)}", x, x.shape[1], "up")
            at += 1
    return _conv(w, "out.2", nnf.silu(_norm(w, "out.0", x, 1e-5, 32)), colours)


# --- EDM2


def edm2(
    w: Weights, x: Tensor, time: Tensor, onehot: Tensor | None, *, channels: int, mult: tuple[int, ...], blocks: int,
    attn: tuple[int, ...],
) -> Tensor:  # fmt: skip
    """EDM2's UNet with its published settings. Karras et al. 2024, fig. 21 and app. B."""
    size, colours, wide = x.shape[2], x.shape[1], channels * max(mult)

    def unit(a: Tensor, *dims: int) -> Tensor:
        mean_square = a.double().square().mean(dims, keepdim=True)
        return (a.double() / (mean_square.sqrt() + 1e-4)).float()

    def layer(name: str, x: Tensor, out: int, side: int = 0) -> Tensor:
        shape = (out, x.shape[1], side, side) if side else (out, x.shape[1])
        weight = unit(w(f"{name}.weight", *shape), *range(1, len(shape))) / math.prod(shape[1:]) ** 0.5
        return nnf.conv2d(x, weight, padding=side // 2) if side else x @ weight.T

    def act(a: Tensor) -> Tensor:
        return nnf.silu(a) / 0.596

    def block(name: str, x: Tensor, out: int, *, dec: bool, resample: str = "", attend: bool = False) -> Tensor:
        if resample:
            x = nnf.avg_pool2d(x, 2) if resample == "down" else nnf.interpolate(x, scale_factor=2, mode="nearest")
        changes = x.shape[1] != out
        if not dec:
            x = layer(f"{name}.conv_skip", x, out, 1) if changes else x
            x = unit(x, 1)
        y = layer(f"{name}.conv_res0", act(x), out, 3)
        told = 1 + w(f"{name}.emb_gain") * layer(f"{name}.emb_linear", emb, out)
        y = layer(f"{name}.conv_res1", act(y * told[:, :, None, None]), out, 3)
        if dec and changes:
            x = layer(f"{name}.conv_skip", x, out, 1)
        x = (0.7 * x + 0.3 * y) / 0.58**0.5
        if attend:
            qkv = layer(f"{name}.attn_qkv", x, 3 * out, 1)
            qkv = unit(qkv.reshape(len(x), out // 64, 64, 3, -1), 2).reshape(qkv.shape)
            y = layer(f"{name}.attn_proj", _attention(qkv, out // 64), out, 1)
            x = (0.7 * x + 0.3 * y) / 0.58**0.5
        return x.clip(-256, 256)

    waves = time[:, None] * w("emb_fourier.freqs", channels * mult[0]) + w("emb_fourier.phases", channels * mult[0])
    emb = layer("emb_noise", 2**0.5 * waves.cos(), wide)
    if onehot is not None:
        label = layer("emb_label", onehot * onehot.shape[1] ** 0.5, wide)
        emb = (emb + label) / 2**0.5  # halves of each, of the magnitude of either
    emb = act(emb)
    x, skips = torch.cat([x, torch.ones(len(x), 1, size, size)], 1), []
    for level, times in enumerate(mult):
        side = f"{size >> level}x{size >> level}"
        if level == 0:
            x = layer(f"enc.{side}_conv", x, channels * times, 3)
        else:
            x = block(f"enc.{side}_down", x, x.shape[1], dec=False, resample="down")
        skips.append(x)
        for k in range(blocks):
            x = block(f"enc.{side}_block{k}", x, channels * times, dec=False, attend=size >> level in attn)
            skips.append(x)
    for level in reversed(range(len(mult))):
        side = f"{size >> level}x{size >> level}"
        if level == len(mult) - 1:
            x = block(f"dec.{side}_in0", x, x.shape[1], dec=True, attend=True)
            x = block(f"dec.{side}_in1", x, x.shape[1], dec=True)
        else:
            x = block(f"dec.{side}_up", x, x.shape[1], dec=True, resample="up")
        for k in range(blocks + 1):
            skip = skips.pop()
            both = (x.shape[1] + skip.shape[1]) / 2
            x = torch.cat([x * (both / x.shape[1]) ** 0.5, skip * (both / skip.shape[1]) ** 0.5], 1)
            x = block(f"dec.{side}_block{k}", x, channels * mult[level], dec=True, attend=size >> level in attn)
    return w("out_gain") * layer("out_conv", x, colours, 3)
