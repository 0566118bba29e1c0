"""The page: sections below a table of contents, in one file that loads no other."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.files import atomic_file, writable_file
from .dial import dial_section
from .finding import find
from .ledger import ledger_section
from .runs import forecast_section, run_section
from .section import Found, Section
from .settling import emergence_section, settling_section
from .text import answers_section, calibration_section, changes_section, proxy_section

if TYPE_CHECKING:
    from jinja2 import Environment

LARGEST = 5_000_000  # bytes of a page
PICTURES = (12, 8, 4, 2, 1)  # of each setting: the largest number that fits
SHOWN: dict[str, Callable[[Found], Section]] = {  # kind of a result -> its section, in the order on the page
    "dial": dial_section,
    "ledger": ledger_section,
    "settling": settling_section,
    "run": run_section,
    "forecast": forecast_section,
    "answers": answers_section,
    "changes": changes_section,
    "calibration": calibration_section,
    "emergence": emergence_section,
    "proxy": proxy_section,
}


def write_report(paths: Sequence[Path | str], out: Path | str = Path("report.html")) -> Path:
    """Writes one HTML file with the results of other commands: the dial, ledgers, settling, runs and texts.

    The file is below 5 MB, needs no network and no other file, and runs no text of a result as code.

    Args:
        paths: folders or files that `measure`, `dial`, `ledger`, `settle`, `tune`, `forecast`, `decode`, `calibrate`,
            `settle-text`, `ledger-text` or `proxy` has written.
        out: the file to write.

    Returns:
        The file.

    Raises:
        ValueError: a path holds no result, a result is damaged, or the results are too large for one page.
    """
    if not paths:
        raise ValueError("name at least one folder or file to report")
    out = Path(out)
    writable_file(out)
    found = list({result.file.resolve(): result for path in paths for result in find(Path(path))}.values())
    found.sort(key=lambda result: [*SHOWN].index(result.kind))
    for pictures in PICTURES:
        page = rendered([section_of(result._replace(pictures=pictures)) for result in found]).encode()
        if len(page) <= LARGEST:
            break
    else:
        raise ValueError(f"the page would have {len(page) / 1e6:.1f} MB; report fewer results on a page")
    with atomic_file(out) as file:
        file.write(page)
    return out


def section_of(found: Found) -> Section:
    """The section that shows a result.

    Raises:
        ValueError: the result is damaged, or of another version of fewstep.
    """
    try:
        return SHOWN[found.kind](found)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        told = f"{type(error).__name__}: {error}"
        raise ValueError(f"{found.file} is damaged or of another version ({told}); make it again") from error


def rendered(sections: Sequence[Section]) -> str:
    """The page of these sections."""
    style, script = (_text(name) for name in ("report.css", "report.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; "
        "form-action 'none'"
    )
    page = _environment().get_template("page.html")
    return page.render(sections=sections, style=style, script=script, policy=policy)


def _environment() -> Environment:
    """The templates' environment; texts of results are escaped and never become markup."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("fewstep.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip


def _text(name: str) -> str:
    return (files("fewstep.report") / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """The name of a style or script in the Content-Security-Policy, which allows no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
