"""Time as the tap counts it: instants, windows between them, and bookmarks that never go back.

An *instant* here is text: UTC, `2026-10-01T08:30:00.250Z`, three digits after the point, more only where the source
has more. Two instants without their `Z` compare as text exactly as they do in time. Every bound (a bookmark, a window's
edge, a run's upper bound) has three digits. Nothing here reads a clock or a socket.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UTC = timezone.utc

EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
"""No window starts before this."""
HOUR = timedelta(hours=1)
HOUR_CHARS = len("2026-10-01T08")
MILLISECOND = timedelta(milliseconds=1)

WINDOW_SECONDS_MIN = 60.0
WINDOW_SECONDS_FIRST = 6 * 3600.0
"""The first window of a run is no longer than this: how much happens in it is not known yet."""
PAGES_WANTED = 8
"""Pages in a window: enough that a STATE costs little beside them, few enough that a killed run repeats little."""
GROWTH_MAX = 4.0
SHRINK_MAX = 8.0

_SECONDS_CHARS = len("2026-10-01T08:30:00")
_MILLIS_CHARS = len("2026-10-01T08:30:00.250")

_CANONICAL = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")
_ISO_8601 = re.compile(
    r"""(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2})
        [Tt ](?P<time>[0-9]{2}:[0-9]{2})(?: :(?P<second>[0-9]{2}) (?: [.,](?P<fraction>[0-9]+) )? )?
        (?: [Zz] | (?P<sign>[+-])(?P<hours>[0-9]{2}):?(?P<minutes>[0-9]{2})? )?""",
    re.VERBOSE,
)


def instant_of(value: object) -> str | None:
    """Bring a timestamp into the one form that this module compares.

    Args:
        value: ISO 8601 text with any offset (none means UTC) and any number of digits after the second; anything else
            is no timestamp.

    Returns:
        The instant, every digit of the source kept; None where `value` is no time that a calendar knows.
    """
    if not isinstance(value, str):
        return None
    try:
        if _CANONICAL.fullmatch(value):
            datetime.fromisoformat(value[:_SECONDS_CHARS])
            return value
        parts = _ISO_8601.fullmatch(value.strip())
        if parts is None:
            return None
        moment = datetime.fromisoformat(f"{parts['date']}T{parts['time']}:{parts['second'] or '00'}")
        if parts["sign"]:
            offset = timedelta(hours=int(parts["hours"]), minutes=int(parts["minutes"] or 0))
            moment = moment - offset if parts["sign"] == "+" else moment + offset
    except (ValueError, OverflowError):
        return None
    digits = (parts["fraction"] or "").rstrip("0").ljust(3, "0")
    return f"{moment.isoformat(timespec='seconds')}.{digits}Z"


def bound_of(moment: datetime) -> str:
    """Cut an aware datetime down to whole milliseconds: `2026-10-01T08:30:00.250Z`."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def read_bound(text: object) -> str:
    """Read a bound that a person or an earlier run wrote: an ISO 8601 date (its first moment in UTC) or a date-time.

    Raises:
        ValueError: `text` is neither.
    """
    instant = instant_of(text) or instant_of(f"{text}T00:00")
    if instant is not None:
        return instant[:_MILLIS_CHARS] + "Z"
    parsed = _parsed(text) if isinstance(text, str) and text[:4].isdigit() else None
    if parsed is None:
        msg = "expected an ISO 8601 date or date-time"
        raise ValueError(msg)
    return bound_of(parsed)


def _parsed(text: str) -> datetime | None:
    """The moment of a text in one of ISO 8601's rarer forms, such as `2026-W40`."""
    import pendulum  # noqa: PLC0415 - only these forms are worth the time of its import

    try:
        parsed = pendulum.parse(text, exact=True)
        if isinstance(parsed, pendulum.DateTime):
            return parsed.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return datetime(parsed.year, parsed.month, parsed.day, tzinfo=UTC) if isinstance(parsed, pendulum.Date) else None


def _moment(bound: str) -> datetime:
    return datetime.fromisoformat(bound[:_MILLIS_CHARS]).replace(tzinfo=UTC)


def earlier(bound: str, seconds: float) -> str:
    """The bound that lies `seconds` before, though not before `EARLIEST`."""
    moment = _moment(bound)
    return bound_of(EARLIEST if (moment - EARLIEST).total_seconds() <= seconds else moment - timedelta(seconds=seconds))


def later(bound: str, seconds: float) -> str:
    """The bound that lies `seconds` after."""
    return bound_of(_moment(bound) + timedelta(seconds=seconds))


