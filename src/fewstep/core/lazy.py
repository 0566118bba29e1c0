"""Public names that are imported at their first use, so that `import fewstep` and `fewstep --help` stay quick."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module


def lazily(
    package: str, names: Mapping[str, Sequence[str]], *, modules: Sequence[str] = ()
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """The `__getattr__` and the `__dir__` of a package whose `names` and `modules` are imported when they are asked for.

    Args:
        package: full name of the package.
        names: module below the package -> its public names.
        modules: modules of the package that are public themselves.
    """
    home = {name: module for module, offered in names.items() for name in offered}

    def get(name: str) -> object:
        if name in modules:
            return import_module(f"{package}.{name}")
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{home[name]}"), name)

    return get, lambda: sorted({*home, *modules})
