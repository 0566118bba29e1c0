"""Pages of the site that are made of the package itself: the commands, the public names, and files that lie above docs/.

A hook of mkdocs: nothing is written into the source tree, so these pages cannot be older than the code.
"""

from __future__ import annotations

import argparse
import inspect
import re
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
WINGS = {
    "fewstep": "What most users want. Everything here is imported from `fewstep` itself.",
    "fewstep.masked": "Masked diffusion language models.",
    "fewstep.steering": "Large language models that small ones steer.",
}
PURPOSE = {
    "Tune and use": ("demo", "check", "train", "tune", "sample", "export", "push", "import", "play"),
    "Data": ("table", "encode"),
    "Measure": ("measure", "dial", "forecast", "ledger", "settle", "report"),
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages to those in docs/."""
    pages = {"reference/commands.md": commands()}
    for wing, about in WINGS.items():
        pages[f"reference/{wing}.md"] = names(wing, about)
    for source, place in (("CONTRIBUTING.md", "contributing.md"), ("CHANGELOG.md", "changelog.md")):
        pages[place] = (ROOT / source).read_text()
    for place, text in pages.items():
        files.append(File.generated(config, place, content=text))
    return files


def names(wing: str, about: str) -> str:
    """A page of the public names of a wing that the page of `fewstep` does not have."""
    module = import_module(wing)
    shown = set() if wing == "fewstep" else set(import_module("fewstep").__all__)
    own = sorted((name for name in module.__all__ if name not in shown), key=str.lower)
    also = sorted((name for name in module.__all__ if name in shown), key=str.lower)
    lines = [f"# {wing}", "", about, ""]
    if also:
        linked = ", ".join(f"[`{name}`][fewstep.{name}]" for name in also)
        lines += [f"Also here, and described on the page of [fewstep](fewstep.md): {linked}.", ""]
    return "\n".join([*lines, *(f"::: {wing}.{name}" for name in own), ""])


def commands() -> str:
    """The page of all commands, made of what `--help` says."""
    from fewstep.cli import COMMANDS

    groups = {title: [name for name in wanted if name in COMMANDS] for title, wanted in PURPOSE.items()}
    known = {name for wanted in groups.values() for name in wanted}
    groups["Text"] = [name for name in COMMANDS if name not in known]
    lines = [
        "# Commands", "",
        "`fewstep COMMAND --help` says the same on the terminal. A wrong input ends in one sentence and exit code 2.", "",
    ]  # fmt: skip
    for title, wanted in groups.items():
        lines += [f"## {title}", ""]
        for name in wanted:
            lines += [f"### fewstep {name}", "", *_command(COMMANDS[name]), ""]
    return "\n".join(lines)


def _command(command: Any) -> list[str]:
    """One command: its docstring without the arguments, and a table of them."""
    import tyro

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        parser = tyro.extras.get_parser(command)
    about = inspect.cleandoc(command.__doc__ or "").split("\nArgs:")[0].strip()
    lines, tables = [about, ""], {"": list[str]()}
    for group in parser._action_groups:  # those without a description are the command's own
        rows = tables.setdefault((group.description or "").strip(), [])
        rows += [_row(action) for action in group._group_actions if action.dest != "help"]
    for said, rows in tables.items():
        if rows:
            lines += [f"{said[:1].upper()}{said[1:]}", ""] if said else []
            lines += ["| argument | takes | what it is |", "|---|---|---|", *rows, ""]
    return lines


def _row(action: argparse.Action) -> str:
    """A line of the table: how an argument is written, what it takes, what its docstring says."""
    written = ", ".join(f"`{option}`" for option in action.option_strings) or f"`{action.dest.upper()}`"
    takes = action.metavar if isinstance(action.metavar, str) else ""
    takes = re.sub(r"\[(\w+) \[\1 \.\.\.\]\]", r"\1 …", takes).replace("{None}|", "")
    said = " ".join((action.help or "").split()).replace("%%", "%")  # as argparse escapes it
    said = re.sub(r" ?\((default: (None|)|required)\)$", "", said)
    said = re.sub(r"\(default: (.*)\)$", lambda found: f"Default: `{found[1]}`.", said)
    return f"| {written} | {_cell(takes)} | {_cell(said, code=False)} |"


def _cell(text: str, *, code: bool = True) -> str:
    text = text.replace("|", r"\|")
    return f"`{text}`" if code and text else text.replace("<", "&lt;")
