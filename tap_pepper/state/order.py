"""Recognize lists whose rows may move while the tap reads them page by page.

This module does no I/O and reads no clock.
"""

from __future__ import annotations

ROWS_MIN = 3
"""With fewer rows, any list looks sorted."""


class TimeOrder:
    """Watches the times of a list's rows, in the order in which the rows arrive.

    Args:
        began: Pepper's time when the run began, as a bound. A row with a later time has changed since then.
    """

    def __init__(self, began: str) -> None:
        self._began = began
        self._last = ""
        self._rises = self._falls = 0
        self._has_changed = False

    def add(self, instant: str | None) -> None:
        """Note the next row's time; None if the row has no valid time."""
        if instant is None:
            return
        self._has_changed |= instant[:-1] > self._began[:-1]
        if self._last:
            self._rises += instant[:-1] > self._last[:-1]
            self._falls += instant[:-1] < self._last[:-1]
        self._last = instant

    @property
    def may_shift(self) -> bool:
        """Whether a row has changed since the tap began to read, or the rows are sorted by time."""
        is_sorted = min(self._rises, self._falls) == 0 and max(self._rises, self._falls) >= ROWS_MIN - 1
        return self._has_changed or is_sorted
