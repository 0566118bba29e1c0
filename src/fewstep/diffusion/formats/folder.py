"""Diffusers folders: `load` reads a model, and `save` writes one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ...core.files import atomic_folder
from ...core.receipt import plain
from ...core.source import folder_of, inside, read_json
from ...core.weights import check_finite, read_weights
from ..denoiser import Denoiser
from ..lora import base_of, factors_of, is_adapted, mark_of, put_factors
from ..model import Model
from ..pipeline import Pipeline
from ..schedule import DiscreteVP, Karras
from ..two_times import TwoTimes
from ..walk import Consistency, Heun, Segments, Walk
from . import schedulers
from .adapters import is_adapter, read_adapter, write_adapter
from .network import read_any_network, read_network
from .opening import files_of, open_pipeline
from .parts import part_folder, read_parts
from .pipelines import stock_pipeline
from .trained import scheduler_config

NOTE = "fewstep.json"
ENDS = "second_time.safetensors"  # second time of a student of any number of calls
FORMAT = 1  # format of the note
WALKS = {"Consistency": Consistency, "Segments": Segments}  # walks of students


def load(source: str | Path, *, call: Mapping[str, object] | None = None) -> Model:
    """Loads the model in a diffusers folder or hub repository: any pipeline with one denoising network.

    The scheduler's configuration determines the parametrisation. Weights are read from safetensors or from plain tensors in
    a .bin file. No code of the checkpoint runs.

    Args:
        source: a folder, the folder of a run, the id of a hub repository, or "bundled" for the small model that comes with
            the package.
        call: further arguments of the stock pipeline, such as height and width; by default those with which a student was
            tuned.

    Returns:
        The model in float32 on the CPU, in evaluation mode. A student has the walk that it was tuned for; a diffusion model
        is sampled with Heun's method.

    Raises:
        ValueError: the source does not exist or is no such checkpoint, or the base of an adapter has changed.
    """
    folder = _folder(source)
    if is_adapter(folder):
        return _adapted(folder)
    parts = read_parts(folder)
    place = part_folder(folder, parts.network)
    schedule, prediction = schedulers.read(scheduler_config(part_folder(folder, "scheduler")))
    pipeline = None
    if parts.is_bare:
        denoiser = Denoiser(read_network(place), schedule, prediction).eval()
    else:
        network = read_any_network(place, parts.kind)
        pipeline = Pipeline(folder, network, partial(open_pipeline, folder, parts), _call(folder) if call is None else call)
        denoiser = pipeline.denoiser(schedule, prediction).eval()
        pipeline.let_go()
    if inside(folder, ENDS).exists():
        denoiser = _told(folder, denoiser)
    return Model(denoiser, _walk(folder, denoiser), _receipt(folder), pipeline)


def save(model: Model, folder: str | Path) -> None:
    """Writes `model` as a diffusers folder, atomically; `load` reads it.

    A model with a pipeline is written as that pipeline with all its parts. Of the other models, stock diffusers samples
    those of a UNet2DModel with VP or EDM. It refuses folders of EDM's own time, flow matching in pixels, VP with classes,
    DiTs without a decoder, and students of any number of calls; `export` writes such students for one number of calls.
    """
    from diffusers import DDPMPipeline
    from safetensors.torch import save_file

    denoiser = model.denoiser
    if is_adapted(denoiser.network):
        _save_adapter(model, Path(folder))
        return
    if model.pipeline is not None:
        _save_pipeline(model, model.pipeline, Path(folder))
        return
    with atomic_folder(Path(folder)) as temporary:
        if _has_pipeline(denoiser) and isinstance(denoiser.schedule, Karras):
            stock_pipeline(denoiser, Consistency()).save_pretrained(temporary)
        else:
            DDPMPipeline(unet=denoiser.network, scheduler=schedulers.write(denoiser)).save_pretrained(temporary)
        if not _has_pipeline(denoiser):
            _name_no_pipeline(temporary)
        if isinstance(denoiser, TwoTimes):
            save_file(denoiser.ends.state_dict(), temporary / ENDS)
        write_note(temporary, model.walk)


def _save_pipeline(model: Model, pipeline: Pipeline, folder: Path) -> None:
    """Writes the whole pipeline with the model's network in place of its own."""
    from safetensors.torch import save_file

    with atomic_folder(folder) as temporary:
        carry(pipeline.source, temporary, model.denoiser.network)
        if isinstance(model.denoiser, TwoTimes):
            save_file(model.denoiser.ends.state_dict(), temporary / ENDS)
        write_note(temporary, model.walk, pipeline=pipeline)


