"""diffusers folders in and out: load() gives a denoiser, save() a folder that stock pipelines open."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..images.denoiser import EDM, VP, Flow, NetworkDenoiser
from .atomic import atomic_folder

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

logger = logging.getLogger(__name__)

NETWORKS = {"UNet2DModel": "unet", "DiTTransformer2DModel": "transformer"}


def load(source: str | Path) -> NetworkDenoiser:
    """The denoiser in a diffusers folder or hub repository that holds a UNet2DModel or DiTTransformer2DModel.

    The scheduler's configuration says which parametrisation it is. Weights come from safetensors or from plain tensors in
    a .bin file; no code of the checkpoint runs.

    Args:
        source: a folder, or the id of a hub repository.

    Returns:
        The denoiser in float32, on the CPU, in evaluation mode.

    Raises:
        ValueError: nothing there, or not such a checkpoint.
    """
    import diffusers

    folder = _folder(source)
    index = _read_json(folder / "model_index.json", "a diffusers pipeline folder has one at its top")
    entries = {part: value[1] for part, value in index.items() if isinstance(value, list) and len(value) == 2}
    network_class = next((name for name in entries.values() if name in NETWORKS), None)
    if network_class is None:
        raise ValueError(
            f"{source} is a {index.get('_class_name', 'checkpoint')} with {sorted(map(str, entries.values()))}; fewstep "
            f"tunes pipelines whose network is a {' or '.join(NETWORKS)}"
        )
    part = next(part for part, name in entries.items() if name == network_class)
    try:
        network = getattr(diffusers, network_class).from_pretrained(
            _part(folder, part), torch_dtype=torch.float32, local_files_only=True, low_cpu_mem_usage=False
        )
    except (OSError, RuntimeError, KeyError) as error:
        raise ValueError(f"the network in {source} could not be loaded: {error}") from error
    scheduler = _read_json(_part(folder, "scheduler") / "scheduler_config.json", "it says how the network was trained")
    return from_scheduler(network, scheduler).eval()


def from_scheduler(network: torch.nn.Module, config: dict[str, Any]) -> NetworkDenoiser:
    """Wraps `network` as the diffusers scheduler configuration `config` says it was trained."""
    from diffusers import DDPMScheduler

    kind = config.get("_class_name", "")
    if kind == "CMStochasticIterativeScheduler":
        offset = config["sigma_min"] if config["sigma_min"] > 1e-5 else 0.0  # save() writes a tiny one for "none"
        return EDM(network, sigma_data=config["sigma_data"], sigma_max=config["sigma_max"], offset=offset)
    if kind.startswith("EDM"):
        if config.get("prediction_type", "epsilon") != "epsilon":
            raise ValueError(f"{kind} with prediction_type {config['prediction_type']} is not known; only epsilon is")
        return EDM(network, sigma_data=config["sigma_data"], sigma_max=config["sigma_max"], time_scale=0.25)
    if kind.startswith("FlowMatch"):
        return Flow(network, time_scale=float(config["num_train_timesteps"]))
    if "beta_schedule" in config:
        keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")
        known = {key: config[key] for key in (*keys, "rescale_betas_zero_snr") if config.get(key) is not None}
        return VP(network, DDPMScheduler(**known, clip_sample=False))
    raise ValueError(f"the scheduler {kind or 'without a name'} says nothing that fewstep knows about how it was trained")


def save(denoiser: NetworkDenoiser, folder: str | Path) -> None:
    """Writes a diffusers pipeline folder that `load` and stock diffusers open, atomically."""
    with atomic_folder(Path(folder)) as temporary:
        pipeline(denoiser).save_pretrained(temporary, safe_serialization=True)


def pipeline(denoiser: NetworkDenoiser) -> DiffusionPipeline:
    """The stock diffusers pipeline around `denoiser`'s network, as a diffusion model."""
    from diffusers import ConsistencyModelPipeline, DDPMPipeline, DiTPipeline  # noqa: F401

    if isinstance(denoiser, VP):
        return DDPMPipeline(unet=denoiser.network, scheduler=denoiser.scheduler)
    raise ValueError(f"a {type(denoiser).__name__} has no stock pipeline")


def _folder(source: str | Path) -> Path:
    path = Path(source)
    if path.is_dir():
        return path
    if path.exists() or path.is_absolute() or str(source).startswith(".") or str(source).count("/") != 1:
        raise ValueError(f"{source} is not a folder; give a diffusers folder or the id of a hub repository")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(source), allow_patterns=["*.json", "*.safetensors", "*.bin"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(f"{source} is neither a folder nor a hub repository that can be fetched: {error}") from error


def _part(folder: Path, part: str) -> Path:
    """Old repositories keep the parts of a pipeline at its top."""
    return folder / part if (folder / part).is_dir() else folder


def _read_json(path: Path, why: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"there is no {path.name} in {path.parent}: {why}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    return content
