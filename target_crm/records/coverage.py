"""Pure: coverage of actions — which intervals of time were read, by what the bookmark of tap-pepper says.

The bookmark of `actions` in a STATE::

    {"replication_key": "when_timestamp", "replication_key_value": "2026-11-28T06:00:00.000Z",
     "covered_from": "2026-10-01T00:00:00.000Z", "read": [["2026-11-28T05:50:00.000Z", "2026-11-28T06:00:00.000Z"]],
     "action_types": ["REDEEM_PERK", "REWARD_EARNED"], "merchant": "M0cuR5heCoXtxvDf"}

`read` is what the tap has read since its start: what it read earlier may have gone to another warehouse. A state
without `read` claims everything from `covered_from` to the bookmark. A state without `covered_from` claims nothing.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from target_crm.records.actions import EFFECTS
from target_crm.records.values import Invalid, instant

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import datetime, timedelta

STREAM = "actions"
REPLICATION_KEY = "when_timestamp"
# How many holes are considered when changes without an action are classified.
HOLES_MAX = 100


class Interval(NamedTuple):
    """The time after one instant, up to and including another."""

    after: datetime
    until: datetime

    @property
    def length(self) -> timedelta:
        """How long it is."""
        return self.until - self.after


class Scope(NamedTuple):
    """What an interval was read of.

    Attributes:
        merchant: The tap's hash of the merchant; empty if the state has none.
        action_types: The types of action that were read; empty for all.
    """

    merchant: str = ""
    action_types: tuple[str, ...] = ()


Claims = dict[Scope, list[Interval]]


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Merge overlapping and adjacent intervals; empty ones disappear."""
    merged: list[Interval] = []
    for each in sorted(each for each in intervals if each.after < each.until):
        if merged and each.after <= merged[-1].until:
            merged[-1] = Interval(merged[-1].after, max(merged[-1].until, each.until))
        else:
            merged.append(each)
    return merged


def between(intervals: Sequence[Interval], span: Interval) -> list[Interval]:
    """The parts of a span that are in none of the intervals, which are a `union`."""
    edges = [span.after, *(edge for each in intervals for edge in each), span.until]
    clipped = [min(max(edge, span.after), span.until) for edge in edges]
    gaps = zip(clipped[::2], clipped[1::2], strict=True)
    return [Interval(*gap) for gap in gaps if gap[0] < gap[1]]


def claims_of(state: Mapping[str, Any]) -> Claims:
    """Scope → intervals that a STATE claims to be read; nothing for the state of another tap."""
    bookmarks = state.get("bookmarks")
    bookmark = bookmarks.get(STREAM) if isinstance(bookmarks, dict) else None
    if not isinstance(bookmark, dict) or bookmark.get("replication_key", REPLICATION_KEY) != REPLICATION_KEY:
        return {}
    merchant, types = bookmark.get("merchant") or "", bookmark.get("action_types") or []
    if not isinstance(merchant, str) or not isinstance(types, list) or not all(isinstance(each, str) for each in types):
        return {}
    read = bookmark.get("read", [[bookmark.get("covered_from"), bookmark.get("replication_key_value")]])
    with suppress(Invalid, TypeError, ValueError):
        # A state without a valid `covered_from` is not one of tap-pepper.
        instant(bookmark.get("covered_from"))
        intervals = union(Interval(*map(instant, pair)) for pair in read)
        if intervals:
            return {Scope(merchant, tuple(sorted(set(types)))): intervals}
    return {}


def overlaps(start: Any, end: Any, interval: Interval) -> Any:
    """Whether the time from start to end has a part of an interval in it. Also of SQL expressions."""
    return (start < interval.until) & (end > interval.after)


def is_inside(start: Any, end: Any, interval: Interval) -> Any:
    """Whether the time from start to end is in an interval as a whole. Also of SQL expressions."""
    return (start >= interval.after) & (end <= interval.until)


@dataclass(frozen=True)
class MerchantCoverage:
    """What was read of one merchant.

    Attributes:
        merchant: The tap's hash of the merchant.
        intervals: What was read of all types of action that count.
        holes: What lies between the first and the last instant that was read of any type, and was not read.
        action_types: The types that count; empty for all.
        read: The intervals of each filter.
    """

    merchant: str
    intervals: list[Interval]
    holes: list[Interval]
    action_types: tuple[str, ...]
    read: Claims


def summarize(claims: Mapping[Scope, Collection[Interval]]) -> list[MerchantCoverage]:
    """Summarize what was read of each merchant.

    Balances need the types of action that have an effect. So a filter counts as much as no filter if it has all of
    them, or all of them that any run has read: a merchant may have chosen to read only some.
    """
    return [
        _summarize(
            merchant, {scope: union(each) for scope, each in sorted(claims.items()) if scope.merchant == merchant}
        )
        for merchant in sorted({scope.merchant for scope, each in claims.items() if union(each)})
    ]


@dataclass(frozen=True)
class ReadTimes:
    """Of which times the actions were read, and the holes between them."""

    covered: tuple[Interval, ...] = ()
    holes: tuple[Interval, ...] = ()


def read_times(merchants: Sequence[MerchantCoverage]) -> ReadTimes:
    """What was read of all merchants: it is not known which award is whose."""
    holes = union(chain.from_iterable(each.holes for each in merchants))
    if len(holes) > HOLES_MAX:
        # SQL has no room for any number of them.
        holes = [*holes[: HOLES_MAX - 1], Interval(holes[HOLES_MAX - 1].after, holes[-1].until)]
    if not all(each.intervals for each in merchants) or not merchants:
        return ReadTimes(holes=tuple(holes))
    after = max(each.intervals[0].after for each in merchants)
    until = min(each.intervals[-1].until for each in merchants)
    covered = between(holes, Interval(after, until)) if after < until else []
    return ReadTimes(tuple(covered), tuple(holes))


def _summarize(merchant: str, read: Claims) -> MerchantCoverage:
    filters = [set(scope.action_types) for scope in read]
    any_type = set(EFFECTS).union(*filters) if not all(filters) else set().union(*filters)
    needed = any_type & EFFECTS.keys() or any_type
    counting = [scope for scope in read if not scope.action_types or needed <= set(scope.action_types)]
    everything = union(chain.from_iterable(read.values()))
    intervals = union(chain.from_iterable(read[scope] for scope in counting))
    common = [set(scope.action_types) for scope in counting if scope.action_types]
    return MerchantCoverage(
        merchant=merchant,
        intervals=intervals,
        holes=between(intervals, Interval(everything[0].after, everything[-1].until)),
        action_types=tuple(sorted(set.intersection(*common))) if common else (),
        read=read,
    )
