"""The facts that decide samples. Kept parts of a work carry them, so parts of other weights are not taken for its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.weights import mark
from .denoiser import Denoiser
from .formats.identity import identity_of
from .measure.seen import Setting


def decided_by(settings: Sequence[Setting]) -> dict[str, Any]:
    """The weights and the walk of each, its guidance, and the pipelines around them."""
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
