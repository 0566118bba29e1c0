"""Trains the bundled feature network: a Fashion-MNIST classifier whose last hidden layer scores the demo's pictures.

    python scripts/train_features.py /usr/share/datasets/fashion-mnist --out runs/features

Writes features.safetensors (float16), reference.npz (mean and covariance of the 60,000 training images' features)
and features.json, the receipt with the test accuracy.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from fewstep.diffusion.measure.features import FashionFeatures


def read_idx(path: Path) -> Tensor:
    raw = gzip.decompress(path.read_bytes())
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape).copy())


def augment(images: Tensor) -> Tensor:
    """Mirrors every other image at random and shifts the batch by up to two pixels."""
    flip = torch.rand(len(images)) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(-1), images)
    dy, dx = torch.randint(-2, 3, (2,)).tolist()
    return images.roll((dy, dx), dims=(-2, -1))


@torch.no_grad()
def accuracy(net: FashionFeatures, images: Tensor, labels: Tensor) -> float:
    hits = [(net.classify(x).argmax(1) == y).sum() for x, y in zip(images.split(500), labels.split(500), strict=True)]
    return float(torch.stack(hits).sum() / len(labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=256)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    start = time.time()

    train = read_idx(args.data / "train-images-idx3-ubyte.gz")[:, None]
    train_labels = read_idx(args.data / "train-labels-idx1-ubyte.gz").long()
    test = read_idx(args.data / "t10k-images-idx3-ubyte.gz")[:, None]
    test_labels = read_idx(args.data / "t10k-labels-idx1-ubyte.gz").long()

    net = FashionFeatures()
    steps = args.epochs * (len(train) // args.batch)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for epoch in range(args.epochs):
        net.train()
        for rows in torch.randperm(len(train)).split(args.batch)[: len(train) // args.batch]:
            with torch.autocast("cpu", torch.bfloat16):
                logits = net.classify(augment(train[rows]))
            loss = cross_entropy(logits.float(), train_labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        net.eval()
        print(f"epoch {epoch + 1}: test accuracy {accuracy(net, test, test_labels):.4f}, {time.time() - start:.0f} s")

    net = net.half().float()  # score with exactly the numbers that are saved
    with torch.no_grad():
        features = torch.cat([net(x) for x in train.split(500)]).double().numpy()
        held_out = torch.cat([net(x) for x in test.split(500)]).double().numpy()
    save_file(
        {k: v.half() for k, v in net.state_dict().items() if "num_batches" not in k}, args.out / "features.safetensors"
    )
    np.savez(args.out / "reference.npz", mean=features.mean(0), cov=np.cov(features, rowvar=False), n=len(features))
    np.save(args.out / "held_out.npy", held_out)
    receipt = {"test_accuracy": accuracy(net, test, test_labels), "epochs": args.epochs, "batch": args.batch,
               "seed": 0, "parameters": sum(p.numel() for p in net.parameters()), "torch": torch.__version__,
               "seconds": round(time.time() - start)}  # fmt: skip
    (args.out / "features.json").write_text(json.dumps(receipt, indent=1))
    print(receipt)


if __name__ == "__main__":
    main()
