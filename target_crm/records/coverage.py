"""Coverage of actions: the intervals for which all actions were read, according to the bookmark of tap-pepper.

In a STATE, the bookmark of `actions` looks like this::

    {"replication_key": "when_timestamp", "replication_key_value": "2026-11-28T06:00:00.000Z",
     "covered_from": "2026-10-01T00:00:00.000Z", "read": [["2026-11-28T05:50:00.000Z", "2026-11-28T06:00:00.000Z"]],
     "action_types": ["REDEEM_PERK", "REWARD_EARNED"], "merchant": "M0cuR5heCoXtxvDf"}

A state *claims* intervals: it says that the tap has read all of their actions. `read` lists only the intervals that the
tap has read in this run, because earlier runs may have loaded into another warehouse. A state also claims the first
half millisecond after `covered_from`, in which no action lies. If this warehouse lacks the actions of earlier runs,
there is a hole between this half millisecond and the intervals in `read`.

A state without `read` claims the whole interval from `covered_from` to the bookmark. A state without `covered_from`
claims nothing.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from pepper_runtime.wording import duration, utc
from target_crm.records.actions import EFFECTS
from target_crm.records.values import Invalid, instant

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import datetime

STREAM = "actions"
REPLICATION_KEY = "when_timestamp"
# Use at most this many holes to classify balance changes without an action.
HOLES_MAX = 100
# The length of the interval that a state claims after `covered_from`. No action lies in it, because Pepper's times are
# whole milliseconds. It is not shorter, because some engines round times to a tenth of a millisecond.
BEGINNING = timedelta(microseconds=500)


class Interval(NamedTuple):
    """A time interval. It excludes its first instant, and includes its last one."""

    after: datetime
    until: datetime

    @property
    def length(self) -> timedelta:
        """The duration of the interval."""
        return self.until - self.after


class Scope(NamedTuple):
    """Which actions of an interval were read.

    Attributes:
        merchant: The merchant's hash, from the tap's state. Empty if the state has none.
        action_types: The types of action that were read; empty for all types.
    """

    merchant: str = ""
    action_types: tuple[str, ...] = ()


Claims = dict[Scope, list[Interval]]


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Merge overlapping and adjacent intervals, and drop empty ones."""
    merged: list[Interval] = []
    for each in sorted(each for each in intervals if each.after < each.until):
        if merged and each.after <= merged[-1].until:
            merged[-1] = Interval(merged[-1].after, max(merged[-1].until, each.until))
        else:
            merged.append(each)
    return merged


def merge(first: Claims, second: Claims) -> Claims:
    """Merge two claims: for each scope, return the union of its intervals."""
    return {scope: union([*first.get(scope, ()), *second.get(scope, ())]) for scope in first | second}


def between(intervals: Sequence[Interval], span: Interval) -> list[Interval]:
    """Return the parts of the interval `span` that lie outside `intervals`, which must be the result of `union`."""
    edges = [span.after, *(edge for each in intervals for edge in each), span.until]
    clipped = [min(max(edge, span.after), span.until) for edge in edges]
    gaps = zip(clipped[::2], clipped[1::2], strict=True)
    return [Interval(*gap) for gap in gaps if gap[0] < gap[1]]


def common(unions: Iterable[Sequence[Interval]], span: Interval) -> list[Interval]:
    """Return the parts of the interval `span` that every given list of intervals covers."""
    return between(union(chain.from_iterable(between(each, span) for each in unions)), span)


def claims_of(state: Mapping[str, Any]) -> Claims:
    """Return, for each scope, the intervals that a STATE claims. The state of another tap claims nothing."""
    bookmarks = state.get("bookmarks")
    bookmark = bookmarks.get(STREAM) if isinstance(bookmarks, dict) else None
    if not isinstance(bookmark, dict) or bookmark.get("replication_key", REPLICATION_KEY) != REPLICATION_KEY:
        return {}
    merchant, types = bookmark.get("merchant") or "", bookmark.get("action_types") or []
    if not isinstance(merchant, str) or not isinstance(types, list) or not all(isinstance(each, str) for each in types):
        return {}
    read = bookmark.get("read", [[bookmark.get("covered_from"), bookmark.get("replication_key_value")]])
    with suppress(Invalid, TypeError, ValueError):
        # This raises `Invalid` for a state without `covered_from`, which then claims nothing.
        begins = instant(bookmark.get("covered_from"))
        bookmark_at = instant(bookmark.get("replication_key_value"))
        claimed = (Interval(*map(instant, pair)) for pair in read)
        # If someone edited the state, it may claim intervals after the bookmark.
        intervals = union(Interval(each.after, min(each.until, bookmark_at)) for each in claimed)
        if intervals:
            beginning = Interval(begins, begins + BEGINNING)
            return {Scope(merchant, tuple(sorted(set(types)))): union([beginning, *intervals])}
    return {}


def overlaps(start: Any, end: Any, interval: Interval) -> Any:
    """Return whether the interval from `start` to `end` overlaps `interval`. Both may be SQL expressions."""
    return (start < interval.until) & (end > interval.after)


def is_inside(start: Any, end: Any, interval: Interval) -> Any:
    """Return whether the interval from `start` to `end` lies inside `interval`. Both may be SQL expressions."""
    return (start >= interval.after) & (end <= interval.until)


