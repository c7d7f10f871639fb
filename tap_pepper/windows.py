"""Compute instants, time windows and bookmarks. A mistake here could mean that an action is never read.

An *instant* is a UTC time as text, `2026-10-01T08:30:00.250Z`. It has three decimal places, or more if the source has
more. To compare two instants as text, remove the `Z` first. A *bound* (a bookmark, an edge of a window, the upper bound
of a run) is an instant with exactly three decimal places.

This module does no I/O and reads no clock.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
"""No window starts before this time."""
HOUR = timedelta(hours=1)
HOUR_SECONDS = 3600
HOUR_CHARS = len("2026-10-01T08")
MILLISECOND = timedelta(milliseconds=1)

WINDOW_SECONDS_MIN = 60.0
WINDOW_SECONDS_FIRST = 6 * 3600.0
"""The first window of a run is at most this long, because the number of its actions is not known yet."""
PAGES_WANTED = 8
"""The number of pages per window to aim for.

With fewer pages per window, the tap would write STATE more often. With more pages per window, the next run would have
to read more pages again if a run is killed.
"""
GROWTH_MAX = 4.0
SHRINK_MAX = 8.0

_DAY_CHARS = len("2026-10-01 ")
_SECONDS_CHARS = len("2026-10-01T08:30:00")
_MILLIS_CHARS = len("2026-10-01T08:30:00.250")

_CANONICAL = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")
_ISO_8601 = re.compile(
    r"""(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2})
        [Tt ](?P<time>[0-9]{2}:[0-9]{2})(?: :(?P<second>[0-9]{2}) (?: [.,](?P<fraction>[0-9]+) )? )?
        (?: [Zz] | (?P<sign>[+-])(?P<hours>[0-9]{2}):?(?P<minutes>[0-9]{2})? )?""",
    re.VERBOSE,
)


def to_instant(value: object) -> str | None:
    """Convert a timestamp to an instant.

    Args:
        value: ISO 8601 text with any offset (UTC if it has none) and any number of decimal places.

    Returns:
        The instant, with every digit of the source; None if `value` is not a valid timestamp.
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


