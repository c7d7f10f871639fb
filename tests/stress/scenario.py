"""A random stream of messages, the balances that the oracle expects, and the rows that must exist after each STATE."""

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

# Canaries, which must never appear in a log, an error or a STATE. The person is in every record, the token in the URL.
PERSON = "Zelda Canaryperson"
TOKEN = "tok3n-canary-5f1c"
CANARIES = (PERSON, "Canaryperson", TOKEN)

MERCHANT = "M0cuR5heCoXtxvDf"
START = datetime(2026, 10, 1, 12, 0, tzinfo=UTC)
PERK = {"_id": {"type": "string"}, "title": {"type": ["string", "null"]}}
# The schema of perks changes during a scenario: first no price, then an integer price, then a fractional price.
PERKS, PERKS_INTEGER_PRICE, PERKS_NUMBER_PRICE = (
    schema("perks", {**PERK, **price}, "_id")
    for price in ({}, {"price": {"type": "integer"}}, {"price": {"type": "number"}})
)
FINAL_PERKS = [("p0", "Water", None, True), ("p1", "Coffee", 2.5, False), ("p2", "Tea", 3.0, False)]
VISITS = schema("visits", {"number": {"type": "integer"}})
SCHEMAS = [PERKS, AWARDS, ACTIONS]
# A wrong collation would merge these ids, or sort them differently.
AWARD_IDS = ["w1", "W1", "é", "w2", "w3", "w4"]
USER_OF = {award: f"u{number // 2}" for number, award in enumerate(AWARD_IDS)}
TYPES = {"earned": "REWARD_EARNED", "redeemed": "REDEEM_PERK", "refunded": "AWARD_POINTS_REFUNDED"}


@dataclass
class Scenario:
    """Messages in the order in which a tap sends them. Each STATE contains the number of lines before it."""

    schemas: list[str]
    lines: list[str]
    events: list[Action | Snapshot] = field(default_factory=list)
    required: list[tuple[int, str, str]] = field(default_factory=list)
    """(line, table, key): the table contains the key once this line is loaded.

    For `rejected_records`, the key is a word in the payload.
    """

    def add(self, line: str, table: str, key: str) -> None:
        """Add a message and the row that it must produce."""
        self.lines.append(line)
        self.required.append((len(self.lines), table, key))

    def add_state(self) -> None:
        """Add a STATE that covers all lines so far, and a second of coverage for each of them."""
        self.lines.append(_state(len(self.lines)))

    def input(self, resumed_from: int = 0) -> bytes:
        """Return the messages that a tap sends when it resumes from the STATE that covers this many lines.

        In each STATE, `read` then contains only what the resumed run has read.
        """
        if not resumed_from:
            return as_input(self.lines)
        lines = (
            _state(number, resumed_from) if '"STATE"' in line else line
            for number, line in enumerate(self.lines[resumed_from:], resumed_from)
        )
        return as_input([*self.schemas, *lines])

    def last_state(self, before: int) -> int:
        """Return how many lines the last STATE before a line covers; 0 if there is no such STATE."""
        return max((number for number, line in enumerate(self.lines[:before]) if '"STATE"' in line), default=0)

    def coverage(self) -> list[dict[str, Any]]:
        """Return the coverage once all lines are loaded."""
        end = START + timedelta(seconds=len(self.lines) - 1)
        types = json.dumps(sorted(TYPES.values()))
        return [{"merchant": MERCHANT, "action_types": types, "covered_from": START, "covered_until": end}]

    def required_rows(self, lines: int) -> set[tuple[str, str]]:
        """Return the (table, key) pairs that must exist once a STATE that covers this many lines was emitted."""
        return {(table, key) for line, table, key in self.required if line <= lines}

    def balances(self) -> list[dict[str, Any]]:
        """Return the oracle's balances."""
        return oracle.balances(self.events, USER_OF)


def as_input(lines: list[str]) -> bytes:
    """Encode messages for standard input."""
    return "".join(f"{line}\n" for line in lines).encode()


def _state(lines: int, resumed_from: int = 0) -> str:
    """Return the STATE of a run that has read from one line to another, with a filter and a merchant."""
    until, read_from = (START + timedelta(seconds=number) for number in (lines, resumed_from))
    actions = {
        "replication_key_value": until.isoformat(),
        "covered_from": START.isoformat(),
        "read": [[read_from.isoformat(), until.isoformat()]],
        "action_types": sorted(TYPES.values()),
        "merchant": MERCHANT,
    }
    return state({"bookmarks": {"lines": lines, "actions": actions}})


def covered_lines(state_line: str) -> int:
    """Return how many lines a STATE covers."""
    return int(json.loads(state_line)["bookmarks"]["lines"])


