"""The settings of teacher and students at several numbers of network calls."""

from __future__ import annotations

from collections.abc import Sequence

from ..denoiser import Denoiser
from ..model import Model
from ..pipeline import Pipeline
from ..walk import DDIM, Heun
from .seen import Setting

HEUN_FROM = 20  # number of calls from which the teacher uses Heun's method; at 11 DDIM is better, see docs/log/teacher.md


def diffusion_settings(
    teacher: Denoiser, nfe: Sequence[int], name: str = "teacher", pipeline: Pipeline | None = None
) -> list[Setting]:
    """A diffusion model at these numbers of calls: DDIM for few, Heun's method (an odd number of calls) for many."""
    walks = [Heun((calls + 1) // 2) if calls >= HEUN_FROM else DDIM(calls) for calls in nfe]
    return [Setting(name, teacher, walk, pipeline) for walk in walks]


def student_settings(
    student: Model, steps: Sequence[int], *, name: str = "student", middle: float | None = None
) -> list[Setting]:
    """A student in its own number of segments, or in the given numbers of steps if it takes any.

    For a diffusion model see `diffusion_settings`.
    """
    if not student.is_student:
        return diffusion_settings(student.denoiser, steps, name, student.pipeline)
    each: Sequence[int | None] = steps if student.takes_any_steps else [None]
    return [Setting(name, student.denoiser, student.walk_in(n, middle), student.pipeline) for n in each]
