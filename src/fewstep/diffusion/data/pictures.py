"""Encoded pictures, from any kind of source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .labels import Labels


class Pictures(Protocol):
    """Encoded pictures of a folder, a zip or a table.

    Attributes:
        source: their source, for messages.
        on_disk: bytes that they take on the disk.
        labels: their classes; ValueError if these are ambiguous.
        captions: their captions; ValueError if one is missing.
    """

    source: str
    on_disk: int

    def __len__(self) -> int: ...

    def name(self, k: int) -> str:
        """The name of picture `k`, for messages."""

    def read(self, k: int) -> bytes:
        """The content of picture `k`; ValueError if it cannot be read."""

    @property
    def labels(self) -> Labels: ...
    @property
    def captions(self) -> Sequence[str]: ...


def captions_of(said: Sequence[object], names: Callable[[int], str], source: str) -> list[str]:
    """Checks the captions of all pictures; picture k has the name `names(k)`.

    Raises:
        ValueError: a picture has no caption, or one that is no text.
    """
    without = [k for k, caption in enumerate(said) if not (isinstance(caption, str) and caption.strip())]
    if without:
        raise ValueError(
            f"{len(without)} of {len(said)} pictures in {source} have no caption, the first is {names(without[0])}; add "
            "them: `file_name` and `text` in a metadata.jsonl, a .txt beside the picture, or a column `text`"
        )
    return [str(caption) for caption in said]


def shown(name: object) -> str:
    """A name for a terminal, with characters escaped that cannot be printed."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(name))
