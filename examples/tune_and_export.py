"""Tunes a checkpoint into a few-step generator and exports it as a folder that plain diffusers samples.

python examples/tune_and_export.py runs/first        # about three minutes on two cores
"""

import sys
from pathlib import Path

from diffusers import DiffusionPipeline

from fewstep import Lessons, Loss, Run, Training, export_checkpoint, tune_checkpoint


def main(out: Path, images: int = 12_000) -> None:
    """`bundled` is the checkpoint, and the pictures, that come with fewstep. Put your own in their places."""
    run = Run(out / "student")
    tune_checkpoint("bundled", Lessons("bundled"), run, loss=Loss(segments="any"), training=Training(images=images))
    export_checkpoint(str(run.out), out / "few-step", steps=[2])  # verified in a fresh process; [2, 4] writes a folder each

    pipeline = DiffusionPipeline.from_pretrained(out / "few-step")  # plain diffusers, nothing of fewstep
    pipeline.set_progress_bar_config(disable=True)
    pipeline(num_inference_steps=2).images[0].save(out / "sample.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
