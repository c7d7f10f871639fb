"""Track the coverage of actions: the time that this run and earlier runs have read without a gap.

This module does no I/O and reads no clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tap_pepper.windows import Window, parse_bound, subtract_seconds, to_instant

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


class Coverage:
    """The span of time from which this run and earlier runs have read every action.

    The span starts right after `covered_from` and includes `covered_until`.

    The STATE contains the coverage as part of the bookmark::

        {"covered_from": "2026-10-01T00:00:00.000Z", "covered_until": "2026-11-28T06:00:00.000Z",
         "read": [["2026-11-28T05:55:00.000Z", "2026-11-28T06:00:00.000Z"]],
         "action_types": ["REDEEM_PERK", "REWARD_EARNED"]}

    `read` lists only the intervals that this run itself has emitted, because the warehouse may lack the rows of earlier
    runs.
    `action_types` is the setting of that name; an empty list means all types.

    A run with a bookmark may begin a coverage later than its start_date. The run then stores the start_date as
    `skipped_start_date`. The tap reads the older actions only if someone later sets a start_date before
    `skipped_start_date`.

    `crm-balances coverage --state` sets `backfill_from`, and the beginning of the ledger as `skipped_start_date`. The
    next run first reads the actions between `backfill_from` and the coverage. Once the tap has read them,
    `backfill_from` is null.

    A new coverage begins in these cases:

    - The state has no valid coverage.
    - This run starts to read after the end of the earlier coverage, because someone edited the bookmark.
    - This run reads other types of action.

    Args:
        state: The bookmark that the run starts from.
        bookmark: The time of the bookmark; None on a first run.
        after: Where this run starts to read.
        until: Where this run stops.
        start_date: The setting `start_date`, as a bound.
        types: The types of action that this run reads; an empty list means all types.
        lookback_seconds: A requested backfill starts this long before `backfill_from`, to find actions that became
            visible only after the last run before the hole.
    """

    def __init__(
        self,
        state: Mapping[str, Any],
        *,
        bookmark: str | None,
        after: str,
        until: str,
        start_date: str | None,
        types: Collection[str],
        lookback_seconds: float,
    ) -> None:
        self._types = sorted(set(types))
        self._backfill_from = _bound(state.get("backfill_from")) if bookmark else None
        start = subtract_seconds(start_date, 0) if start_date else None
        self._from = self._until = after
        self.continues = False
        """Whether this run continues the coverage in the state. Otherwise a new coverage begins."""
        self._read: list[Window] = []
        covered_from, skipped = _bound(state.get("covered_from")), _bound(state.get("skipped_start_date"))
        # Earlier runs have read from the earliest of these times on, or have skipped it. An earlier start_date is new.
        known = [each for each in (None if self._backfill_from else covered_from, skipped) if each]
        self._skipped_start = max(start, min(known, default=start)) if bookmark and start else None
        if bookmark and covered_from and (state.get("action_types") or []) == self._types:
            # If someone set the bookmark back, they may also have restored the warehouse to that time. So the coverage
            # never ends after the bookmark.
            covered_until = min(_bound(state.get("covered_until")) or bookmark, bookmark, until)
            if max(after, covered_from) <= covered_until:
                self._from, self._until = covered_from, covered_until
                self.continues = True
                if not self._backfill_from:
                    self._skipped_start = skipped
        known_from = min(self._from, self._skipped_start or self._from)
        requested = self._backfill_from and subtract_seconds(self._backfill_from, lookback_seconds)
        self._missing_from = start if start and start < known_from else requested

    @property
    def missing(self) -> Window | None:
        """The time to read first: from start_date, or from the lookback before `backfill_from`, up to the coverage.

        None if nothing is missing.
        """
        if self._missing_from is None or self._missing_from >= self._from:
            return None
        return Window(self._missing_from, self._from)

    def add(self, window: Window, skipped_until: str | None = None) -> None:
        """Note that all rows of a window were emitted.

        The window must follow the previous window, or end where the coverage begins.

        Args:
            window: The window.
            skipped_until: The time of the newest row that this run skipped, because an earlier run had emitted it.
        """
        if window.until == self._from:
            self._from = window.after
        self._until = max(self._until, window.until)
        if skipped_until:
            window = Window(max(window.after, parse_bound(skipped_until)), window.until)
        if window.after >= window.until:
            return
        last = self._read[-1] if self._read else None
        if last and last.until == window.after:
            self._read[-1] = Window(last.after, window.until)
        elif last and last.after == window.until:
            self._read[-1] = Window(window.after, last.until)
        else:
            self._read.append(window)

    def to_state(self) -> dict[str, Any]:
        """Return the coverage as keys of the STATE.

        Keys without a value stay in the STATE. Meltano may merge the STATE with an earlier one, and an empty value then
        replaces the earlier value.
        """
        return {
            "covered_from": self._from,
            "covered_until": self._until,
            "read": [[window.after, window.until] for window in self._read],
            "skipped_start_date": self._skipped_start,
            "backfill_from": self._backfill_from if self.missing else None,
            "action_types": self._types,
        }


def start_run(state: dict[str, Any]) -> None:
    """Empty `read` in a bookmark from an earlier run, because this run has not read anything yet."""
    if "covered_from" in state:
        state["read"] = []


def _bound(value: object) -> str | None:
    instant = to_instant(value)
    return parse_bound(instant) if instant else None
