"""Pickled networks of EDM, EDM2 and ECT as plain data: a machine of ours that calls nothing which the file names.

Such a file carries the source of its classes, which the code that wrote it runs when it reads the file. Here a name stands
for one of a few functions of this module, or the file is refused; objects become inert nodes.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

LARGEST = 16 << 30  # bytes of a file
STEPS, HIGH, DEEP = 5_000_000, 20_000, 100  # instructions of a file, objects that wait at once, collections within others
LINE = 1 << 16  # bytes of what ends with a line
DTYPES = {
    "torch.DoubleStorage": torch.float64, "torch.FloatStorage": torch.float32, "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16, "torch.LongStorage": torch.int64, "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16, "torch.CharStorage": torch.int8, "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}  # fmt: skip
MAGIC = 0x1950A86A20F9469CFC6C  # of what torch.save wrote before its files were archives
TORCHS_OWN = "torch.nn.modules."
VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8",
}  # fmt: skip  # instructions that say a value
DICTS = ("collections.OrderedDict", "dnnlib.util.EasyDict")
UNRUN = "nothing of it was run"


class RefusedError(ValueError):
    """What is wrong with a file, as the end of a sentence about it."""


@dataclass
class Node:
    """An object of a class that nobody looks for: its name, and what the file says of it."""

    kind: str
    state: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Name:
    """What a file means to call or to make an object of."""

    name: str


def read_pickle(path: Path) -> Any:
    """What a pickle holds, of dicts, lists, tuples, numbers, strings, bytes, tensors and nodes.

    Raises:
        ValueError: it is cut off, larger than any network, or asks for anything that these networks are not made of.
    """
    size = path.stat().st_size
    if size > LARGEST:
        raise ValueError(f"{path} is larger than {LARGEST >> 30} GiB, so it is none of the networks that fewstep reads")
    with path.open("rb") as file:
        try:
            return _Machine(2 * size).run(_Source(file, size))
        except RefusedError as said:
            raise ValueError(f"{path} {said}") from None
        except (ValueError, TypeError, LookupError, OverflowError) as error:
            raise ValueError(f"{path} is cut off or no pickle; fetch it again") from error


def weights_of(module: Node) -> dict[str, Tensor]:
    """The parameters and buffers of a module that was read, by their dotted names.

    Raises:
        RefusedError: modules within modules without end, or what should be a tensor is none.
    """
    found: dict[str, Tensor] = {}
    waiting, seen = [("", module, 0)], 0
    while waiting:
        prefix, node, depth = waiting.pop()
        seen += 1 + len(node.state.get("_modules") or ())  # one that is there twice is two
        if depth > 16 or seen > HIGH or len(found) > HIGH:
            raise RefusedError("holds modules within modules without end, so it is no network")
        for kind in ("_parameters", "_buffers"):
            for name, tensor in _entries(node, kind):
                if tensor is not None and not isinstance(tensor, Tensor):
                    raise RefusedError(f"has no tensor as {prefix}{name}; fetch it again")
                if tensor is not None:
                    found[f"{prefix}{name}"] = tensor
        waiting += [
            (f"{prefix}{name}.", inner, depth + 1) for name, inner in _entries(node, "_modules") if isinstance(inner, Node)
        ]
    return found


def _entries(node: Node, kind: str) -> Iterator[tuple[str, Any]]:
    entries = node.state.get(kind, {})
    if not isinstance(entries, dict):
        raise RefusedError(f"has no names in the {kind[1:]} of one of its modules; fetch it again")
    yield from ((f"{name:.100}", value) for name, value in entries.items() if isinstance(name, str))


class _Source:
    """A file that is not asked for more than it has, whatever a length in it says."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self.size = file, size

    def read(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise ValueError("cut off")
        return self.file.read(count)

    def readline(self) -> bytes:
        return self.file.readline(LINE)

    def tell(self) -> int:
        return self.file.tell()


class _Machine:
    """Follows pickles. It has so many instructions for all of them, and bytes for all tensors, whatever they repeat."""

    def __init__(self, room: int) -> None:
        self.steps, self.room = STEPS, room
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, source: _Source) -> Any:
        """What one pickle holds."""
        self.stack, self.marks, self.memo = [], [], {}
        for opcode, argument, _ in pickletools.genops(source):  # type: ignore[arg-type]  # it asks a file for no more than a source has
            self.steps -= 1
            if self.steps < 0 or len(self.stack) > HIGH or len(self.marks) > DEEP:
                raise RefusedError("is nested deeper or has more parts than any network")
            if opcode.name == "STOP":
                (held,) = self._last(1)
                return held
            if opcode.name in VALUES:
                self.stack.append(argument)
            else:
                self._step(opcode.name, argument)
        raise ValueError("no end")

    def _step(self, code: str, argument: Any) -> None:  # noqa: PLR0912
        stack = self.stack
        match code:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.marks.append(len(stack))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[code])
            case "EMPTY_LIST" | "EMPTY_TUPLE" | "EMPTY_DICT" | "EMPTY_SET":
                stack.append({"EMPTY_TUPLE": tuple, "EMPTY_DICT": dict}.get(code, list)())
            case "PUT" | "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self.memo[len(self.memo) if argument is None else argument] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "TUPLE" | "LIST":
                stack.append({"TUPLE": tuple, "LIST": list}[code](self._marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._last(int(code[-1]))))
            case "DICT":
                stack.append(_filled({}, self._marked()))
            case "SETITEM" | "SETITEMS":
                items = self._last(2) if code == "SETITEM" else self._marked()
                _filled(stack[-1], items)
            case "APPEND" | "APPENDS" | "ADDITEMS":
                items = self._last(1) if code == "APPEND" else self._marked()
                if not isinstance(stack[-1], list):
                    raise ValueError("no list")
                stack[-1].extend(items)
            case "GLOBAL" | "STACK_GLOBAL":
                stack.append(_name(*(argument.split(" ", 1) if argument else self._last(2))))
            case "REDUCE" | "NEWOBJ":
                stack.append(self._made(*self._last(2), new=code == "NEWOBJ"))
            case "BUILD":
                (state,) = self._last(1)
                _told(stack[-1], state)
            case "BINPERSID":
                stack.append(_promised(*self._last(1)))
            case _:
                raise RefusedError(f"asks for {code} of Python's pickle machine, which no network needs; {UNRUN}")

    def _last(self, count: int) -> list[Any]:
        """The last objects that wait, taken away; none from before a mark."""
        first = len(self.stack) - count
        if first < (self.marks[-1] if self.marks else 0):
            raise ValueError("nothing there")
        items = self.stack[first:]
        del self.stack[first:]
        return items

    def _marked(self) -> list[Any]:
        """All since the last mark."""
        at = self.marks.pop()
        return self._last(len(self.stack) - at)

    def _made(self, called: Any, given: Any, *, new: bool) -> Any:  # noqa: PLR0911
        """What a name makes of its arguments: data, whatever the name means elsewhere."""
        if not isinstance(called, Name) or not isinstance(given, tuple):
            raise RefusedError(f"calls what is no name; {UNRUN}")
        match called.name, given:
            case name, () if name in DICTS:
                return {}
            case "_codecs.encode", (str(text), "latin1"):  # how bytes were pickled for Python 2
                self._take(len(text))
                return text.encode("latin1")
            case "builtins.set" | "__builtin__.set", ([],):
                return []
            case name, _ if new and name.startswith(TORCHS_OWN):
                return Node(name)
            case "torch_utils.persistence._reconstruct_persistent_obj", ({"class_name": str(kind), "state": dict(state)},):
                return Node(kind, state)
            case "torch._utils._rebuild_parameter", (Tensor() as data, *_):
                return data
            case "torch._utils._rebuild_tensor_v2", (Tensor() as held, int(start), tuple(size), tuple(stride), *_):
                return _view(held, start, size, stride)
            case "torch.storage._load_from_bytes", (bytes(data),):
                return self._stored(data)
            case "numpy.dtype", (str(code), *_) if code in NUMBERS:
                return np.dtype(code)
            case (("numpy.core.multiarray.scalar" | "numpy._core.multiarray.scalar"), (np.dtype() as kind, bytes(data))):
                if len(data) != kind.itemsize:
                    raise ValueError("no number")
                return np.frombuffer(data, kind)[0].item()
        raise RefusedError(f"calls {called.name:.200} in a way that no network does; {UNRUN}")

    def _take(self, count: int) -> None:
        """Uses so many bytes of memory; a file that repeats its own parts has none left."""
        self.room -= count
        if self.room < 0:
            raise RefusedError("has tensors that are larger together than the file, so it is broken")

    def _stored(self, data: bytes) -> Tensor:
        """The numbers of a tensor, from the pickles in a pickle that torch.save once wrote, and the bytes behind them.

        torch.load would read them too, but it also reads what nobody writes here: archives, and files of tar.
        """
        self._take(len(data))
        outer = self.stack, self.marks, self.memo
        file = BytesIO(data)
        source = _Source(file, len(data))
        magic, _, _, promised, keys = (self.run(source) for _ in range(5))
        self.stack, self.marks, self.memo = outer
        if magic != MAGIC or not isinstance(promised, _Promised) or keys != [promised.key]:
            raise ValueError("no tensor")
        count = int.from_bytes(file.read(8), "little")
        rest = bytearray(file.read())
        if count != promised.count or len(rest) != count * promised.dtype.itemsize:
            raise ValueError("cut off")
        return torch.frombuffer(rest, dtype=promised.dtype) if count else torch.empty(0, dtype=promised.dtype)


