"""What lies beside a table's rows: the dtypes of its conditions, what all rows share, and the row that means no
condition.

Numbers lie in a safetensors file and the rest in a JSON, so no code is ever read.
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

COLUMN = "cond."  # how the name of a column of conditions begins
SAID, TENSORS = "conditions.json", "conditions.safetensors"
KEPT_AS = {torch.bfloat16: torch.uint16, torch.bool: torch.uint8}  # dtypes that a column cannot have, or not mapped
WHY = "it says what the conditions of a table are"


@dataclass(frozen=True)
class Conditions:
    """All but the rows.

    Attributes:
        dtypes: of the conditions, by their names.
        shared: what all rows have in common; see `Cond`.
        null: one row that stands for none, or None where there is no such row.
        maker: the pipeline that made the rows, as `identity_of` names it; None where they are of no pipeline.
    """

    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    shared: Mapping[str, object] = field(default_factory=dict)
    null: Cond | None = None
    maker: str | None = None

    @classmethod
    def of(cls, cond: Cond, null: Cond | None, maker: str | None = None) -> Conditions:
        """Those of rows like these."""
        return cls({name: value.dtype for name, value in cond.rows.items()}, cond.shared, null, maker)

    def write(self, folder: Path) -> None:
        """Writes them beside the rows in `folder`; ValueError where something shared is no number, text, list or tensor."""
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
        """What lies in `folder`; nothing where there are no such files.

        Raises:
            ValueError: they are damaged, or hold something else.
        """
        if not (folder / SAID).exists():
            return cls()
        said = read_json(inside(folder, SAID), WHY)
        if not inside(folder, TENSORS).is_file():  # nor a pipe that would never end
            raise ValueError(f"there is no {TENSORS} in {folder}: it holds what the conditions of a table share")
        tensors = read_safetensors(folder / TENSORS)
        check_finite(tensors.items(), folder)
        try:
            dtypes = {name: _dtype(kind) for name, kind in said["dtypes"].items()}
            shared = {name: _meant(value, tensors) for name, value in said["shared"].items()}
            rows = {name.removeprefix("null."): value for name, value in tensors.items() if name.startswith("null.")}
            return cls(dtypes, shared, Cond(rows, shared) if said["null"] else None, said["maker"])
        except (KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{folder / SAID} does not say what conditions are: {error!r}; write them again") from error


def kept(value: Tensor) -> NDArray[Any]:
    """Rows of conditions (B, *) as a column has them: what numpy has no name for lies there as whole numbers as wide."""
    array: NDArray[Any] = value.contiguous().view(KEPT_AS.get(value.dtype, value.dtype)).numpy()
    return array


def meant(value: NDArray[Any], dtype: torch.dtype | None) -> Tensor:
    """A condition as it was, from its row in a column."""
    tensor = torch.from_numpy(np.array(value))
    return tensor if dtype is None else tensor.view(dtype)


def kept_as(dtype: torch.dtype) -> str:
    """What a column of conditions of this dtype holds."""
    return str(KEPT_AS.get(dtype, dtype)).removeprefix("torch.")


def _dtype(name: object) -> torch.dtype:
    dtype = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"there is no dtype {name!r}")
    return dtype


def _said(value: object, place: str, tensors: dict[str, Tensor]) -> object:
    """A shared value as JSON has it; tensors go to `tensors`, and a tuple stays one."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        tensors[place] = value.contiguous().clone()  # one memory of two tensors is refused
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
