"""Pure: words that several messages share."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """`1 record`, `1,204 records`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
