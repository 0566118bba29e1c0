"""Counts agree with their nouns."""

from __future__ import annotations

import pytest

from fewstep.core.words import counted


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 calls"), (1, "1 call"), (1.04, "1 call"), (1.5, "1.5 calls"), (2, "2 calls"), (12000, "12,000 calls")],
)
def test_a_noun_agrees_with_its_count(count: float, said: str) -> None:
    assert counted(count, "call") == said
