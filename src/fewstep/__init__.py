"""fewstep: turn the diffusion model you already have into a few-step generator, and see exactly what that cost.

This module offers what most users need. Its parts have more: `fewstep.diffusion` for images and other continuous data,
`fewstep.masked` for masked diffusion language models, `fewstep.steering` for large models that small ones steer.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .core.lazy import lazily

if TYPE_CHECKING:
    from .core.nfe import count_nfe as count_nfe
    from .diffusion.checkpoints import train_checkpoint as train_checkpoint
    from .diffusion.checkpoints import tune_checkpoint as tune_checkpoint
    from .diffusion.choices import Lessons as Lessons
    from .diffusion.choices import Run as Run
    from .diffusion.choices import Training as Training
    from .diffusion.cond import Cond as Cond
    from .diffusion.cond import labelled as labelled
    from .diffusion.data import Images as Images
    from .diffusion.data import Table as Table
    from .diffusion.data import load_images as load_images
    from .diffusion.data import make_table as make_table
    from .diffusion.denoiser import Denoiser as Denoiser
    from .diffusion.denoiser import edm as edm
    from .diffusion.denoiser import flow as flow
    from .diffusion.denoiser import vp as vp
    from .diffusion.encoding import encode_data as encode_data
    from .diffusion.forecasting import forecast_runs as forecast_runs
    from .diffusion.formats.exporting import export as export
    from .diffusion.formats.exporting_adapters import export_adapter as export_adapter
    from .diffusion.formats.folder import load as load
    from .diffusion.formats.folder import save as save
    from .diffusion.formats.foreign.importing import import_checkpoint as import_checkpoint
    from .diffusion.lora import LoRA as LoRA
    from .diffusion.lora import adapt as adapt
    from .diffusion.lora import fused as fused
    from .diffusion.loss import consistency_loss as consistency_loss
    from .diffusion.measure.dial import score as score
    from .diffusion.measuring import dial_checkpoints as dial_checkpoints
    from .diffusion.measuring import ledger_checkpoints as ledger_checkpoints
    from .diffusion.measuring import measure_checkpoint as measure_checkpoint
    from .diffusion.model import Model as Model
    from .diffusion.objective import Loss as Loss
    from .diffusion.scoring import Scoring as Scoring
    from .diffusion.settling import settle_checkpoint as settle_checkpoint
    from .diffusion.tuning import tune as tune
    from .diffusion.two_times import TwoTimes as TwoTimes
    from .diffusion.using import export_checkpoint as export_checkpoint
    from .diffusion.using import sample_checkpoint as sample_checkpoint
    from .diffusion.walk import DDIM as DDIM
    from .diffusion.walk import Consistency as Consistency
    from .diffusion.walk import Heun as Heun
    from .diffusion.walk import Segments as Segments
    from .diffusion.watching import Watching as Watching
    from .masked import KLASS as KLASS
    from .masked import Blockwise as Blockwise
    from .masked import CommitRule as CommitRule
    from .masked import EarlyCommit as EarlyCommit
    from .masked import EntropyBound as EntropyBound
    from .masked import Factor as Factor
    from .masked import Hierarchical as Hierarchical
    from .masked import MaskPredictor as MaskPredictor
    from .masked import StableAndConfident as StableAndConfident
    from .masked import Threshold as Threshold
    from .masked import TopK as TopK
    from .masked import calibrate as calibrate
    from .masked import canvas_row as canvas_row
    from .masked import decode as decode
    from .masked import load_text as load_text
    from .masked import load_tokenizer as load_tokenizer
    from .masked import sched as sched
    from .report import write_report as write_report
    from .steering import ProxyTuning as ProxyTuning
    from .steering import Questioning as Questioning
    from .steering import ledger_models as ledger_models

    __version__: str

_NAMES = {
    "core.nfe": ["count_nfe"],
    "diffusion.checkpoints": ["train_checkpoint", "tune_checkpoint"],
    "diffusion.choices": ["Lessons", "Run", "Training"],
    "diffusion.cond": ["Cond", "labelled"],
    "diffusion.data": ["Images", "Table", "load_images", "make_table"],
    "diffusion.denoiser": ["Denoiser", "edm", "flow", "vp"],
    "diffusion.encoding": ["encode_data"],
    "diffusion.forecasting": ["forecast_runs"],
    "diffusion.formats.exporting": ["export"],
    "diffusion.formats.exporting_adapters": ["export_adapter"],
    "diffusion.formats.folder": ["load", "save"],
    "diffusion.formats.foreign.importing": ["import_checkpoint"],
    "diffusion.lora": ["LoRA", "adapt", "fused"],
    "diffusion.loss": ["consistency_loss"],
    "diffusion.measure.dial": ["score"],
    "diffusion.measuring": ["dial_checkpoints", "ledger_checkpoints", "measure_checkpoint"],
    "diffusion.objective": ["Loss"],
    "diffusion.scoring": ["Scoring"],
    "diffusion.settling": ["settle_checkpoint"],
    "diffusion.model": ["Model"],
    "diffusion.tuning": ["tune"],
    "diffusion.using": ["export_checkpoint", "sample_checkpoint"],
    "diffusion.two_times": ["TwoTimes"],
    "diffusion.walk": ["Consistency", "DDIM", "Heun", "Segments"],
    "diffusion.watching": ["Watching"],
    "masked": [
        "Blockwise", "CommitRule", "EarlyCommit", "EntropyBound", "Factor", "Hierarchical", "KLASS", "MaskPredictor",
        "StableAndConfident", "Threshold", "TopK", "calibrate", "canvas_row", "decode", "load_text", "load_tokenizer",
        "sched",
    ],
    "report": ["write_report"],
    "steering": ["ProxyTuning", "Questioning", "ledger_models"],
}  # fmt: skip
__all__ = [name for names in _NAMES.values() for name in names]

# diffusers and peft import bitsandbytes where it is installed, which warns of kernels that nothing here uses
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_public, __dir__ = lazily(__name__, _NAMES, modules=("__version__", "diffusion", "masked", "steering"))


def __getattr__(name: str) -> object:
    """Imports a public name at its first use; the version is that of the installed package."""
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    return _public(name)
