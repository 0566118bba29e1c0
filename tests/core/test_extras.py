"""What each extra brings, and what runs without any: asked of a process in which none of their packages can be imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fewstep
from fewstep.core.extras import EXTRAS, missing, needs

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # a part of pytest there

WITHOUT = f"""
import sys
from importlib.abc import MetaPathFinder

PACKAGES = {sorted({package for packages in EXTRAS.values() for package in packages} | {"pyarrow", "tokenizers"})}

class Nothing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in PACKAGES:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name.partition(".")[0])

import importlib.metadata
import importlib.util
version, find_spec = importlib.metadata.version, importlib.util.find_spec

def no_version(name):  # diffusers and accelerate ask for these
    if name.replace("-", "_") in PACKAGES:
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)

importlib.metadata.version = no_version
importlib.util.find_spec = lambda name, *beside: None if name.partition(".")[0] in PACKAGES else find_spec(name, *beside)
sys.meta_path.insert(0, Nothing())
"""
IMAGES = """
import pkgutil
from importlib import import_module
import fewstep, fewstep.core, fewstep.diffusion

assert "load" in dir(fewstep)
for package in (fewstep.core, fewstep.diffusion):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if "stock" not in module.name:  # scripts of other processes
            import_module(module.name)
print(fewstep.load("bundled").sample([0], walk=fewstep.DDIM(1)).shape)
"""
COMMANDS = """
import contextlib, io
from fewstep.cli import main

for line in (
    "decode bundled --prompt 1",
    "proxy --prompt 1",
    "check bundled-text",
    "tune bundled --data bundled --images 8 --lora 4 --out run",
    "table bundled --channels 1 --size 28 --out table",
    "evaluate bundled --tasks x --out x.json",
):
    sys.argv[1:] = line.split()
    try:
        main()
    except SystemExit as stop:
        print(stop.code)
"""


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[str], list[str]]:
    """What one process without them prints of the commands and then of the image side, and what is left in its folder."""
    folder = tmp_path_factory.mktemp("without")
    program = [sys.executable, "-c", WITHOUT + COMMANDS + IMAGES]
    done = subprocess.run(program, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr.splitlines(), os.listdir(folder)


def test_the_image_side_needs_no_extra(without: tuple[list[str], list[str], list[str]]) -> None:
    assert without[0][6:] == ["torch.Size([1, 1, 28, 28])"]


def test_a_command_names_the_extra_that_it_needs(without: tuple[list[str], list[str], list[str]]) -> None:
    said, sentences, left = without
    assert said[:6] == ["2"] * 6 and not left
    told = [
        re.search(r"fewstep: this needs (\w+), which is not installed: pip install 'fewstep\[(\w+)\]'", s)
        for s in sentences
    ]
    assert [match.groups() for match in told if match] == [
        ("transformers", "text"),
        ("transformers", "text"),
        ("transformers", "pipelines"),
        ("peft", "lora"),
        ("datasets", "data"),
        ("lm_eval", "evaluate"),
    ]


def test_extras_are_those_of_the_package() -> None:
    said = tomllib.loads((Path(fewstep.__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for extra, packages in EXTRAS.items():
        assert {re.split(r"[>=]", line)[0].replace("-", "_") for line in said["optional-dependencies"][extra]} == set(
            packages
        )
    assert set(said["optional-dependencies"]) == {*EXTRAS, "all", "dev", "docs"}


def test_a_missing_package_of_no_extra_is_not_ours_to_name() -> None:
    assert missing(ModuleNotFoundError("No module named 'numpy'", name="numpy")) is None
    with pytest.raises(KeyError):
        needs("numpy")
