"""Which ACTIVATE_VERSION messages may delete rows: none that would delete what this run has seen."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class SafeActivations:
    """The versions of this run's records, and why some activations are not safe.

    Several source streams may go to one table, which has the name that a stream map gives them.
    """

    def __init__(self) -> None:
        self._unsafe_sources: dict[str, str] = {}
        self._unsafe_tables: dict[str, str] = {}
        self._oldest: dict[str, dict[str, int]] = defaultdict(dict)
        self._pending: dict[tuple[str, str], set[int]] = defaultdict(set)

    def refuse(self, source: str, reason: str) -> None:
        """Delete no rows of the tables of a source from here on; of no table at all if the source has no name."""
        self._unsafe_sources.setdefault(source, reason)

    def refuse_table(self, table: str, reason: str) -> None:
        """Delete no rows of a table from here on."""
        self._unsafe_tables.setdefault(table, reason)

    def add(self, table: str, source: str, version: int) -> None:
        """Record the version of a record."""
        pending = self._pending[table, source]
        if version not in pending:
            pending.add(version)
            oldest = self._oldest[table]
            oldest[source] = min(version, oldest.get(source, version))

    def done(self, table: str, source: str, version: int) -> None:
        """Let the source's later versions replace this one: it may read its table again in the same run."""
        self._pending[table, source].discard(version)

    def why_unsafe(self, table: str, source: str, sources: Iterable[str], version: int) -> str:
        """Why a version may lack rows of a table that this run has seen; empty if it does not.

        What makes one source unsafe makes the table unsafe for the rest of the run: a later version may lack the row,
        too.

        Args:
            table: The table.
            source: The stream that activates the version.
            sources: All streams that go to the table.
            version: The version.
        """
        for each in (source, *sources, ""):
            if reason := self._unsafe_sources.get(each):
                return reason
        if reason := self._unsafe_tables.get(table):
            return reason
        # Another source's rows are not replaced by this source's, so all of its versions count.
        others = (oldest for name, oldest in self._oldest[table].items() if name != source)
        oldest = min((*self._pending[table, source], *others), default=version)
        return f"records of this run have the older version {oldest}" if oldest < version else ""
