"""What a student learns: the settings of its loss, whose fields are flags of `fewstep tune`.

They check their values, and their errors name the flags. Heavy packages are imported only when a setting is used.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..core.checks import at_least, given

if TYPE_CHECKING:
    from .denoiser import Denoiser
    from .loss import Hop, Weight
    from .noise import Gap

HopName = Literal["data", "euler", "heun", "addim", "addim-analytic"]
GapName = Literal["ect", "cosine", "karras", "full"]
WeightName = Literal["gap", "output"]


@dataclass(frozen=True)
class Loss:
    """What the student learns. Settings that are left out come from the recipe."""

    segments: int | Literal["any"] = 1
    """number of network calls that the student is made for. 1 gives a consistency model, more a multistep consistency
    model, and `any` one student for every number of calls."""
    hop: HopName | None = None
    """how the lower noise level is reached: data mixes the data with the same noise (consistency training), the others
    follow the teacher's ODE (distillation). addim restores the variance that long hops lose, as measured on the data;
    addim-analytic estimates it without data. By default data, and heun with `--segments any`."""
    gap: GapName | None = None
    """distance between the two noise levels of the loss. ect shrinks in stages, cosine and karras are one step of a grid
    whose number of steps grows, full is plain denoising."""
    q: float | None = None
    """divisor of the ect gap at each stage."""
    stages: int | None = None
    """number of stages of the ect gap."""
    grid: tuple[int, int] | None = None
    """first and last number of steps of the cosine or karras grid."""
    weight: WeightName | None = None
    """weight of each noise level in the loss: gap is (t − r)^−power, output is SNR + 1."""
    power: float | None = None
    """power of the gap's weight. 1 is that of Easy Consistency Tuning, 0 weighs all noise levels alike."""
    huber: float | None = None
    """constant of the pseudo-Huber distance; 0 gives the Euclidean norm."""
    margin: float | None = None
    """how far targets at a picture's limits of −1 and 1 are moved beyond them. Clipping then removes the haze around white
    and black. By default .1 for pictures and 0 for latents. With one segment it must be 0, also in the student that the run
    starts from. With `any` it applies only to segments that end at noise level 0."""

    def __post_init__(self) -> None:
        at_least(1, segments=self.segments if isinstance(self.segments, int) else None)
        at_least(0, margin=self.margin)
        kind = self.gap or "ect"  # the gap of every published recipe here
        if kind != "ect" and (self.q is not None or self.stages is not None):
            raise ValueError(f"--q and --stages belong to the ect gap; the {kind} gap does not take them")
        if kind in ("ect", "full") and self.grid is not None:
            raise ValueError(f"--grid belongs to the cosine and karras gaps; the {kind} gap does not take it")
        if self.weight == "output" and self.power is not None:
            raise ValueError("--power belongs to the gap's weight; --weight output does not take it")
        if self.margin and self.segments == 1:
            raise ValueError("--margin must be 0 with one segment, as each call starts from the output of the last one")
        if self.is_any and self.gap == "full":
            raise ValueError("--gap full is plain denoising, which has no segments; leave --segments any out")

    @property
    def is_any(self) -> bool:
        """Whether one student takes any number of calls."""
        return self.segments == "any"

    @property
    def is_taught(self) -> bool:
        """Whether the hop is a teacher's."""
        return (self.hop or ("heun" if self.is_any else "data")) != "data"

    @property
    def is_shaped(self) -> bool:
        """Whether the gap or the weight differs from the recipe's."""
        return any(given is not None for given in (self.gap, self.q, self.stages, self.grid, self.weight, self.power))

    def settings(self, recipe: dict[str, Any]) -> dict[str, Any]:
        """Keyword arguments of `tune` that these settings change in `recipe`, except those of `fitted`."""
        from .loss import PseudoHuber
        from .two_times import GRIDS

        distance = None if self.huber is None else PseudoHuber(self.huber)
        changed = given(gap=self._gap(recipe["gap"]), weight=self._weight(), distance=distance, margin=self.margin)
        return changed | {"segments": recipe.get("segments", GRIDS) if self.is_any else self.segments}

    def fitted(self, student: Denoiser, teacher: Denoiser) -> dict[str, Any]:
        """Keyword arguments of `tune` that depend on the checkpoint. A teacher that hops is frozen."""
        from .loss import OutputScale

        weight = OutputScale(student.schedule.sigma_data) if self.weight == "output" else None
        margin = 0.0
        if student.space.limits is not None and self.segments != 1 and self.gap != "full":
            margin = 0.1  # latents have no limits; with one segment a call sees the output of the last one
        fitted = given(weight=weight, margin=margin if self.margin is None else None)
        return fitted | {"hop": self._hop(teacher)}

    def _gap(self, ours: Gap) -> Gap:
        from .noise import CosineGap, ECTGap, FullGap, KarrasGap

        if self.gap == "full":
            return FullGap()
        if self.gap in ("cosine", "karras"):
            made = CosineGap if self.gap == "cosine" else KarrasGap
            return made(*self.grid) if self.grid else made()
        base = ours if isinstance(ours, ECTGap) else ECTGap()
        return dataclasses.replace(base, **given(q=self.q, stages=self.stages))

    def _weight(self) -> Weight | None:
        from .loss import InverseGap

        if self.weight == "output" or (self.weight is None and self.power is None):
            return None
        return InverseGap(1.0 if self.power is None else self.power)

    def _hop(self, teacher: Denoiser) -> Hop:
        from .hop import ADDIM, Euler, Heun
        from .loss import from_data

        if not self.is_taught:
            return from_data
        teacher = teacher.requires_grad_(False).eval()
        hops: dict[str, Hop] = {
            "euler": Euler(teacher), "heun": Heun(teacher), "addim": ADDIM(teacher),
            "addim-analytic": ADDIM(teacher, analytic=True),
        }  # fmt: skip
        return hops[self.hop or "heun"]
