"""What encoded pictures are, wherever they are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .labels import Labels


class Pictures(Protocol):
    """Encoded pictures of a folder, a zip or a table.

    Attributes:
        source: where they are, for messages.
        on_disk: the bytes that they take there.
        labels: of all of them; ValueError where that is not clear.
        captions: of all of them; ValueError where one has none.
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
    @property
    def captions(self) -> Sequence[str]: ...


def captions_of(said: Sequence[object], names: Callable[[int], str], source: str) -> list[str]:
    """What was said of each picture, as captions; the picture of each is called `names(k)`.

    Raises:
        ValueError: one of them is no text.
    """
    without = [k for k, caption in enumerate(said) if not (isinstance(caption, str) and caption.strip())]
    if without:
        raise ValueError(
            f"{len(without)} of {len(said)} pictures in {source} have no caption, the first is {names(without[0])}; give "
            "each one: `file_name` and `text` in a metadata.jsonl, a .txt beside the picture, or a column `text`"
        )
    return [str(caption) for caption in said]


def shown(name: object) -> str:
    """A name as it may go to a terminal: what cannot be printed is escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(name))
