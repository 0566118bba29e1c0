"""One tuning step of ours against the plainest correct loop: the same network, batch, machine and run.

    python benchmarks/step.py

The plain loop is float32 and eager, with nothing but what the method needs: two forward passes, a backward pass, RAdam and
a moving average. Each loop runs in processes of its own, in turn, so that a slow moment of the machine hits all of them and
peak memory is each one's own. What counts is the ratio.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import Tensor

from fewstep.core.device import fast_precision
from fewstep.diffusion.data import Images
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.recipes import ect_demo, new_denoiser
from fewstep.diffusion.tuning import tune

LOOPS = ("plain", "ours, float32", "ours")


def plain(denoiser: Denoiser, data: Images, batch: int) -> Iterator[float]:
    """Easy Consistency Tuning with a fixed gap (q = 8), as one would write it on a page."""
    average = [p.detach().clone() for p in denoiser.parameters()]
    optimizer = torch.optim.RAdam(denoiser.parameters(), lr=1e-3, betas=(0.9, 0.99), foreach=False)
    denoiser.train()
    while True:
        x0 = data.pixels[torch.randint(len(data), (batch,))].float() / 127.5 - 1
        eps = torch.randn_like(x0)
        t = (0.4 + 1.7 * torch.randn(batch)).exp().clamp(max=denoiser.schedule.sigma_max)
        r = (t * (1 - (1 + 8 * torch.sigmoid(-t)) / 8)).clamp(min=0)
        t4, r4 = (level.view(-1, 1, 1, 1) for level in (t, r))
        with torch.no_grad():
            target = denoiser(x0 + r4 * eps, r)
        difference: Tensor = denoiser(x0 + t4 * eps, t) - target
        loss = (((difference.flatten(1).square().sum(1) + 0.03**2).sqrt() - 0.03) / (t - r)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for mean, p in zip(average, denoiser.parameters(), strict=True):
                mean.lerp_(p, 0.01)
        yield loss.item()


def worker(loop: str, batch: int, steps: int) -> None:
    """Runs one loop and prints its images/s and peak memory as JSON."""
    torch.manual_seed(0)
    denoiser = new_denoiser(1, 28)
    data = Images(torch.randint(0, 256, (2000, 1, 28, 28), dtype=torch.uint8))
    if loop == "plain":
        losses = plain(denoiser, data, batch)
    else:
        precision = fast_precision() if loop == "ours" else "no"
        accelerator = Accelerator(cpu=True, mixed_precision=precision)
        settings = ect_demo(10**9) | {"batch": batch}
        losses = (step.loss for step in tune(denoiser, data, accelerator=accelerator, **settings))
    for _ in range(3):
        next(losses)
    start = time.perf_counter()
    for _ in range(steps):
        next(losses)
    speed = steps * batch / (time.perf_counter() - start)
    print(json.dumps({"images_per_second": speed, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", choices=LOOPS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker, args.batch, args.steps)
        return
    rounds = []
    for _ in range(args.rounds):
        found = {}
        for loop in LOOPS:
            command = [sys.executable, __file__, "--worker", loop, "--batch", str(args.batch), "--steps", str(args.steps)]
            found[loop] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rounds.append(found)
    for loop in LOOPS:
        ratios = [found[loop]["images_per_second"] / found["plain"]["images_per_second"] for found in rounds]
        speed = statistics.median(found[loop]["images_per_second"] for found in rounds)
        memory = max(found[loop]["peak_mb"] for found in rounds)
        middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
        print(f"{loop:14} {speed:6.0f} images/s, {middle:.2f} x plain ({low:.2f} to {high:.2f}), {memory:.0f} MB peak")


if __name__ == "__main__":
    main()