def to_bound(moment: datetime) -> str:
    """Format an aware datetime as UTC text, truncated to milliseconds: `2026-10-01T08:30:00.250Z`."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def parse_bound(text: object) -> str:
    """Parse an ISO 8601 date-time or date from a setting or a STATE. A date means midnight in UTC.

    Raises:
        ValueError: `text` is neither a date nor a date-time.
    """
    instant = to_instant(text) or to_instant(f"{text}T00:00")
    if instant is not None:
        return instant[:_MILLIS_CHARS] + "Z"
    moment = _parse_with_pendulum(text) if isinstance(text, str) and text[:4].isdigit() else None
    if moment is None:
        msg = "expected an ISO 8601 date or date-time"
        raise ValueError(msg)
    return to_bound(moment)


def _parse_with_pendulum(text: str) -> datetime | None:
    """Parse the rarer forms of ISO 8601, such as `2026-W40` and `20260101T060000Z`; None if invalid."""
    # Importing pendulum takes about 100 ms of processor time (`python -X importtime`), a quarter of an idle poll.
    # So only these forms import it; the arithmetic below, which every poll needs, uses the standard library.
    import pendulum  # noqa: PLC0415

    try:
        parsed = pendulum.parse(text, exact=True)
        if isinstance(parsed, pendulum.DateTime):
            return parsed.in_timezone("UTC")
        return pendulum.datetime(parsed.year, parsed.month, parsed.day) if isinstance(parsed, pendulum.Date) else None
    except (ValueError, OverflowError):
        return None


def _to_datetime(bound: str) -> datetime:
    return datetime.fromisoformat(bound[:_MILLIS_CHARS]).replace(tzinfo=UTC)


def subtract_seconds(bound: str, seconds: float) -> str:
    """Return the bound that is `seconds` earlier, but not before `EARLIEST`."""
    moment = _to_datetime(bound)
    return to_bound(EARLIEST if (moment - EARLIEST).total_seconds() <= seconds else moment - timedelta(seconds=seconds))


def add_seconds(bound: str, seconds: float) -> str:
    """Return the bound that is `seconds` later, truncated to milliseconds."""
    return to_bound(_to_datetime(bound) + timedelta(seconds=seconds))


def seconds_between(start: str, end: str) -> float:
    """Return the seconds from one bound to another, negative if `end` is earlier."""
    return (_to_datetime(end) - _to_datetime(start)).total_seconds()


def is_at_or_after(instant: str, bound: str) -> bool:
    """Return whether an instant is at or after a bound.

    Compare them without the `Z`, because an instant may have more decimal places than a bound.
    """
    return instant[:-1] >= bound[:-1]


def upper_bound(now: datetime, settle_seconds: float) -> str:
    """Return the time up to which a run may read. Pepper may not show the last `settle_seconds` completely yet."""
    return subtract_seconds(to_bound(now), settle_seconds)


def resume_after(*, read_until: str | None, start: str | None, until: str, lookback_seconds: float) -> str:
    """Return where the first window of a run starts.

    After an earlier run, it starts `lookback_seconds` before `read_until`, to find late actions. On the first run, it
    starts at `start`. Without `start`, it starts `lookback_seconds` before `until`, but at least one second before
    `until`, because a run that reads nothing writes no bookmark.
    """
    if read_until is not None:
        return subtract_seconds(read_until, lookback_seconds)
    return subtract_seconds(until, max(lookback_seconds, 1)) if start is None else subtract_seconds(start, 0)


def advance_bookmark(bookmark: str | None, read_until: str) -> str:
    """Return the bookmark after all rows up to `read_until` were emitted. A bookmark never moves back."""
    return read_until if bookmark is None else max(bookmark, read_until)


def hours_due(first_hour: str, until: str, age_hours: float, hours_max: int) -> list[str]:
    """Return at most `hours_max` hours, from `first_hour` on, that ended at least `age_hours` before `until`."""
    hour = _to_datetime(f"{first_hour}:00:00.000Z")
    last_end = _to_datetime(until) - timedelta(hours=age_hours)
    due: list[str] = []
    while hour + HOUR <= last_end and len(due) < hours_max:
        due.append(to_bound(hour)[:HOUR_CHARS])
        hour += HOUR
    return due


def next_hour(bound: str) -> str:
    """Return the first hour that starts at or after a bound, such as `2026-10-01T11`."""
    moment = _to_datetime(bound)
    start = moment.replace(minute=0, second=0, microsecond=0)
    return to_bound(start if start == moment else start + HOUR)[:HOUR_CHARS]


def parse_hour(text: object) -> str | None:
    """Parse an hour such as `2026-10-01T11`. Return None if it is invalid or outside the years 1970 to 9998."""
    instant = to_instant(f"{text}:00:00.000Z")
    return instant[:HOUR_CHARS] if instant and "1970" <= instant < "9999" else None


def hour_window(hour: str) -> Window:
    """Return the window that covers a whole hour such as `2026-10-01T11`."""
    start = _to_datetime(f"{hour}:00:00.000Z")
    return Window(to_bound(start - MILLISECOND), to_bound(start + HOUR - MILLISECOND))


@dataclass(frozen=True)
class Window:
    """A time interval that begins right after the bound `after` and includes the bound `until`."""

    after: str
    until: str

    def contains(self, instant: str) -> bool:
        """Return whether a row with this instant belongs to the window.

        Suppose a row is 0.4 ms after `until`. If Pepper compares times in milliseconds, it returns the row in this
        window. If it compares them in microseconds, it returns the row in the next window. Both windows accept the row,
        so that it is never lost.
        """
        return self.after[:-1] < instant[:-1] and instant[:_MILLIS_CHARS] <= self.until[:-1]

    @cached_property
    def widened(self) -> Window:
        """The window with a second more at both ends. It contains the rows at the edges, whichever way they round."""
        return Window(subtract_seconds(self.after, 1), add_seconds(self.until, 1))

    @property
    def seconds(self) -> float:
        """The length of the window in seconds."""
        return seconds_between(self.after, self.until)

    def __str__(self) -> str:
        """Format the window in UTC, to the second: `2026-10-01 10:00:00 to 10:05:00`.

        If the window ends on another day, the text also contains that date.
        """
        start, end = (bound[:_SECONDS_CHARS].replace("T", " ") for bound in (self.after, self.until))
        return f"{start} to {end.removeprefix(start[:_DAY_CHARS])}"


def split_into_windows(after: str, until: str, length_seconds: Callable[[], float]) -> Iterator[Window]:
    """Split a time interval into adjacent windows, oldest first. Yield none unless `until` is later than `after`.

    Args:
        after: Where the first window starts.
        until: Where the last window ends.
        length_seconds: Returns the maximum length of the next window. Called before each window.
    """
    start, end = _to_datetime(after), _to_datetime(until)
    while start < end:
        stop = min(end, start + max(timedelta(seconds=length_seconds()), MILLISECOND))
        yield Window(to_bound(start), to_bound(stop))
        start = stop


def split_backwards(span: Window, length_seconds: Callable[[], float]) -> Iterator[Window]:
    """Split a window into adjacent windows, newest first.

    Args:
        span: The window to split.
        length_seconds: Returns the maximum length of the next window. Called before each window.
    """
    start, end = _to_datetime(span.after), _to_datetime(span.until)
    while start < end:
        begin = max(start, end - max(timedelta(seconds=length_seconds()), MILLISECOND))
        yield Window(to_bound(begin), to_bound(end))
        end = begin


def next_window_seconds(length_seconds: float, pages: float, longest_seconds: float) -> float:
    """Return the length of the next window, after a window of `length_seconds` had `pages` pages.

    The next window should have `PAGES_WANTED` pages. It is at most `GROWTH_MAX` times as long as the last window, and
    at least 1 / `SHRINK_MAX` as long. Its length always stays between `WINDOW_SECONDS_MIN` and `longest_seconds`.
    """
    change = max(PAGES_WANTED / max(pages, PAGES_WANTED / GROWTH_MAX), 1 / SHRINK_MAX)
    return min(max(length_seconds * change, WINDOW_SECONDS_MIN), longest_seconds)
