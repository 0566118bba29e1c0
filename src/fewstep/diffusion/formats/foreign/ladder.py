"""The common order of blocks of EDM's three networks: an encoder, and a decoder with skip connections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn


class Rung(NamedTuple):
    """One block of an encoder or decoder.

    Attributes:
        name: its name in published networks, such as 32x32_block0.
        kind: conv, down, block, in0, in1 or up.
        size: side of its feature maps in pixels.
        inputs, outputs: channels; inputs of a decoder's block include the skip connection.
        last: whether it is the last of its size.
    """

    name: str
    kind: str
    size: int
    inputs: int
    outputs: int
    last: bool = False


def ladder(
    size: int, inputs: int, stem: int, widths: Sequence[int], blocks: int
) -> tuple[tuple[Rung, ...], tuple[Rung, ...]]:
    """The encoder and the decoder.

    Args:
        size: side of the pictures in pixels; it is halved for each further width.
        inputs: channels of the pictures.
        stem: channels of the first convolution.
        widths: channels of each size.
        blocks: number of blocks per size in the encoder; the decoder has one more.

    Reference: Ronneberger et al. 2015, U-Net; Karras et al. 2022, Elucidating the Design Space, app. F.
    """
    sides = [size >> level for level in range(len(widths))]
    down, width = [Rung(f"{size}x{size}_conv", "conv", size, inputs, stem)], stem
    for side, outputs in zip(sides, widths, strict=True):
        if side != size:
            down.append(Rung(f"{side}x{side}_down", "down", side, width, width))
        for index in range(blocks):
            down.append(Rung(f"{side}x{side}_block{index}", "block", side, width, outputs, index == blocks - 1))
            width = outputs
    up, skips = [], [rung.outputs for rung in down]
    for side, outputs in reversed([*zip(sides, widths, strict=True)]):
        for kind in ("in0", "in1") if side == sides[-1] else ("up",):
            up.append(Rung(f"{side}x{side}_{kind}", kind, side, width, width))
        for index in range(blocks + 1):
            up.append(Rung(f"{side}x{side}_block{index}", "block", side, width + skips.pop(), outputs, index == blocks))
            width = outputs
    return tuple(down), tuple(up)


def halved(x: Tensor, taps: Tensor, *, pad: bool = True) -> Tensor:
    """`x` (B, C, H, W) at half its size, by the filter of `taps` (K,) along each axis."""
    kernel = _kernel(x, taps)
    return nn.functional.conv2d(x, kernel, stride=2, padding=(len(taps) - 1) // 2 if pad else 0, groups=x.shape[1])


def doubled(x: Tensor, taps: Tensor) -> Tensor:
    """`x` (B, C, H, W) at twice its size; constant pictures stay constant."""
    return nn.functional.conv_transpose2d(
        x, 4 * _kernel(x, taps), stride=2, padding=(len(taps) - 1) // 2, groups=x.shape[1]
    )


def _kernel(x: Tensor, taps: Tensor) -> Tensor:
    even = taps / taps.sum()
    return (even[:, None] * even).to(x.dtype).expand(x.shape[1], 1, -1, -1)
