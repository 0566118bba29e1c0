"""Puts the bundled assets together: Fashion-MNIST's first 10,000 training images and a teacher in half precision,

    python scripts/bundle_assets.py npz /usr/share/datasets/fashion-mnist runs/train60k.npz   # what the teacher trains on
    fewstep train runs/train60k.npz --out runs/teacher --images 500000
    python scripts/bundle_assets.py assets runs/train60k.npz runs/teacher

and the small language model in half precision:

    fewstep train-text --out runs/text
    python scripts/bundle_assets.py text runs/text

The feature network is made by scripts/train_features.py.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from train_features import read_idx

from fewstep.core.source import ASSETS
from fewstep.diffusion.data import Images, load_images, save_images
from fewstep.masked.load import load_text, load_tokenizer


def npz(source: Path, out: Path) -> None:
    pixels = read_idx(source / "train-images-idx3-ubyte.gz")[:, None]
    save_images(Images(pixels, read_idx(source / "train-labels-idx1-ubyte.gz").long()), out)


def assets(data: Path, run: Path) -> None:
    images = load_images(data, channels=1, size=28)
    first = range(10_000)
    labels = torch.tensor([int(images.cond(k)["class_labels"]) for k in first], dtype=torch.uint8)
    save_images(Images(images.raw(first), labels), ASSETS / "fashion_mnist" / "images.npz")
    shutil.rmtree(ASSETS / "teacher", ignore_errors=True)
    pipeline = DiffusionPipeline.from_pretrained(run / "model", local_files_only=True)
    pipeline.to(dtype=torch.float16).save_pretrained(ASSETS / "teacher")
    shutil.copy(run / "receipt.json", ASSETS / "teacher" / "receipt.json")


def text(run: Path) -> None:
    shutil.rmtree(ASSETS / "text", ignore_errors=True)
    load_text(run / "model", dtype=torch.float16).network.save_pretrained(ASSETS / "text")
    load_tokenizer(run / "model").save_pretrained(ASSETS / "text")
    shutil.copy(run / "receipt.json", ASSETS / "text" / "receipt.json")


if __name__ == "__main__":
    {"npz": npz, "assets": assets, "text": text}[sys.argv[1]](*map(Path, sys.argv[2:]))
