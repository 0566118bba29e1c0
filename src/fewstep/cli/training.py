"""The commands that train and tune."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from .after import after_tuning, say_next
from .checks import at_least, positive
from .tune_options import (
    GapName,
    HopName,
    Recipe,
    WeightName,
    averages_of,
    check_batch,
    check_guidance,
    check_start,
    check_teacher,
    dropout_of,
    gap_of,
    given,
    guided,
    hop_of,
    margin_of,
    midtraining,
    rate_of,
    renewed,
    weight_of,
)  # fmt: skip

if TYPE_CHECKING:
    from ..diffusion.data import Images, Paths
    from ..diffusion.stages import Stage


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
    rate: float | None = None,
    clip: float | None = None,
    seed: int = 0,
    mirror: bool = False,
    workers: int = 0,
    save_every: float = 120.0,
    resume: bool = False,
) -> None:
    """Train a small diffusion model from scratch.

    Args:
        data: an .npz, a folder or zip of images, a .parquet, a hub data set, or `bundled` for Fashion-MNIST.
        out: folder of the run.
        images: training images to see.
        batch: images a step.
        channels: 1 for grey, 3 for colour.
        size: side of the square images, pixels.
        widths: channels of the network at each resolution.
        parametrisation: vp saves a DDPMPipeline (v-prediction), edm a ConsistencyModelPipeline.
        conditional: give the network the classes of the data.
        rate: peak learning rate, .001 unless given; falls to 0 along a cosine.
        clip: norm at which the gradient is clipped, 1 unless given.
        seed: of everything random.
        mirror: flip half of the images left to right.
        workers: loader processes.
        save_every: seconds between saved states; Ctrl-C and SIGTERM save, too.
        resume: go on from the state saved in out, if one is; with another --rate or --clip if they are given.
    """
    import torch

    from ..diffusion.data import load_images
    from ..diffusion.recipes import diffusion, new_denoiser
    from ..diffusion.runs import run

    at_least(1, images=images, batch=batch, channels=channels, size=size, widths=widths)
    at_least(0, seed=seed, workers=workers, save_every=save_every)
    positive(rate=rate, clip=clip)
    new_denoiser(channels, size, widths=widths)  # proves the sizes before a data set is read
    _check_place(out, resume)
    samples, classes = load_images(data, channels=channels, size=size, labels=conditional), 0
    if conditional:
        if samples.labels is None:
            raise ValueError(f"{data} has no labels to train a conditional model on; leave --conditional out")
        classes = len(samples.classes) if samples.classes else int(samples.labels.max()) + 1
    torch.manual_seed(seed)
    denoiser = new_denoiser(channels, size, widths=widths, parametrisation=parametrisation, classes=classes)
    recipe = diffusion(images, batch=batch) | {"seed": seed, "mirror": mirror, "workers": workers}
    recipe |= given(rate=None if rate is None else rate_of(recipe["rate"], rate, None), max_grad_norm=clip)
    run(
        denoiser, samples, out, recipe, resume=resume, changing=given(rate=rate, max_grad_norm=clip),
        save_every=save_every, title="train", source=data, classes=samples.classes,
    )  # fmt: skip
    print(f"the diffusion model is in {out / 'model'}")
    say_next("tune", out, "--data", data, "--out", "few-step")


def tune(
    checkpoint: Positional[str],
    /,
    *,
    data: str,
    out: Path,
    recipe: Recipe = "ect_demo",
    images: int | None = None,
    batch: int | None = None,
    segments: int = 1,
    hop: HopName = "data",
    teacher: str | None = None,
    guidance: float | None = None,
    null_label: int | None = None,
    gap: GapName | None = None,
    q: float | None = None,
    stages: int | None = None,
    grid: tuple[int, int] | None = None,
    weight: WeightName | None = None,
    power: float | None = None,
    huber: float | None = None,
    margin: float | None = None,
    rate: float | None = None,
    warmup: int | None = None,
    average: tuple[float, ...] = (),
    dropout: float | None = None,
    clip: float | None = None,
    seed: int = 0,
    mirror: bool = False,
    teacher_images: int = 4000,
    midtrain: int = 0,
    paths: int = 4000,
    scratch: bool = False,
    precision: Literal["no", "bf16"] | None = None,
    accumulate: int = 1,
    workers: int = 0,
    compile: bool = False,
    save_every: float = 120.0,
    resume: bool = False,
) -> None:
    """Tune a diffusion checkpoint into a few-step generator: consistency tuning or distillation, in one or more segments.

    Start it with `accelerate launch` for several processes.

    Args:
        checkpoint: a diffusers folder or hub id that holds a UNet2DModel or DiTTransformer2DModel, an earlier run, or
            `bundled` for the small model that comes with the package.
        data: an .npz, a folder or zip of images, a .parquet, a hub data set, `bundled` for Fashion-MNIST, or `teacher`
            for images that the teacher makes. Or `paths`: the student learns its teacher's whole sampling paths by heart,
            at the noise levels where it is sampled and nowhere else.
        out: folder of the run.
        recipe: where the settings below come from unless given.
        images: training images to see.
        batch: images a step, over all processes.
        segments: network calls that the result is made for: 1 is a consistency model, more a multistep one.
        hop: how the target is reached: along the data (consistency training) or by the teacher's ODE (distillation);
            addim puts back the spread that long hops lose, measured on the data or, analytic, estimated without them.
        teacher: the diffusion checkpoint for hops, images and paths; by default the checkpoint itself, but a run that goes
            on from a student needs one.
        guidance: scale of the classifier-free guidance of a conditional teacher, in its hops, images and paths.
        null_label: the class that means "no class" to the network, for guidance.
        gap: ect shrinks in stages, cosine and karras are grids whose steps grow, full is plain denoising.
        q: the ect gap shrinks by 1/q a stage.
        stages: number of stages of the ect gap.
        grid: first and last number of steps of the cosine or karras grid.
        weight: gap is (t − r)^−power, output is SNR + 1.
        power: of the gap's weight: 1 is Easy Consistency Tuning's, 0 weighs all noise levels alike.
        huber: constant of the pseudo-Huber distance; 0 is the norm itself.
        margin: how far beyond a picture's limits a student of several segments is asked to draw what lies at them: a haze
            that remains there is cut off as well. By default .1 for pictures, 0 for latents and for one segment, which
            cannot have it nor start from a student that has.
        rate: peak of the recipe's learning rate.
        warmup: steps over which the rate rises.
        average: decay of the averaged weights, or several: the first makes `model`, each other one `model-DECAY` beside it.
            An average begins with the checkpoint, and decay^steps of it stays that: few images need a low decay.
        dropout: probability in every dropout layer.
        clip: norm at which the gradient is clipped.
        seed: of everything random.
        mirror: flip half of the images left to right.
        teacher_images: how many images `--data teacher` makes.
        midtrain: images of path regression before tuning: points of whole teacher paths, regressed to their ends.
        paths: how many paths the teacher makes, for that and for `--data paths`.
        scratch: start from new weights in the checkpoint's architecture, as consistency training without tuning does.
        precision: no (float32) or bf16; by default bf16 where the hardware computes it.
        accumulate: micro-batches a step.
        workers: loader processes.
        compile: compile the network.
        save_every: seconds between saved states; Ctrl-C and SIGTERM save, too.
        resume: go on from the state saved in out, if one is; with another --rate, --warmup or --clip if they are given.
    """
    from ..diffusion.formats.folder import load
    from ..diffusion.loss import OutputScale, PseudoHuber
    from ..diffusion.recipes import RECIPES, path_regression
    from ..diffusion.stages import Stage, run_stages
    from .samples import made_for, paths_of, training_data, visited

    at_least(1, images=images, batch=batch, accumulate=accumulate, segments=segments)
    at_least(1, teacher_images=teacher_images, paths=paths)
    at_least(0, seed=seed, workers=workers, midtrain=midtrain, save_every=save_every)
    positive(clip=clip)
    taught = hop != "data" or data in ("teacher", "paths") or midtrain > 0
    check_guidance(guidance, null_label, taught)
    shaped = any(flag is not None for flag in (gap, q, stages, grid, weight, power))
    if data == "paths" and (shaped or hop != "data" or midtrain or mirror):
        raise ValueError("--data paths says what the loss is: leave --hop, --midtrain, --mirror, gap and weight out")
    settings = RECIPES[recipe]() if images is None else RECIPES[recipe](images)
    changed: dict[str, object | None] = {
        "batch": batch,
        "gap": gap_of(settings["gap"], gap, q, stages, grid),
        "weight": weight_of(weight, power),
        "distance": None if huber is None else PseudoHuber(huber),
        "margin": margin_of(margin, segments),
        "rate": rate_of(settings["rate"], rate, warmup),
        "average": averages_of(settings["average"], average, warmup=scratch and not midtrain),
        "dropout": dropout_of(dropout),
        "max_grad_norm": clip,
    }
    settings |= given(**changed)
    settings |= {"segments": segments, "seed": seed, "mirror": mirror, "workers": workers, "compile": compile}
    check_batch(settings["batch"], accumulate)
    _check_place(out, resume)
    start, taught_by = load(checkpoint), load(teacher or checkpoint)
    if taught and taught_by.is_student:
        raise ValueError(
            f"{teacher or checkpoint} is a student, no diffusion model any more; "
            "name its diffusion checkpoint with --teacher"
        )
    check_start(start, checkpoint, segments)
    denoiser, diffusion = start.denoiser, taught_by.denoiser
    if taught:
        check_teacher(denoiser, diffusion, segments, along_paths=data == "paths" or midtrain > 0)
    diffusion = guided(diffusion, guidance, null_label)
    settings["hop"] = hop_of(hop, diffusion)
    if weight == "output":
        settings["weight"] = OutputScale(denoiser.schedule.sigma_data)
    samples: Images | Paths
    if data == "paths":
        samples = paths_of(diffusion, out, paths, segments=segments, seed=seed, precision=precision, whole=False)
        settings |= path_regression(visited(diffusion, segments))
    else:
        samples = training_data(
            denoiser, data, out, teacher=diffusion, count=teacher_images, seed=seed, precision=precision
        )
    # None for latents, which have no limits, nor where a call sees what an earlier one drew: diffusion, one segment.
    limits = denoiser.space.limits is not None and segments > 1 and gap != "full"
    settings.setdefault("margin", 0.1 if limits else 0.0)
    if scratch:
        denoiser = renewed(denoiser, seed)
    plan: list[Stage] = []
    if midtrain:
        taken = paths_of(diffusion, out, paths, segments=segments, seed=seed, precision=precision, whole=True)
        plan.append(midtraining(midtrain, taken, settings, clip, warmup=scratch))
    plan.append(Stage("", settings, samples, {
        "checkpoint": checkpoint, "source": data, "recipe_name": recipe, "midtrain": midtrain, "scratch": scratch,
        "guidance": guidance, "null_label": null_label, "made": made_for(out), "classes": getattr(samples, "classes", None),
        "changing": given(rate=rate if warmup is None else warmup, max_grad_norm=clip),
    }))  # fmt: skip
    run_stages(
        denoiser, plan, out, resume=resume, precision=precision, accumulate=accumulate, save_every=save_every,
        teacher=teacher or checkpoint,
    )  # fmt: skip
    print(f"the few-step generator is in {out / 'model'}")
    after_tuning(out, conditional=bool(denoiser.takes))


def _check_place(out: Path, resume: bool) -> None:
    """Raises ValueError where nothing can be written or another run, or its first stage, would be overwritten."""
    from ..core.files import writable
    from ..diffusion.runs import check_new

    writable(out)
    for folder in (out, out / "midtrain"):
        check_new(folder, resume=resume)
