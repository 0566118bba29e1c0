"""A script for a new process: samples a pipeline for prompts or classes by stock diffusers, without fewstep.

python stock_asked.py OUT.npy FOLDER '{"told": {"num_inference_steps": 2}, "rows": [{"prompt": "a"}], "seeds": [0],
    "shape": [4, 8, 8]}'
"""

import json
import sys
from functools import wraps
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline


def main(out: str, folder: str, asked: str) -> None:
    """Writes the last states of the scheduler of the pipeline in `folder`, (B, *), one for each prompt or class."""
    sample(out, folder, **json.loads(asked))


def sample(
    out: str, folder: str, told: dict[str, Any], rows: list[dict[str, Any]], seeds: list[int], shape: list[int] | None
) -> None:
    """Samples with these arguments; see `main`.

    The initial noise of a sample and the fresh noise of the scheduler come from one generator with the sample's seed.
    """
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    step, states = pipeline.scheduler.step, []

    @wraps(step)
    def kept(*args: Any, **named: Any) -> Any:
        made = step(*args, **named)
        states.append(made[0])
        return made

    pipeline.scheduler.step = kept
    ends = []
    for row, seed in zip(rows, seeds, strict=True):
        torch.manual_seed(seed)
        noise = {} if shape is None else {"latents": torch.randn(1, *shape)}
        pipeline(**told, **row, **noise)
        ends.append(states[-1])
    np.save(out, torch.cat(ends).float().numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
