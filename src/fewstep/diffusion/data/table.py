"""Tables: samples on disk, mapped into memory, in folders of `datasets`.

All rows have the same number of bytes, so each can be read alone and without decoding. The operating system caches what was
read, once for all processes.
"""

from __future__ import annotations

import json
import secrets
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...core.extras import needs
from ...core.files import atomic_file, disk_errors
from ...core.source import read_json
from ..cond import CLASS, Cond
from .conditions import COLUMN, Conditions, meant
from .examples import Samples
from .images import channels_first
from .labels import Labels, labels_of

IMAGE, LATENTS, LABEL = "image", "latents", "label"
STATE, INFO = "state.json", "dataset_info.json"  # files in a folder of `datasets`
NOTES = b"fewstep"  # key of the notes of a part


def is_table(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of `datasets`."""
    return (path / STATE).is_file() and (path / INFO).is_file()


def open_folder(path: Path) -> Any:
    """The `datasets.Dataset` in a folder, mapped into memory; ValueError if it is damaged."""
    needs("data")
    import datasets  # seconds to import

    try:
        rows = datasets.load_from_disk(str(path), keep_in_memory=False)
        rows.data.validate()  # raises if rows are missing at the end of a file
    except Exception as error:  # the errors of datasets and of pyarrow have no common base
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, IndexError):  # datasets raises it for a table without files
            said = "it holds 0 rows"
        raise ValueError(f"{path} is not a readable table: {said}") from error
    return rows


def holds_arrays(features: Mapping[str, Any]) -> bool:
    """Whether the rows hold arrays and not encoded pictures."""
    return any(_shape(features[name]) for name in (LATENTS, IMAGE) if name in features)


class Table(Samples):
    """Samples in a folder that `datasets.load_from_disk` reads, such as one that `make_table` wrote.

    The samples are the column `latents`, floats of any shape, or the column `image`, uint8 of shape (C, H, W), (H, W, C)
    or (H, W). The column `label` holds classes as whole numbers; a `ClassLabel` names them. A column `cond.NAME` holds
    another condition, whose rows have one shape. Shared conditions are in files beside the rows. Other columns are ignored.
    A table is pickled as its path.
    """

    def __init__(self, path: str | Path, *, labelled: bool = True) -> None:
        """Opens the table in `path`, with its classes if `labelled`.

        Raises:
            ValueError: the table is damaged, empty, or has no such columns.
        """
        self.path, self.labelled = Path(path).resolve(), labelled
        rows = open_folder(self.path)
        name = LATENTS if LATENTS in rows.features else IMAGE
        feature = rows.features.get(name)
        kept = _shape(feature)
        if not len(rows):
            raise ValueError(f"{path} holds 0 rows; write the table again, or give another")
        if kept is None:
            raise ValueError(
                f"{path} holds {len(rows)} rows of {sorted(rows.features)}; it needs a column `{IMAGE}` of uint8 arrays or "
                f"`{LATENTS}` of floats, all of one shape"
            )
        self._features = rows.features
        self._samples = _Column(rows.data.column(name), kept, f"{name} in {path}")
        wanted = "u" if name == IMAGE else "f"
        if self._samples.dtype.kind != wanted or (wanted == "u" and self._samples.dtype != np.uint8):
            raise ValueError(
                f"`{name}` in {path} holds {self._samples.dtype}; make it {'uint8' if wanted == 'u' else 'float32'}"
            )
        self._label_column = rows.data.column(LABEL) if labelled and LABEL in rows.features else None
        self.conditions = Conditions.read(self.path)
        self._cond = {
            name.removeprefix(COLUMN): _Column(rows.data.column(name), _shape(feature) or (), f"{name} in {path}")
            for name, feature in rows.features.items()
            if name.startswith(COLUMN)
        }

    def __reduce__(self) -> tuple[Callable[..., Table], tuple[Path]]:
        return partial(Table, labelled=self.labelled), (self.path,)

    def __len__(self) -> int:
        return len(self._samples)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.raw([0]).shape[1:])

    def raw(self, rows: Sequence[int]) -> Tensor:
        raw = torch.from_numpy(np.stack([self._samples[k] for k in rows]))
        if raw.dtype == torch.uint8:
            return channels_first(raw)
        latents = raw.float()
        if not latents.isfinite().all():
            bad = next(k for k, latent in zip(rows, latents, strict=True) if not latent.isfinite().all())
            raise ValueError(f"row {bad} of {self.path} holds numbers that are not finite; remove such rows")
        return latents

    def cond(self, k: int) -> Mapping[str, Tensor]:
        kinds = self.conditions.dtypes
        rows = {name: meant(column[k], kinds.get(name)) for name, column in self._cond.items()}
        for name, value in rows.items():
            if value.is_floating_point() and not value.isfinite().all():
                raise ValueError(f"{name} in row {k} of {self.path} holds numbers that are not finite; remove such rows")
        return rows if self.label_range is None else rows | {CLASS: torch.tensor(int(self._labels[k]))}

    @property
    def shared(self) -> Mapping[str, object]:
        return self.conditions.shared

    @property
    def null(self) -> Cond | None:
        return self.conditions.null

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of `datasets`."""
        return str(read_json(self.path / STATE, "a table has it").get("_fingerprint"))

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.kinds.names

    @cached_property
    def label_range(self) -> tuple[int, int] | None:
        values = self.kinds.values
        return None if values is None else (int(values.min()), int(values.max()))

    @cached_property
    def kinds(self) -> Labels:
        """The distinct classes.

        Raises:
            ValueError: the classes are no whole numbers, some rows have none, or there are too few names.
        """
        import pyarrow.compute

        if self._label_column is None:
            return Labels()
        if not pyarrow.types.is_integer(self._label_column.type):
            raise ValueError(
                f"`{LABEL}` in {self.path} holds {self._label_column.type}; make it whole numbers, for names with "
                f"`class_encode_column({LABEL!r})` of datasets"
            )
        names = getattr(self._features[LABEL], "names", None)
        counted = pyarrow.compute.value_counts(self._label_column).to_pylist()
        missing = sum(each["counts"] for each in counted if each["values"] in (None, -1))
        if 0 < missing < len(self):
            raise ValueError(f"{missing} of {len(self)} rows of {self.path} have no class; give all of them one, or none")
        return labels_of([each["values"] for each in counted], str(self.path), names)

    @cached_property
    def _labels(self) -> _Column:
        return _Column(self._label_column, (), f"{LABEL} in {self.path}")


class _Column:
    """The values of a column in the mapped file, one array (*shape) per row."""

    def __init__(self, column: Any, shape: tuple[int, ...], what: str) -> None:
        import pyarrow

        try:
            chunks = [
                _flat(chunk).to_numpy(zero_copy_only=True).reshape(-1, *shape) for chunk in column.chunks if len(chunk)
            ]
            if [len(chunk) for chunk in chunks] != [len(chunk) for chunk in column.chunks if len(chunk)]:
                raise ValueError("its rows have several shapes")
        except (pyarrow.ArrowException, ValueError) as error:
            raise ValueError(f"{what} cannot be mapped into memory: {error}") from error
        self._chunks: list[NDArray[Any]] = chunks
        self._ends = list(accumulate(map(len, chunks)))
        self.dtype = chunks[0].dtype

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, k: int) -> NDArray[Any]:
        if not 0 <= k < len(self):
            raise IndexError(k)
        number = bisect_right(self._ends, k)
        row: NDArray[Any] = self._chunks[number][k - self._ends[number]]  # counted from the chunk's end
        return row


