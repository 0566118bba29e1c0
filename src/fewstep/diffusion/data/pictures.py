"""What encoded pictures are, wherever they are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .labels import Labels


class Pictures(Protocol):
    """Encoded pictures of a folder, a zip or a table.

    Attributes:
        source: where they are, for messages.
        on_disk: the bytes that they take there.
        labels: of all of them; ValueError where that is not clear.
    """

    source: str
    on_disk: int

    def __len__(self) -> int: ...

    def name(self, k: int) -> str:
        """What picture `k` is called, for messages."""

    def read(self, k: int) -> bytes:
        """The content of picture `k`; ValueError where it cannot be had."""

    @property
    def labels(self) -> Labels: ...


def shown(name: object) -> str:
    """A name as it may go to a terminal: what cannot be printed is escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(name))
