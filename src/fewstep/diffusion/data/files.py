"""Pictures as files in a folder, a zip or a .tar."""

from __future__ import annotations

import json
import logging
import os
import stat
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Protocol

from ...core.weights import in_short
from .labels import Labels, folder_labels, labels_of
from .limits import check_file
from .metadata import CAPTIONS, is_metadata, metadata_labels
from .pictures import captions_of, shown
from .pixels import suffixes

logger = logging.getLogger(__name__)

SIDECARS = (".txt", ".json")  # files with the caption of the picture of the same name


class Tree(Protocol):
    """A folder, a zip or a .tar.

    Attributes:
        files: the regular files in it, without hidden ones and those that macOS adds to zips.
        odd: entries that are named like pictures but are no files, and folders that cannot be opened.
        on_disk: bytes that it takes on the disk.
    """

    files: list[PurePosixPath]
    odd: list[str]
    on_disk: int

    def read(self, file: PurePosixPath) -> bytes:
        """The content of one of the files; ValueError if it cannot be read."""


class Folder:
    """A folder, including links to other folders; see `Tree`."""

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

    @property
    def has_pictures(self) -> bool:
        return any(file.suffix.lower() in suffixes() for file in self.files)

    def _walk(self) -> Iterator[tuple[Path, list[str]]]:
        """Each folder, relative to the path, with the names of its files. Links to a folder above are not followed."""
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
        except Exception as error:  # zipfile raises anything for a broken table of contents
            raise ValueError(f"{path} is not a readable zip: {error}") from error
        self.odd: list[str] = []
        self._entries: dict[PurePosixPath, zipfile.ZipInfo] = {}
        for entry in entries:
            # some programs write \ between folders, or a leading /
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
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # other methods have no bound on memory
            raise ValueError("neither stored nor deflated in its zip; unpack the zip and give the folder")
        try:
            with self._zip.open(entry) as content:
                return content.read(entry.file_size)  # no more than the size that was checked
        except Exception as error:  # zipfile raises anything for a broken entry
            raise ValueError(f"cannot be unpacked: {error}") from error


class Tar:
    """One or more .tar files, as in webdataset: pictures with captions in files of the same name; see `Tree`."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.odd: list[str] = []
        self._places: dict[PurePosixPath, tuple[Path, int, int]] = {}
        for path in paths:
            try:
                with tarfile.open(path, "r:") as tar:
                    for entry in tar:
                        file = PurePosixPath(path.stem if len(paths) > 1 else "", entry.name.lstrip("/"))
                        if any(map(_hidden, file.parts)):
                            continue
                        if entry.isreg() and not entry.issparse():
                            self._places[file] = path, entry.offset_data, entry.size
                        elif _ours(file):
                            self.odd.append(str(file))
            except Exception as error:  # tarfile raises anything for a broken header
                raise ValueError(
                    f"{path} is not a readable .tar: {in_short(error)}; if it is compressed, unpack it first"
                ) from error
        self.files = list(self._places)
        self.on_disk = sum(path.stat().st_size for path in paths)

    def read(self, file: PurePosixPath) -> bytes:
        path, offset, size = self._places[file]
        check_file(size)
        with path.open("rb") as content:
            content.seek(offset)
            return content.read(size)


class FilePictures:
    """The pictures of a folder, zip or .tar; see `Pictures`."""

    def __init__(self, tree: Tree, source: str) -> None:
        self.tree = tree
        self.source = source
        files = sorted(tree.files)
        self.files = [file for file in files if file.suffix.lower() in suffixes()]
        self.on_disk = tree.on_disk
        beside = {_key(file) for file in self.files}
        self._said = {_key(file): file for file in files if file.suffix in SIDECARS and _key(file) in beside}
        others = Counter(
            file.suffix.lower() or file.name for file in files if not _ours(file) and _key(file) not in self._said
        )
        if tree.odd:
            some = ", ".join(map(shown, tree.odd[:10]))
            logger.warning("skipped %d entries that are no regular files: %s", len(tree.odd), some)
        if others:
            kinds = ", ".join(f"{count} {shown(suffix)}" for suffix, count in others.most_common(10))
            logger.warning("skipped %d files that are no supported pictures: %s", others.total(), kinds)

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

    @cached_property
    def captions(self) -> Sequence[str]:
        """Captions from metadata files, or from a .txt or .json beside each picture; ValueError if one is missing."""
        said = metadata_labels(self.tree, self.files, self.source, CAPTIONS)
        if said is None:
            said = [self._beside(_key(file)) for file in self.files]
        return captions_of(said, self.name, self.source)

    def _beside(self, key: PurePosixPath) -> object:
        """The caption in the file beside a picture."""
        file = self._said.get(key)
        if file is None:
            return None
        try:
            content = self.tree.read(file).decode("utf-8-sig")
            if file.suffix == ".txt":
                return content.strip()
            said = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{shown(file)} in {self.source} is no caption: {in_short(error)}") from error
        return next((said[name] for name in CAPTIONS if said.get(name)), None) if isinstance(said, dict) else None


def _key(file: PurePosixPath) -> PurePosixPath:
    """The path up to the first dot of the name, which a picture shares with its caption file."""
    return file.parent / file.name.split(".")[0]


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _ours(file: PurePosixPath) -> bool:
    return file.suffix.lower() in suffixes() or is_metadata(file)