def carry(source: Path, folder: Path, network: Any, scheduler: Any = None) -> None:
    """Writes the pipeline in `source` into `folder` with another `network`, and another `scheduler` if given."""
    parts = read_parts(source)
    index = read_json(source / "model_index.json", "a diffusers pipeline folder has one at its top")
    index[parts.network] = ["diffusers", type(network).__name__]
    if scheduler is not None:
        index["scheduler"] = ["diffusers", type(scheduler).__name__]
        scheduler.save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    for part in (*parts.others, *(["scheduler"] if scheduler is None else [])):
        (folder / part).mkdir(exist_ok=True)
        for name, file in files_of(source, part).items():
            shutil.copyfile(file, folder / part / name)  # a link would change with its source
    network.save_pretrained(folder / parts.network)


def write_note(
    folder: Path, walk: Walk, *, base: Mapping[str, str] | None = None, pipeline: Pipeline | None = None
) -> None:
    """Writes into a student's folder how it is sampled, the base of its adapter, and the arguments of its pipeline.

    Stock diffusers ignores the file.
    """
    said = {"walk": plain(walk)} if isinstance(walk, (Consistency, Segments)) else {}
    said |= {"base": base} if base else {}
    said |= {"call": pipeline.call} if pipeline and pipeline.call else {}
    if said:
        (folder / NOTE).write_text(json.dumps({"format": FORMAT, **said}) + "\n")


def _save_adapter(model: Model, folder: Path) -> None:
    """Writes the factors, the second time, and which base they belong to."""
    from safetensors.torch import save_file

    denoiser, network = model.denoiser, model.denoiser.network
    with atomic_folder(folder) as temporary:
        write_adapter(temporary, network, factors_of(network))
        if isinstance(denoiser, TwoTimes):
            save_file(denoiser.ends.state_dict(), temporary / ENDS)
        write_note(
            temporary, model.walk, base={"source": base_of(network), "weights": mark_of(network)}, pipeline=model.pipeline
        )


def _adapted(folder: Path) -> Model:
    """Loads the student whose adapter is in `folder`, with its base."""
    base = read_json(inside(folder, NOTE), "it says which base the adapter belongs to").get("base")
    if not (isinstance(base, dict) and all(isinstance(base.get(name), str) for name in ("source", "weights"))):
        raise ValueError(f"{NOTE} in {folder} does not say which base the adapter belongs to; save the student again")
    place = _folder(base["source"])
    if is_adapter(place):
        raise ValueError(f"the base of the adapter in {folder} is an adapter itself, {place}; name that one's base")
    model = load(place, call=_call(folder))
    if mark_of(model.denoiser.network) != base["weights"]:
        raise ValueError(
            f"the weights of {base['source']} are not those with which the adapter in {folder} was tuned; write the path "
            f"of its base into {NOTE}"
        )
    denoiser = _told(folder, model.denoiser) if inside(folder, ENDS).exists() else model.denoiser
    put_factors(denoiser, read_adapter(folder), base=base["source"])
    return replace(model, denoiser=denoiser.eval(), walk=_walk(folder, denoiser), receipt=_receipt(folder))


