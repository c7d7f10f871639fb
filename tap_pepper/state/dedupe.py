"""Remember recently emitted rows, and samples of keys, as a limited number of hashes in the STATE.

This module does no I/O and reads no clock.
"""

from __future__ import annotations

import heapq
from typing import Any, Final

from tap_pepper.raw_json import DIGEST_CHARS, digest
from tap_pepper.windows import is_at_or_after

RECENT_ROWS_MAX: Final = 2000
"""The STATE contains the digests of at most this many rows, the newest ones. Emitting older rows again is harmless."""
SAMPLE_KEYS_MAX: Final = 1024
"""A sample of a complete read contains at most this many keys."""
SAMPLE_CHARS: Final = 6
"""A sample contains this many characters of each key's digest. Two keys rarely agree in these 36 bits."""


class RecentRows:
    """Remembers recently emitted rows, so that a run that re-reads the lookback emits only new and changed rows.

    In the STATE, the rows are one string of concatenated digests.
    """

    def __init__(self, state: object = None) -> None:
        text = state if isinstance(state, str) else ""
        ends = range(DIGEST_CHARS, len(text) + 1, DIGEST_CHARS)
        self._earlier = {text[end - DIGEST_CHARS : end] for end in ends}
        self._current: dict[str, str | None] = {}
        self.skipped_until: str | None = None
        """The time of the newest row that this run skipped, because an earlier run had emitted it."""

    def add(self, row: dict[str, Any], instant: str | None, since: str) -> bool:
        """Remember a row, and return True if it must be emitted, because it is new or has changed.

        Args:
            row: The row in the form in which it would be emitted.
            instant: The row's time. A row without a time always counts as recent.
            since: The time from which the next run re-reads. Older rows need not be remembered.
        """
        recent = instant is None or is_at_or_after(instant, since)
        if not recent and not self._earlier:
            return True
        row_digest = digest(row)
        is_new = row_digest not in self._earlier and row_digest not in self._current
        if row_digest in self._earlier and instant and is_at_or_after(instant, self.skipped_until or instant):
            self.skipped_until = instant
        if recent:
            self._current[row_digest] = instant
        return is_new

    def drop_earlier_runs(self) -> None:
        """Forget the rows of earlier runs. Call this once the run has read past these rows."""
        self._earlier = set()

    def to_state(self, since: str) -> str:
        """Return the digests that the next run needs if it re-reads from `since`."""
        self._current = {
            row_digest: instant
            for row_digest, instant in self._current.items()
            if instant is None or is_at_or_after(instant, since)
        }
        newest_first = sorted(self._current, key=lambda row_digest: self._current[row_digest] or "~", reverse=True)
        return "".join([*newest_first, *sorted(self._earlier - self._current.keys())][:RECENT_ROWS_MAX])


class KeySample:
    """Samples the keys of a complete read, and compares them with the sample of the previous complete read.

    The sample consists of the keys with the smallest hashes. It does not depend on the order of rows, and two reads of
    the same rows give the same sample.

    In the STATE, the sample is one string of concatenated digests. Earlier versions wrote a list of longer digests.
    """

    def __init__(self, earlier: object = None) -> None:
        if isinstance(earlier, str):
            earlier = [earlier[start : start + SAMPLE_CHARS] for start in range(0, len(earlier), SAMPLE_CHARS)]
        known = earlier if isinstance(earlier, list) else []
        self._earlier = {each[:SAMPLE_CHARS] for each in known if isinstance(each, str)}
        self._missing = set(self._earlier)
        self._largest_first: list[_Reversed] = []
        self._sample: set[str] = set()

    def add(self, key: object) -> None:
        """Record that this read has a key. Keep the key's digest in the sample if it is one of the smallest."""
        key_digest = digest(key)[:SAMPLE_CHARS]
        self._missing.discard(key_digest)
        if key_digest in self._sample:
            return
        if len(self._largest_first) < SAMPLE_KEYS_MAX:
            heapq.heappush(self._largest_first, _Reversed(key_digest))
            self._sample.add(key_digest)
        elif key_digest < str(self._largest_first[0]):
            self._sample.discard(heapq.heapreplace(self._largest_first, _Reversed(key_digest)))
            self._sample.add(key_digest)

    @property
    def missing_fraction(self) -> float:
        """The fraction of the earlier keys that this read lacks, from 0.0 to 1.0; 1.0 if this read has no rows."""
        if not self._sample:
            return 1.0
        return len(self._missing) / len(self._earlier) if self._earlier else 0.0

    @property
    def has_all_known(self) -> bool:
        """Whether this read certainly has all rows of the previous read.

        If the earlier sample is full, the answer is False, because the sample may lack some keys.
        """
        return not self._missing and len(self._earlier) < SAMPLE_KEYS_MAX

    def to_state(self) -> str:
        """Return the sample as one string, which the next complete read compares with its own sample."""
        return "".join(sorted(self._sample))


class _Reversed(str):
    """A string that sorts in descending order, because heapq only has a min-heap."""

    __slots__ = ()

    def __lt__(self, other: str) -> bool:
        return str.__gt__(self, other)
