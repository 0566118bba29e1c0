"""Drives tune(): a folder on disk, a progress bar, a saved state to resume from, the result as a diffusers folder."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..core.device import default_accelerator
from ..core.files import load_state, save_state, writable
from ..core.nfe import count_nfe
from ..core.receipt import check_same, plain, receipt
from .data import Images, Paths
from .denoiser import NetworkDenoiser
from .formats.folder import save, segments_of
from .noise import FullGap
from .tuning import tune

logger = logging.getLogger(__name__)


def run(
    denoiser: NetworkDenoiser,
    data: Images | Paths,
    out: Path,
    recipe: dict[str, Any],
    *,
    resume: bool = False,
    precision: str | None = None,
    accumulate: int = 1,
    save_every: float = 120.0,
    title: str = "tune",
    **facts: Any,
) -> NetworkDenoiser:
    """Tunes `denoiser`; leaves in `out` the averaged model (`model/`), `state.pt` to resume from and `receipt.json`.

    If the recipe has several averages, the first makes `model/` and each other one `model-DECAY/`.

    Args:
        denoiser, data: for `tune`.
        out: folder of the run.
        recipe: keyword arguments of `tune`.
        resume: go on from `out/state.pt`, with the same recipe but perhaps more images.
        precision: "no" (float32) or "bf16"; None takes bfloat16 where the hardware computes it.
        accumulate: micro-batches a step.
        save_every: seconds between saved states.
        title: for the progress bar.
        facts: for the receipt, and what must be the same when the run is resumed.

    Returns:
        The averaged model.
    """
    facts |= {"denoiser": type(denoiser).__name__, "network": _said(denoiser.config)}
    writable(out)
    state_file = out / "state.pt"
    check_new(out, resume=resume)
    if recipe["batch"] < 1:
        raise ValueError(f"a step takes at least one sample, got batch = {recipe['batch']}")
    recipe = recipe | {"images": -(-recipe["images"] // recipe["batch"]) * recipe["batch"]}
    state = load_state(state_file) if resume else None
    if state:
        if not {"recipe", "facts", "emas"} <= state.keys():
            raise ValueError(f"{state_file} was saved by an older fewstep that kept other things; start the run anew")
        began = json.loads(state["recipe"]) | json.loads(state["facts"])
        check_same(began, plain(recipe | facts), free=("images", "workers", "compile"))  # its length, how it is computed
    accelerator = default_accelerator(precision, accumulate)
    main = accelerator.is_main_process
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f}/{task.total:,.0f} images"),
        TextColumn("{task.fields[speed]:.0f}/s  loss {task.fields[loss]:.3f}  gap {task.fields[gap]:.3f}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    last, kept = None, {"recipe": json.dumps(plain(recipe)), "facts": json.dumps(plain(facts))}
    facts |= {"recipe": recipe, "resumed": resume, "precision": accelerator.mixed_precision}
    facts |= {"processes": accelerator.num_processes, "device": str(accelerator.device)}
    with receipt(out / "receipt.json" if main else None, **facts) as entries, count_nfe(denoiser.network) as nfe:
        with Progress(*columns, disable=not main, refresh_per_second=2) as bar:
            seen = state["step"] * recipe["batch"] if state else 0
            task = bar.add_task(title, total=recipe["images"], completed=seen, speed=0.0, loss=float("nan"), gap=1.0)
            start = saved = logged = time.monotonic()
            for last in tune(denoiser, data, state=state, accelerator=accelerator, **recipe):
                now = time.monotonic()
                speed = (last.images - seen) / (now - start)
                bar.update(task, completed=last.images, speed=speed, loss=last.loss, gap=last.gap)
                if not bar.console.is_terminal and now - logged > 30:  # a log file gets lines instead of a bar
                    logger.info("%d images, %.0f/s, loss %.4f, gap %.3f", last.images, speed, last.loss, last.gap)
                    logged = now
                if main and now - saved > save_every and last.images < recipe["images"]:
                    save_state(state_file, last.state() | kept)
                    saved = time.monotonic()
        if last is None:
            raise ValueError(f"the run in {out} has seen all its images; ask for more with --images to go on")
        if main:
            diffusion = isinstance(recipe["gap"], FullGap) and isinstance(data, Images)
            segments = None if diffusion else recipe.get("segments", 1)
            for ema, name in zip(last.emas, _names(recipe.get("average")), strict=True):
                save(ema, out / name, segments=segments)
            save_state(state_file, last.state() | kept)  # last: a run that ends here unsaved can still be resumed
        entries |= {"steps": last.step, "images": last.images, "images_per_second": round(speed, 1), "loss": last.loss,
                    "network_calls": nfe.calls, "network_rows": nfe.rows}  # fmt: skip
    return last.ema


def check_new(out: Path, *, resume: bool) -> None:
    """Raises ValueError where a run would overwrite another."""
    if (out / "state.pt").exists() and not resume:
        raise ValueError(f"there already is a run in {out}; go on with --resume or choose another folder")


def _said(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a network's config says of the network itself, not of the library that wrote it."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def _names(average: Any) -> list[str]:
    """Folders of the averages: `model`, and `model-` with the decay or the width of each other one."""
    others = average[1:] if isinstance(average, Sequence) else ()
    return ["model", *(f"model-{dataclasses.astuple(other)[0]}" for other in others)]


class Model(NamedTuple):
    """A checkpoint.

    Attributes:
        source: its folder or hub id, for `load`.
        segments: that it was tuned with; None for a diffusion model.
        receipt: of the run that made it, {} if that does not lie beside it.
    """

    source: str
    segments: int | None
    receipt: dict[str, Any]


def find_model(checkpoint: str) -> Model:
    """The model of a run's folder, or of any other checkpoint."""
    folder = Path(checkpoint)
    if (folder / "model" / "model_index.json").exists():
        folder, checkpoint = folder / "model", str(folder / "model")
    file = folder.parent / "receipt.json"
    receipt = (
        json.loads(file.read_text())
        if (folder.name == "model" or folder.name.startswith("model-")) and file.exists()
        else {}
    )
    return Model(checkpoint, segments_of(checkpoint), receipt)