def _has_pipeline(denoiser: Denoiser) -> bool:
    """Whether stock diffusers has a pipeline for it."""
    if type(denoiser.network).__name__ != "UNet2DModel" or isinstance(denoiser, TwoTimes):
        return False
    if isinstance(denoiser.schedule, Karras):
        return denoiser.schedule.time_scale == 250
    return isinstance(denoiser.schedule, DiscreteVP) and not denoiser.takes


def _name_no_pipeline(folder: Path) -> None:
    """Names the abstract base class as the pipeline, because a DDPMPipeline would make wrong images of these parts."""
    file = folder / "model_index.json"
    index = read_json(file, "a pipeline writes it") | {"_class_name": "DiffusionPipeline"}
    file.write_text(json.dumps(index, indent=2) + "\n")


def _told(folder: Path, denoiser: Denoiser) -> TwoTimes:
    """The student of any number of calls around `denoiser`, with the second time in `folder`."""
    student, weights = TwoTimes(denoiser), read_weights(folder, (ENDS,))
    check_finite(weights.items(), folder)
    forms, found = (
        {name: (weight.shape, weight.is_floating_point()) for name, weight in each.items()}
        for each in (student.ends.state_dict(), weights)
    )
    if forms != found:
        raise ValueError(f"{ENDS} in {folder} is not the second time of the network beside it; save the student again")
    student.ends.load_state_dict(weights)
    return student.eval()


def _walk(folder: Path, denoiser: Denoiser) -> Walk:
    note = inside(folder, NOTE)
    if note.exists():
        content = read_json(note, "it says how the student is sampled")
        if content.get("format") != FORMAT:
            raise ValueError(f"{note} has format {content.get('format')}, this fewstep reads {FORMAT}; update fewstep")
        if {"base", "call"} & content.keys() and "walk" not in content and not isinstance(denoiser, TwoTimes):
            return Heun()
        try:
            fields = dict(content["walk"])
            walk: Walk = WALKS[fields.pop("name")](**fields)
            walk.levels(denoiser)  # as it would be sampled
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{note} does not say how the student is sampled: {error!r}") from error
        return walk
    if isinstance(denoiser, TwoTimes):
        raise ValueError(f"{folder} has {ENDS} of a student, but no {NOTE} that says how it is sampled; save it again")
    # a note-less ConsistencyModelPipeline is a published consistency model; its scheduler belongs to nothing else
    published = isinstance(denoiser.schedule, Karras) and denoiser.schedule.time_scale == 250 and denoiser.identity > 0
    return Consistency() if published else Heun()


def _call(folder: Path) -> dict[str, object]:
    """The arguments of the pipeline in `folder` with which its student was tuned."""
    note = inside(folder, NOTE)
    call = read_json(note, "it says how the student is sampled").get("call", {}) if note.exists() else {}
    if not isinstance(call, dict):
        raise ValueError(f"{note} says that the pipeline is called with {call!r:.80}, which is no dictionary of arguments")
    return call


def _receipt(folder: Path) -> dict[str, Any]:
    """The receipt of the run that made the model in `folder`; {} without one."""
    file = folder.parent / "receipt.json"
    made_here = folder.name == "model" or folder.name.startswith("model-")
    return read_json(file, "it says how the model was made") if made_here and file.exists() else {}


def network_folder(source: str | Path, part: str) -> Path:
    """The folder of a checkpoint's network, which is the part `part` of its pipeline."""
    return part_folder(_folder(source), part)


def _folder(source: str | Path) -> Path:
    model = Path(source) / "model"
    if (model / "model_index.json").exists() or is_adapter(model):  # a run
        return model
    known = (Path(source) / "model_index.json").exists() or is_adapter(Path(source))
    if not known and (Path(source) / "state.pt").exists():
        raise ValueError(f"{source} is a run that has not finished; go on with it by --resume")
    return folder_of(source, "diffusers folder", bundled="teacher", pickles=True)