def settled(now: datetime, settle_seconds: float) -> str:
    """A run's upper bound: the source's clock, less the time that it is given to make an action visible."""
    return earlier(bound_of(now), settle_seconds)


def resume_after(*, read_until: str | None, start: str | None, until: str, lookback_seconds: float) -> str:
    """Where a run's first window begins.

    Where earlier runs have read: the lookback before the end of it, so that late arrivals are read. Otherwise: the
    start asked for, else the lookback before `until`.
    """
    if read_until is not None:
        return earlier(read_until, lookback_seconds)
    return earlier(until, lookback_seconds) if start is None else earlier(start, 0)


def hours_due(first_hour: str, until: str, age_hours: float, hours_max: int) -> list[str]:
    """The hours from one on that ended `age_hours` before a bound: `2026-10-01T11`, at most so many."""
    hour = _moment(f"{first_hour}:00:00.000Z")
    last_end = _moment(until) - timedelta(hours=age_hours)
    due: list[str] = []
    while hour + HOUR <= last_end and len(due) < hours_max:
        due.append(bound_of(hour)[:HOUR_CHARS])
        hour += HOUR
    return due


def next_hour(bound: str) -> str:
    """The first hour that begins at a bound or after it: `2026-10-01T11`."""
    moment = _moment(bound)
    begun = moment.replace(minute=0, second=0, microsecond=0)
    return bound_of(begun if begun == moment else begun + HOUR)[:HOUR_CHARS]


def read_hour(text: object) -> str | None:
    """Read an hour that an earlier run wrote: `2026-10-01T11`. None for what is no hour of these times."""
    instant = instant_of(f"{text}:00:00.000Z")
    return instant[:HOUR_CHARS] if instant and "1970" <= instant < "9999" else None


def window_of_hour(hour: str) -> Window:
    """All milliseconds of an hour such as `2026-10-01T11`."""
    begin = _moment(f"{hour}:00:00.000Z")
    return Window(bound_of(begin - MILLISECOND), bound_of(begin + HOUR - MILLISECOND))


def advanced(bookmark: str | None, drained_until: str) -> str:
    """The bookmark after everything up to `drained_until` was emitted: the later of the two."""
    return drained_until if bookmark is None else max(bookmark, drained_until)


def reaches(instant: str, bound: str) -> bool:
    """Whether an instant is at or after a bound."""
    return instant[:-1] >= bound[:-1]


@dataclass(frozen=True)
class Window:
    """The time after one bound, up to and including another: (after, until]."""

    after: str
    until: str

    def holds(self, instant: str) -> bool:
        """Whether a row of this instant belongs here, whichever precision the source compares in.

        A row at `until` plus 0.4 ms is in this window for a source that counts in milliseconds, and in the next one
        for a source that counts finer. It belongs to both, so that no reading of it loses the row.
        """
        return self.after[:-1] < instant[:-1] and instant[:_MILLIS_CHARS] <= self.until[:-1]

    @property
    def seconds(self) -> float:
        """How long the window is."""
        return seconds_between(self.after, self.until)

    def __str__(self) -> str:
        return f"{self.after}..{self.until}"


def windows(after: str, until: str, length_seconds: Callable[[], float]) -> Iterator[Window]:
    """Cut (after, until] into abutting windows, oldest first; none where `until` is not later.

    Args:
        after: Where the first window begins.
        until: Where the last window ends.
        length_seconds: Asked before each cut for the longest that the window may be.
    """
    start, end = _moment(after), _moment(until)
    while start < end:
        stop = min(end, start + max(timedelta(seconds=length_seconds()), MILLISECOND))
        yield Window(bound_of(start), bound_of(stop))
        start = stop


def adapted_seconds(length_seconds: float, pages: float, longest_seconds: float) -> float:
    """How long a window should be after one of `length_seconds` held so many pages of rows.

    It aims at `PAGES_WANTED` pages. Between one window and the next it grows by at most `GROWTH_MAX` and shrinks by at
    most `SHRINK_MAX`, and it stays within `WINDOW_SECONDS_MIN` and the longest that the user allows.
    """
    change = max(PAGES_WANTED / max(pages, PAGES_WANTED / GROWTH_MAX), 1 / SHRINK_MAX)
    return min(max(length_seconds * change, WINDOW_SECONDS_MIN), longest_seconds)


def seconds_between(earlier_bound: str, later_bound: str) -> float:
    """The time from one bound to another, negative where they are the other way round."""
    return (_moment(later_bound) - _moment(earlier_bound)).total_seconds()
