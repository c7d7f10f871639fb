"""A seeded stream of messages, what the oracle makes of it, and what must be in the warehouse by each STATE."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from tests.helpers import oracle
from tests.helpers.oracle import Action, Snapshot
from tests.helpers.target import ACTIONS, AWARDS, action, record, schema, state

if TYPE_CHECKING:
    from random import Random

# Must never be seen in a log, an error or a STATE; a person is in every record, the token in the warehouse's URL.
PERSON = "Zelda Canaryperson"
TOKEN = "tok3n-canary-5f1c"
CANARIES = (PERSON, "Canaryperson", TOKEN)

START = datetime(2026, 10, 1, 12, 0, tzinfo=UTC)
PERK = {"_id": {"type": "string"}, "title": {"type": ["string", "null"]}}
# As time goes by, perks get a price, and then one that is no whole number.
PERKS, PERKS_PRICED, PERKS_PRICED_FINELY = (
    schema("perks", {**PERK, **price}, "_id")
    for price in ({}, {"price": {"type": "integer"}}, {"price": {"type": "number"}})
)
PERKS_IN_THE_END = [("p0", "Water", None, True), ("p1", "Coffee", 2.5, False), ("p2", "Tea", 3.0, False)]
VISITS = schema("visits", {"number": {"type": "integer"}})
SCHEMAS = [PERKS, AWARDS, ACTIONS]
# Ids that a careless collation merges or puts into another order.
AWARD_IDS = ["w1", "W1", "é", "w2", "w3", "w4"]
USER_OF = {award: f"u{number // 2}" for number, award in enumerate(AWARD_IDS)}
TYPES = {"earned": "REWARD_EARNED", "redeemed": "REDEEM_PERK", "refunded": "AWARD_POINTS_REFUNDED"}


@dataclass
class Story:
    """Messages in the order in which a tap sends them; STATE says how many of the lines came before it."""

    schemas: list[str]
    lines: list[str]
    events: list[Action | Snapshot] = field(default_factory=list)
    needs: list[tuple[int, str, str]] = field(default_factory=list)
    """From which line on a table must have a key (`rejected_records`: a payload with that word in it)."""

    def add(self, line: str, table: str, key: str) -> None:
        """A message, and the row that it must leave behind."""
        self.lines.append(line)
        self.needs.append((len(self.lines), table, key))

    def tell_state(self) -> None:
        """A STATE that covers all lines so far."""
        self.lines.append(state({"bookmarks": {"lines": len(self.lines)}}))

    def input(self, resumed_from: int = 0) -> bytes:
        """What a tap sends that was resumed from a STATE."""
        lines = [*self.schemas, *self.lines[resumed_from:]] if resumed_from else self.lines
        return as_input(lines)

    def needed(self, lines: int) -> set[tuple[str, str]]:
        """What the warehouse must have once a STATE of so many lines is visible."""
        return {(table, key) for line, table, key in self.needs if line <= lines}

    def balances(self) -> list[dict[str, Any]]:
        """The oracle's answer."""
        return oracle.balances(self.events, USER_OF)


def as_input(lines: list[str]) -> bytes:
    """Messages as bytes of a standard input."""
    return "".join(f"{line}\n" for line in lines).encode()


def covered(state_line: str) -> int:
    """How many lines a STATE covers."""
    return int(json.loads(state_line)["bookmarks"]["lines"])


