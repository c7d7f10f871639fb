"""Explain an award's balance: list its actions, its snapshot and the holes in coverage in chronological order."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from target_crm.records import values
from target_crm.records.actions import EFFECTS
from target_crm.records.coverage import is_inside, overlaps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from target_crm.records.coverage import ReadTimes


class Event(StrEnum):
    """The kind of a line in an explanation."""

    OPENING = "opening"
    ACTION = "action"
    ADJUSTMENT = "adjustment"
    SNAPSHOT = "snapshot"
    HOLE = "hole"
    DELETION = "deletion"
    BALANCE = "balance"


# The possible reasons why a balance changed without an action.
_READ = "edit or expiry in Pepper"
_NOT_READ = "actions not read"
_NOT_READ_OF_ONE = "actions of one of the merchants in this schema not read"
_FILTERED = "edit, expiry, or an action of a type that was not read"
_NOT_RECORDED = "edit or expiry in Pepper, or actions not read"
# Actions without a time come first.
_FIRST = datetime.min.replace(tzinfo=UTC)


class Action(NamedTuple):
    """An action of an award.

    An action without an effect does not count: it changes no balance, or it does not contain the balance after the
    change.
    """

    action_id: str
    type: str | None
    occurred_at: datetime | None
    effect: str | None
    change: Decimal | None
    points_available: Decimal | None
    location_id: str | None
    location: str | None
    source: str | None


class Snapshot(NamedTuple):
    """An award as Pepper last showed it."""

    points: Decimal | None
    at: datetime | None
    deleted_at: datetime | None


@dataclass(frozen=True)
class Line:
    """One line of an explanation.

    The balance of the opening line plus the changes of all lines is the balance of the last line.

    Attributes:
        event: The kind of the line.
        at: The time of the event. For a hole, the time when it ends. For an adjustment, the time of the action or
            snapshot below it, which reveals the change.
        after: The beginning of a hole. For an adjustment, the time when the balance last matched the lines above.
        change: The change in the balance; None if the line does not count.
        balance: The balance after the change. For a snapshot, the points that Pepper showed.
        source: The part of Pepper that reported the action.
        note: An explanation of the line, such as the reason for an adjustment.
    """

    event: Event
    at: datetime | None = None
    after: datetime | None = None
    type: str | None = None
    location_id: str | None = None
    location: str | None = None
    change: Decimal | None = None
    balance: Decimal | None = None
    source: str | None = None
    action_id: str | None = None
    note: str | None = None

    @property
    def step(self) -> tuple[Decimal, Decimal] | None:
        """The balance before and after the line; None if the line does not count."""
        return None if self.balance is None or self.change is None else (self.balance - self.change, self.balance)


def explain(
    points: Decimal, as_of: datetime, actions: Sequence[Action], snapshot: Snapshot, read: ReadTimes
) -> list[Line]:
    """Explain the balance of one award.

    Args:
        points: The stored balance.
        as_of: The time of the stored balance.
        actions: The award's actions in the ledger, in any order.
        snapshot: The award's snapshot.
        read: The intervals for which actions were read, and the holes.
    """
    timeline = _timeline(actions, snapshot, read)
    places = [place for place, line in enumerate(timeline) if line.step]
    counted = [timeline[place] for place in places]
    balance = next((line.step[0] for line in counted if line.step), points)
    known_at = counted[0].at if counted else None
    # Actions in a hole before the oldest known action are part of the opening balance.
    holes_before = [place for place in range(places[0] if places else 0) if timeline[place].event is Event.HOLE]
    first = holes_before[-1] + 1 if holes_before else 0
    note = "before the oldest action" if counted and counted[0].event is Event.ACTION else "no action counts"
    note += "; may include actions that were not read" if holes_before else ""
    lines = [*timeline[:first], Line(Event.OPENING, balance=balance, note=note)]
    for line in timeline[first:]:
        if line.step:
            before, after = line.step
            if before != balance:
                why = _reason(known_at, line.at, read)
                lines.append(
                    Line(Event.ADJUSTMENT, line.at, known_at, change=before - balance, balance=before, note=why)
                )
            balance, known_at = after, line.at
        lines.append(line)
    note = "Pepper's snapshot" if counted and counted[-1].event is Event.SNAPSHOT else "after the newest action"
    if points != balance:
        note = f"the lines above lead to {values.number_text(balance)}: run crm-balances verify"
    return [*lines, Line(Event.BALANCE, as_of, balance=points, note=note)]


def _timeline(actions: Sequence[Action], snapshot: Snapshot, read: ReadTimes) -> list[Line]:
    """Return a line for each action, for each hole, for the snapshot and for a deletion.

    A line that counts has a value in `change`.

    A snapshot counts only if it is newer than every action. Pepper may write a snapshot shortly before it writes the
    action whose points the snapshot already shows.
    """
    keyed = [(_order(each), _action_line(each)) for each in actions]
    newest = max((each for each in actions if each.effect), key=_order, default=None)
    if snapshot.at is not None and snapshot.points is not None:
        note = _compare(snapshot.points, snapshot.at, newest)
        change = None if note else Decimal(0)
        line = Line(Event.SNAPSHOT, snapshot.at, change=change, balance=snapshot.points, note=note)
        keyed.append(((snapshot.at, 1, b""), line))
    if snapshot.deleted_at is not None:
        note = "left out of user_balances"
        keyed.append(((snapshot.deleted_at, 2, b""), Line(Event.DELETION, snapshot.deleted_at, note=note)))
    # A hole excludes its first instant, so actions at that instant were read. They come before the hole.
    note = _NOT_READ_OF_ONE if read.are_several else _NOT_READ
    keyed += [((hole.after, 3, b""), Line(Event.HOLE, hole.until, hole.after, note=note)) for hole in read.holes]
    return [line for _, line in sorted(keyed, key=itemgetter(0))]


def _order(action: Action) -> tuple[datetime, int, bytes]:
    """Return the sort key of an action's line. At the same instant, actions come before the snapshot."""
    return action.occurred_at or _FIRST, 0, action.action_id.encode()


def _compare(points: Decimal, at: datetime, newest: Action | None) -> str | None:
    """Return the reason why a snapshot does not count. Return None if the snapshot counts."""
    if newest is None or newest.occurred_at is None or at > newest.occurred_at:
        return None
    if at < newest.occurred_at:
        return "older than the newest action"
    is_equal = points == newest.points_available
    return "agrees with the newest action" if is_equal else "same time as the newest action, which takes precedence"


def _action_line(action: Action) -> Line:
    return Line(
        Event.ACTION,
        action.occurred_at,
        type=action.type,
        location_id=action.location_id,
        location=action.location,
        change=action.change if action.effect else None,
        balance=action.points_available if action.effect else None,
        source=action.source,
        action_id=action.action_id,
        note=_not_counted(action),
    )


def _not_counted(action: Action) -> str | None:
    """Return the reason why an action does not count. Return None if the action counts."""
    if action.effect:
        return None
    if action.type in EFFECTS and action.change is not None:
        return "not counted: it does not contain the balance"
    return "changes no balance"


def _reason(after: datetime | None, at: datetime | None, read: ReadTimes) -> str:
    if any(overlaps(after, at, hole) for hole in read.holes):
        # The award may belong to another merchant.
        return _NOT_RECORDED if read.are_several else _NOT_READ
    if any(is_inside(after, at, each) for each in read.covered):
        return _READ
    return _FILTERED if any(is_inside(after, at, each) for each in read.filtered) else _NOT_RECORDED
