"""A watched run of a student that FSDP2 spreads over two processes, and one whose samples collapse."""

from __future__ import annotations

from pathlib import Path

from conftest import noise_images
from spread_worker import SETTINGS, accelerator, small

from fewstep.diffusion import runs, watcher
from fewstep.diffusion.two_times import TwoTimes
from fewstep.diffusion.walk import DDIM, Segments
from fewstep.diffusion.watcher import Watch
from fewstep.diffusion.watching import Watching


def main(folder: Path) -> None:
    made = accelerator()
    runs.default_accelerator = lambda *given: made  # type: ignore[assignment]
    settings = SETTINGS | {"segments": (1, 2)}

    def run(out: Path) -> None:
        watch = Watch(Watching(look_every=16, look_n=3), [Segments(1), Segments(2)], small(), DDIM(3))
        runs.run(TwoTimes(small()), noise_images(), out, settings, watch=watch)

    run(folder / "run")
    watcher.collapsed = lambda *given: "planted"  # type: ignore[assignment]
    try:
        run(folder / "stopped")
    except FloatingPointError as error:
        (folder / f"stopped-{made.process_index}").write_text(str(error))
