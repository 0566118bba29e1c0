"""A run of two processes, of which one is told to stop in its second step."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from accelerate import PartialState
from conftest import noise_images, tiny

from fewstep.core.interrupts import Interrupted
from fewstep.diffusion import runs
from fewstep.diffusion.noise import ECTGap


def main(folder: Path) -> None:
    rank, tune = PartialState(cpu=True).process_index, runs.tune

    def tuned(*args, **options):
        for step in tune(*args, **options):
            if step.step == 2 and rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield step

    runs.tune = tuned
    recipe = {"images": 48, "batch": 8, "gap": ECTGap(q=256, stages=1)}
    try:
        runs.run(tiny(), noise_images(), folder / "run", recipe, precision="no", save_every=1e9)
    except Interrupted as stopped:
        images = str(stopped).split()[2]
        (folder / f"stopped-{rank}").write_text(f"{images} {stopped.signal}")
