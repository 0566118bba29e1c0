"""Files as EDM, EDM2 and ECT write them: pickles whose objects carry the source of their classes, which runs on reading."""

from __future__ import annotations

import pickle
import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

SOURCE = "import pathlib\npathlib.Path({canary!r}).touch()\nclass EDMPrecond: pass\n"  # of the module, in every object


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
    """What the original runs: the source in the file."""
    exec(meta["module_src"], {})


class EasyDict(dict):
    """A dict whose entries are attributes as well."""


class Persistent:
    """An object that is pickled as the call of that function, with the name of its class, its source and its state."""

    def __init__(self, kind: str, state: Mapping[str, Any], canary: Path, version: int = 6) -> None:
        source = SOURCE.format(canary=str(canary))
        self.meta = {
            "type": "class", "version": version, "module_src": source, "class_name": kind, "state": dict(state),
        }  # fmt: skip

    def __reduce__(self) -> tuple[Any, ...]:
        return _reconstruct_persistent_obj, (self.meta,), None


def module(weights: Mapping[str, Tensor], kind: str, canary: Path, **said: Any) -> Persistent:
    """A network whose weights are these, a persistent object a module; its lists of modules are torch's own."""
    parameters, inner = OrderedDict(), {}
    for name, weight in weights.items():
        first, _, rest = name.partition(".")
        if rest:
            inner.setdefault(first, {})[rest] = weight
        else:
            parameters[first] = weight
    parts = OrderedDict()
    for name, held in inner.items():
        if name in ("enc", "dec"):
            parts[name] = nn.ModuleDict()
            blocks: dict[str, dict[str, Tensor]] = {}
            for path, weight in held.items():
                block, _, rest = path.partition(".")
                blocks.setdefault(block, {})[rest] = weight
            parts[name].__dict__["_modules"] = {key: module(each, "Block", canary) for key, each in blocks.items()}
        else:
            parts[name] = module(held, "Layer", canary)
    fixed = {name: weight for name, weight in parameters.items() if name in ("freqs", "phases", "resample_filter")}
    state = {
        "training": False,
        "_parameters": OrderedDict((n, nn.Parameter(p)) for n, p in parameters.items() if n not in fixed) | {"none": None},
        "_buffers": OrderedDict(fixed),
        "_non_persistent_buffers_set": set(),
        "_forward_hooks": OrderedDict(),
        "_modules": parts,
    }
    return Persistent(kind, state | said, canary)


def write(path: Path, held: Any, protocol: int = 4) -> Path:
    """Pickles `held` with the names that the originals have."""
    names = {"torch_utils.persistence": _reconstruct_persistent_obj, "dnnlib.util": EasyDict}
    modules = {name: ModuleType(name) for name in ("torch_utils", "dnnlib", *names)}
    for name, thing in names.items():
        setattr(modules[name], thing.__name__, thing)
        thing.__module__ = name
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        with path.open("wb") as file:
            pickle.dump(held, file, protocol=protocol)
    finally:
        for thing in names.values():
            thing.__module__ = __name__
        for name, old in before.items():
            if old is None:
                del sys.modules[name]
            else:
                sys.modules[name] = old
    return path


def read_as_the_original_does(path: Path) -> Any:
    """With nothing refused."""
    names = {"torch_utils.persistence": _reconstruct_persistent_obj, "dnnlib.util": EasyDict}

    class Original(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            return names[module] if module in names else super().find_class(module, name)

    with path.open("rb") as file:
        return Original(file).load()


def onehot(labels: Tensor, count: int) -> Tensor:
    return torch.nn.functional.one_hot(labels, count).float()
