"""Easy Consistency Tuning in your own training loop: the loss is a function, the rest is plain torch.

python examples/training_loop.py runs/loop
"""

import copy
import sys
from pathlib import Path

import torch

import fewstep


def main(out: Path, steps: int = 600, batch: int = 32) -> list[float]:
    """There is one segment, so its lower edge is 0 at every level. The lower level of a pair is 7/8 of the higher."""
    teacher = fewstep.load("bundled")
    student = copy.deepcopy(teacher.denoiser).train()
    pictures = fewstep.load_images("bundled", channels=1, size=28)
    optimizer, rng, losses = torch.optim.RAdam(student.parameters(), lr=1e-3), torch.Generator().manual_seed(0), []
    for _ in range(steps):
        chosen = torch.randint(len(pictures), (batch,), generator=rng)
        x0 = student.space.encode(pictures.pixels[chosen])
        t = (torch.randn(batch, generator=rng) * 1.7 + 0.4).exp().clamp(0.01, 80)
        loss = fewstep.consistency_loss(student, x0, torch.randn(x0.shape, generator=rng), t, t * 7 / 8, torch.zeros(batch))
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        losses.append(loss.mean().item())
    fewstep.save(fewstep.Model(student.eval(), fewstep.Consistency(steps=2)), out)
    return losses


if __name__ == "__main__":
    main(Path(sys.argv[1]))
