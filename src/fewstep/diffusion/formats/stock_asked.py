"""Run as a script in a fresh process: samples a pipeline for prompts or classes, by stock diffusers and nothing of ours.

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
    """Writes where the scheduler of the pipeline in `folder` ends, (B, *), for each row that is asked for."""
    sample(out, folder, **json.loads(asked))


def sample(
    out: str, folder: str, told: dict[str, Any], rows: list[dict[str, Any]], seeds: list[int], shape: list[int] | None
) -> None:
    """The same, of what was asked for.

    The noise that a pipeline begins with and the fresh noise of its scheduler come from one generator a seed.
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
