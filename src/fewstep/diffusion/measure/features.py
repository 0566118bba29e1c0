"""Feature extractors: one vector per image. Every score names its extractor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from ...core.configuration import read_config
from ...core.device import on_device
from ...core.extras import needs
from ...core.pretrained import load_config, load_network
from ...core.progress import track
from ...core.source import ASSETS, folder_of
from ...core.weights import in_short
from ..data import Samples
from ..data.clothes import NOUNS
from .kept import kept
from .scores import Array, Reference

VISION = "folder of a vision model"
Extractor = Callable[[Tensor], Tensor]  # uint8 images (B, C, H, W) -> features (B, D)


class View(NamedTuple):
    """A feature extractor and its reference of real images."""

    name: str
    network: nn.Module
    real: Reference

    @classmethod
    def of(cls, name: str, network: nn.Module, images: Samples, *, bundled: bool = False) -> View:
        """The view of these real images; see `reference`."""
        return cls(name, network, reference(network, images, bundled=bundled))


def views(features: str, images: Samples, *, bundled: bool = False) -> list[View]:
    """The two representations in which every score is computed.

    Args:
        features: name of the first extractor; see `extractors`.
        images: real images.
        bundled: see `reference`.
    """
    return [View.of(name, network, images, bundled=bundled) for name, network in extractors(features).items()]


def extractors(features: str) -> dict[str, nn.Module]:
    """The extractor `features` and an untrained one, by name, on the best device.

    Two are used because a trained one can miss differences that the eye and an untrained one see, such as darker
    backgrounds.
    """
    beside = "pixels" if features == "random" else "random"
    return {name: on_device(extractor(name)) for name in (features, beside)}


def fitting(features: str, shape: Sequence[int]) -> dict[str, nn.Module]:
    """See `extractors`; the first is tested on an image of this shape, (C, H, W), and raises ValueError if that fails."""
    networks = extractors(features)
    extract(networks[features], torch.zeros(1, *shape, dtype=torch.uint8))
    return networks


def extractor(name: str) -> nn.Module:
    """The extractor called `name`, in evaluation mode.

    Args:
        name: `random` (untrained convolutions) or `pixels` (thumbnails), for images of any size; `fashion` (bundled, for
            28×28 grey ones); `inception` (the FID's, through torch-fidelity); or the folder or hub id of a DINOv2 or other
            transformers vision model, whose pooled output is taken.

    Raises:
        ValueError: the extractor does not exist, or its package is not installed.
    """
    ours: dict[str, Callable[[], nn.Module]] = {
        "fashion": FashionFeatures.bundled, "random": RandomFeatures, "pixels": PixelFeatures,
        "inception": InceptionFeatures,
    }  # fmt: skip
    return (ours[name]() if name in ours else TransformersFeatures(name)).eval()


@torch.no_grad()
def extract(network: Extractor, images: Tensor, batch: int = 250) -> Array:
    """Features (N, D) float64 of uint8 images (N, C, H, W), computed on the extractor's device if it is a module."""
    return np.concatenate([_seen(network, part) for part in track(torch.split(images, batch), "looking at images")])


def _seen(network: Extractor, images: Tensor) -> Array:
    device = next(network.parameters(), images).device if isinstance(network, nn.Module) else images.device
    features: Array = network(images.to(device)).cpu().double().numpy()
    return features


def in_parts(images: Samples, count: int, batch: int = 250) -> Iterator[Tensor]:
    """The first `count` images in batches, uint8 (B, C, H, W)."""
    for start in track(range(0, count, batch), "looking at images"):
        yield images.raw(range(start, min(start + batch, count)))


@torch.no_grad()
def reference(network: nn.Module, images: Samples, *, bundled: bool = False) -> Reference:
    """The reference of real uint8 images, computed in batches. For many images it is cached; see `kept`.

    For `bundled` images and features, mean and covariance are those of all 60,000 images.
    """
    made = kept(network, images, lambda: Reference.over(_seen(network, part) for part in in_parts(images, len(images))))
    if bundled and isinstance(network, FashionFeatures):
        with np.load(ASSETS / "features" / "reference.npz") as all_of_them:
            return Reference(all_of_them["mean"], all_of_them["cov"], int(all_of_them["n"]), made.features)
    return made


class FashionFeatures(nn.Module):
    """The bundled extractor: the last hidden layer of a small Fashion-MNIST classifier.

    `forward` takes uint8 images (B, 1, 28, 28) and returns features (B, 128); `classify` returns logits (B, 10) of the
    classes named in `classes`.
    """

    classes = NOUNS

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_block(1, 32), *_block(32, 32), nn.MaxPool2d(2),
            *_block(32, 64), *_block(64, 64), nn.MaxPool2d(2),
            *_block(64, 128), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 128), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(128, 10)

    @classmethod
    def bundled(cls) -> FashionFeatures:
        """The bundled trained network, in evaluation mode."""
        from safetensors.torch import load_file

        network = cls()
        weights = {name: value.float() for name, value in load_file(ASSETS / "features" / "features.safetensors").items()}
        missing = network.load_state_dict(weights, strict=False)
        assert not missing.unexpected_keys and all("num_batches" in key for key in missing.missing_keys)
        return network.eval()

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1:] != (1, 28, 28):
            raise ValueError(
                f"the bundled features take 1x28x28 images, these are {'x'.join(map(str, images.shape[1:]))}; "
                "use --features random"
            )
        features: Tensor = self.body(images.float() / 127.5 - 1)
        return features

    def classify(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self(images))
        return logits


