"""One student for any number of calls: a network that is told a second time, where its segment ends."""

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

GRIDS = (1, 1, 1, 2, 2, 3, 4, 6, 8, 16, 32)  # learned unless told otherwise; few calls, the hardest, more often
USUAL = 4  # calls of a student that takes any number, unless told otherwise
SPAN = 1000.0  # sigma_max as a second time; sigma_min is 0


class TwoTimes(Denoiser):
    """A denoiser that knows where its segment ends: f(x, sigma, cond.until(lo)).

    f with lo = 0 is a consistency function, just below sigma it is the diffusion model; S calls walk the levels of S
    segments, each told the next level. What the network adds to its time is a bias of each row in the last layer of its
    time embedding, C(lo), made by an embedding of the same form beside it. C is zero at the start, so nothing changes until
    it is tuned; `baked` takes it away again for one number of calls.

    Args:
        denoiser: what is to be tuned; its network is shared.

    Raises:
        ValueError: the network has no time embedding of that form.
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
        """C(lo) of each time embedding, (B, its width), from noise levels (B,)."""
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
            raise ValueError("this student is told where its segment ends: sample it with Segments, or give cond.until(lo)")
        lasts = [embedding.linear_2 for embedding in _embeddings(self.network, self.places)]
        with _added(lasts, self.shifts(cond.lo)):
            return super().forward(x, sigma, cond)

    def embeddings(self) -> list[TimestepEmbedding]:
        """The second time's own, one beside each of the network's."""
        return list(self.ends)


def time_embeddings(network: nn.Module) -> tuple[str, ...]:
    """The names of a network's time embeddings W·act(V·waves + c) + b; a DiT has one in each block.

    Raises:
        ValueError: it has none.
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
    """A second embedding that is the `first` but for its last layer, which is zero. No random number is drawn."""
    end = copy.deepcopy(first).requires_grad_(True)
    end.post_act = end.cond_proj = None  # C is added before them
    nn.init.zeros_(end.linear_2.weight)
    nn.init.zeros_(end.linear_2.bias)
    return end


@contextmanager
def _added(layers: Sequence[nn.Module], shifts: Sequence[Tensor]) -> Iterator[None]:
    """Meanwhile the outputs of `layers` are shifted: a row's own bias, which no network takes as an argument."""
    with ExitStack() as stack:
        for layer, shift in zip(layers, shifts, strict=True):
            hook = layer.register_forward_hook(lambda _, __, output, shift=shift: output + shift.to(output.dtype))
            stack.callback(hook.remove)
        yield


def baked(student: TwoTimes, levels: Tensor, cond: Cond | None = None) -> Denoiser:
    """`student` for one walk, as a plain denoiser of the checkpoint's own architecture.

    In the walk each level t has one partner lo. The network adds C(lo) to W·h(t) + b, where h is the hidden layer of its
    time embedding. A change of W and b with ΔW·h(t) + Δb = C(lo) at these levels does the same. This is the solution of
    least norm, in float64.

    Args:
        student: the student of any number of calls, on the CPU.
        levels: of the walk, falling, (S,).
        cond: one row of anything that the network can be called with; by default its `blank`.

    Returns:
        A denoiser around a copy of the network, the same as `student` at each level of the walk.

    Raises:
        ValueError: more levels than that the hidden layer could tell them apart.
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
    """What the second time says along a walk, by the name of the last layer of each of the network's time embeddings.

    Args:
        student, levels, cond: as for `baked`.

    Returns:
        What the layer sees at each level, (S, hidden), and C(lo), which is added to its output, (S, width), in float64.
    """
    lows = torch.cat([levels[1:], levels.new_zeros(1)]).float()
    lasts = {f"{place}.linear_2": student.network.get_submodule(f"{place}.linear_2") for place in student.places}
    first = student.blank if cond is None else cond
    seen = _hidden(student, list(lasts.values()), levels.float(), first.expand(len(levels)).until(lows))
    both = zip(seen, student.shifts(lows), strict=True)
    return {place: (hidden.double(), shift.double()) for place, (hidden, shift) in zip(lasts, both, strict=True)}


def check_solved(found: Tensor, shift: Tensor, hidden: int) -> None:
    """Raises ValueError where a change of the last layer does not say `shift` (S, width) of so many hidden values."""
    if (found - shift).abs().max() > 1e-6 * shift.abs().max():
        raise ValueError(
            f"{len(shift)} levels are too many for a time embedding of {hidden} hidden values, so this student has no "
            "plain network for them; ask for fewer steps"
        )


@torch.no_grad()
def _hidden(denoiser: Denoiser, lasts: Sequence[nn.Module], levels: Tensor, cond: Cond) -> list[Tensor]:
    """What the last layers of the time embeddings see at each level, (S, hidden) each."""
    seen: list[Tensor] = [torch.empty(0)] * len(lasts)
    with ExitStack() as stack:
        for k, last in enumerate(lasts):
            hook = last.register_forward_pre_hook(lambda _, inputs, k=k: seen.__setitem__(k, inputs[0]))
            stack.callback(hook.remove)
        denoiser(torch.zeros(len(levels), *denoiser.space.shape), levels, cond)
    return seen
