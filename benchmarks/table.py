"""A table of a million rows: what a training on it takes of memory, how soon it starts, and what two readers share.

    python benchmarks/table.py PLACE

PLACE is made for the table, 11.5 GiB for 1,000,000 rows of 3x64x64 noise, and deleted at the end. Memory is that of
/proc/PID/smaps_rollup, looked at ten times a second: `Anonymous` belongs to the process alone, and the rest is mapped from
files, where the system shares what several processes read.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from fewstep.diffusion.data import Images, Samples, load_images
from fewstep.diffusion.data.table import arrays_of, write_table
from fewstep.diffusion.recipes import ect_demo, new_denoiser
from fewstep.diffusion.tuning import tune

SIZE, SHAPE = 64, (3, 64, 64)
AT_ONCE = 5000  # rows
GIB = 2**20  # in the KiB of /proc


def noise(rows: int) -> Iterator[dict[str, Any]]:
    """Batches of them, of a thousand classes in turn."""
    rng = np.random.default_rng(0)
    for start in range(0, rows, AT_ONCE):
        count = min(AT_ONCE, rows - start)
        pixels = np.frombuffer(rng.bytes(count * 3 * SIZE * SIZE), np.uint8).reshape(count, *SHAPE)
        yield {"image": pixels, "label": np.arange(start, start + count) % 1000}


def make(table: Path, rows: int) -> None:
    write_table(table, {"image": arrays_of(SHAPE, "uint8"), "label": datasets.Value("int64")}, noise(rows))
    print("written", flush=True)


def train(data: str, steps: int, workers: int) -> None:
    """Tunes a small network; says the moment of the first step and the images/s after it."""
    samples: Samples
    if data == "memory":
        samples = Images(torch.randint(0, 256, (1000, *SHAPE), dtype=torch.uint8))
    else:
        samples = load_images(data, channels=3, size=SIZE)
    settings = ect_demo(10**9) | {"batch": 32, "workers": workers}
    losses = (step.loss for step in tune(new_denoiser(3, SIZE, widths=(8, 8, 8, 8)), samples, **settings))
    next(losses)
    print("started", flush=True)
    start = time.perf_counter()
    for _ in range(steps):
        next(losses)
    print(f"{32 * steps / (time.perf_counter() - start):.0f} images/s", flush=True)


def read(data: str, rows: int) -> None:
    """Reads the first rows, says so, and waits until it may go."""
    table = load_images(data, channels=3, size=SIZE)
    total = sum(int(table.raw(range(start, start + 1000)).sum()) for start in range(0, min(rows, len(table)), 1000))
    print(total, flush=True)
    sys.stdin.read()


def memory(pid: int, file: str = "smaps_rollup", only: str = "") -> Counter[str]:
    """KiB of each kind; with `only`, of the mappings whose first line holds it."""
    found: Counter[str] = Counter()
    counts = True
    for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
        name, *values = line.split()
        if not name.endswith(":"):
            counts = only in line
        elif counts and values[-1] == "kB":
            found[name[:-1]] += int(values[0])
    return found


def started(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def watched(title: str, *arguments: object) -> None:
    """Runs a training and prints what it said, when, and the most that it took."""
    peak: Counter[str] = Counter()

    def watch(process: subprocess.Popen[str]) -> None:
        while process.poll() is None:
            with suppress(OSError):  # it has just ended
                peak.update(memory(process.pid) - peak)  # the larger of each
            time.sleep(0.1)

    begun, process = time.perf_counter(), started(*arguments)
    assert process.stdout
    threading.Thread(target=watch, args=[process]).start()
    said = [f"{line.strip()} after {time.perf_counter() - begun:.0f} s" for line in process.stdout]
    assert process.wait() == 0, title
    kinds = ", ".join(f"{name} {peak[name] / GIB:.2f}" for name in ("Anonymous", "Private_Dirty", "Rss", "Pss"))
    print(f"{title}: {', '.join(said)}; peaks in GiB: {kinds}", flush=True)


def shared(table: Path, rows: int) -> None:
    """Prints what one reader and then two hold of the table's file."""
    readers: list[subprocess.Popen[str]] = []
    for count in (1, 2):
        readers.append(started("read", table, "--rows", rows))
        for reader in readers[-1:]:
            assert reader.stdout and reader.stdout.readline()
        held = [memory(reader.pid, "smaps", ".arrow") for reader in readers]
        own = [memory(reader.pid)["Anonymous"] / GIB for reader in readers]
        of_file = ", ".join(f"Rss {each['Rss'] / GIB:.2f} Pss {each['Pss'] / GIB:.2f}" for each in held)
        print(f"{count} reading {rows:,} rows: of the file, in GiB, {of_file}; their own {own[0]:.2f}", flush=True)
    for reader in readers:
        reader.communicate("")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", choices=("make", "train", "read", "all"), default="all")
    parser.add_argument("place", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--workers", type=int, default=0)
    args = parser.parse_args()
    if args.task == "make":
        make(args.place, args.rows)
    elif args.task == "train":
        train(str(args.place), args.steps, args.workers)
    elif args.task == "read":
        read(str(args.place), args.rows)
    else:
        table = args.place / "table"
        table.mkdir(parents=True)
        try:
            watched(f"making {args.rows:,} rows", "make", table, "--rows", args.rows)
            size = sum(file.stat().st_size for file in table.iterdir())
            print(
                f"the table: {size / 2**30:.2f} GiB, {size / args.rows / (3 * SIZE * SIZE) - 1:.2%} more than its numbers"
            )
            watched("training from 1,000 rows in memory", "train", "memory", "--steps", args.steps)
            watched("training from the table", "train", table, "--steps", args.steps)
            watched("the same with two workers", "train", table, "--steps", args.steps, "--workers", 2)
            shared(table, args.rows // 5)
        finally:
            shutil.rmtree(args.place)


if __name__ == "__main__":
    main()
