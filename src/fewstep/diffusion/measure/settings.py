"""What to measure: a teacher and its students, each as it is sampled at a number of network calls."""

from __future__ import annotations

from collections.abc import Sequence

from ..denoiser import Denoiser
from ..model import Model
from ..pipeline import Pipeline
from ..walk import DDIM, Heun
from .seen import Setting

HEUN_FROM = 20  # calls from which the teacher is sampled with Heun's method; at 11 DDIM still leads, docs/log/teacher.md


def diffusion_settings(
    teacher: Denoiser, nfe: Sequence[int], name: str = "teacher", pipeline: Pipeline | None = None
) -> list[Setting]:
    """The teacher as a diffusion model: DDIM for few calls, Heun's method for many (an odd number of calls)."""
    walks = [Heun((calls + 1) // 2) if calls >= HEUN_FROM else DDIM(calls) for calls in nfe]
    return [Setting(name, teacher, walk, pipeline) for walk in walks]


def student_settings(
    student: Model, steps: Sequence[int], *, name: str = "student", middle: float | None = None
) -> list[Setting]:
    """A student as it was tuned: in its own number of segments, or in any number of steps if it takes that.

    A diffusion model is sampled as one.
    """
    if not student.is_student:
        return diffusion_settings(student.denoiser, steps, name, student.pipeline)
    each: Sequence[int | None] = steps if student.takes_any_steps else [None]
    return [Setting(name, student.denoiser, student.walk_in(n, middle), student.pipeline) for n in each]
