"""Encoded pictures in the rows of a .parquet file, of a folder of `datasets`, or of a data set on the hub."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ...core.extras import needs
from .labels import Labels, labels_of
from .limits import check_file
from .metadata import CAPTIONS
from .pictures import captions_of, shown

LABEL = "label"


class EncodedPictures:
    """The pictures of a `datasets.Dataset`; see `Pictures`."""

    def __init__(self, table: Any, source: str, on_disk: int) -> None:
        from datasets import Image

        self.source = source
        self.on_disk = on_disk
        self._features = table.features
        self._column = _image_column(table.features, source)
        self._pictures = table.select_columns([self._column]).cast_column(self._column, Image(decode=False))
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def name(self, k: int) -> str:
        return f"row {k}"

    def read(self, k: int) -> bytes:
        """The content of the picture in row `k`, or of the file that the row names; ValueError if there is none."""
        image = self._pictures[k][self._column] or {"bytes": None, "path": None}
        content: bytes | None = image["bytes"]
        path = Path(image["path"] or "")
        size = len(content) if content is not None else path.stat().st_size if path.is_file() else None
        if size is None:
            raise ValueError(f"{shown(path)} is not there" if image["path"] else "the row holds no picture")
        check_file(size)
        return path.read_bytes() if content is None else content

    @cached_property
    def labels(self) -> Labels:
        """The classes in the column `label`, or else in the only column of classes.

        Raises:
            ValueError: see `labels_of`; or there are several columns of classes.
        """
        from datasets import ClassLabel

        named = [name for name, feature in self._features.items() if isinstance(feature, ClassLabel)]
        if LABEL not in self._features and len(named) > 1:
            raise ValueError(
                f"{self.source} has {len(named)} columns of classes, {' and '.join(named[:2])}; rename one to `{LABEL}`"
            )
        column = LABEL if LABEL in self._features else named[0] if named else None
        if column is None:
            return Labels()
        labels = self._table.select_columns([column])[:][column]
        return labels_of(labels, self.source, getattr(self._features[column], "names", None))

    @cached_property
    def captions(self) -> Sequence[str]:
        """The captions in the column `text` or `caption`; ValueError if one is missing."""
        column = next((name for name in CAPTIONS if name in self._features), None)
        said = [None] * len(self) if column is None else self._table.select_columns([column])[:][column]
        return captions_of(said, self.name, self.source)


def _image_column(features: Any, source: str) -> str:
    """The column of pictures: a column of images, or else of bytes."""
    from datasets import Image

    images = [name for name, feature in features.items() if isinstance(feature, Image)] or [
        name
        for name, feature in features.items()
        if getattr(feature, "dtype", None) in ("binary", "large_binary")
        or (isinstance(feature, dict) and "bytes" in feature)
    ]
    if not images:
        raise ValueError(f"{source} has no column of images, only {sorted(features)}")
    if len(images) > 1 and "image" not in images:
        raise ValueError(f"{source} has {len(images)} columns of images, {' and '.join(images[:2])}; name one `image`")
    return "image" if "image" in images else images[0]


def parquet_pictures(path: Path) -> EncodedPictures:
    """The pictures of a .parquet file.

    Raises:
        ValueError: the file is broken or has no pictures.
    """
    needs("data")
    import datasets  # seconds to import

    try:
        table = datasets.load_dataset("parquet", data_files=glob.escape(str(path)), split="train")
    except Exception as error:  # the errors of datasets and of pyarrow have no common base
        raise ValueError(f"{path} is not a readable .parquet: {_reason(error)}") from error
    return EncodedPictures(table, str(path), path.stat().st_size)


def hub_pictures(name: str) -> EncodedPictures:
    """The pictures of the training split of a hub data set; a local copy if the hub does not answer.

    Raises:
        ValueError: the data set does not exist or has no pictures.
    """
    needs("data")
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    try:
        datasets.config.HF_HUB_OFFLINE = before or not _hub_answers(name)  # avoids half a minute of retries
        table = datasets.load_dataset(name, split="train")
    except Exception as error:  # the errors of datasets and of the hub have no common base
        raise ValueError(f"{name} is neither a path nor a data set that can be loaded: {_reason(error)}") from error
    finally:
        datasets.config.HF_HUB_OFFLINE = before
    return EncodedPictures(table, name, max(table.download_size or 0, table.data.nbytes))


def _hub_answers(name: str) -> bool:
    """Whether the hub answers. If it answers that there is no such data set, its error is raised."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        HfApi().dataset_info(name, timeout=10)
    except (HfHubHTTPError, HFValidationError):
        raise
    except Exception:  # connections raise errors of many libraries
        return False
    return True


def _reason(error: Exception) -> str:
    return (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
