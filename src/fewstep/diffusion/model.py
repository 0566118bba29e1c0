"""The model: a denoiser together with how it is sampled. What load() returns and save() writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .cond import NOTHING, Cond
from .denoiser import Denoiser
from .lora import at_strength
from .pipeline import Pipeline
from .two_times import TwoTimes
from .walk import Consistency, Segments, Walk, sample


@dataclass(frozen=True)
class Model:
    """A checkpoint, ready to be sampled.

    Attributes:
        denoiser: what it knows.
        walk: how it is sampled unless told otherwise; `Consistency` and `Segments` are what it was tuned for.
        receipt: of the run that made it; {} if that does not lie beside it.
        pipeline: the stock pipeline that it belongs to, which turns prompts into conditions and latents into pictures; None
            where its samples need nobody else.
    """

    denoiser: Denoiser
    walk: Walk
    receipt: Mapping[str, Any] = field(default_factory=dict, repr=False)
    pipeline: Pipeline | None = None

    @property
    def is_student(self) -> bool:
        """Whether it was tuned for few steps: then it is no diffusion model any more."""
        return isinstance(self.walk, (Consistency, Segments))

    @property
    def takes_any_steps(self) -> bool:
        """Whether it can be sampled in another number of steps than its walk's."""
        return not isinstance(self.walk, Segments) or isinstance(self.denoiser, TwoTimes)

    def walk_in(self, steps: int | None = None, middle: float | None = None) -> Walk:
        """The model's own walk in so many steps, with the second of two consistency steps at the noise level `middle`.

        Raises:
            ValueError: it was tuned for another number, or `middle` for a walk with levels of its own.
        """
        if isinstance(self.walk, Consistency):
            return Consistency(steps or self.walk.steps, self.walk.middle if middle is None else middle)
        if middle is not None:
            raise ValueError(f"`middle` is the second of two consistency steps; {self.walk} has levels of its own")
        if not self.takes_any_steps and steps not in (None, self.walk.steps):
            raise ValueError(f"this student was tuned for {self.walk.steps} steps and takes no other number")
        kind: Callable[[int], Walk] = type(self.walk)
        return self.walk if steps is None else kind(steps)

    def at(self, strength: float) -> Model:
        """The same with so much of its LoRA: 0 is its base, walked as the student is, and 1 the student itself.

        Raises:
            ValueError: it is no LoRA student.
        """
        denoiser = at_strength(self.denoiser, strength)
        pipeline = None if self.pipeline is None else self.pipeline.around(denoiser.network)
        return replace(self, denoiser=denoiser, pipeline=pipeline)

    def to(self, device: torch.device | str) -> Model:
        """The same with its network on `device`."""
        self.denoiser.to(device)
        return self

    def sample(self, seeds: Sequence[int], cond: Cond = NOTHING, *, walk: Walk | None = None, batch: int = 250) -> Tensor:
        """Samples number `seeds` as a person sees them: uint8 pictures (B, C, H, W), latents as they are.

        Args:
            seeds: one a sample; each is the same in any batch.
            cond: what they are about, one row a seed; see `labelled`.
            walk: another way than the model's own.
            batch: samples at once.

        Raises:
            ValueError: conditions that the model does not take, no seed or no batch.
        """
        return self.decode(sample(self.denoiser, seeds, self.walk if walk is None else walk, cond, batch=batch))

    def decode(self, x0: Tensor) -> Tensor:
        """Samples x0 (B, *) as a person sees or hears them, by the pipeline if there is one."""
        return self.denoiser.space.decode(x0) if self.pipeline is None else self.pipeline.decode(x0)
