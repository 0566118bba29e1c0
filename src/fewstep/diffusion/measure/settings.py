"""What to measure: a teacher and its students, each as it is sampled at a number of network calls."""

from __future__ import annotations

from collections.abc import Sequence

from ..denoiser import Denoiser
from ..model import Model
from ..walk import DDIM, Consistency, Heun
from .dial import Setting

HEUN_FROM = 20  # network calls from which the teacher is sampled with Heun's method; at 11 DDIM still leads, docs/log.md


def diffusion_settings(teacher: Denoiser, nfe: Sequence[int], name: str = "teacher") -> list[Setting]:
    """The teacher as a diffusion model: DDIM for few calls, Heun's method for many (an odd number of calls)."""
    return [Setting(name, teacher, Heun((calls + 1) // 2) if calls >= HEUN_FROM else DDIM(calls)) for calls in nfe]


def student_settings(
    student: Model, steps: Sequence[int], *, name: str = "student", middle: float | None = None
) -> list[Setting]:
    """A student as it was tuned: a consistency function in any number of steps, segments in their own.

    A diffusion model is sampled as one.
    """
    if not student.is_student:
        return diffusion_settings(student.denoiser, steps, name)
    if isinstance(student.walk, Consistency):
        return [Setting(name, student.denoiser, Consistency(n, middle)) for n in steps]
    if middle is not None:
        raise ValueError("`middle` is the second of two consistency steps; this student has levels of its own")
    return [Setting(name, student.denoiser, student.walk)]