@dataclass(frozen=True)
class MerchantCoverage:
    """The intervals for which one merchant's actions were read.

    `summarize` defines which types of action count.

    Attributes:
        merchant: The merchant's hash, from the tap's state.
        intervals: The intervals for which all types of action that count were read.
        complete: The intervals for which all types of action that change balances were read.
        holes: The intervals for which actions that count were not read. Each hole lies between the beginning of the
            first interval and the end of the last interval for which any actions were read.
        action_types: The types of action that were read in all of `intervals`; empty for all types.
        needed: The types that count, even if only runs without a filter have read them.
        read: Scope → the intervals that were read with the filter of this scope.
    """

    merchant: str
    intervals: list[Interval]
    complete: list[Interval]
    holes: list[Interval]
    action_types: tuple[str, ...]
    needed: tuple[str, ...]
    read: Claims

    @property
    def begins(self) -> datetime:
        """The earliest instant after which actions of any type were read."""
        return min(found[0].after for found in self.read.values() if found)

    def parts_of(self, hole: Interval) -> list[tuple[Interval, tuple[str, ...]]]:
        """Divide a hole into parts. Return each part with the types of action that were not read in it.

        If a part has no types, the tap read no actions in it.
        """
        if not any(scope.action_types for scope in self.read):
            return [(hole, ())]
        everything = [each for found in self.read.values() for each in found]
        inner = {edge for each in everything for edge in each if hole.after < edge < hole.until}
        edges = sorted({*hole, *inner})
        parts: list[tuple[Interval, tuple[str, ...]]] = []
        for part in map(Interval, edges, edges[1:]):
            read = [scope for scope, found in self.read.items() if any(is_inside(*part, each) for each in found)]
            types = tuple(each for each in self.needed if not any(each in scope.action_types for scope in read))
            if not read:
                types = ()
            continues = bool(parts) and parts[-1][1] == types
            after = parts.pop()[0].after if continues else part.after
            parts.append((Interval(after, part.until), types))
        return parts


def summarize(claims: Mapping[Scope, Collection[Interval]]) -> list[MerchantCoverage]:
    """Summarize the intervals for which each merchant's actions were read.

    Balances need all types of action that have an effect, but a merchant may have chosen to read only some types. So a
    type with an effect counts if any run has read it.
    """
    return [
        _summarize(
            merchant, {scope: union(each) for scope, each in sorted(claims.items()) if scope.merchant == merchant}
        )
        for merchant in sorted({scope.merchant for scope, each in claims.items() if union(each)})
    ]


def describe_holes(found: MerchantCoverage) -> list[str]:
    """Describe the parts of a merchant's holes: `actions between … and … UTC were never read (8 days)`."""
    return [
        f"actions{of_types(types)} between {utc(part.after)} and {utc(part.until)} UTC were never read "
        f"({duration(part.length)})"
        for hole in found.holes
        for part, types in found.parts_of(hole)
    ]


def of_types(types: Sequence[str]) -> str:
    """Return a phrase to append to `actions`, such as ` of type REDEEM_PERK`.

    If `types` is empty, which stands for all types, the phrase is empty.
    """
    return f" of type {', '.join(types)}" if types else ""


@dataclass(frozen=True)
class ReadTimes:
    """The intervals for which actions were read, and those for which they were not.

    Attributes:
        covered: The intervals for which all actions that change balances were read.
        filtered: The intervals for which all actions that count were read, but not all types that change balances.
        holes: The intervals for which actions that count were not read.
        are_several: Whether the schema contains the actions of several merchants. The target does not know to which
            merchant an award belongs.
    """

    covered: tuple[Interval, ...]
    filtered: tuple[Interval, ...]
    holes: tuple[Interval, ...]
    are_several: bool


def read_times(merchants: Sequence[MerchantCoverage]) -> ReadTimes:
    """Return the intervals for which the actions of every merchant were read.

    All merchants count, because the target does not know to which merchant an award belongs.
    """
    holes = _limited(union(chain.from_iterable(each.holes for each in merchants)))
    covered = _of_all([each.complete for each in merchants], holes)
    counting = _of_all([each.intervals for each in merchants], holes)
    return ReadTimes(covered, counting if counting != covered else (), tuple(holes), len(merchants) > 1)


def _of_all(unions: Sequence[Sequence[Interval]], holes: Sequence[Interval]) -> tuple[Interval, ...]:
    """Return the intervals for which the actions of every merchant were read, without the holes."""
    if not unions or not all(unions):
        return ()
    span = Interval(max(each[0].after for each in unions), min(each[-1].until for each in unions))
    outside = [*holes, *chain.from_iterable(between(each, span) for each in unions)]
    return tuple(between(_limited(union(outside)), span)) if span.after < span.until else ()


def _limited(holes: list[Interval]) -> list[Interval]:
    """Join the last holes into one, so that at most `HOLES_MAX` remain, because engines limit a statement's length."""
    if len(holes) <= HOLES_MAX:
        return holes
    return [*holes[: HOLES_MAX - 1], Interval(holes[HOLES_MAX - 1].after, holes[-1].until)]


def _summarize(merchant: str, read: Claims) -> MerchantCoverage:
    filters = [set(scope.action_types) for scope in read]
    any_type = set(EFFECTS).union(*filters) if not all(filters) else set().union(*filters)
    needed = any_type & EFFECTS.keys() or any_type
    everything = union(chain.from_iterable(read.values()))
    span = Interval(everything[0].after, everything[-1].until)

    def of_types(types: Collection[str]) -> list[Interval]:
        return common(
            (
                union(chain.from_iterable(read[scope] for scope in read if type_ in (scope.action_types or types)))
                for type_ in types
            ),
            span,
        )

    intervals = of_types(needed)
    counting = [scope for scope in read if needed <= set(scope.action_types or needed)]
    filtered = [set(scope.action_types) for scope in counting if scope.action_types]
    is_by_parts = not counting and intervals
    return MerchantCoverage(
        merchant=merchant,
        intervals=intervals,
        complete=of_types(EFFECTS),
        holes=between(intervals, span),
        action_types=tuple(sorted(needed if is_by_parts else set.intersection(*filtered) if filtered else ())),
        needed=tuple(sorted(needed)),
        read=read,
    )
