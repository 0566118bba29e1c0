"""fewstep: turn the diffusion model you already have into a few-step generator, and see exactly what that cost."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .core.nfe import count_nfe as count_nfe
    from .diffusion.data import Images as Images
    from .diffusion.data import load_images as load_images
    from .diffusion.denoiser import EDM as EDM
    from .diffusion.denoiser import VP as VP
    from .diffusion.denoiser import Denoiser as Denoiser
    from .diffusion.denoiser import Flow as Flow
    from .diffusion.formats.exporting import export as export
    from .diffusion.formats.folder import few_step_grid as few_step_grid
    from .diffusion.formats.folder import load as load
    from .diffusion.formats.folder import save as save
    from .diffusion.loss import consistency_loss as consistency_loss
    from .diffusion.measure.dial import score as score
    from .diffusion.samplers import consistency as consistency
    from .diffusion.samplers import ddim as ddim
    from .diffusion.samplers import heun as heun
    from .diffusion.samplers import sample as sample
    from .diffusion.tuning import tune as tune

_HOME = {
    "export": "diffusion.formats.exporting",
    "few_step_grid": "diffusion.formats.folder",
    "load": "diffusion.formats.folder",
    "save": "diffusion.formats.folder",
    "Images": "diffusion.data",
    "load_images": "diffusion.data",
    "EDM": "diffusion.denoiser",
    "VP": "diffusion.denoiser",
    "Denoiser": "diffusion.denoiser",
    "Flow": "diffusion.denoiser",
    "consistency_loss": "diffusion.loss",
    "consistency": "diffusion.samplers",
    "ddim": "diffusion.samplers",
    "heun": "diffusion.samplers",
    "sample": "diffusion.samplers",
    "tune": "diffusion.tuning",
    "score": "diffusion.measure.dial",
    "count_nfe": "core.nfe",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    """Imports a public name at its first use, so that `import fewstep` and `fewstep --help` stay quick."""
    if name not in _HOME:
        raise AttributeError(f"module 'fewstep' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
