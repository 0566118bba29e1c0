"""fewstep: turn the diffusion model you already have into a few-step generator, and see exactly what that cost."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .checkpoints.export import export as export
    from .checkpoints.folder import few_step_grid as few_step_grid
    from .checkpoints.folder import load as load
    from .checkpoints.folder import save as save
    from .data import Images as Images
    from .data import load_images as load_images
    from .images.denoiser import EDM as EDM
    from .images.denoiser import VP as VP
    from .images.denoiser import Denoiser as Denoiser
    from .images.denoiser import Flow as Flow
    from .images.loss import consistency_loss as consistency_loss
    from .images.sample import consistency as consistency
    from .images.sample import ddim as ddim
    from .images.sample import heun as heun
    from .images.sample import sample as sample
    from .images.tune import tune as tune
    from .measure.dial import score as score
    from .nfe import count_nfe as count_nfe

_HOME = {
    "export": "checkpoints.export",
    "few_step_grid": "checkpoints.folder",
    "load": "checkpoints.folder",
    "save": "checkpoints.folder",
    "Images": "data",
    "load_images": "data",
    "EDM": "images.denoiser",
    "VP": "images.denoiser",
    "Denoiser": "images.denoiser",
    "Flow": "images.denoiser",
    "consistency_loss": "images.loss",
    "consistency": "images.sample",
    "ddim": "images.sample",
    "heun": "images.sample",
    "sample": "images.sample",
    "tune": "images.tune",
    "score": "measure.dial",
    "count_nfe": "nfe",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    """Imports a public name at its first use, so that `import fewstep` and `fewstep --help` stay quick."""
    if name not in _HOME:
        raise AttributeError(f"module 'fewstep' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