@dataclass(frozen=True)
class _Promised:
    """Numbers of a tensor that stand behind the pickle."""

    dtype: torch.dtype
    key: str
    count: int


def _promised(said: Any) -> _Promised:
    match said:
        case ("storage", Name(kind), str(key), str(), int(count), *_) if kind in DTYPES:
            return _Promised(DTYPES[kind], key, count)
    raise RefusedError(f"refers to something outside of it; {UNRUN}")


def _name(module: Any, name: Any) -> Name:
    """A name of the few that stand for something here."""
    if not (isinstance(module, str) and isinstance(name, str)):  # a tuple of tuples of … would take for ever to write
        raise ValueError("no name")
    full = f"{module}.{name}"
    if full not in KNOWN and not full.startswith(TORCHS_OWN):
        raise RefusedError(
            f"asks for {full:.100}, which none of the networks needs that fewstep reads; {UNRUN}. Save the weights alone, "
            "as torch.save(network.state_dict(), FILE), with the code that made it"
        )
    return Name(full)


def _told(target: Any, state: Any) -> None:
    """Gives a state to a node; that of a numpy type says the order of its bytes."""
    match target, state:
        case Node(), dict():
            target.state = state
        case np.dtype(), (int(), "<" | "|" | "=", *_):
            pass
        case _:
            raise RefusedError(f"gives a state to what has none; {UNRUN}")


