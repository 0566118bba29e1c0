"""The command line: every command is a typed function; its parameters are the flags."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import tyro
from tyro.conf import Positional

if TYPE_CHECKING:
    from torch import nn

    from .data import Images
    from .images.denoiser import NetworkDenoiser

    Module = TypeVar("Module", bound=nn.Module)

Recipe = Literal["ect_demo", "ect_one_hour", "ect_cifar10", "ect_imagenet64"]
SamplerName = Literal["consistency", "heun", "ddim"]


def train(
    data: Positional[str],
    /,
    *,
    out: Path,
    images: int = 500_000,
    batch: int = 64,
    channels: int = 1,
    size: int = 28,
    widths: tuple[int, ...] = (32, 48, 96),
    parametrisation: Literal["vp", "edm"] = "vp",
    conditional: bool = False,
    rate: float = 1e-3,
    seed: int = 0,
    mirror: bool = False,
    workers: int = 0,
    resume: bool = False,
) -> None:
    """Train a small diffusion model from scratch.

    Args:
        data: an .npz, a folder or zip of images, a .parquet or a hub data set.
        out: folder of the run.
        images: training images to see.
        batch: images a step.
        channels: 1 for grey, 3 for colour.
        size: side of the square images, pixels.
        widths: channels of the network at each resolution.
        parametrisation: vp saves a DDPMPipeline (v-prediction), edm a ConsistencyModelPipeline.
        conditional: give the network the classes of the data.
        rate: peak learning rate; falls to 0 along a cosine.
        seed: of everything random.
        mirror: flip half of the images left to right.
        workers: loader processes.
        resume: go on from the state saved in out.
    """
    import torch

    from .data import load_images
    from .recipes import diffusion, new_denoiser
    from .runs import run

    samples, classes = load_images(data, channels=channels, size=size), 0
    if conditional:
        if samples.labels is None:
            raise ValueError(f"{data} has no labels to train a conditional model on; leave --conditional out")
        classes = int(samples.labels.max()) + 1
    torch.manual_seed(seed)
    denoiser = new_denoiser(channels, size, widths=widths, parametrisation=parametrisation, classes=classes)
    recipe = diffusion(images, batch=batch, rate=rate) | {"seed": seed, "mirror": mirror, "workers": workers}
    run(denoiser, samples, out, recipe, resume=resume, title="train", source=data)
    print(f"the diffusion model is in {out / 'model'}")


def tune(
    checkpoint: Positional[str],
    /,
    *,
    data: str,
    out: Path,
    recipe: Recipe = "ect_demo",
    images: int | None = None,
    batch: int | None = None,
    rate: float | None = None,
    q: float | None = None,
    stages: int | None = None,
    average: float | None = None,
    dropout: float | None = None,
    clip: float | None = None,
    seed: int = 0,
    mirror: bool = False,
    teacher_images: int = 4000,
    precision: Literal["no", "bf16"] | None = None,
    accumulate: int = 1,
    workers: int = 0,
    compile: bool = False,
    resume: bool = False,
) -> None:
    """Tune a diffusion checkpoint into a few-step generator (Easy Consistency Tuning).

    Start it with `accelerate launch` for several processes.

    Args:
        checkpoint: a diffusers folder or hub id that holds a UNet2DModel or DiTTransformer2DModel.
        data: an .npz, a folder or zip of images, a .parquet, a hub data set, or `teacher` for images that the
            checkpoint itself makes.
        out: folder of the run.
        recipe: where the settings below come from unless given.
        images: training images to see.
        batch: images a step, over all processes.
        rate: constant learning rate.
        q: the gap shrinks by 1/q a stage.
        stages: number of stages.
        average: decay of the averaged weights.
        dropout: probability in every dropout layer.
        clip: norm at which the gradient is clipped.
        seed: of everything random.
        mirror: flip half of the images left to right.
        teacher_images: how many images `--data teacher` makes.
        precision: no (float32) or bf16; by default bf16 where the hardware computes it.
        accumulate: micro-batches a step.
        workers: loader processes.
        compile: compile the network.
        resume: go on from the state saved in out.
    """
    from .checkpoints.folder import load
    from .images.noise import ECTGap
    from .images.optim import Constant, Dropout, Exponential
    from .recipes import RECIPES
    from .runs import run

    denoiser = load(checkpoint)
    settings = RECIPES[recipe]() if images is None else RECIPES[recipe](images)
    gap = settings["gap"]
    assert isinstance(gap, ECTGap)
    changed: dict[str, object | None] = {
        "batch": batch,
        "rate": None if rate is None else Constant(rate),
        "gap": ECTGap(gap.q if q is None else q, gap.stages if stages is None else stages, gap.k, gap.b),
        "average": None if average is None else Exponential(average),
        "dropout": None if dropout is None else Dropout(dropout),
        "max_grad_norm": clip,
    }
    settings |= {name: value for name, value in changed.items() if value is not None}
    settings |= {"seed": seed, "mirror": mirror, "workers": workers, "compile": compile}
    samples = _training_data(denoiser, data, out, teacher_images, seed)
    run(
        denoiser, samples, out, settings, resume=resume, precision=precision, accumulate=accumulate,
        teacher=checkpoint, source=data, recipe_name=recipe,
    )  # fmt: skip
    print(f"the few-step generator is in {out / 'model'}; next: fewstep sample {out / 'model'} --out samples")


def sample(
    checkpoint: Positional[str],
    /,
    *,
    out: Path,
    n: int = 16,
    steps: int = 2,
    sampler: SamplerName = "consistency",
    middle: float | None = None,
    label: int | None = None,
    seed: int = 0,
    batch: int = 250,
) -> None:
    """Sample images, one PNG a seed, and a sheet of them all; latents go to samples.npz.

    Args:
        checkpoint: a diffusers folder or hub id, tuned or not.
        out: folder for the images.
        n: how many.
        steps: of the sampler; heun makes 2·steps − 1 network calls.
        sampler: consistency for a tuned model, heun or ddim for a diffusion model.
        middle: noise level of the second of two steps, EDM students only.
        label: class of the images, for conditional models.
        seed: of the first image; image k has seed + k and is the same at any batch size.
        batch: images at once.
    """
    from .checkpoints.atomic import writable
    from .checkpoints.folder import few_step_grid, load
    from .images import sample as samplers
    from .measure.settings import heun_grid
    from .nfe import count_nfe
    from .receipt import receipt
    from .report import save_samples

    writable(out)
    denoiser, cond = _on_device(load(checkpoint)), {}
    if denoiser.conditional != (label is not None):
        raise ValueError("this checkpoint " + ("needs a --label" if denoiser.conditional else "takes no --label"))
    if label is not None:
        import torch

        cond = {"class_labels": torch.full((n,), label)}
    if n < 1 or steps < 1:
        raise ValueError(f"at least one image and one step, got --n {n} --steps {steps}")
    grid = few_step_grid(denoiser, steps, middle) if sampler == "consistency" else heun_grid(denoiser, steps)
    with receipt(out / "receipt.json", checkpoint=checkpoint, sampler=sampler, grid=grid.tolist(), seed=seed) as entries:
        with count_nfe(denoiser.network) as nfe:
            x0 = samplers.sample(
                denoiser, range(seed, seed + n), denoiser.shape, getattr(samplers, sampler), grid, batch=batch, **cond
            )
        save_samples(x0, out, seed)
        entries |= {"nfe_per_sample": nfe.rows / n, "network_calls": nfe.calls}
    print(f"{n} samples in {out}, {nfe.rows / n:.0f} network calls each")


def measure(
    checkpoint: Positional[str],
    /,
    *,
    data: str,
    out: Path,
    teacher: str | None = None,
    steps: tuple[int, ...] = (1, 2, 4, 8),
    teacher_calls: tuple[int, ...] = (1, 2, 4, 8, 35),
    middle: float | None = None,
    n: int = 1000,
    features: str = "fashion",
    seed: int = 0,
    batch: int = 250,
    precision: Literal["no", "bf16"] = "no",
) -> None:
    """Score a tuned model, and its teacher beside it, at several numbers of network calls.

    Args:
        checkpoint: the tuned model.
        data: real images to compare with: an .npz, a folder or zip, a .parquet or a hub data set.
        out: folder for measure.json, quality.png and samples.png.
        teacher: the diffusion checkpoint it came from, scored on the same seeds.
        steps: step counts of the tuned model.
        teacher_calls: network calls of the teacher: DDIM for few, Heun's method from 20 on.
        middle: noise level of the second of two steps, EDM students only.
        n: samples for each score; scores compare only at the same n.
        features: fashion (bundled), inception, or the folder or hub id of a DINOv2 model.
        seed: of the first sample.
        batch: samples at once.
        precision: no (float32) or bf16.
    """
    import torch

    from .checkpoints.atomic import writable
    from .checkpoints.folder import load
    from .data import load_images
    from .measure import dial
    from .measure.features import extractor, reference
    from .measure.settings import diffusion_settings, few_step_settings
    from .receipt import receipt
    from .report import plot, sheet, table

    writable(out)
    student = _on_device(load(checkpoint))
    settings = few_step_settings(student, steps, middle=middle)
    if teacher:
        settings = diffusion_settings(_on_device(load(teacher)), teacher_calls) + settings
    channels, size, _ = student.shape
    if channels not in (1, 3):
        raise ValueError(f"this model makes latents of {channels} channels; only images can be scored")
    network, real_images = _on_device(extractor(features)), load_images(data, channels=channels, size=size)
    real, cond = reference(network, real_images.pixels), {}
    if student.conditional:
        if real_images.labels is None:
            raise ValueError(f"this model is conditional on classes, but {data} has no labels to draw them from")
        cond = {"class_labels": real_images.labels[torch.arange(n) % len(real_images)]}
    with receipt(out / "measure.json", checkpoint=checkpoint, teacher=teacher, features=features, seed=seed) as entries:
        points = []
        for setting in settings:
            seeds = range(seed, seed + n)
            points.append(
                dial.score(setting, seeds, student.shape, network, real, batch=batch, precision=precision, **cond)
            )
            logging.getLogger(__name__).info("%s: Fréchet distance %s", setting.name, points[-1].frechet)
        entries |= {"points": [point.summary() for point in points], "precision": precision}
        if teacher:
            best = min((p for p in points if p.name == "teacher"), key=lambda p: p.frechet.value)
            entries["minus_best_teacher"] = {
                f"{p.nfe:.0f}": dial.difference(p, best, real)._asdict() for p in points if p.name == "student"
            }
        plot(points, out / "quality.png", features=features)
        sheet(points, out / "samples.png")
    from rich.console import Console

    Console().print(table(points))
    print(f"table, plot and pictures: {out / 'measure.json'}, {out / 'quality.png'}, {out / 'samples.png'}")


def export(
    checkpoint: Positional[str],
    /,
    *,
    out: Path,
    steps: int = 2,
    middle: float | None = None,
    measured: Path | None = None,
) -> None:
    """Export a tuned model as a folder that plain diffusers samples, verified in a fresh process.

    Args:
        checkpoint: the tuned model; the receipt of its run, if it lies beside it, goes into the model card.
        out: the folder to write.
        steps: network calls of the verification and of the card's example.
        middle: noise level of the second of two steps, EDM students only.
        measured: a measure.json whose scores go into the model card.
    """
    import json

    from .checkpoints.export import TOLERANCE
    from .checkpoints.export import export as write
    from .checkpoints.folder import load

    card: dict[str, object] = {"checkpoint": checkpoint}
    beside = Path(checkpoint).parent / "receipt.json"
    if beside.exists():
        run = json.loads(beside.read_text())
        card |= {name: run.get(name) for name in ("teacher", "source", "recipe_name", "recipe", "versions")}
    if measured:
        if not measured.exists():
            raise ValueError(f"there is no {measured}; make one with fewstep measure")
        points = json.loads(measured.read_text())["points"]
        card["Fréchet distance"] = {f"{p['name']}, {p['nfe']:.0f} calls": round(p["frechet"]["value"], 2) for p in points}
    largest = write(load(checkpoint), out, steps=steps, middle=middle, card=card)
    print(
        f"{out} is verified: its images differ from ours by at most {largest:.1e} of 255 grey levels (allowed {TOLERANCE})"
    )


def demo(*, out: Path = Path("demo"), images: int | None = None, n: int = 1000, seed: int = 0) -> None:
    """Turn the bundled diffusion checkpoint into a few-step generator, with pictures and scores.

    Args:
        out: folder for everything it makes; an earlier demo there is replaced.
        images: training images to see; more buys quality, fewer is quicker.
        n: samples for each score.
        seed: of everything random.
    """
    from .demo import demo as run

    run(out, images=images, n=n, seed=seed)


def _training_data(denoiser: NetworkDenoiser, data: str, out: Path, count: int, seed: int) -> Images:
    """The data set called `data` at the size of the model; `teacher` is made once and kept in the run's folder."""
    import torch
    from accelerate import PartialState

    from .checkpoints.atomic import writable
    from .data import load_images, save_images
    from .runs import teacher_images

    channels, size, _ = denoiser.shape
    writable(out)
    if data == "teacher":
        kept = out / "teacher_images.npz"
        with PartialState(cpu=not torch.cuda.is_available()).main_process_first():
            if not kept.exists():
                logging.getLogger(__name__).info("the teacher makes %d training images", count)
                save_images(teacher_images(_on_device(denoiser), count, seed=seed), kept)
        data = str(kept)
    return load_images(data, channels=channels, size=size)


def _on_device(module: Module) -> Module:
    import torch

    return module.to("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    """Entry point: what a user did wrong ends in one sentence and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for chatty in ("httpx", "accelerate", "datasets", "diffusers", "transformers"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    commands = {command.__name__: command for command in (demo, train, tune, sample, measure, export)}
    try:
        tyro.extras.subcommand_cli_from_dict(commands, prog="fewstep", description=DESCRIPTION)
    except (ValueError, FloatingPointError) as error:
        _stop(str(error))
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        _stop(f"{error.strerror or error}{where}; make room or choose another folder. Nothing half-written was left.")
    except KeyboardInterrupt:
        _stop("interrupted; a run goes on from its last saved state with --resume")


def _stop(sentence: str) -> None:
    print(f"fewstep: {sentence}", file=sys.stderr)
    sys.exit(2)


DESCRIPTION = "Turn the diffusion model you already have into a few-step generator, and see exactly what that cost."

if __name__ == "__main__":
    main()
