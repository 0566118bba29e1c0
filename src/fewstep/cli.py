"""The command line: every command is a typed function; its parameters are the flags."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro


def train(
    data: Annotated[str, tyro.conf.Positional],
    /,
    *,
    out: Path,
    images: int = 500_000,
    batch: int = 64,
    channels: int = 1,
    size: int = 28,
    widths: tuple[int, ...] = (32, 48, 96),
    parametrisation: Literal["vp", "edm"] = "vp",
    rate: float = 1e-3,
    ema_decay: float = 0.999,
    seed: int = 0,
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
        rate: peak learning rate; falls to 0 along a cosine.
        ema_decay: decay a step of the averaged weights.
        seed: of everything random.
        resume: go on from the state saved in `out`.
    """
    import torch

    from .data import Images, load_images
    from .recipes import diffusion, new_denoiser
    from .runs import run

    pixels = load_images(data, channels=channels, size=size).pixels
    torch.manual_seed(seed)
    denoiser = new_denoiser(channels, size, widths, parametrisation)
    settings = diffusion(images=images, batch=batch, rate=rate, ema_decay=ema_decay, seed=seed)
    run(denoiser, Images(pixels), out, settings=settings, resume=resume, title="train", source=data)


def main() -> None:
    """Entry point: user errors end in one sentence and exit code 2."""
    try:
        tyro.extras.subcommand_cli_from_dict({"train": train})
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"fewstep: {error}")


if __name__ == "__main__":
    main()
