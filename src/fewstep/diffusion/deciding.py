"""The facts that determine samples. Saved parts carry them, so that parts of other weights are not reused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.weights import mark
from .denoiser import Denoiser
from .formats.identity import identity_of
from .measure.seen import Setting


def decided_by(settings: Sequence[Setting]) -> dict[str, Any]:
    """Weights, walk and guidance of each setting, and the pipelines around them."""
    marks: dict[Denoiser, str] = {}
    for denoiser in {setting.denoiser for setting in settings}:
        marks[denoiser] = mark(denoiser.state_dict())
    pipelines = {setting.pipeline for setting in settings if setting.pipeline is not None}
    return {
        "models": [
            [each.name, each.walk, getattr(each.denoiser, "scale", None), marks[each.denoiser]] for each in settings
        ],
        "pipelines": sorted(f"{identity_of(pipeline.source)} {pipeline.call}" for pipeline in pipelines),
    }
