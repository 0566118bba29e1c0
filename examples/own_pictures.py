"""Trains a small diffusion model on a folder of pictures, and tunes it into a one-call generator.

python examples/own_pictures.py path/to/pictures runs/own
"""

import sys
from pathlib import Path

from fewstep import Lessons, Run, Training, sample_checkpoint, train_checkpoint, tune_checkpoint


def main(
    pictures: Path, out: Path, images: int = 200_000, tuned: int = 20_000, widths: tuple[int, ...] = (32, 64, 96)
) -> None:
    """The pictures are cropped to squares of 32 pixels. The training sees `images` of them, the tuning `tuned`."""
    train_checkpoint(str(pictures), out / "teacher", images=images, channels=3, size=32, widths=widths)
    lessons = Lessons(str(pictures), mirror=True)
    tune_checkpoint(str(out / "teacher"), lessons, Run(out / "student"), training=Training(images=tuned))
    sample_checkpoint(str(out / "student"), out / "samples", n=16, steps=1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
