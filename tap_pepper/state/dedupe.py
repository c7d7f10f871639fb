"""What one run remembers of its rows for the next. It goes into the state, so it is bounded, and made of hashes alone.

Nothing here reads a clock or a socket.
"""

from __future__ import annotations

import heapq
import re
from base64 import urlsafe_b64encode
from hashlib import blake2b
from typing import Any, Final

from tap_pepper.api.raw_json import canonical
from tap_pepper.windows import reaches

BORDER_ROWS_MAX: Final = 2000
"""Rows that a border remembers. Of more, the newest; the others come again, and do no harm."""
SAMPLE_KEYS_MAX: Final = 256
"""Keys that a census remembers. Of more, an even sample."""
DIGEST_BYTES: Final = 12
DIGEST_CHARS: Final = DIGEST_BYTES * 4 // 3

_HEX: Final = re.compile(r"[0-9a-f]{1,64}")


def digest(value: object) -> str:
    """The fingerprint of a row or a key: `DIGEST_CHARS` characters."""
    return urlsafe_b64encode(blake2b(canonical(value), digest_size=DIGEST_BYTES).digest()).decode()


class Border:
    """The rows of the recent past that were emitted, so that reading it again emits only what is new or changed.

    In the state it is one text: a digest after the other.
    """

    def __init__(self, text: object = None) -> None:
        text = text if isinstance(text, str) else ""
        ends = range(DIGEST_CHARS, len(text) + 1, DIGEST_CHARS)
        self._known = {text[end - DIGEST_CHARS : end] for end in ends}
        self._seen: dict[str, str | None] = {}

    def admits(self, row: dict[str, Any], instant: str | None, since: str) -> bool:
        """Whether a row is to be emitted: False for one that was, as it is.

        Args:
            row: The row as it would be emitted.
            instant: Its time; None where it has none, which counts as recent for ever.
            since: The bound from which on the next run will read again.
        """
        recent = instant is None or reaches(instant, since)
        if not recent and not self._known:
            return True
        mark = digest(row)
        news = mark not in self._known and mark not in self._seen
        if recent:
            self._seen[mark] = instant
        return news

    def forget_earlier_runs(self) -> None:
        """Nothing that an earlier run emitted will be read any more."""
        self._known = set()

    def text(self, since: str) -> str:
        """What the next run needs, if it reads again from `since` on."""
        self._seen = {
            mark: instant for mark, instant in self._seen.items() if instant is None or reaches(instant, since)
        }
        newest = sorted(self._seen, key=lambda mark: self._seen[mark] or "~", reverse=True)
        return "".join([*newest, *sorted(self._known - self._seen.keys())][:BORDER_ROWS_MAX])


class Census:
    """The keys of a complete walk, against those of the one before.

    Of many keys it keeps those with the smallest hashes: a sample that does not depend on the order, and that two walks
    through the same rows draw alike.
    """

    def __init__(self, earlier: object = None) -> None:
        earlier = earlier if isinstance(earlier, list) else []
        self._earlier = {mark for mark in earlier if isinstance(mark, str)}
        self._missing = set(self._earlier)
        self._smallest: list[_Reversed] = []
        self._kept: set[str] = set()

    def count(self, key: object) -> None:
        """Note a row's key. The same key may come several times."""
        mark = digest(key)
        self._missing.discard(mark)
        if mark in self._kept:
            return
        if len(self._smallest) < SAMPLE_KEYS_MAX:
            heapq.heappush(self._smallest, _Reversed(mark))
            self._kept.add(mark)
        elif mark < str(self._smallest[0]):
            self._kept.discard(heapq.heapreplace(self._smallest, _Reversed(mark)))
            self._kept.add(mark)

    @property
    def vanished_fraction(self) -> float:
        """How much of what the walk before saw is gone: 0.0 to 1.0. An empty walk has lost everything."""
        if not self._kept:
            return 1.0
        return len(self._missing) / len(self._earlier) if self._earlier else 0.0

    def sample(self) -> list[str]:
        """What the next walk is held against."""
        return sorted(self._kept)


class HourTally:
    """How many rows of each hour were emitted, and a fingerprint of which, whatever their order.

    In the state it is `{"2026-10-01T11": "204:5be0…"}`. An hour is named by the first characters of its instants.
    """

    def __init__(self, kept: object = None) -> None:
        self._hours: dict[str, tuple[int, int]] = {}
        for hour, text in kept.items() if isinstance(kept, dict) else ():
            count, _, mark = str(text).partition(":")
            if count.isdecimal() and _HEX.fullmatch(mark):
                self._hours[hour] = int(count), int(mark, 16)

    def add(self, mark: str, hour: str) -> None:
        """Count a row by its digest."""
        count, together = self._hours.get(hour, (0, 0))
        self._hours[hour] = count + 1, together ^ int.from_bytes(mark.encode(), "big")

    def of(self, hour: str) -> tuple[int, int]:
        """An hour's rows, and their fingerprint."""
        return self._hours.get(hour, (0, 0))

    def kept(self, first_hour: str) -> dict[str, str]:
        """What the next run needs: the hours from one on."""
        kept = sorted(hour for hour in self._hours if hour >= first_hour)
        return {hour: f"{self._hours[hour][0]}:{self._hours[hour][1]:x}" for hour in kept}


class _Reversed(str):
    """A text that sorts from the greatest to the smallest."""

    __slots__ = ()

    def __lt__(self, other: str) -> bool:
        return str.__gt__(self, other)
