"""The commands that train and tune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional

from ..diffusion.choices import Lessons, Run, Training
from ..diffusion.objective import Loss
from ..diffusion.watching import Watching
from .after import after_tuning, say_next


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
        data: an .npz, a folder or zip of images, a .parquet, a table, a hub data set, or `bundled` for Fashion-MNIST.
        out: folder of the run.
        images: number of training images, repeats included.
        batch: images a step.
        channels: 1 for grey, 3 for colour.
        size: side of the square images, pixels.
        widths: channels of the network at each resolution.
        parametrisation: vp saves a DDPMPipeline (v-prediction), edm a ConsistencyModelPipeline.
        conditional: give the network the classes of the data.
        rate: peak learning rate, by default .001; falls to 0 along a cosine.
        clip: norm at which the gradient is clipped, by default 1.
        seed: of everything random.
        mirror: flip half of the images left to right.
        workers: loader processes.
        save_every: seconds between saved states; Ctrl-C and SIGTERM save, too.
        resume: go on from the state saved in out, if there is one. --rate and --clip may then be changed.
    """
    from ..diffusion.checkpoints import train_checkpoint

    train_checkpoint(
        data, out, images=images, batch=batch, channels=channels, size=size, widths=widths, parametrisation=parametrisation,
        conditional=conditional, rate=rate, clip=clip, seed=seed, mirror=mirror, workers=workers, save_every=save_every,
        resume=resume,
    )  # fmt: skip
    print(f"the diffusion model is in {out / 'model'}")
    say_next("tune", out, "--data", data, "--out", "student")


def tune(
    checkpoint: Positional[str],
    /,
    *,
    lessons: Annotated[Lessons, OmitArgPrefixes],
    run: Annotated[Run, OmitArgPrefixes],
    loss: Annotated[Loss, OmitArgPrefixes] = Loss(),
    training: Annotated[Training, OmitArgPrefixes] = Training(),
    watching: Annotated[Watching, OmitArgPrefixes] = Watching(),
) -> None:
    """Tune a diffusion checkpoint into a few-step generator: consistency tuning or distillation, in one or more segments.

    Start it with `accelerate launch` for several GPUs, with `torchrun` for several processes on CPUs.

    Args:
        checkpoint: a diffusers folder or hub id (a text-to-image pipeline, one of a UNet2DModel, …), an earlier run, or
            `bundled` or `bundled-text` for the small models that come with the package.
        lessons: what the student learns from.
        run: where and how the run is computed.
        loss: what the student learns to do.
        training: how long and how fast the student is trained.
        watching: how the run is watched.
    """
    from ..diffusion.checkpoints import tune_checkpoint

    model = tune_checkpoint(checkpoint, lessons, run, loss=loss, training=training, watching=watching)
    print(f"the few-step generator is in {run.out / 'model'}")
    after_tuning(run.out, model)
