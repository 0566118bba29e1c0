"""Counts with their nouns."""

from __future__ import annotations


def whole(count: float) -> str:
    """A count: 12, 12,000 or 12.5."""
    return f"{count:,.0f}" if abs(count - round(count)) < 0.05 else f"{count:,.1f}"


def counted(count: float, one: str, more: str = "") -> str:
    """A count with its noun: 1 network call, 4 network calls."""
    return f"{whole(count)} {one if whole(count) == '1' else more or one + 's'}"
