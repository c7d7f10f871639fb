"""Decide which ACTIVATE_VERSION messages may delete rows. No message may delete a row that this run has received."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class SafeActivations:
    """Tracks the versions of this run's records, and the reasons why some activations are unsafe.

    Stream maps may give several source streams the same name, so that all of them go to one table.
    """

    def __init__(self) -> None:
        self._unsafe_sources: dict[str, str] = {}
        self._unsafe_tables: dict[str, str] = {}
        self._oldest: dict[str, dict[str, int]] = defaultdict(dict)
        self._pending: dict[tuple[str, str], set[int]] = defaultdict(set)

    def refuse(self, source: str, reason: str) -> None:
        """From now on, delete no rows from the tables of a source. If `source` is empty, delete no rows at all."""
        self._unsafe_sources.setdefault(source, reason)

    def refuse_table(self, table: str, reason: str) -> None:
        """From now on, delete no rows from a table."""
        self._unsafe_tables.setdefault(table, reason)

    def add(self, table: str, source: str, version: int) -> None:
        """Record that this run has received a record of this version."""
        pending = self._pending[table, source]
        if version not in pending:
            pending.add(version)
            oldest = self._oldest[table]
            oldest[source] = min(version, oldest.get(source, version))

    def done(self, table: str, source: str, version: int) -> None:
        """Let later versions of the source replace this one. A run may contain two complete reads of a source."""
        self._pending[table, source].discard(version)

    def why_unsafe(self, table: str, source: str, sources: Iterable[str], version: int) -> str:
        """Return why a version may lack rows that this run has received for a table.

        Return an empty string if the version has all of these rows.

        If one source is unsafe, the table stays unsafe for the rest of the run, because later versions may also lack
        rows.

        Args:
            table: The name of the table.
            source: The stream that activates the version.
            sources: All streams that go to the table.
            version: The version that the message activates.
        """
        for each in (source, *sources, ""):
            if reason := self._unsafe_sources.get(each):
                return reason
        if reason := self._unsafe_tables.get(table):
            return reason
        # A new version of this source does not replace rows of other sources. So check all versions of those sources.
        others = (oldest for name, oldest in self._oldest[table].items() if name != source)
        oldest = min((*self._pending[table, source], *others), default=version)
        return f"records of this run have the older version {oldest}" if oldest < version else ""