def _block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


class RandomFeatures(nn.Module):
    """Untrained convolutional networks, which have learned to ignore nothing; features (B, 128).

    They are four parallel networks of four 3×3 convolutions with ReLU, each followed by a mean over 2×2 pixels. The
    features are the spatial means at the four scales. Every second filter has mean 0 and responds to edges, blur and
    noise; the others respond to brightness as well. Images may have any size, grey or in colour. The weights depend on
    `seed` alone.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        rng, self.scales = torch.Generator().manual_seed(seed), nn.ModuleList()
        for inputs, groups in ((3, 1), (32, 4), (32, 4), (32, 4)):
            layer = nn.Conv2d(inputs, 32, 3, padding=1, padding_mode="replicate", groups=groups)
            weight = torch.randn(layer.weight.shape, generator=rng) * (2 / layer.weight[0].numel()) ** 0.5
            weight[::2] -= weight[::2].mean((2, 3), keepdim=True)
            layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(0.25 * torch.randn(32, generator=rng))
            self.scales.append(layer)

    def forward(self, images: Tensor) -> Tensor:
        h, means = _colour(images).float() / 127.5 - 1, []
        for layer in self.scales:
            h = layer(h).relu()
            means.append(h.mean((2, 3)))
            h = avg_pool2d(h, 2, ceil_mode=True)
        return 10 * torch.cat(means, 1)  # so that distances have the order of those of trained features


class PixelFeatures(nn.Module):
    """A thumbnail of 8×8 pixels with values in [−1, 1]: (B, 64) for grey, (B, 192) for colour."""

    def forward(self, images: Tensor) -> Tensor:
        return interpolate(images.float() / 127.5 - 1, (8, 8), mode="bilinear", antialias=True).flatten(1)


class InceptionFeatures(nn.Module):
    """The 2015 Inception network of the FID, (B, 2048), with its own resize, through torch-fidelity."""

    def __init__(self) -> None:
        super().__init__()
        needs("inception")
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        try:
            self.network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
        except OSError as error:
            raise ValueError(f"the weights of the Inception features could not be downloaded: {error}") from error

    def forward(self, images: Tensor) -> Tensor:
        (features,) = self.network(_colour(images))
        return torch.as_tensor(features)


class TransformersFeatures(nn.Module):
    """Pooled output (B, D) of a transformers vision model at 224 pixels, by antialiased bicubic; DINOv2 for FD-DINOv2."""

    mean: Tensor
    std: Tensor

    def __init__(self, source: str) -> None:
        super().__init__()
        needs("text")
        from transformers import AutoModel

        try:
            folder = folder_of(source, VISION, bundled="features")
        except ValueError as error:
            known = "random, pixels, fashion, inception"
            raise ValueError(f"{source} is neither an extractor ({known}) nor a vision model: {error}") from error
        config = load_config(folder, read_config(folder, VISION))
        self.network = load_network(folder, config, AutoModel, "vision model", dtype=torch.float32, pickled=True)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))  # those of ImageNet
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))
        try:
            with torch.no_grad():
                self(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
        except Exception as error:  # other models have other inputs or outputs
            raise ValueError(f"{source} is no vision model that pools 224 pixels: {in_short(error)}") from error

    def forward(self, images: Tensor) -> Tensor:
        pixels = interpolate(_colour(images).float() / 255, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
        features: Tensor = self.network(pixel_values=(pixels - self.mean) / self.std).pooler_output
        return features


def _colour(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
