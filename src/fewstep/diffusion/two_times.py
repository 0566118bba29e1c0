"""A student for any number of calls: its network is given a second time, the noise level where the segment ends."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .cond import NOTHING, Cond
from .denoiser import Denoiser

if TYPE_CHECKING:
    from diffusers.models.embeddings import TimestepEmbedding

GRIDS = (1, 1, 1, 2, 2, 3, 4, 6, 8, 16, 32)  # segments to learn by default; few calls are hardest and come more often
USUAL = 4  # default number of calls of a student that takes any number
SPAN = 1000.0  # the second time runs from 0 at sigma_min to SPAN at sigma_max


class TwoTimes(Denoiser):
    """A denoiser that is told where its segment ends: f(x, sigma, cond.until(lo)).

    With lo = 0 f is a consistency function; with lo just below sigma it is the diffusion model. S calls walk the levels of
    S segments, and each call is told the next level. A second embedding of the same form as the network's time embedding
    computes C(lo), a bias for each row, which is added to the output of the time embedding's last layer. C starts at zero,
    so the function is unchanged before tuning. `baked` removes the second time for one number of calls.

    Args:
        denoiser: the denoiser to be tuned; its network is shared.

    Raises:
        ValueError: the network has no time embedding; see `time_embeddings`.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__(
            denoiser.network, denoiser.schedule, denoiser.prediction, space=denoiser._space, takes=denoiser.takes,
            call=denoiser.call, blank=denoiser.blank,
        )  # fmt: skip
        self.places = time_embeddings(denoiser.network)
        self.ends = nn.ModuleList(map(_beside, _embeddings(denoiser.network, self.places)))
        self.train(denoiser.training)

    def shifts(self, lo: Tensor) -> list[Tensor]:
        """C(lo) for each time embedding, (B, its width), from noise levels `lo` (B,)."""
        from diffusers.models.embeddings import get_timestep_embedding

        time, first, last = self.schedule.time, self.schedule.sigma_min, self.schedule.sigma_max
        low, high = time(lo.new_tensor([first, last]))
        share = (time(lo.clamp(min=first)) - low) / (high - low)
        made = []
        for end in self.embeddings():
            inner = end.linear_1
            waves = get_timestep_embedding(share.flatten() * SPAN, inner.in_features, flip_sin_to_cos=True)
            made.append(end(waves.to(inner.weight.dtype)))
        return made

    def forward(self, x: Tensor, sigma: Tensor, cond: Cond = NOTHING) -> Tensor:
        if cond.lo is None:
            raise ValueError("this student needs the end of its segment: sample it with Segments, or give cond.until(lo)")
        lasts = [embedding.linear_2 for embedding in _embeddings(self.network, self.places)]
        with _added(lasts, self.shifts(cond.lo)):
            return super().forward(x, sigma, cond)

    def embeddings(self) -> list[TimestepEmbedding]:
        """The embeddings of the second time, one for each time embedding of the network."""
        return list(self.ends)


def time_embeddings(network: nn.Module) -> tuple[str, ...]:
    """The names of a network's time embeddings W·act(V·waves + c) + b; a DiT has one in each block.

    Raises:
        ValueError: the network has none.
    """
    from diffusers.models.embeddings import TimestepEmbedding

    parts = network.named_modules()
    found = [name for name, part in parts if isinstance(part, TimestepEmbedding) and part.linear_2.bias is not None]
    times = tuple(name for name in found if name.rpartition(".")[2].startswith("time"))  # others embed guidance or sizes
    if not times:
        raise ValueError(
            f"a {type(network).__name__} has no time embedding to which a second time could be added; tune it for one "
            "number of segments"
        )
    return times


def _embeddings(network: nn.Module, places: Sequence[str]) -> list[TimestepEmbedding]:
    return [network.get_submodule(place) for place in places]


def _beside(first: TimestepEmbedding) -> TimestepEmbedding:
    """A copy of the embedding `first` whose last layer is zero. It draws no random number."""
    end = copy.deepcopy(first).requires_grad_(True)
    end.post_act = end.cond_proj = None  # C is added before them
    nn.init.zeros_(end.linear_2.weight)
    nn.init.zeros_(end.linear_2.bias)
    return end


