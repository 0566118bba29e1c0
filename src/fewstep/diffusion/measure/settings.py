"""What to measure: a teacher and its students, each as it is sampled at a number of network calls."""

from __future__ import annotations

from collections.abc import Sequence

from ..denoiser import NetworkDenoiser
from ..formats.folder import few_step_grid
from ..samplers import consistency, ddim, heun, heun_grid
from .dial import Setting

HEUN_FROM = 20  # network calls from which the teacher is sampled with Heun's method; at 11 DDIM still leads, docs/log.md


def diffusion_settings(teacher: NetworkDenoiser, nfe: Sequence[int], name: str = "teacher") -> list[Setting]:
    """The teacher as a diffusion model: DDIM for few calls, Heun's method for many (an odd number of calls)."""
    settings = []
    for calls in nfe:
        if calls < 1:
            raise ValueError(f"a sample takes at least one network call, got {calls}")
        if calls >= HEUN_FROM:
            settings.append(Setting(name, teacher, heun, heun_grid(teacher, (calls + 1) // 2)))
        else:
            settings.append(Setting(name, teacher, ddim, teacher.grid(calls)))
    return settings


def student_settings(
    student: NetworkDenoiser,
    steps: Sequence[int],
    *,
    segments: int = 1,
    name: str = "student",
    middle: float | None = None,
) -> list[Setting]:
    """The student as it was tuned: with one segment a consistency function, on the levels that its stock pipeline visits.

    With several it is walked along its segments with DDIM, and `steps` does not apply: it has one number of steps.
    """
    if segments > 1:
        if middle is not None:
            raise ValueError("`middle` is the second of two consistency steps; this student has levels of its own")
        return [Setting(name, student, ddim, student.grid(segments))]
    return [Setting(name, student, consistency, few_step_grid(student, n, middle)) for n in steps]
