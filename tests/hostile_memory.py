"""For a process of its own: what asks for giant sizes is refused within a gigabyte of address space."""

from __future__ import annotations

import json
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from hostile import ADAPTERS, IMAGES, KINDS, LANGUAGE, MODELS, Kind, make
from test_hostile import ENTRIES, Place

MORE = 1 << 30  # bytes, beside what importing the libraries took


def compressed(kind: Kind, folder: Path, outside: Path) -> None:
    """Two gigabytes of zeros in two megabytes."""
    (folder / kind.weights).unlink()
    torch.save({"a": torch.zeros(1 << 20)}, outside / "plain.bin")
    with (
        zipfile.ZipFile(outside / "plain.bin") as plain,
        zipfile.ZipFile(folder / kind.pickled, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        for entry in plain.infolist():
            if not entry.filename.endswith("/data/0"):
                archive.writestr(entry.filename, plain.read(entry))
                continue
            with archive.open(entry.filename, "w", force_zip64=True) as data:
                for _ in range(1 << 5):
                    data.write(bytes(1 << 26))


def expanded(kind: Kind, folder: Path, outside: Path) -> None:
    """A table whose one number stands for eight gigabytes of them."""
    (folder / kind.weights).unlink()
    torch.save({"bert.embeddings.word_embeddings.weight": torch.zeros(1).expand(1 << 31)}, folder / kind.pickled)


GIANTS = [case for case in (*IMAGES, *MODELS, *LANGUAGE, *ADAPTERS) if "giant" in case or case == "many layers"]
BOMBS: dict[str, Callable[[Kind, Path, Path], object]] = {"compressed": compressed, "expanded": expanded}


def main(root: Path) -> None:
    """Prints what each case was told, as JSON."""
    (root / "sound").mkdir()
    make(root / "sound")
    for entry in ("text", "base"):  # what libraries load late they load now
        kind, load, _ = ENTRIES[entry]
        load(root / "sound" / kind, root / "sound")
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MORE, size + MORE))
    cases = [
        (entry, case, spoil)
        for entry, (_, _, spoils) in ENTRIES.items()
        if entry not in ("expert", "antiexpert")  # as of the base
        for case, spoil in spoils.items()
        if case in GIANTS
    ]
    cases += [("text", case, spoil) for case, spoil in BOMBS.items()]
    told = {}
    for number, (entry, case, spoil) in enumerate(cases):
        here = root / str(number)
        here.mkdir()
        place = Place(root / "sound", here)
        kind, load, _ = ENTRIES[entry]
        folder = place.copy(kind)
        spoil(KINDS[kind], folder, place.outside)
        try:
            load(folder, place.sound)
        except ValueError as error:
            told[f"{entry}, {case}"] = str(error)
    print(json.dumps({"cases": len(cases), "told": told}))
