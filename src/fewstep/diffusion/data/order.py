"""The random order in which a training sees its examples, computed without memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from hashlib import blake2b

from ...core.seeds import derive

TURNS = 16  # four are enough for many examples; a handful needs more until all orders are equally likely


@dataclass(frozen=True)
class Order:
    """Which example is in which row of an endless run over `count` examples.

    Each epoch of `count` rows has every example once, in its own random order. The example of a row is computed from the
    seed and the row, so memory does not grow with `count`.

    The order of an epoch is a Feistel network on two digits. A place is low + base·high, and in turns a hash of one digit
    is added to the other. Each turn is invertible, so the whole is a permutation. A result beyond the last example
    is mapped again.

    Reference: Black and Rogaway 2002, Ciphers with Arbitrary Finite Domains, methods 2 and 3.
    """

    count: int
    seed: int

    def __call__(self, row: int) -> int:
        """The example in `row`, both counted from 0."""
        epoch, place = divmod(row, self.count)
        key = b"%d " % derive(self.seed, 0, epoch)
        place = self._mixed(place, key)
        while place >= self.count:
            place = self._mixed(place, key)
        return place

    def _mixed(self, place: int, key: bytes) -> int:
        base = math.isqrt(self.count - 1) + 1  # the least base with base² >= count
        sizes = base, -(-self.count // base)
        digits = [place % base, place // base]
        for turn in range(TURNS):
            which = turn % 2
            drawn = blake2b(key + b"%d %d" % (turn, digits[1 - which]), digest_size=8).digest()
            digits[which] = (digits[which] + int.from_bytes(drawn, "little")) % sizes[which]
        return digits[0] + base * digits[1]
