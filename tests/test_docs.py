"""What the pages say can be typed: every command in them is parsed, every name that their Python imports is there."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path
from runpy import run_path

import pytest

import fewstep
from fewstep.cli import COMMANDS, _alone_on_the_screen, _parsed

ROOT = Path(fewstep.__file__).parents[2]
PAGES = sorted(
    page for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")) if page.parent.name not in ("log", "reference")
)
WRITTEN = sorted(str(page.relative_to(ROOT)) for page in PAGES if "```" in page.read_text())


def blocks(page: Path, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [text for name, text in fenced if name == language]


def commands(page: Path) -> list[str]:
    """The lines of its blocks that begin with `fewstep`, as on a terminal or after a prompt."""
    lines = "".join(blocks(page, "")).replace("\\\n", " ").splitlines()
    typed = [re.sub(r"^\$ |^(accelerate launch|torchrun [^f]*) -m (-- )?", "", line) for line in lines]
    return [re.sub(r"^fewstep\.cli", "fewstep", line) for line in typed if re.match(r"fewstep(\.cli)? \w", line)]


@pytest.mark.parametrize("name", WRITTEN)
def test_commands_are_understood(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is read: a command is parsed, and what its flags say of each other is checked."""
    known = {command: _alone_on_the_screen(work) for command, work in COMMANDS.items()}
    for line in commands(ROOT / name):
        words = shlex.split(line, comments=True)
        if words[-1] in ("…", "--help", "--version"):
            continue
        monkeypatch.setattr(sys, "argv", words)
        try:
            assert callable(_parsed(known)), line
        except (SystemExit, ValueError) as stop:
            pytest.fail(f"{line}: {stop}")


@pytest.mark.parametrize("name", WRITTEN)
def test_names_are_there(name: str) -> None:
    for block in blocks(ROOT / name, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("fewstep"):
                for alias in node.names:
                    assert hasattr(import_module(str(node.module)), alias.name), f"{node.module}.{alias.name}"


def test_the_commands_of_the_readme_are_found() -> None:
    """Else the tests above would look at nothing."""
    assert len(commands(ROOT / "README.md")) >= 3


def test_the_page_of_commands_has_no_escaped_percent_sign() -> None:
    """argparse takes a help text as a template, where "%%" stands for "%"."""
    pytest.importorskip("mkdocs", reason="the extra `docs` makes the site")
    page = run_path(str(ROOT / "scripts" / "docs.py"))["commands"]()
    assert "or .1. Default: `10%`." in page and "%%" not in page


def test_the_readme_quotes_the_figures_of_the_demo() -> None:
    """All that the page of `make pictures` says, in each representation, without 16 calls."""
    figures = (ROOT / "docs" / "demo.md").read_text()
    rows = re.findall(r"^\| (teacher|student), (.*?) \| (.*) \|$", figures, flags=re.MULTILINE)
    readme = (ROOT / "README.md").read_text()
    for name, features, cells in rows:
        said = [cell.strip() for k, cell in enumerate(cells.split("|")) if k != 4]
        written = {"teacher": "checkpoint", "student": "one student"}[name]
        assert f"| {written}, {features} | {' | '.join(said)} |".replace("  ", " ") in readme
    assert len(rows) == 4
