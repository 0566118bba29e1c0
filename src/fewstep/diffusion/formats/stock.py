"""A script for a new process: samples a folder by stock diffusers, without fewstep.

python stock.py OUT.npy FOLDER '{"steps": 2, "seeds": [0, 1], "labels": null}'
"""

import json
import sys

import numpy as np
import torch
from diffusers import DiffusionPipeline


def main(out: str, folder: str, asked: str) -> None:
    """Writes the images (B, H, W, C) in [0, 1] that the pipeline in `folder` draws for the seeds."""
    sample(out, folder, **json.loads(asked))


def sample(out: str, folder: str, steps: int, seeds: list[int], labels: list[int] | None) -> None:
    """Samples with these arguments; see `main`."""
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        batch_size=len(seeds),
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        num_inference_steps=steps,
        output_type="np",
        **({} if labels is None else {"class_labels": labels}),
    ).images
    np.save(out, images)


if __name__ == "__main__":
    main(*sys.argv[1:])