def story(random: Random, rows: int, *, ordered: bool = True, keyless: bool = False) -> Story:
    """Rows of all kinds: in time and late, simultaneous, repeated, contradictory, malformed; perks come, change and go.

    Two orders of contradictions, or of what is gone, are two stories, and keyless rows that are sent twice are two
    rows: they are left out where several runs deliver a story.
    """
    more = [VISITS] if keyless else []
    told = Story([PERKS_PRICED_FINELY, *SCHEMAS[1:], *more], [*SCHEMAS, *more])
    _tell_perk(told, 1, _id="p1", title="Coffee")
    if ordered:
        _tell_perk(told, 1, _id="p0", title="Water")
    now = START
    for number in range(rows):
        now += timedelta(milliseconds=random.choice([0, 0, 1, 500, 1500]))
        _tell_of_prices(told, number / rows)
        award = random.choice(AWARD_IDS)
        kind = random.choices(
            ["action", "late", "snapshot", "again", "legacy", "contradiction", "bad", "noise"],
            [50, 8, 16, 12, 4, 3 * ordered, 4, 3],
        )[0]
        repeatable = [event for event in told.events if isinstance(event, Action)]
        if kind in {"again", "contradiction"} and not repeatable:
            kind = "action"
        if kind == "snapshot":
            _tell_snapshot(told, random, award, now, number)
        elif kind == "again":
            event = random.choice(repeatable)
            told.lines.append(line_of(event))
        elif kind == "contradiction":
            event = random.choice(repeatable)
            word = f"contradiction-{number}"
            told.add(line_of(event, delta=event.delta + 1, note=word), "rejected_records", word)
        elif kind == "bad":
            told.add(action(f"bad-{number}", delta="many", context=_person("u1")), "rejected_records", f"bad-{number}")
        elif kind == "noise":
            told.add(f'{{"type": "RECORD", "noise-{number} of {PERSON}"', "rejected_records", f"noise-{number}")
        else:
            _tell_action(told, random, award, now, number, kind=kind)
        if keyless:
            told.lines.append(record("visits", {"number": number}))
        if random.randrange(7) == 0:
            told.tell_state()
    _tell_perk(told, 2, _id="p1", title="Coffee", price=2.5)
    if ordered:
        told.lines.append(json.dumps({"type": "ACTIVATE_VERSION", "stream": "perks", "version": 2}))
    told.tell_state()
    return told


def line_of(event: Action, *, delta: Decimal | None = None, **more: Any) -> str:
    """An action as the tap sends it, with a person in it."""
    sent = event.delta if delta is None else delta
    line = action(
        event.action_id,
        TYPES[event.effect or "earned"],
        delta=str(sent),
        available=str(event.available) if event.effect else None,
        at=event.occurred_at.isoformat(),
        award=event.award_id,
        context=_person(USER_OF[event.award_id]),
    )
    message = json.loads(line)
    message["record"].update(more)
    return json.dumps(message)


def snapshot_line(event: Snapshot) -> str:
    """A snapshot as the tap sends it."""
    fields = {
        "_id": event.award_id,
        "points": None if event.points is None else str(event.points),
        "userId": USER_OF[event.award_id],
        "perkId": event.perk_id,
        "updatedAt": event.updated_at and event.updated_at.isoformat(),
        "note": PERSON,
    }
    return record("awards", fields, event.read_at.isoformat())


def _tell_perk(told: Story, version: int, **fields: Any) -> None:
    message = json.loads(record("perks", fields, (START + timedelta(seconds=version)).isoformat()))
    told.add(json.dumps({**message, "version": version}), "perks", fields["_id"])


def _tell_of_prices(told: Story, part: float) -> None:
    """Perks get a price after a third of the story, and a finer one after two."""
    if part >= 1 / 3 and PERKS_PRICED not in told.lines:
        told.lines.append(PERKS_PRICED)
        _tell_perk(told, 2, _id="p2", title="Tea", price=3)
    if part >= 2 / 3 and PERKS_PRICED_FINELY not in told.lines:
        told.lines.append(PERKS_PRICED_FINELY)


def _tell_action(told: Story, random: Random, award: str, now: datetime, number: int, *, kind: str) -> None:
    occurred_at = now - timedelta(seconds=random.randrange(10)) if kind == "late" else now
    effect = None if kind == "legacy" else random.choice(list(TYPES))
    available = Decimal(random.randrange(-200, 2000)) / random.choice([1, 10, 10000])
    delta = Decimal(random.randrange(500)) / random.choice([1, 10, 10000])
    event = Action(_action_id(random, number), award, occurred_at, effect, delta, available, "p1")
    told.events.append(event)
    told.add(line_of(event), "actions", event.action_id)


def _tell_snapshot(told: Story, random: Random, award: str, now: datetime, number: int) -> None:
    points = random.choice([None, *[Decimal(random.randrange(1000)) / 100] * 6])
    updated_at = random.choice([None, now, now, now - timedelta(seconds=5)])
    read_at = now + timedelta(microseconds=number)
    event = Snapshot(award, points, updated_at, read_at, "p1")
    told.events.append(event)
    told.add(snapshot_line(event), "awards", award)


def _action_id(random: Random, number: int) -> str:
    return f"{random.choice('aBbÉzZ9')}{number}"


def _person(user: str) -> dict[str, Any]:
    return {"user": {"_id": user, "fullName": PERSON}}
