"""What to measure: a teacher and a student, each as it is sampled at a number of network calls."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..checkpoints.folder import few_step_grid
from ..images.denoiser import VP, NetworkDenoiser
from ..images.noise import karras
from ..images.sample import consistency, ddim, heun
from .dial import Setting

HEUN_FROM = (
    20  # network calls from which the teacher is sampled with Heun's method; at 11 DDIM still leads, see docs/log.md
)


def heun_grid(denoiser: NetworkDenoiser, steps: int) -> Tensor:
    """Karras' noise levels within what the denoiser was trained on, (steps,)."""
    sigma_min = max(0.002, float(denoiser.ln_sigmas[0].exp())) if isinstance(denoiser, VP) else 0.002
    return karras(steps, sigma_min, denoiser.sigma_max)[:-1]


def diffusion_settings(teacher: NetworkDenoiser, nfe: Sequence[int], name: str = "teacher") -> list[Setting]:
    """The teacher as a diffusion model: DDIM for few calls, Heun's method for many (an odd number of calls)."""
    settings = []
    for calls in nfe:
        if calls < 1:
            raise ValueError(f"a sample takes at least one network call, got {calls}")
        if calls >= HEUN_FROM:
            settings.append(Setting(name, teacher, heun, heun_grid(teacher, (calls + 1) // 2)))
        else:
            settings.append(Setting(name, teacher, ddim, _ddim_grid(teacher, calls)))
    return settings


def _ddim_grid(denoiser: NetworkDenoiser, steps: int) -> Tensor:
    """Trailing timesteps for VP, where the teacher is best at few calls (docs/log.md); else Karras' levels but the last."""
    if isinstance(denoiser, VP):
        return few_step_grid(denoiser, steps)
    return heun_grid(denoiser, steps + 1)[:-1]


def few_step_settings(
    student: NetworkDenoiser, steps: Sequence[int], name: str = "student", middle: float | None = None
) -> list[Setting]:
    """The student as a consistency function, on the noise levels that its stock pipeline visits."""
    return [Setting(name, student, consistency, few_step_grid(student, n, middle)) for n in steps]