def make_scenario(random: Random, rows: int, *, ordered: bool = True, keyless: bool = False) -> Scenario:
    """Generate on-time, late, simultaneous, repeated, contradictory and malformed rows, and perks that change.

    Args:
        random: the source of all choices.
        rows: how many rows to generate.
        ordered: include contradictions and deleted perks. Their outcome depends on the order of delivery, so leave
            them out if several runs deliver one scenario.
        keyless: include a stream without a key. Its rows are appended, so leave it out if lines are sent twice.
    """
    more = [VISITS] if keyless else []
    scenario = Scenario([PERKS_NUMBER_PRICE, *SCHEMAS[1:], *more], [*SCHEMAS, *more])
    _add_perk(scenario, 1, _id="p1", title="Coffee")
    if ordered:
        _add_perk(scenario, 1, _id="p0", title="Water")
        scenario.lines.append(json.dumps({"type": "ACTIVATE_VERSION", "stream": "perks", "version": 1}))
    now = START
    for number in range(rows):
        now += timedelta(milliseconds=random.choice([0, 0, 1, 500, 1500]))
        _change_perk_schema(scenario, number / rows)
        award = random.choice(AWARD_IDS)
        kind = random.choices(
            ["action", "late", "snapshot", "again", "legacy", "contradiction", "bad", "noise"],
            [50, 8, 16, 12, 4, 3 * ordered, 4, 3],
        )[0]
        repeatable = [event for event in scenario.events if isinstance(event, Action)]
        if kind in {"again", "contradiction"} and not repeatable:
            kind = "action"
        if kind == "snapshot":
            _add_snapshot(scenario, random, award, now, number)
        elif kind == "again":
            event = random.choice(repeatable)
            scenario.lines.append(action_line(event))
        elif kind == "contradiction":
            event = random.choice(repeatable)
            word = f"contradiction-{number}"
            scenario.add(action_line(event, delta=event.delta + 1, note=word), "rejected_records", word)
        elif kind == "bad":
            line = action(f"bad-{number}", delta="many", context=_person("u1"))
            scenario.add(line, "rejected_records", f"bad-{number}")
        elif kind == "noise":
            # This line names its stream, because a line of an unknown stream would prevent the deletion of perks.
            line = f'{{"type": "RECORD", "stream": "actions", "noise-{number} of {PERSON}"'
            scenario.add(line, "rejected_records", f"noise-{number}")
        else:
            _add_action(scenario, random, award, now, number, kind=kind)
        if keyless:
            scenario.lines.append(record("visits", {"number": number}))
        if random.randrange(3) == 0:
            scenario.add_state()
    _add_perk(scenario, 2, _id="p1", title="Coffee", price=2.5)
    if ordered:
        scenario.lines.append(json.dumps({"type": "ACTIVATE_VERSION", "stream": "perks", "version": 2}))
    scenario.add_state()
    return scenario


def action_line(event: Action, *, delta: Decimal | None = None, **more: Any) -> str:
    """Return an action as the tap sends it, with a person's name in it."""
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
    """Return a snapshot as the tap sends it."""
    fields = {
        "_id": event.award_id,
        "points": None if event.points is None else str(event.points),
        "userId": USER_OF[event.award_id],
        "perkId": event.perk_id,
        "updatedAt": event.updated_at and event.updated_at.isoformat(),
        "note": PERSON,
    }
    return record("awards", fields, event.read_at.isoformat())


def _add_perk(scenario: Scenario, version: int, **fields: Any) -> None:
    message = json.loads(record("perks", fields, (START + timedelta(seconds=version)).isoformat()))
    scenario.add(json.dumps({**message, "version": version}), "perks", fields["_id"])


def _change_perk_schema(scenario: Scenario, progress: float) -> None:
    """Add an integer price after a third of the scenario, and widen it after two thirds."""
    if progress >= 1 / 3 and PERKS_INTEGER_PRICE not in scenario.lines:
        scenario.lines.append(PERKS_INTEGER_PRICE)
        _add_perk(scenario, 2, _id="p2", title="Tea", price=3)
    if progress >= 2 / 3 and PERKS_NUMBER_PRICE not in scenario.lines:
        scenario.lines.append(PERKS_NUMBER_PRICE)


def _add_action(scenario: Scenario, random: Random, award: str, now: datetime, number: int, *, kind: str) -> None:
    occurred_at = now - timedelta(seconds=random.randrange(10)) if kind == "late" else now
    effect = None if kind == "legacy" else random.choice(list(TYPES))
    available = Decimal(random.randrange(-200, 2000)) / random.choice([1, 10, 10000])
    delta = Decimal(random.randrange(500)) / random.choice([1, 10, 10000])
    event = Action(_action_id(random, number), award, occurred_at, effect, delta, available, "p1")
    scenario.events.append(event)
    scenario.add(action_line(event), "actions", event.action_id)


def _add_snapshot(scenario: Scenario, random: Random, award: str, now: datetime, number: int) -> None:
    points = random.choice([None, *[Decimal(random.randrange(1000)) / 100] * 6])
    updated_at = random.choice([None, now, now, now - timedelta(seconds=5)])
    read_at = now + timedelta(microseconds=number)
    event = Snapshot(award, points, updated_at, read_at, "p1")
    scenario.events.append(event)
    scenario.add(snapshot_line(event), "awards", award)


def _action_id(random: Random, number: int) -> str:
    return f"{random.choice('aBbÉzZ9')}{number}"


def _person(user: str) -> dict[str, Any]:
    return {"user": {"_id": user, "fullName": PERSON}}