def _filled(target: Any, items: list[Any]) -> dict[Any, Any]:
    """The dict with what stands in `items`: a key, its value, a key, …"""
    if not isinstance(target, dict) or len(items) % 2:
        raise ValueError("no dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | int | float | None):  # a tuple of tuples of … would take for ever to hash
            raise RefusedError("has keys that are neither words nor numbers, so it holds no network")
        target[key] = value
    return target


def _view(held: Tensor, start: int, size: tuple[Any, ...], stride: tuple[Any, ...]) -> Tensor:
    """The tensor of that shape within its numbers; none that would count a number twice."""
    if len(size) != len(stride) or len(size) > 8 or any(type(n) is not int or n < 0 for n in (start, *size, *stride)):
        raise ValueError("no shape")
    if math.prod(size) == 0:
        return held.new_empty([min(side, 1) for side in size])
    end = start + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    if end >= len(held) or math.prod(size) > len(held):
        raise RefusedError("has a tensor that is larger than its numbers; fetch it again")
    return held.as_strided(size, stride, start)


NUMBERS = {f"{kind}{size}" for kind in "fiu" for size in (1, 2, 4, 8)} - {"f1"} | {"b1"}
KNOWN = {
    "torch_utils.persistence._reconstruct_persistent_obj", "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor_v2", "torch.storage._load_from_bytes", "numpy.dtype", "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar", "builtins.set", "__builtin__.set", "_codecs.encode", *DICTS, *DTYPES,
}  # fmt: skip