@contextmanager
def _added(layers: Sequence[nn.Module], shifts: Sequence[Tensor]) -> Iterator[None]:
    """In this context `shifts` are added to the outputs of `layers`, as no network takes a bias for each row."""
    with ExitStack() as stack:
        for layer, shift in zip(layers, shifts, strict=True):
            hook = layer.register_forward_hook(lambda _, __, output, shift=shift: output + shift.to(output.dtype))
            stack.callback(hook.remove)
        yield


def baked(student: TwoTimes, levels: Tensor, cond: Cond | None = None) -> Denoiser:
    """`student` for one walk, as a plain denoiser of the checkpoint's own architecture.

    In one walk each level t has one next level lo. The student adds C(lo) to W·h(t) + b, where h is the hidden layer of the
    time embedding. Changes of W and b with ΔW·h(t) + Δb = C(lo) at all levels of the walk have the same effect. They are
    found as the least-norm solution in float64.

    Args:
        student: on the CPU.
        levels: noise levels of the walk, falling, (S,).
        cond: one row of any conditions that the network can be called with; by default its `blank`.

    Returns:
        A denoiser around a changed copy of the network. It equals `student` at each level of the walk.

    Raises:
        ValueError: there are more levels than the hidden layer can tell apart.
    """
    network = copy.deepcopy(student.network)
    plain = student.around(network)
    with torch.no_grad():
        for place, (hidden, shift) in told_along(student, levels, cond).items():
            last: Any = network.get_submodule(place)
            told = nn.functional.pad(hidden, (0, 1), value=1.0)
            change = torch.linalg.lstsq(told, shift, driver="gelsd").solution
            check_solved(told @ change, shift, hidden.shape[1])
            last.weight += change[:-1].T.to(last.weight.dtype)
            last.bias += change[-1].to(last.bias.dtype)
    return plain.eval()


@torch.no_grad()
def told_along(student: TwoTimes, levels: Tensor, cond: Cond | None = None) -> dict[str, tuple[Tensor, Tensor]]:
    """Input and shift of the last layer of each time embedding along a walk, by the layer's name.

    Args:
        student, levels, cond: as for `baked`.

    Returns:
        The layer's input at each level, (S, hidden), and C(lo), which is added to its output, (S, width), both float64.
    """
    lows = torch.cat([levels[1:], levels.new_zeros(1)]).float()
    lasts = {f"{place}.linear_2": student.network.get_submodule(f"{place}.linear_2") for place in student.places}
    first = student.blank if cond is None else cond
    seen = _hidden(student, list(lasts.values()), levels.float(), first.expand(len(levels)).until(lows))
    both = zip(seen, student.shifts(lows), strict=True)
    return {place: (hidden.double(), shift.double()) for place, (hidden, shift) in zip(lasts, both, strict=True)}


def check_solved(found: Tensor, shift: Tensor, hidden: int) -> None:
    """Raises ValueError if `found` differs from `shift`, both (S, width); `hidden` is the width of the hidden layer."""
    if (found - shift).abs().max() > 1e-6 * shift.abs().max():
        raise ValueError(
            f"{len(shift)} levels are too many for a time embedding of {hidden} hidden values, so this student has no "
            "plain network for them; ask for fewer steps"
        )


@torch.no_grad()
def _hidden(denoiser: Denoiser, lasts: Sequence[nn.Module], levels: Tensor, cond: Cond) -> list[Tensor]:
    """The inputs of the layers `lasts` at each level, (S, hidden) each."""
    seen: list[Tensor] = [torch.empty(0)] * len(lasts)
    with ExitStack() as stack:
        for k, last in enumerate(lasts):
            hook = last.register_forward_pre_hook(lambda _, inputs, k=k: seen.__setitem__(k, inputs[0]))
            stack.callback(hook.remove)
        denoiser(torch.zeros(len(levels), *denoiser.space.shape), levels, cond)
    return seen
