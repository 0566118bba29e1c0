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
    """Write a data set as a table once: it is read from the disk as it is needed, however large it is.

    What a command takes as --data it takes as a table, and does the same with it. The table is a folder of the `datasets`
    library, a row of numbers a picture.

    Args:
        data: a folder or zip of images, a .parquet, a hub data set, an .npz, or `bundled` for Fashion-MNIST.
        out: folder of the table.
        like: a checkpoint: the pictures become as many channels and pixels as it takes.
        channels: 1 for grey, 3 for colour, without --like; 3 unless given.
        size: side of the square pictures in pixels, or height and width, without --like.
    """
    from ..core.files import writable
    from ..diffusion.data import make_table
    from ..diffusion.formats.folder import load
    from ..diffusion.lessons import picture_of

    at_least(1, channels=channels, size=size)
    if len(size) > 2 or (like is None) != bool(size):
        raise ValueError("how large are the pictures to be? Name a checkpoint that takes them with --like, or give --size")
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
        say_next("tune", like, "--data", out, "--out", "few-step")
    elif size[0] == size[-1]:
        say_next("train", out, "--channels", shape[0], "--size", size[0], "--out", "teacher")


def encode(
    checkpoint: Positional[str], data: Positional[str], /, *, out: Path, n: int | None = None, call: tuple[str, ...] = ()
) -> None:
    """Encode pictures with captions once, by a pipeline's own encoders: a table of latents to tune it with.

    It is written part by part, by all processes together if there are several, and the same command goes on where it was
    stopped. While the pipeline is tuned its encoders are not needed.

    Args:
        checkpoint: a folder or hub id of a pipeline, or a run of it.
        data: a folder, a zip or a .tar of images, with captions in a metadata.jsonl (`file_name` and `text`) or in a .txt
            beside each. Or a .parquet or a hub data set with a column `text` or `caption`. A pipeline of classes takes
            classes.
        out: folder of the table.
        n: so many of the pictures, drawn without order; all of them unless given.
        call: arguments for the pipeline where its defaults are not wanted, such as height=256 width=256.
    """
    from ..diffusion.drawing import arguments
    from ..diffusion.encoding import encode_data

    written = encode_data(checkpoint, data, out, n=n, call=arguments(call) if call else None)
    print(f"{len(written)} rows of {'x'.join(map(str, written.shape))} in {out}")
    say_next("tune", checkpoint, "--data", out, *(("--call", *call) if call else ()), "--out", "few-step")
