"""Metadata files with the classes or captions of pictures, as common data set tools write them."""

from __future__ import annotations

import csv
import io
import json
import logging
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from ...core.extras import needs

if TYPE_CHECKING:
    from .files import Tree

logger = logging.getLogger(__name__)

NAME, LABEL = "file_name", "label"  # columns of datasets' image folders
CAPTIONS = ("text", "caption")  # columns of captions, the preferred first


def is_metadata(file: PurePosixPath) -> bool:
    """Whether a file has the name of a metadata file."""
    return file.name in READERS


def metadata_labels(
    tree: Tree, pictures: Sequence[PurePosixPath], source: str, columns: Sequence[str] = (LABEL,)
) -> list[object] | None:
    """The label or caption of each picture in metadata files, None where it is missing; None without such files.

    With metadata files, folders are shards and not classes.

    Args:
        tree, pictures, source: the folder or archive, the pictures in it, and its name for messages.
        columns: columns to read, the preferred first; by default `label`.

    Raises:
        ValueError: a file cannot be read, two entries contradict each other, or pictures are left out.
    """
    what = "classes" if LABEL in columns else "captions"
    said: dict[PurePosixPath, object] = {}
    files = [file for file in sorted(tree.files) if is_metadata(file)]
    described = False
    for file in files:
        try:
            rows = READERS[file.name](tree.read(file), columns)
            if rows is None:
                continue
            described = True
            for name, label in rows:
                picture = PurePosixPath(posixpath.normpath(file.parent / name.replace("\\", "/")))
                before = said.setdefault(picture, label)
                if label is not None and before is not None and label != before:
                    raise ValueError(f"{picture} has both {before!r} and {label!r}")
                said[picture] = before if label is None else label
        except RecursionError:
            raise ValueError(f"{file} in {source} is nested without end") from None
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{file} in {source} does not hold the {what} of pictures: {error}") from error
    if not described:
        return None
    names = " and ".join(map(str, files[:2]))
    if any(label is not None for label in said.values()):
        left_out = [picture for picture in pictures if picture not in said]
        if left_out:
            raise ValueError(
                f"{names} in {source} leaves out {len(left_out)} of {len(pictures)} pictures, the first is {left_out[0]}; "
                "add them there or remove the pictures"
            )
    absent = said.keys() - set(pictures)
    if absent:
        logger.warning("%s names %d pictures that are not there, such as %s", names, len(absent), min(absent))
    return [said.get(picture) for picture in pictures]


def _table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> Iterator[tuple[str, object]]:
    """Names and values of rows with a column `file_name` and perhaps one of the `columns`, as in `datasets`."""
    for number, row in enumerate(rows, 1):
        name = row.get(NAME) if isinstance(row, Mapping) else None
        if not isinstance(name, str):
            raise ValueError(f"row {number} has no `{NAME}`")
        yield name, next((row[column] for column in columns if row.get(column) is not None), None)


def _jsonl(content: bytes, columns: Sequence[str]) -> Iterator[tuple[str, object]]:
    return _table((json.loads(line) for line in content.decode("utf-8-sig").split("\n") if line.strip()), columns)


def _csv(content: bytes, columns: Sequence[str]) -> Iterator[tuple[str, object]]:
    return _table(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")), columns)


def _parquet(content: bytes, columns: Sequence[str]) -> Iterator[tuple[str, object]]:
    needs("data")
    import pyarrow  # a part of datasets
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(io.BytesIO(content))
        wanted = [name for name in (NAME, *columns) if name in table.schema_arrow.names]
        batches = table.iter_batches(batch_size=1000, columns=wanted)
        yield from _table((row for batch in batches for row in batch.to_pylist()), columns)
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from error


def _dataset_json(content: bytes, columns: Sequence[str]) -> Iterator[tuple[str, object]] | None:
    """Reads `{"labels": [[path, class], …]}` or `{"labels": null}` of StyleGAN's and EDM's tools; else None."""
    said = json.loads(content)
    if not isinstance(said, dict) or "labels" not in said or LABEL not in columns:
        return None
    labels = said["labels"] or []
    if not isinstance(labels, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in labels
    ):
        raise ValueError('"labels" should be a list of [path, class]')
    return ((name, label) for name, label in labels)


READERS: dict[str, Callable[[bytes, Sequence[str]], Iterator[tuple[str, object]] | None]] = {
    "metadata.jsonl": _jsonl,
    "metadata.csv": _csv,
    "metadata.parquet": _parquet,
    "dataset.json": _dataset_json,
}
