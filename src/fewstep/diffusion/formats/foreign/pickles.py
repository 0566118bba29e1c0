"""Reads pickled networks of EDM, EDM2 and ECT as plain data, by an interpreter that calls nothing the file names.

Such a file holds the source of its classes, which its own code base would run. Here a name stands for one of a few
functions of this module, or the file is refused. Objects become nodes without behaviour.
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
STEPS, HIGH, DEEP = 5_000_000, 20_000, 100  # instructions in a file, objects on the stack, nested collections
LINE = 1 << 16  # bytes of a line
DTYPES = {
    "torch.DoubleStorage": torch.float64, "torch.FloatStorage": torch.float32, "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16, "torch.LongStorage": torch.int64, "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16, "torch.CharStorage": torch.int8, "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}  # fmt: skip
MAGIC = 0x1950A86A20F9469CFC6C  # of torch.save's format before archives
TORCHS_OWN = "torch.nn.modules."
VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8",
}  # fmt: skip  # instructions that push a value
DICTS = ("collections.OrderedDict", "dnnlib.util.EasyDict")
UNRUN = "nothing of it was run"


class RefusedError(ValueError):
    """A file is refused. The message continues a sentence that begins with the file's name."""


@dataclass
class Node:
    """An object of any class: the name of the class and the object's state."""

    kind: str
    state: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Name:
    """The name of a function or class in a file."""

    name: str


def read_pickle(path: Path) -> Any:
    """Reads a pickle of dictionaries, lists, tuples, numbers, strings, bytes, tensors and nodes.

    Raises:
        ValueError: the file is incomplete, larger than any network, or contains anything that these networks do not need.
    """
    size = path.stat().st_size
    if size > LARGEST:
        raise ValueError(f"{path} is larger than {LARGEST >> 30} GiB, so it is no network that fewstep reads")
    with path.open("rb") as file:
        try:
            return _Machine(2 * size).run(_Source(file, size))
        except RefusedError as said:
            raise ValueError(f"{path} {said}") from None
        except (ValueError, TypeError, LookupError, OverflowError) as error:
            raise ValueError(f"{path} is cut off or no pickle; download it again") from error


def weights_of(module: Node) -> dict[str, Tensor]:
    """The parameters and buffers of a module, by dotted names.

    Raises:
        RefusedError: modules are nested too deeply, or a parameter is no tensor.
    """
    found: dict[str, Tensor] = {}
    waiting, seen = [("", module, 0)], 0
    while waiting:
        prefix, node, depth = waiting.pop()
        seen += 1 + len(node.state.get("_modules") or ())  # a module that is used twice counts twice
        if depth > 16 or seen > HIGH or len(found) > HIGH:
            raise RefusedError("has modules that are nested too deeply, so it is no network")
        for kind in ("_parameters", "_buffers"):
            for name, tensor in _entries(node, kind):
                if tensor is not None and not isinstance(tensor, Tensor):
                    raise RefusedError(f"has no tensor as {prefix}{name}; download it again")
                if tensor is not None:
                    found[f"{prefix}{name}"] = tensor
        waiting += [
            (f"{prefix}{name}.", inner, depth + 1) for name, inner in _entries(node, "_modules") if isinstance(inner, Node)
        ]
    return found


def _entries(node: Node, kind: str) -> Iterator[tuple[str, Any]]:
    entries = node.state.get(kind, {})
    if not isinstance(entries, dict):
        raise RefusedError(f"has no names in the {kind[1:]} of one of its modules; download it again")
    yield from ((f"{name:.100}", value) for name, value in entries.items() if isinstance(name, str))


