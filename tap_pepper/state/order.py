"""Recognize lists whose rows may move while the tap reads them page by page.

This module does no I/O and reads no clock.
"""

from __future__ import annotations

ROWS_MIN = 3
"""With fewer rows, any list looks sorted."""


class TimeOrder:
    """Watches the pages of a list, and the times of its rows in the order in which they arrive."""

    def __init__(self) -> None:
        self._began: str | None = None
        self._pages = 0
        self._last = ""
        self._rises = self._falls = 0
        self._has_changed = False

    def begin_page(self, date: str | None) -> None:
        """Note that a page begins.

        Args:
            date: Pepper's time when it sent the page, as a bound; None if it is unknown.
        """
        if not self._pages:
            self._began = date
        self._pages += 1

    def add(self, instant: str | None) -> None:
        """Note the next row's time; None if the row has no valid time."""
        if instant is None:
            return
        self._has_changed |= self._began is not None and instant[:-1] > self._began[:-1]
        if self._last:
            self._rises += instant[:-1] > self._last[:-1]
            self._falls += instant[:-1] < self._last[:-1]
        self._last = instant

    @property
    def may_shift(self) -> bool:
        """Whether there are several pages, and a row has changed since the first one or the rows are sorted by time."""
        is_sorted = min(self._rises, self._falls) == 0 and max(self._rises, self._falls) >= ROWS_MIN - 1
        return self._pages > 1 and (self._has_changed or is_sorted)
