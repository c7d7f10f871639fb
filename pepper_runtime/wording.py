"""Format numbers, times and durations for messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime, timedelta


def counted(number: float, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: `1 record`, `1,204 records`. Pass `plural` for nouns with an irregular plural."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def utc(moment: datetime) -> str:
    """Format a time in UTC. Leave out the seconds if they are zero."""
    return f"{moment:%Y-%m-%d %H:%M:%S}".removesuffix(":00")


def duration(length: timedelta) -> str:
    """Format a length of time, such as `12 min`."""
    seconds = length.total_seconds()
    for unit, unit_seconds in (("days", 86_400), ("h", 3600), ("min", 60)):
        if round(abs(seconds)) >= 2 * unit_seconds:
            return f"{seconds / unit_seconds:,.0f} {unit}"
    return f"{seconds:,.0f} s"
