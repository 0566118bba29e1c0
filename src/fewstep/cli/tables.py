"""The commands that write data as tables."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from ..core.checks import at_least
from .after import say_next


def table(
    data: Positional[str],
    /,
    *,
    out: Path,
    like: str | None = None,
    channels: int | None = None,
    size: tuple[int, ...] = (),
) -> None:
    """Write a data set as a table, whose rows are then read from the disk as they are needed, however many there are.

    Every command takes the table as --data, and does the same with it as with the data set. The table is a folder of the
    `datasets` library with a row for each picture.

    Args:
        data: a folder or zip of images, a .parquet, a hub data set, an .npz, or `bundled` for Fashion-MNIST.
        out: folder of the table.
        like: a checkpoint; the pictures get its channels and size.
        channels: 1 for grey, 3 for colour, without --like; by default 3.
        size: side of the square pictures in pixels, or height and width, without --like.
    """
    from ..core.files import writable
    from ..diffusion.data import make_table
    from ..diffusion.formats.folder import load
    from ..diffusion.lessons import picture_of

    at_least(1, channels=channels, size=size)
    if len(size) > 2 or (like is None) != bool(size):
        raise ValueError("give either --like with a checkpoint that takes the pictures, or --size with one or two numbers")
    if like is not None and channels is not None:
        raise ValueError("--like says how many channels the pictures have; leave --channels out")
    writable(out.parent)
    if like is None:
        shape, conditional = (channels or 3, (size[0], size[-1])), False
    else:
        denoiser = load(like).denoiser
        shape, conditional = picture_of(denoiser), bool(denoiser.takes)
    written = make_table(data, out, channels=shape[0], size=shape[1], labels=conditional)
    print(f"{len(written)} rows of {'x'.join(map(str, written.shape))} in {out}")
    if like is not None:
        say_next("tune", like, "--data", out, "--out", "student")
    elif size[0] == size[-1]:
        say_next("train", out, "--channels", shape[0], "--size", size[0], "--out", "teacher")


def encode(
    checkpoint: Positional[str], data: Positional[str], /, *, out: Path, n: int | None = None, call: tuple[str, ...] = ()
) -> None:
    """Encode pictures with captions by a pipeline's own encoders, into a table of latents to tune the pipeline with.

    Several processes share the work, and a command that was stopped goes on when it is run again. Tuning then needs no
    encoders.

    Args:
        checkpoint: a folder or hub id of a pipeline, or a run of it.
        data: a folder, a zip or a .tar of images, with captions in a metadata.jsonl (`file_name` and `text`) or in a .txt
            beside each; or a .parquet or a hub data set with a column `text` or `caption`. A pipeline of classes needs
            classes instead of captions.
        out: folder of the table.
        n: how many of the pictures, drawn at random; by default all.
        call: arguments for the pipeline in place of its defaults, such as height=256 width=256.
    """
    from ..diffusion.drawing import arguments
    from ..diffusion.encoding import encode_data

    written = encode_data(checkpoint, data, out, n=n, call=arguments(call) if call else None)
    print(f"{len(written)} rows of {'x'.join(map(str, written.shape))} in {out}")
    say_next("tune", checkpoint, "--data", out, *(("--call", *call) if call else ()), "--out", "student")
