"""Audit the actions: choose the hours to read a second time, and compare each hour with its first read.

This module does no I/O and reads no clock.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from tap_pepper.raw_json import digest
from tap_pepper.windows import (
    HOUR_CHARS,
    HOUR_SECONDS,
    add_seconds,
    hour_window,
    hours_due,
    next_hour,
    parse_hour,
    subtract_seconds,
    to_instant,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tap_pepper.raw_json import Row

AUDIT_HOURS_MAX: Final = 24
"""One run audits at most this many hours. Later runs audit the rest."""

_HEX: Final = re.compile(r"[0-9a-f]{1,64}")


class HourTally:
    """Counts the rows of each hour, and keeps a fingerprint that does not depend on the order of the rows.

    In the STATE, a tally looks like this: `{"2026-10-01T11": "204:5be0…"}`. The key of an hour
    consists of the first `HOUR_CHARS` characters of any instant in that hour.
    """

    def __init__(self, state: object = None) -> None:
        self._hours: dict[str, tuple[int, int]] = {}
        for hour, text in state.items() if isinstance(state, dict) else ():
            count, _, fingerprint = str(text).partition(":")
            if count.isdecimal() and _HEX.fullmatch(fingerprint):
                self._hours[hour] = int(count), int(fingerprint, 16)

    def add(self, row_digest: str, hour: str) -> None:
        """Add a row to the tally of its hour."""
        count, fingerprint = self._hours.get(hour, (0, 0))
        self._hours[hour] = count + 1, fingerprint ^ int.from_bytes(row_digest.encode(), "big")

    def get(self, hour: str) -> tuple[int, int]:
        """Return the number of rows in an hour, and their fingerprint."""
        return self._hours.get(hour, (0, 0))

    def to_state(self, first_hour: str) -> dict[str, str]:
        """Return the tallies from `first_hour` on, for the STATE."""
        hours = sorted(hour for hour in self._hours if hour >= first_hour)
        return {hour: f"{self._hours[hour][0]}:{self._hours[hour][1]:x}" for hour in hours}


class Audit:
    """Tallies the actions of each hour, and compares the tally with a second read of the hour.

    The STATE contains `{"next": "2026-10-01T11", "until": "2026-10-01T11:55:00.000Z", "hours": {…},
    "reads": "mB3x…", "tallied_from": "2026-10-01T11"}`.
    `next` is the first hour that is not audited yet. `hours` contains the tallies of the actions from that hour up to
    `until`, the time from which the next run re-reads.

    In two cases, a second read would differ from the tally although no action is late:

    - This run reads other fields or types of action.
    - This run starts to read after `until`, because someone has lowered `lookback_seconds`.

    The tally then starts over at the hour `tallied_from`. The tap emits the due hours before it again without a
    comparison.

    Args:
        state: The value that `to_state` returned in the previous run.
        reads: A fingerprint of the fields and action types that this run reads.
        after: The time after which this run reads actions. A new audit begins at this time or later.
        until: The time up to which this run reads actions.
        age_hours: The number of hours to wait after the end of an hour before auditing it. 0 turns the audit off.
    """

    def __init__(self, state: object, reads: str, after: str, until: str, age_hours: int) -> None:
        kept = state if isinstance(state, dict) and age_hours else {}
        # A state that an older version of the tap wrote has no `reads`.
        starts_over = kept.get("reads", reads) != reads or (to_instant(kept.get("until")) or after) < after
        self._age_hours = age_hours
        self._reads = reads
        self._until = until
        first = next_hour(max(after, subtract_seconds(until, age_hours * HOUR_SECONDS)))
        self._next = parse_hour(kept.get("next")) or first
        if starts_over:
            kept = {"tallied_from": next_hour(after)}
        self._tallied_from = parse_hour(kept.get("tallied_from")) or self._next
        self._tally = HourTally(kept.get("hours"))
        self._tallied_until = to_instant(kept.get("until")) or ""
        # By `_id`, because a row may be read twice, or change before it is tallied. It then counts only once, in its
        # newest form.
        self._pending: dict[bytes, tuple[str, str]] = {}

    def record(self, row: Row, instant: str | None) -> None:
        """Add a row that Pepper returned. Rows that an earlier run has already emitted count as well."""
        if self._age_hours and instant and instant >= self._next and instant[:-1] > self._tallied_until[:-1]:
            self._pending[bytes(row["_id"])] = instant, digest(row)

    def due_hours(self) -> list[str]:
        """Return the hours to audit in this run, oldest first."""
        return hours_due(self._next, self._until, self._age_hours, AUDIT_HOURS_MAX) if self._age_hours else []

    def is_tallied(self, hour: str) -> bool:
        """Return whether the tally contains all actions of an hour that the first read found."""
        return hour >= self._tallied_from

    def skip(self, hour: str) -> None:
        """Move on to the next hour without a comparison."""
        self._next = next_hour(add_seconds(hour_window(hour).until, 0.001))

    def compare(self, hour: str, row_digests: Iterable[str]) -> int | None:
        """Compare the tally of an hour with a second read, and move on to the next hour.

        Args:
            hour: The hour that was read again.
            row_digests: The digest of each distinct row in the second read.

        Returns:
            None if both reads agree. Otherwise, how many more rows the second read has, or 0 if it does not have more.
        """
        self._tally_pending(lambda instant: instant.startswith(hour))
        second_read = HourTally()
        for row_digest in row_digests:
            second_read.add(row_digest, hour)
        self.skip(hour)
        if second_read.get(hour) == self._tally.get(hour):
            return None
        return max(0, second_read.get(hour)[0] - self._tally.get(hour)[0])

    def to_state(self, reread_from: str) -> dict[str, Any] | None:
        """Return what the next run needs for its audit if it re-reads from `reread_from`; None if the audit is off."""
        if not self._age_hours:
            return None
        self._tally_pending(lambda instant: instant[:-1] <= reread_from[:-1])
        self._tallied_until = max(self._tallied_until, reread_from)
        return {
            "next": self._next,
            "until": self._tallied_until,
            "hours": self._tally.to_state(self._next),
            "reads": self._reads,
            "tallied_from": self._tallied_from,
        }

    def _tally_pending(self, is_final: Callable[[str], bool]) -> None:
        """Move the pending rows that cannot change any more into the tally."""
        for key in [key for key, (instant, _) in self._pending.items() if is_final(instant)]:
            instant, row_digest = self._pending.pop(key)
            self._tally.add(row_digest, instant[:HOUR_CHARS])
