"""Pure: words that several messages share."""

from __future__ import annotations

_UNITS = (("day", 86_400), ("hour", 3600), ("minute", 60))


def counted(number: int, noun: str) -> str:
    """`1 record`, `1,204 records`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Format a duration in the largest unit that it has at least two of: `12 seconds`, `66 hours`, `5 days`."""
    for unit, size in _UNITS:
        if seconds >= 2 * size - 0.5:
            return counted(round(seconds / size), unit)
    return counted(round(seconds), "second")