def write_table(
    folder: Path, features: dict[str, Any], batches: Iterable[Mapping[str, Any]], conditions: Conditions | None = None
) -> None:
    """Writes a table into an empty folder, batch by batch.

    Arrays are nested lists of fixed lengths, so their shape is in the type and the numbers need no offsets. `Array3D` of
    `datasets`, which has lists of any length, can be read as well.

    Args:
        folder: an empty folder; see `atomic_folder`.
        features: the columns as features of `datasets`; see `arrays_of`.
        batches: rows of all columns, as arrays (B, *) or lists of B values.
        conditions: the conditions that are kept outside of the rows.
    """
    write_part(folder, 0, 1, features, batches)
    complete_table(folder, 1, features, conditions)


def write_part(
    folder: Path,
    part: int,
    parts: int,
    features: dict[str, Any],
    batches: Iterable[Mapping[str, Any]],
    notes: Mapping[str, int] | None = None,
) -> None:
    """Writes a part of a table atomically, with `notes`. `complete_table` makes a table of all parts."""
    import datasets
    import pyarrow

    schema = datasets.Features(features).arrow_schema
    schema = schema.with_metadata({**(schema.metadata or {}), NOTES: json.dumps(notes or {}).encode()})
    with atomic_file(part_file(folder, part, parts)) as file, pyarrow.ipc.new_stream(file, schema) as stream:
        for batch in batches:
            columns = [_nested(batch[field.name], field.type) for field in schema]
            stream.write_batch(pyarrow.record_batch(columns, schema=schema))


