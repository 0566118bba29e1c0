"""Pictures as files: a folder or a zip, read the same way."""

from __future__ import annotations

import logging
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Protocol

from .labels import Labels, folder_labels, labels_of
from .limits import check_file
from .metadata import is_metadata, metadata_labels
from .pictures import shown
from .pixels import suffixes

logger = logging.getLogger(__name__)


class Tree(Protocol):
    """A folder or a zip.

    Attributes:
        files: the regular files in it; hidden ones and what a Mac's zips add are left out.
        odd: what is named like a picture and is no file, and folders that cannot be entered.
        on_disk: bytes that it takes there.
    """

    files: list[PurePosixPath]
    odd: list[str]
    on_disk: int

    def read(self, file: PurePosixPath) -> bytes:
        """The content of one of the files; ValueError where that cannot be had."""


class Folder:
    """A folder, links to other folders included; see `Tree`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: list[PurePosixPath] = []
        self.odd: list[str] = []
        self.on_disk = 0
        for folder, names in self._walk():
            for name in names:
                file = PurePosixPath(folder / name)
                if (path / file).is_file():  # no pipe, and no link to nowhere
                    self.files.append(file)
                    self.on_disk += (path / file).stat().st_size
                elif _ours(file):
                    self.odd.append(str(file))

    def _walk(self) -> Iterator[tuple[Path, list[str]]]:
        """Each folder, relative to the path, with the names in it that are no folders. A link to a folder above ends."""
        above: dict[str, tuple[str, ...]] = {str(self.path): (os.path.realpath(self.path),)}
        for folder, below, names in os.walk(self.path, onerror=lambda error: self.odd.append(str(error)), followlinks=True):
            chain = above.pop(folder)
            places = {name: os.path.realpath(os.path.join(folder, name)) for name in below if not _hidden(name)}
            below[:] = [name for name, place in places.items() if place not in chain]
            above |= {os.path.join(folder, name): (*chain, places[name]) for name in below}
            inside = Path(folder).relative_to(self.path)
            self.odd += [str(inside / name) for name in below if _ours(PurePosixPath(name))]
            yield inside, [name for name in names if not _hidden(name)]

    def read(self, file: PurePosixPath) -> bytes:
        try:
            check_file((self.path / file).stat().st_size)
            return (self.path / file).read_bytes()
        except OSError as error:
            raise ValueError(error.strerror or str(error)) from error


class Archive:
    """A zip; see `Tree`."""

    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
            entries = self._zip.infolist()
        except Exception as error:  # a broken table of contents makes zipfile raise anything
            raise ValueError(f"{path} is not a readable zip: {error}") from error
        self.odd: list[str] = []
        self._entries: dict[PurePosixPath, zipfile.ZipInfo] = {}
        for entry in entries:
            # some programs write \ between folders; a leading / is none of our business
            file = PurePosixPath(entry.filename.replace("\\", "/").lstrip("/"))
            if any(map(_hidden, file.parts)):
                continue
            folder = entry.filename.endswith("/")  # is_dir() fails on an empty name
            if not folder and stat.S_IFMT(entry.external_attr >> 16) in (0, stat.S_IFREG):
                self._entries[file] = entry
            elif _ours(file):
                self.odd.append(str(file))
        self.files = list(self._entries)
        self.on_disk = path.stat().st_size
        if any(entry.flag_bits & 1 for entry in self._entries.values()):
            raise ValueError(f"{path} is encrypted; unpack it and give the folder")

    def read(self, file: PurePosixPath) -> bytes:
        entry = self._entries[file]
        check_file(entry.file_size)
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # the others know no bound
            raise ValueError("neither stored nor deflated in its zip; unpack the zip and give the folder")
        try:
            with self._zip.open(entry) as content:
                return content.read(entry.file_size)  # and no more, whatever it unpacks to
        except Exception as error:  # a broken entry makes zipfile raise anything
            raise ValueError(f"cannot be unpacked: {error}") from error


class FilePictures:
    """The pictures of a folder or zip; see `Pictures`."""

    def __init__(self, tree: Tree, source: str) -> None:
        self.tree = tree
        self.source = source
        files = sorted(tree.files)
        self.files = [file for file in files if file.suffix.lower() in suffixes()]
        self.on_disk = tree.on_disk
        others = Counter(file.suffix.lower() or file.name for file in files if not _ours(file))
        if tree.odd:
            some = ", ".join(map(shown, tree.odd[:10]))
            logger.warning("passed over %d that are no regular files: %s", len(tree.odd), some)
        if others:
            kinds = ", ".join(f"{count} {shown(suffix)}" for suffix, count in others.most_common(10))
            logger.warning("passed over %d files that are no pictures we read: %s", others.total(), kinds)

    def __len__(self) -> int:
        return len(self.files)

    def name(self, k: int) -> str:
        return shown(self.files[k])

    def read(self, k: int) -> bytes:
        return self.tree.read(self.files[k])

    @cached_property
    def labels(self) -> Labels:
        said = metadata_labels(self.tree, self.files, self.source)
        return labels_of(folder_labels(self.files, self.source) if said is None else said, self.source)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _ours(file: PurePosixPath) -> bool:
    return file.suffix.lower() in suffixes() or is_metadata(file)
