"""Packages that not everyone needs, and the extra of fewstep that brings each."""

from __future__ import annotations

from importlib.util import find_spec

EXTRAS = {  # as in pyproject.toml, by the names for import
    "data": ("datasets",),
    "lora": ("peft",),
    "text": ("transformers", "peft", "interegular"),
    "pipelines": ("transformers", "datasets", "peft"),
    "evaluate": ("lm_eval", "transformers", "peft"),
    "inception": ("torch_fidelity",),
    "quantize": ("bitsandbytes", "transformers", "peft"),
    "play": ("starlette", "uvicorn"),
}


def needs(extra: str) -> None:
    """Checks that the packages of an extra are installed, before the work that needs them.

    Raises:
        ModuleNotFoundError: a package is missing; the message says what to install.
    """
    for package in EXTRAS[extra]:
        if find_spec(package) is None:
            raise ModuleNotFoundError(_sentence(package, extra), name=package)


def missing(error: ModuleNotFoundError) -> str | None:
    """The message for a package that could not be imported; None if no extra brings it."""
    if "fewstep[" in str(error):
        return str(error)
    extras = [extra for extra, packages in EXTRAS.items() if error.name in packages]
    return _sentence(str(error.name), extras[0]) if extras else None


def _sentence(package: str, extra: str) -> str:
    return f"this needs {package}, which is not installed: pip install 'fewstep[{extra}]'"
