"""Check a status against the limits that a monitor sets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from pepper_runtime.wording import counted, duration
from target_crm.records.coverage import STREAM
from target_crm.records.values import Invalid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from target_crm.balances_cli.status import Status

_DURATION = re.compile(r"(\d{1,6})\s*([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@dataclass(frozen=True)
class Limits:
    """The limits that a monitor sets. None means no limit.

    Attributes:
        age: The longest time that may have passed since the end of the coverage.
        rejected: The maximum number of records in quarantine.
        holes: The maximum number of holes in the coverage.
    """

    age: timedelta | None = None
    rejected: int | None = None
    holes: int | None = None


def parse_duration(text: str) -> timedelta:
    """Parse a duration such as `90s`, `15m`, `2h` or `1d`.

    Raises:
        Invalid: The text is not a duration.
    """
    found = _DURATION.fullmatch(text.strip())
    if not found:
        raise Invalid("is not a duration, expected a whole number with s, m, h or d, e.g. 15m")
    number, unit = found.groups()
    return timedelta(**{_UNITS[unit]: int(number)})


def broken(status: Status, limits: Limits) -> list[str]:
    """Return a line for each limit that a status breaks."""
    lines = list(_too_old(status, limits.age)) if limits.age is not None else []
    if limits.rejected is not None and status.rejected > limits.rejected:
        lines.append(f"{counted(status.rejected, 'record')} in quarantine, limit {limits.rejected:,}")
    holes = len(status.coverage.holes)
    if limits.holes is not None and holes > limits.holes:
        lines.append(f"{counted(holes, 'hole')} in the coverage, limit {limits.holes:,}")
    return lines


def _too_old(status: Status, limit: timedelta) -> Iterator[str]:
    for what, until in _read_until(status).items():
        if until is None:
            yield f"{what} were never read by a finished run, limit {duration(limit)}"
        elif status.now - until > limit:
            yield f"{what} were read until {duration(status.now - until)} ago, limit {duration(limit)}"


def _read_until(status: Status) -> dict[str, datetime | None]:
    """Return the time up to which each merchant's actions were read.

    If no coverage is recorded, return the time when each stream was last read.
    """
    if merchants := status.coverage.complete_until:
        read_at = next((each.read_at for each in status.streams if each.stream == STREAM), None)
        return {
            # If a clock is ahead, coverage may end in the future, and would look fresh long after the last run. In that
            # case, use the time of the last run.
            f"actions of merchant {name}" if name else "actions": read_at if until and until > status.now else until
            for name, until in merchants.items()
        }
    # Skip streams that are not loaded: the tables of actions and awards exist even if only one stream is loaded.
    read = {f"records of {each.stream}": each.read_at for each in status.streams if each.rows or each.read_at}
    return read or {"records": None}
