"""The house on one page: which part may import which. Every edge is stated here, and each stated edge is used."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest

import fewstep

SOURCE = Path(fewstep.__file__).parent
PARTS = (
    "core",
    "diffusion",
    "diffusion.formats",
    "diffusion.measure",
    "masked",
    "steering",
    "toys",
    "report",
    "demo",
    "demo_text",
    "play",
    "cli",
    "__main__",
)
MAY_IMPORT = {  # beside itself
    "core": set(),
    "diffusion": {"core", "diffusion.formats", "diffusion.measure"},
    "diffusion.formats": {"core", "diffusion"},
    "diffusion.measure": {"core", "diffusion"},
    "masked": {"core"},
    "steering": {"core", "masked"},
    "toys": {"core"},
    "report": {"core"},
    "demo": {"core", "diffusion", "diffusion.formats", "diffusion.measure", "report"},
    "demo_text": {"core", "diffusion", "report", "demo"},
    "play": {"core", "diffusion"},
    "cli": {"core", "diffusion", "diffusion.formats", "masked", "steering", "toys", "report", "demo", "demo_text", "play"},
    "__main__": {"cli"},
    "__init__": {"core", "diffusion", "diffusion.formats", "diffusion.measure", "masked", "steering", "report"},
}
# within diffusion/: what the training and the samplers are made of knows nothing of folders, runs, scores and reports
GROUND = {
    "average", "calling", "cond", "data", "denoiser", "depth", "hop", "lora", "loss", "manner", "model", "noise", "optim",
    "pipeline", "prediction", "recording", "samplers", "schedule", "space", "step", "tuning", "two_times", "walk",
}  # fmt: skip

LONGEST = 60  # lines of a function with its signature, its docstring not counted

LOADERS = {  # what could run the code in a file, or of a folder, and who may call it
    "from_pretrained": {
        "core/pretrained.py",
        "diffusion/formats/opening.py",
        "diffusion/formats/stock.py",
        "diffusion/formats/stock_asked.py",
        "diffusion/formats/stock_adapter.py",
    },  # the last two sample our own exports
    "torch.load": {"core/files.py", "core/weights.py", "diffusion/formats/stock_adapter.py"},
    "pickle.load": set(),
}


def imports(file: Path) -> set[str]:
    """The modules of ours that `file` imports anywhere, as dotted paths below fewstep."""
    package = file.relative_to(SOURCE).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = ["fewstep", *package[: len(package) - node.level + 1]] if node.level else []
            base += (node.module or "").split(".")
            found |= {".".join([*filter(None, base), alias.name]) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("fewstep.") for name in found if name.startswith("fewstep.")}


def called(file: Path) -> set[str]:
    """What `file` calls: the last name, and the last two."""
    calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    return {".".join(call.split(".")[-n:]) for call in calls for n in (1, 2)}


def part_of(module: str) -> str:
    return max((part for part in PARTS if (module + ".").startswith(part + ".")), key=len, default="__init__")


def test_every_import_is_an_edge_of_the_plan() -> None:
    used: dict[str, set[str]] = {part: set() for part in MAY_IMPORT}
    for file in SOURCE.rglob("*.py"):
        part = part_of(".".join(file.relative_to(SOURCE).with_suffix("").parts))
        others = {part_of(name) for name in imports(file)} - {part}
        assert others <= MAY_IMPORT[part], f"{file.relative_to(SOURCE)} imports {others - MAY_IMPORT[part]}"
        used[part] |= others
    unused = {part: MAY_IMPORT[part] - seen for part, seen in used.items() if MAY_IMPORT[part] - seen}
    assert not unused, f"edges that nothing uses: {unused}"


def test_the_tree_names_every_module_and_no_other() -> None:
    tree = (SOURCE.parent.parent / "docs" / "architecture.md").read_text().split("## The tree")[1].split("assets/")[0]
    named = Counter(re.findall(r"\b\w+\.py\b", tree))
    there = Counter(file.name for file in SOURCE.rglob("*.py") if not file.name.startswith("__"))
    assert named == there, f"not in the tree: {there - named}; not there: {named - there}"


def test_the_ground_of_the_diffusion_wing_carries_the_rest() -> None:
    wing = SOURCE / "diffusion"
    for name in GROUND:
        for file in [wing / f"{name}.py"] if (wing / f"{name}.py").exists() else sorted((wing / name).rglob("*.py")):
            for module in imports(file):
                inside = module.removeprefix("diffusion.").split(".")[0]
                assert not module.startswith("diffusion.") or inside in GROUND, (
                    f"{file.relative_to(SOURCE)} imports {module}"
                )


def test_no_function_is_long() -> None:
    """What takes more lines has phases, and they have names."""
    long = set()
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and node.end_lineno:
                first = node.body[0]
                docstring = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(node) else 0
                if node.end_lineno - node.lineno + 1 - docstring > LONGEST:
                    long.add(f"{file.relative_to(SOURCE)} {node.name}")
    assert not long


def test_what_comes_from_a_checkpoint_is_loaded_in_few_places() -> None:
    for name, files in LOADERS.items():
        found = {str(file.relative_to(SOURCE)) for file in SOURCE.rglob("*.py") if name in called(file)}
        assert found == files, f"{name} is called in {found}"


def private_names(file: Path) -> set[str]:
    """Names that begin with _ and are asked of objects, or imported from outside, in `file`."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {part for alias in node.names for part in (*str(node.module).split("."), *alias.name.split("."))}
    return {name for name in found if name.startswith("_") and not name.endswith("__")}


def own_names(file: Path) -> set[str]:
    """What `file` itself defines: functions and classes, and attributes of its objects."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    stored = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    return defined | stored | {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def test_what_libraries_keep_to_themselves_is_used_in_one_place() -> None:
    files = [file for file in SOURCE.rglob("*.py") if file != SOURCE / "core" / "private.py"]
    ours = set().union(*map(own_names, files)) | {"_replace", "_asdict", "_fields"}  # the latter every named tuple has
    theirs = {str(file.relative_to(SOURCE)): found for file in files if (found := private_names(file) - ours)}
    assert not theirs, f"core/private.py is the place for these: {theirs}"
    assert private_names(SOURCE / "core" / "private.py") >= {"_model_mapping", "_sample"}, "and it is what is looked for"


@pytest.mark.parametrize("package", [fewstep, fewstep.masked, fewstep.steering], ids=lambda package: package.__name__)
def test_public_names_are_there_and_are_what_type_checkers_see(package) -> None:
    for name in package.__all__:
        assert getattr(package, name).__doc__, name
    assert set(package.__all__) <= set(dir(package))
    checked = next(node for node in ast.parse(Path(package.__file__).read_text()).body if isinstance(node, ast.If))
    seen = {alias.asname for node in checked.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(package.__all__) and len(package.__all__) == len(seen)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_the_same_name_is_the_same_thing() -> None:
    for wing in (fewstep.masked, fewstep.steering):
        for name in set(wing.__all__) & set(fewstep.__all__):
            assert getattr(wing, name) is getattr(fewstep, name), name


def test_a_fresh_import_is_light_and_knows_version_wings_and_names() -> None:
    program = """
import sys, fewstep
assert not {"torch", "numpy", "importlib.metadata"} & sys.modules.keys()
assert {"masked", "decode", "tune", "__version__"} <= set(dir(fewstep))
print(fewstep.__version__, fewstep.masked.EarlyCommit is fewstep.EarlyCommit)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [metadata.version("fewstep"), "True"]


def test_the_package_says_that_it_is_typed() -> None:
    assert (SOURCE / "py.typed").read_text() == ""