def part_notes(file: Path) -> tuple[Any, dict[str, int], int]:
    """The schema of a part, its notes and its number of rows."""
    import pyarrow

    with pyarrow.memory_map(str(file)) as content, pyarrow.ipc.open_stream(content) as stream:
        rows = sum(batch.num_rows for batch in stream)
        return stream.schema.remove_metadata(), json.loads(stream.schema.metadata[NOTES]), rows


def part_file(folder: Path, part: int, parts: int) -> Path:
    """The file of part number `part` of `parts`, as `datasets` names it."""
    return folder / f"data-{part:05}-of-{parts:05}.arrow"


def complete_table(
    folder: Path,
    parts: int,
    features: dict[str, Any],
    conditions: Conditions | None = None,
    *,
    fingerprint: str | None = None,
) -> None:
    """Makes a table of the parts in `folder`. The file that marks it as complete is written last.

    Args:
        folder: the folder with all parts.
        parts: number of parts.
        features: the features of the parts.
        conditions: the conditions that are kept outside of the rows.
        fingerprint: fingerprint of the content; by default a random one.
    """
    import datasets

    with disk_errors(folder):
        if conditions is not None:
            conditions.write(folder)
        datasets.DatasetInfo(features=datasets.Features(features)).write_to_directory(str(folder))
    state: dict[str, Any] = {
        "_data_files": [{"filename": part_file(folder, part, parts).name} for part in range(parts)],
        "_fingerprint": fingerprint or secrets.token_hex(8),
        "_format_type": None,
    }
    state |= {"_format_columns": None, "_format_kwargs": {}, "_output_all_columns": False, "_split": "train"}
    with atomic_file(folder / STATE) as file:
        file.write(json.dumps(state, indent=2).encode())


def arrays_of(shape: Sequence[int], dtype: str) -> Any:
    """The feature of arrays of one shape."""
    import datasets

    feature: Any = datasets.Value(dtype)
    for length in reversed(shape):
        feature = datasets.List(feature, length=length)
    return feature


def _nested(values: Any, kind: Any) -> Any:
    """Arrays (B, *) as nested lists of fixed lengths, over the same memory."""
    import pyarrow

    if not isinstance(values, np.ndarray):
        return pyarrow.array(values, kind)
    nested = pyarrow.array(np.ascontiguousarray(values).reshape(-1))
    for length in reversed(values.shape[1:]):
        nested = pyarrow.FixedSizeListArray.from_arrays(nested, length)
    return nested


def _flat(array: Any) -> Any:
    """The numbers of nested lists, without copying."""
    import pyarrow

    if isinstance(array, pyarrow.ExtensionArray):
        array = array.storage
    while pyarrow.types.is_list(array.type) or pyarrow.types.is_fixed_size_list(array.type):
        array = array.flatten()
    return array


def _shape(feature: Any) -> tuple[int, ...] | None:
    """The shape of the arrays in a column; None if it holds anything else, or arrays of several shapes."""
    import datasets

    if isinstance(feature, (datasets.Array2D, datasets.Array3D, datasets.Array4D, datasets.Array5D)):
        return tuple(feature.shape) if all(feature.shape) else None
    shape = []
    while isinstance(feature, datasets.List) and feature.length > 0:
        shape.append(feature.length)
        feature = feature.feature
    return tuple(shape) if shape and isinstance(feature, datasets.Value) else None
