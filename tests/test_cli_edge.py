"""What happens at the edge of the command line, around every command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import metadata

import torch
from safetensors.torch import load_file, save_file

from fewstep.core.source import ASSETS


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, where the libraries load anew and may say what they like."""
    quiet = {name: value for name, value in os.environ.items() if not name.endswith("_VERBOSITY")}
    command = [sys.executable, "-m", "fewstep.cli", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=quiet)


def test_other_libraries_are_not_heard(place) -> None:
    """diffusers calls a missing safetensors file an error and reads the .bin; transformers reports spare weights."""
    weights = place / "teacher" / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    sampled = run("sample", "teacher", "--out", "samples", "--n", 1)
    assert (sampled.returncode, sampled.stderr) == (0, "")

    shutil.copytree(ASSETS / "text", place / "text")
    more = load_file(place / "text" / "model.safetensors") | {"pooler.weight": torch.zeros(3)}
    save_file(more, place / "text" / "model.safetensors", metadata={"format": "pt"})
    decoded = run("decode", "text", "--gen-length", 4, "--prompt", "tom")
    assert decoded.returncode == 0
    assert decoded.stderr.splitlines()[:-1] == [] and "network calls" in decoded.stderr


def test_version() -> None:
    assert run("--version").stdout.strip() == metadata.version("fewstep")
