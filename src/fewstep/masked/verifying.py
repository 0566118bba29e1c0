"""The probability of a token that is already decided, from a model that does not see the token."""

from __future__ import annotations

import torch
from torch import Tensor

from .predictor import Canvas, NetworkPredictor, places
from .reading import Plain, Reading

CHECKED = 256  # positions on which a network is tried, at most


class LeaveOneOut:
    """A network whose logits at a decided position do not depend on the token there, in one call.

    A mask token for each wanted position is appended to the canvas, with the same position id. It sees the other appended
    masks, and the canvas without the position itself. The canvas does not see it. Rules that take decided tokens back
    need this, because a network was never trained to judge a token that it sees. At a step with a decided wanted position,
    one more position is computed for each wanted one.

    Args:
        network: the model; its logits must not be shifted.

    Raises:
        ValueError: the network's logits are shifted, or it ignores attention masks or position ids.

    Reference: Hong et al. 2025, Wide-In, Narrow-Out (WINO).
    """

    def __init__(self, network: NetworkPredictor) -> None:
        if network.shift:
            raise ValueError(
                "this model's logits stand one place early, like Dream's, so decided tokens cannot be verified"
            )
        self.network = network
        self.mask_id = network.mask_id
        self.eos_ids = network.eos_ids
        self.networks = network.networks
        self._check()

    def __call__(self, canvas: Canvas, wanted: Tensor) -> Tensor:
        decided = wanted & (canvas.ids != self.mask_id)
        return self._judged(canvas, wanted, decided) if bool(decided.any()) else self.network(canvas, wanted)

    def reading(self, canvas: Canvas) -> Reading:
        return Plain(self)

    def _judged(self, canvas: Canvas, wanted: Tensor, decided: Tensor) -> Tensor:
        """Logits (N, V) of the wanted positions; those of `decided` ones come from the mask tokens after the canvas."""
        network, (b, length) = self.network, canvas.ids.shape
        n = int(wanted.sum(1).amax())
        place = (
            wanted.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :n]
        )  # of each mask token, (b, n)
        real = wanted.gather(1, place)
        column = torch.arange(length, device=place.device)
        told = network.mask(canvas) if network.block else None
        seen = canvas.valid[:, None].expand(b, length, length) if told is None else told[:, 0]
        below = seen.gather(1, place[:, :, None].expand(b, n, length)) & (place[:, :, None] != column)
        beside = real[:, None] & real[:, :, None] | torch.eye(n, dtype=torch.bool, device=place.device)
        above = torch.cat([seen, seen.new_zeros(b, length, n)], 2)
        mask = torch.cat([above, torch.cat([below, beside], 2)], 1)[:, None]
        ids = torch.cat([network.seen(canvas), torch.full_like(place, self.mask_id)], 1)
        row, at = places(wanted)
        at = torch.where(decided[row, at], length + wanted.cumsum(1)[row, at] - 1, at)
        positions = torch.cat([column.expand(b, length), place], 1)
        return network.compute(ids, mask, lambda hidden: hidden[row, at], position_ids=positions)

    @torch.no_grad()
    def _check(self) -> None:
        """Checks that a masked position and its mask token after the canvas get the same logits."""
        network, n = self.network, min(self.network.max_length or CHECKED, CHECKED)
        ids = torch.arange(n, device=network.device)[None] % 7
        wanted = torch.arange(n, device=network.device)[None] == n // 2
        every = torch.ones_like(wanted)
        canvas = Canvas(ids.masked_fill(wanted, self.mask_id), every, every)
        try:
            plain, judged = network(canvas, wanted), self._judged(canvas, wanted, wanted)
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise ValueError(f"this network takes no masks and positions, which verifying rules need: {error}") from error
        near = 0.05 if plain.itemsize < 4 else 1e-3  # tolerances of bfloat16 and float32
        if not torch.allclose(plain, judged, rtol=0.0, atol=near * float(plain.abs().amax())):
            raise ValueError("this network ignores masks or positions, which verifying rules need; choose another rule")
