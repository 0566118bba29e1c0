"""One sentence for a command line that cannot be read: the error, and what was probably meant."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from difflib import get_close_matches
from typing import Any

import tyro

from ..core.private import Misread

KINDS = {"INT": "whole number", "FLOAT": "number", "STR": "text", "PATH": "path"}
HELP = ("-h", "--help", "--help-verbose")


def sentence(misread: Misread, words: Sequence[str], commands: Mapping[str, Callable[..., Any]]) -> str:
    """The error in `words`, the arguments after `fewstep`."""
    name, *given = words or [""]
    if name not in commands:
        near = get_close_matches(name, commands)
        wanted = f"did you mean {_joined(near)}?" if near else f"give one of {_joined(commands)}"
        return f"there is no command {name}; {wanted}" if name[:1].strip("-") else f"a command comes first; {wanted}"
    help_ = f"`fewstep {name} --help` says what it takes"
    if misread.unknown:
        return _unknown(misread.unknown, name, commands[name], help_)
    if misread.missing:
        return f"{name} needs {_joined(misread.missing, 'and')}; {help_}"
    takes = f"{misread.argument} of {name} takes {readable(misread.takes)}"
    if not misread.argument.startswith("-"):
        return takes
    value = _after(misread.argument, given)
    return f"{takes}, not {value!r}" if value else f"{takes}, and no value was given"


def _unknown(unknown: Sequence[str], name: str, command: Callable[..., Any], help_: str) -> str:
    word = next((word for word in unknown if word.startswith("-")), unknown[0])
    if not word.startswith("-"):
        return f"{name} does not take {word!r} here; {help_}"
    flag = word.partition("=")[0].replace("_", "-")
    near = get_close_matches(flag, flags(command), n=2, cutoff=0.7)
    return f"{name} has no {flag}; " + (f"did you mean {_joined(near)}?" if near else help_)


def flags(command: Callable[..., Any]) -> list[str]:
    """All flags of a command, from its help."""
    shown = io.StringIO()
    with redirect_stdout(shown), suppress(SystemExit):
        tyro.cli(command, args=["--help"], compact_help=True)
    lines = re.findall(r"^  (-[^(]*)", shown.getvalue(), flags=re.MULTILINE)  # "  -o PATH, --out PATH (default: report)"
    written = [flag for line in lines for flag in re.findall(r"(?<!\S)--?[A-Za-z][\w.-]*", line)]
    return [flag for flag in written if flag.lower() not in HELP]


def readable(takes: str) -> str:
    """The values of an argument in words: `{None}|INT` is "a whole number", `{a,b}` "`a` or `b`"."""
    parts = re.sub(r"\[+(.+) \[\1 \.\.\.\]+", r"\1 …", takes).split("|")
    return _joined([_part(part) for part in parts if part != "{None}"])


def _part(part: str) -> str:
    if part.startswith("{") and part.endswith("}") and " " in part:  # several words, where something else could stand
        part = part[1:-1]
    each = re.findall(r"\{.*?\}|\w+|…", part)
    if each[1:] and len(set(each)) == 1:
        return f"{len(each)} {KINDS[each[0]]}s"
    if each[-1] == "…":
        return f"{KINDS[each[0]]}s" if each[0] in KINDS else f"any of {_choices(each[0])}"
    return ", then ".join(f"a {KINDS[word]}" if word in KINDS else _choices(word) for word in each)


def _choices(braced: str) -> str:
    return _joined([f"`{choice}`" for choice in braced.strip("{}").split(",") if choice != "None"])


def _after(flag: str, words: Sequence[str]) -> str:
    """The words after the last occurrence of a flag."""
    taken: list[str] = []
    inside = False
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            inside = name.replace("_", "-") == flag
            taken = ([value] if equals else []) if inside else taken
        elif inside:
            taken.append(word)
    return " ".join(taken)


def _joined(words: Iterable[str], last: str = "or") -> str:
    *first, end = words
    return f"{', '.join(first)} {last} {end}" if first else end