class _Source:
    """A file whose reads are bounded by its size, whatever a length in it claims."""

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
    """An interpreter of pickles with a limit on instructions and on bytes of tensors over all of them."""

    def __init__(self, room: int) -> None:
        self.steps, self.room = STEPS, room
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, source: _Source) -> Any:
        """Reads one pickle."""
        self.stack, self.marks, self.memo = [], [], {}
        for opcode, argument, _ in pickletools.genops(source):  # type: ignore[arg-type]  # a source has the methods that are used
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
                raise RefusedError(f"asks for {code} of a pickle interpreter, which no network needs; {UNRUN}")

    def _last(self, count: int) -> list[Any]:
        """Pops the last `count` objects; ValueError if they are not after the last mark."""
        first = len(self.stack) - count
        if first < (self.marks[-1] if self.marks else 0):
            raise ValueError("nothing there")
        items = self.stack[first:]
        del self.stack[first:]
        return items

    def _marked(self) -> list[Any]:
        """Pops all objects after the last mark."""
        at = self.marks.pop()
        return self._last(len(self.stack) - at)

    def _made(self, called: Any, given: Any, *, new: bool) -> Any:  # noqa: PLR0911
        """The data that a known name stands for with its arguments."""
        if not isinstance(called, Name) or not isinstance(given, tuple):
            raise RefusedError(f"calls something other than a name; {UNRUN}")
        match called.name, given:
            case name, () if name in DICTS:
                return {}
            case "_codecs.encode", (str(text), "latin1"):  # bytes as pickled for Python 2
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
        """Counts bytes of memory; a file that repeats its own parts exceeds the limit."""
        self.room -= count
        if self.room < 0:
            raise RefusedError("has tensors that are larger in total than the file, so it is broken")

    def _stored(self, data: bytes) -> Tensor:
        """The values of a tensor in an old format of torch.save: several pickles, followed by bytes.

        torch.load is not used, because it also reads archives and .tar files.
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
    """Values of a tensor that follow the pickle."""

    dtype: torch.dtype
    key: str
    count: int


def _promised(said: Any) -> _Promised:
    match said:
        case ("storage", Name(kind), str(key), str(), int(count), *_) if kind in DTYPES:
            return _Promised(DTYPES[kind], key, count)
    raise RefusedError(f"refers to something outside of it; {UNRUN}")


def _name(module: Any, name: Any) -> Name:
    """A known name; RefusedError for any other."""
    if not (isinstance(module, str) and isinstance(name, str)):  # nested tuples could take forever to print
        raise ValueError("no name")
    full = f"{module}.{name}"
    if full not in KNOWN and not full.startswith(TORCHS_OWN):
        raise RefusedError(
            f"asks for {full:.100}, which no network that fewstep reads needs; {UNRUN}. Save only the weights with its own "
            "code: torch.save(network.state_dict(), FILE)"
        )
    return Name(full)


def _told(target: Any, state: Any) -> None:
    """Sets the state of a node; a numpy dtype has its byte order as state."""
    match target, state:
        case Node(), dict():
            target.state = state
        case np.dtype(), (int(), "<" | "|" | "=", *_):
            pass
        case _:
            raise RefusedError(f"sets a state of something that has none; {UNRUN}")


def _filled(target: Any, items: list[Any]) -> dict[Any, Any]:
    """Adds `items` (key, value, key, …) to the dictionary."""
    if not isinstance(target, dict) or len(items) % 2:
        raise ValueError("no dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | int | float | None):  # nested tuples could take forever to hash
            raise RefusedError("has keys that are neither texts nor numbers, so it holds no network")
        target[key] = value
    return target


def _view(held: Tensor, start: int, size: tuple[Any, ...], stride: tuple[Any, ...]) -> Tensor:
    """The tensor of that shape within its values; RefusedError if it is larger than them."""
    if len(size) != len(stride) or len(size) > 8 or any(type(n) is not int or n < 0 for n in (start, *size, *stride)):
        raise ValueError("no shape")
    if math.prod(size) == 0:
        return held.new_empty([min(side, 1) for side in size])
    end = start + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    if end >= len(held) or math.prod(size) > len(held):
        raise RefusedError("has a tensor that is larger than its values; download it again")
    return held.as_strided(size, stride, start)


NUMBERS = {f"{kind}{size}" for kind in "fiu" for size in (1, 2, 4, 8)} - {"f1"} | {"b1"}
KNOWN = {
    "torch_utils.persistence._reconstruct_persistent_obj", "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor_v2", "torch.storage._load_from_bytes", "numpy.dtype", "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar", "builtins.set", "__builtin__.set", "_codecs.encode", *DICTS, *DTYPES,
}  # fmt: skip
