"""Pure: an award's actions, its snapshot and what was read → the lines that lead to its balance, in order of time."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from target_crm.records.coverage import is_inside, overlaps
from target_crm.records.values import from_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from target_crm.records.coverage import ReadTimes

# What a line is about.
OPENING, ACTION, ADJUSTMENT, SNAPSHOT, HOLE, DELETION, BALANCE = (
    "opening",
    "action",
    "adjustment",
    "snapshot",
    "hole",
    "deletion",
    "balance",
)
# Why a balance changed without an action.
_READ = "edit or expiry in Pepper"
_NOT_READ = "actions not read"
_NOT_RECORDED = "edit or expiry in Pepper, or actions not read"
# Of an action without a time.
_FIRST = datetime.min.replace(tzinfo=UTC)


class Action(NamedTuple):
    """An action of an award. Without an effect it changes no balance."""

    action_id: str
    type: str | None
    occurred_at: datetime | None
    effect: str | None
    change: Decimal
    points_available: Decimal
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
        event: What the line is about: one of the constants above.
        at: When it happened; of a hole its end; of an adjustment when it was found.
        after: Of a hole its beginning; of an adjustment the time until which the balance was as the lines above say.
        change: By how much the balance changed; None if the line does not count.
        balance: The balance after that; of a snapshot what Pepper showed.
        source: Where an action came from, such as a till.
        note: What else there is to say.
    """

    event: str
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


def location_title(payload: str | None) -> str | None:
    """The title of the location in an action's payload."""
    found: object = None
    with suppress(ValueError):
        found = from_json(payload or "null")
    for name in ("context", "location", "title"):
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, str) else None


def explain(
    points: Decimal, as_of: datetime, actions: Iterable[Action], snapshot: Snapshot, read: ReadTimes
) -> list[Line]:
    """Explain the balance of one award.

    Args:
        points: The stored balance.
        as_of: Its time.
        actions: The award's actions in the ledger, in any order.
        snapshot: The award's snapshot.
        read: Of which times the actions were read.
    """
    timeline = _timeline([*actions], snapshot, read)
    counted = [
        (line.balance - line.change, line) for line in timeline if line.balance is not None and line.change is not None
    ]
    balance, oldest = counted[0] if counted else (points, Line(SNAPSHOT))
    is_of_ledger = oldest.event == ACTION
    note = "before the oldest action" if is_of_ledger else "no action counts"
    lines = [Line(OPENING, balance=balance, note=note)]
    known_at = oldest.at
    for line in timeline:
        if line.change is not None and line.balance is not None:
            before = line.balance - line.change
            if before != balance:
                why = _reason(known_at, line.at, read)
                lines.append(Line(ADJUSTMENT, line.at, known_at, change=before - balance, balance=before, note=why))
            balance, known_at = line.balance, line.at
        lines.append(line)
    note = "Pepper's snapshot" if counted and counted[-1][1].event == SNAPSHOT else "after the newest action"
    if points != balance:
        note = f"the lines above lead to {balance.normalize():f}: run crm-balances verify"
    return [*lines, Line(BALANCE, as_of, balance=points, note=note)]


def _timeline(actions: Sequence[Action], snapshot: Snapshot, read: ReadTimes) -> list[Line]:
    """A line for each action, for the snapshot, a deletion and each hole. Those that count have a change.

    A snapshot counts only if it is newer than every action: Pepper may write it before the action that it shows.
    """
    keyed = [((each.occurred_at or _FIRST, 1, each.action_id.encode()), _action_line(each)) for each in actions]
    last_at = max((each.occurred_at for each in actions if each.effect and each.occurred_at), default=None)
    if snapshot.at is not None and snapshot.points is not None:
        is_newest = last_at is None or snapshot.at > last_at
        note = None if is_newest else "older than the newest action"
        change = Decimal(0) if is_newest else None
        line = Line(SNAPSHOT, snapshot.at, change=change, balance=snapshot.points, note=note)
        keyed.append(((snapshot.at, 0, b""), line))
    if snapshot.deleted_at is not None:
        note = "left out of user_balances"
        keyed.append(((snapshot.deleted_at, 2, b""), Line(DELETION, snapshot.deleted_at, note=note)))
    # What happened at the beginning of a hole was read.
    keyed += [((hole.after, 3, b""), Line(HOLE, hole.until, hole.after, note=_NOT_READ)) for hole in read.holes]
    return [line for _, line in sorted(keyed, key=itemgetter(0))]


def _action_line(action: Action) -> Line:
    return Line(
        ACTION,
        action.occurred_at,
        type=action.type,
        location_id=action.location_id,
        location=action.location,
        change=action.change if action.effect else None,
        balance=action.points_available if action.effect else None,
        source=action.source,
        action_id=action.action_id,
        note=None if action.effect else "changes no balance",
    )


def _reason(after: datetime | None, at: datetime | None, read: ReadTimes) -> str:
    if any(overlaps(after, at, hole) for hole in read.holes):
        return _NOT_READ
    return _READ if any(is_inside(after, at, each) for each in read.covered) else _NOT_RECORDED
