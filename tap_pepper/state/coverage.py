"""Track the coverage: the time interval from which this run and earlier runs have read every action.

This module does no I/O and reads no clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tap_pepper.windows import Window, parse_bound, subtract_seconds, to_instant

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


class Coverage:
    """The time interval from which this run and earlier runs have read every action.

    The interval begins right after the time `covered_from` and includes the time `covered_until`.

    The STATE contains the coverage as part of the bookmark::

        {"covered_from": "2026-10-01T00:00:00.000Z", "covered_until": "2026-11-28T06:00:00.000Z",
         "read": [["2026-11-28T05:55:00.000Z", "2026-11-28T06:00:00.000Z"]],
         "action_types": ["REDEEM_PERK", "REWARD_EARNED"]}

    `read` lists only the intervals whose rows this run itself has emitted, because the warehouse may lack the rows of
    earlier runs. `action_types` is the setting of that name. An empty list means all types.

    If a run has a bookmark, its coverage may begin later than the start_date. The run then stores the start_date as
    `skipped_start_date`, and does not read the older actions. The tap reads them only if someone later sets a
    start_date before `skipped_start_date`.

    `crm-balances coverage --state` sets `backfill_from`, and sets `skipped_start_date` to the beginning of the ledger.
    The next run first reads the actions between `backfill_from` and the coverage. Once the tap has read them,
    `backfill_from` is null.

    A new coverage begins in these cases:

    - The state has no valid coverage.
    - This run starts to read after the end of the earlier coverage, because someone edited the bookmark.
    - This run reads other types of action.

    Args:
        state: The bookmark that the run starts from.
        bookmark: The time of the bookmark; None on a first run.
        after: The time after which this run reads actions.
        until: The time up to which this run reads actions.
        start_date: The setting `start_date`, as a bound.
        types: The types of action that this run reads; an empty list means all types.
        lookback_seconds: If the state has `backfill_from`, the tap starts to read this many seconds before that time,
            to find actions that became visible late.
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
        # Earlier runs have read or skipped the actions after the earliest of these times. If start_date is even
        # earlier, someone has changed it since then.
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
        """The interval to read before everything else; None if nothing is missing.

        It begins at the start_date, or `lookback_seconds` before `backfill_from`. It ends where the coverage begins.
        """
        if self._missing_from is None or self._missing_from >= self._from:
            return None
        return Window(self._missing_from, self._from)

    def add(self, window: Window, skipped_until: str | None = None) -> None:
        """Add a window to the coverage, after all rows of the window were emitted.

        Args:
            window: The window, which must follow the previous one, or end where the coverage begins.
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

        Keys without a value stay in the STATE, because Meltano may merge it with an earlier STATE. The empty value then
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
    """Set `read` to an empty list in an earlier run's bookmark, because this run has not read anything yet."""
    if "covered_from" in state:
        state["read"] = []


def _bound(value: object) -> str | None:
    instant = to_instant(value)
    return parse_bound(instant) if instant else None
