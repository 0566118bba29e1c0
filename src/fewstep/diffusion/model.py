"""The model: a denoiser together with its walk. `load()` returns a model and `save()` writes it."""

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
        denoiser: the network with its schedule, prediction and space.
        walk: how it is sampled by default; a student has `Consistency` or `Segments`.
        receipt: the receipt of the run that made it; {} without one.
        pipeline: the stock pipeline around the network, which turns prompts into conditions and latents into pictures; None
            for a model without one.
    """

    denoiser: Denoiser
    walk: Walk
    receipt: Mapping[str, Any] = field(default_factory=dict, repr=False)
    pipeline: Pipeline | None = None

    @property
    def is_student(self) -> bool:
        """Whether it was tuned for few steps and is no longer a diffusion model."""
        return isinstance(self.walk, (Consistency, Segments))

    @property
    def takes_any_steps(self) -> bool:
        """Whether it can be sampled in other numbers of steps than that of its walk."""
        return not isinstance(self.walk, Segments) or isinstance(self.denoiser, TwoTimes)

    def walk_in(self, steps: int | None = None, middle: float | None = None) -> Walk:
        """The model's walk in `steps` steps, with the second of two consistency steps at the noise level `middle`.

        Raises:
            ValueError: the student was tuned for another number of steps, or its walk takes no `middle`.
        """
        if isinstance(self.walk, Consistency):
            return Consistency(steps or self.walk.steps, self.walk.middle if middle is None else middle)
        if middle is not None:
            raise ValueError(f"`middle` sets the second of two consistency steps; leave it out for {self.walk}")
        if not self.takes_any_steps and steps not in (None, self.walk.steps):
            raise ValueError(f"this student was tuned for {self.walk.steps} steps and takes no other number")
        kind: Callable[[int], Walk] = type(self.walk)
        return self.walk if steps is None else kind(steps)

    def at(self, strength: float) -> Model:
        """The model with its LoRA scaled by `strength`: 0 is the base with the student's walk, 1 the student itself.

        Raises:
            ValueError: the model is no LoRA student.
        """
        denoiser = at_strength(self.denoiser, strength)
        pipeline = None if self.pipeline is None else self.pipeline.around(denoiser.network)
        return replace(self, denoiser=denoiser, pipeline=pipeline)

    def to(self, device: torch.device | str) -> Model:
        """Moves the network to `device` and returns the model."""
        self.denoiser.to(device)
        return self

    def sample(self, seeds: Sequence[int], cond: Cond = NOTHING, *, walk: Walk | None = None, batch: int = 250) -> Tensor:
        """Draws one sample per seed and decodes it: uint8 pictures (B, C, H, W), or latents as they are.

        Args:
            seeds: one per sample. A sample depends on its seed and not on the batch.
            cond: conditions, one row per seed; see `labelled`.
            walk: replaces the model's own walk.
            batch: number of samples at once.

        Raises:
            ValueError: the model does not take these conditions, there is no seed, or `batch` is below 1.
        """
        return self.decode(sample(self.denoiser, seeds, self.walk if walk is None else walk, cond, batch=batch))

    def decode(self, x0: Tensor) -> Tensor:
        """Decodes samples x0 (B, *) into pictures, videos or sound, by the pipeline if there is one."""
        return self.denoiser.space.decode(x0) if self.pipeline is None else self.pipeline.decode(x0)
