"""The conditions of a table outside of its rows: their dtypes, what all rows share, and the null condition.

Tensors are in a safetensors file and the rest in a JSON, so reading them runs no code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...core.source import inside, read_json
from ...core.weights import check_finite, read_safetensors
from ..cond import Cond

COLUMN = "cond."  # prefix of the names of columns with conditions
SAID, TENSORS = "conditions.json", "conditions.safetensors"
KEPT_AS = {torch.bfloat16: torch.uint16, torch.bool: torch.uint8}  # dtypes that columns cannot have, or cannot map
WHY = "it describes the conditions of a table"


@dataclass(frozen=True)
class Conditions:
    """The conditions of a table except its rows.

    Attributes:
        dtypes: dtypes of the conditions by name.
        shared: the conditions that all rows share; see `Cond`.
        null: the null condition, one row, or None.
        maker: the pipeline that made the rows, as `identity_of` names it; None without a pipeline.
    """

    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    shared: Mapping[str, object] = field(default_factory=dict)
    null: Cond | None = None
    maker: str | None = None

    @classmethod
    def of(cls, cond: Cond, null: Cond | None, maker: str | None = None) -> Conditions:
        """The description of rows like those of `cond`."""
        return cls({name: value.dtype for name, value in cond.rows.items()}, cond.shared, null, maker)

    def write(self, folder: Path) -> None:
        """Writes them into `folder`; ValueError if a shared value is no number, text, list, tuple or tensor."""
        from safetensors.torch import save_file

        tensors = {
            f"null.{name}": value.contiguous().clone() for name, value in (self.null.rows if self.null else {}).items()
        }
        shared = {name: _said(value, f"shared.{name}", tensors) for name, value in self.shared.items()}
        said = {
            "dtypes": {name: str(dtype).removeprefix("torch.") for name, dtype in self.dtypes.items()},
            "shared": shared,
            "null": self.null is not None,
            "maker": self.maker,
        }
        save_file(tensors, folder / TENSORS)
        (folder / SAID).write_text(json.dumps(said, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Conditions:
        """Reads them from `folder`; they are empty if there are no such files.

        Raises:
            ValueError: the files are damaged or hold something else.
        """
        if not (folder / SAID).exists():
            return cls()
        said = read_json(inside(folder, SAID), WHY)
        if not inside(folder, TENSORS).is_file():  # nor a pipe, which might never end
            raise ValueError(f"there is no {TENSORS} in {folder}, which holds shared conditions; encode the data again")
        tensors = read_safetensors(folder / TENSORS)
        check_finite(tensors.items(), folder)
        try:
            dtypes = {name: _dtype(kind) for name, kind in said["dtypes"].items()}
            shared = {name: _meant(value, tensors) for name, value in said["shared"].items()}
            rows = {name.removeprefix("null."): value for name, value in tensors.items() if name.startswith("null.")}
            return cls(dtypes, shared, Cond(rows, shared) if said["null"] else None, said["maker"])
        except (KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{folder / SAID} does not describe conditions: {error!r}; encode the data again") from error


def kept(value: Tensor) -> NDArray[Any]:
    """Rows of conditions (B, *) as stored in a column; dtypes that numpy lacks become integers of the same width."""
    array: NDArray[Any] = value.contiguous().view(KEPT_AS.get(value.dtype, value.dtype)).numpy()
    return array


def meant(value: NDArray[Any], dtype: torch.dtype | None) -> Tensor:
    """A condition in its own dtype, from its row in a column."""
    tensor = torch.from_numpy(np.array(value))
    return tensor if dtype is None else tensor.view(dtype)


def kept_as(dtype: torch.dtype) -> str:
    """The dtype of a column that stores conditions of `dtype`."""
    return str(KEPT_AS.get(dtype, dtype)).removeprefix("torch.")


def _dtype(name: object) -> torch.dtype:
    dtype = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"there is no dtype {name!r}")
    return dtype


def _said(value: object, place: str, tensors: dict[str, Tensor]) -> object:
    """A shared value for JSON. Tensors go to `tensors`, and tuples are marked as such."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        tensors[place] = value.contiguous().clone()  # safetensors refuses tensors that share memory
        return {"tensor": place}
    if isinstance(value, list | tuple):
        items = [_said(item, f"{place}.{k}", tensors) for k, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    raise ValueError(f"a table cannot keep the condition {place}, which is a {type(value).__name__}")


def _meant(value: object, tensors: Mapping[str, Tensor]) -> object:
    if isinstance(value, list):
        return [_meant(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    return tensors[value["tensor"]] if "tensor" in value else tuple(_meant(item, tensors) for item in value["tuple"])
