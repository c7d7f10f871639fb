"""A programme changes while it is polled, with crashes, resumed runs, direct edits and rebuilds in between."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import time
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from sqlalchemy import text

from target_crm.balances_cli.replay import replay
from target_crm.balances_cli.verify import rebuild
from target_crm.loader.target import TargetCrm
from tests.helpers import oracle
from tests.helpers.oracle import Action, Snapshot
from tests.helpers.target import ACTIONS, AWARDS, load, record, schema, state, table
from tests.stress import PHASES, SEED, SHARDS, count, size
from tests.stress.database_calls import AFTER, BEFORE, Call, observed
from tests.stress.scenario import AWARD_IDS, CANARIES, START, TYPES, USER_OF, action_line, snapshot_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.stress.runs import Place

CRASH_CALL_MAX = 80
STATE_EVERY = 4

awards = st.sampled_from(AWARD_IDS[:4])
seconds = st.sampled_from([0, 0, 1, 60])
points = st.integers(-50, 500).map(lambda units: Decimal(units) / 4)
moments = st.sampled_from([BEFORE, AFTER])

TEXT = {"type": ["string", "null"]}
# The type of a perk's price changes: first there is none, then an integer, then a number.
PRICE_TYPES = ["", "integer", "number"]


@dataclass(frozen=True)
class Delivery:
    """How a run delivers events.

    Attributes:
        lookback: how many acknowledged events are sent again.
        batch_size_rows: the target's batch size.
        shuffle: the seed for the order of events between two STATEs.
    """

    lookback: int
    batch_size_rows: int
    shuffle: int


deliveries = st.builds(Delivery, st.integers(0, 6), st.integers(1, 7), st.integers(0, 99))


@dataclass(frozen=True)
class Perk:
    """A perk on sale."""

    title: str
    price: Decimal


class BrokenOutput(io.StringIO):
    """A standard output whose reader has exited."""

    devnull = Path(os.devnull).open("wb")  # noqa: SIM115 - open until the process ends

    def write(self, _: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    def fileno(self) -> int:
        return self.devnull.fileno()


class Killed(BaseException):
    """Simulates the death of the process during a database call."""


class Lifecycle(RuleBasedStateMachine):
    """The events in Pepper, how many of them are acknowledged, and a warehouse that is loaded from them."""

    place: Place

    def __init__(self) -> None:
        super().__init__()
        self.began = time.perf_counter()
        self.place.clear()
        self.now = START
        self.points: dict[str, Decimal] = dict.fromkeys(AWARD_IDS, Decimal(0))
        self.events: list[Action | Snapshot] = []
        self.late_actions: list[Action] = []
        self.acknowledged = 0
        self.perks: dict[str, Perk] = {}
        self.schema_version = 0
        self.versions = 0
        load(self.place.url, [AWARDS, ACTIONS, self.perk_schema()])

    @rule(
        award=awards, effect=st.sampled_from([*TYPES, None]), delta=points.map(abs), after=seconds, late=st.booleans()
    )
    def act(self, award: str, effect: str | None, delta: Decimal, after: int, late: bool) -> None:
        """An action happens. It may become visible only later."""
        self.now += timedelta(seconds=after)
        if effect:
            self.points[award] += -delta if effect == "redeemed" else delta
        number = len(self.events) + len(self.late_actions)
        action = Action(f"{'aBé'[number % 3]}{number}", award, self.now, effect, delta, self.points[award], "p1")
        (self.late_actions if late else self.events).append(action)

    @rule()
    def show_late_actions(self) -> None:
        """Late actions become visible."""
        self.events += self.late_actions
        self.late_actions = []

    @rule(award=awards, value=points, after=seconds)
    def edit(self, award: str, value: Decimal, after: int) -> None:
        """Someone edits the points in Pepper. Only a snapshot shows the edit."""
        self.now += timedelta(seconds=after)
        self.points[award] = value
        self.take_snapshot(award)

    @rule(award=awards)
    def take_snapshot(self, award: str) -> None:
        """Pepper shows an award's current state."""
        read_at = self.now + timedelta(microseconds=len(self.events))
        self.events.append(Snapshot(award, self.points[award], self.now, read_at, "p1"))

    @rule(perk=st.sampled_from(["p1", "p2", "p3"]), price=points)
    def set_price(self, perk: str, price: Decimal) -> None:
        """Add a perk or change its price."""
        self.perks[perk] = Perk(f"{perk} for {price}", price)

    @rule(perk=st.sampled_from(["p1", "p2", "p3"]))
    def delete_perk(self, perk: str) -> None:
        """Delete a perk."""
        self.perks.pop(perk, None)

    @rule()
    def extend_schema(self) -> None:
        """Add an integer price to the schema of perks. The second time, widen the price to a number."""
        self.schema_version = min(self.schema_version + 1, len(PRICE_TYPES) - 1)

    @rule(delivery=deliveries)
    def poll(self, delivery: Delivery) -> None:
        """A run resumes from the last STATE and sends some events again. The balances match the oracle."""
        self.run(delivery)
        assert self.acknowledged == len(self.events)
        self.check()

    @rule(delivery=deliveries)
    def poll_with_broken_output(self, delivery: Delivery) -> None:
        """A run whose STATE cannot be written still loads everything."""
        self.run(delivery, output=BrokenOutput())
        self.check()
        count(f"runs with a broken output, {self.place.engine}")

    @rule(delivery=deliveries, call=st.integers(1, CRASH_CALL_MAX), moment=moments)
    def crash(self, delivery: Delivery, call: int, moment: str) -> None:
        """A run dies during a database call, unless it ends before that call."""
        with self.killed_at(call, moment):
            self.run(delivery)
        acknowledged = {event.action_id for event in self.events[: self.acknowledged] if isinstance(event, Action)}
        assert acknowledged <= {row["action_id"] for row in table(self.place.warehouse, "actions", "action_id")}
        self.place.assert_consistent()

    @rule(delivery=deliveries, call=st.integers(1, CRASH_CALL_MAX), moment=moments)
    def replay(self, delivery: Delivery, call: int, moment: str) -> None:
        """Records without a SCHEMA are quarantined. A replay loads them, even after a replay that died halfway."""
        self.run(delivery, with_schemas=False)
        with self.killed_at(call, moment):
            self.replay_all()
        self.place.assert_consistent()
        self.replay_all()
        assert table(self.place.warehouse, "rejected_records") == []
        self.check()
        count(f"replays, {self.place.engine}")

    @rule()
    def rebuild(self) -> None:
        """A rebuild changes nothing."""
        before = table(self.place.warehouse, "award_balances")
        rebuild(self.place.warehouse)
        assert table(self.place.warehouse, "award_balances") == before

    def check(self) -> None:
        """Fail unless the balances match the oracle and `verify` finds no drift."""
        assert table(self.place.warehouse, "award_balances") == oracle.balances(self.events, USER_OF)
        self.place.assert_consistent()

    def check_perks(self) -> None:
        """Fail unless perks on sale are stored correctly and all others are marked as deleted."""
        with self.place.warehouse.read() as connection:
            price = ", price" if self.schema_version else ""
            query = text(f"SELECT _id, title{price} FROM perks WHERE _sdc_deleted_at IS NULL")
            found = {key: (title, *map(float, prices)) for key, title, *prices in connection.execute(query)}
        assert found == {
            key: (perk.title, *[float(self.price_of(perk))] * bool(self.schema_version))
            for key, perk in self.perks.items()
        }

    def perk_schema(self) -> str:
        """Return the current SCHEMA of perks."""
        price = PRICE_TYPES[self.schema_version]
        return schema("perks", {"_id": TEXT, "title": TEXT, **({"price": {"type": price}} if price else {})}, "_id")

    def price_of(self, perk: Perk) -> Decimal:
        """Return a perk's price as the tap sends it."""
        return round(perk.price) if PRICE_TYPES[self.schema_version] == "integer" else perk.price

    def all_perks(self) -> list[str]:
        """Return all perks under a new version, and the message that activates it."""
        self.versions += 1
        read_at = (START + timedelta(seconds=self.versions)).isoformat()
        records = [
            record("perks", {"_id": key, "title": perk.title, "price": float(self.price_of(perk))}, read_at)
            for key, perk in self.perks.items()
        ]
        versioned = [json.dumps({**json.loads(each), "version": self.versions}) for each in records]
        active = {"type": "ACTIVATE_VERSION", "stream": "perks", "version": self.versions}
        return [self.perk_schema(), *versioned, json.dumps(active)]

    def run(self, delivery: Delivery, *, with_schemas: bool = True, output: io.StringIO | None = None) -> None:
        """Deliver unacknowledged and some acknowledged events, shuffled between STATEs. Then deliver all perks."""
        start = max(self.acknowledged - delivery.lookback, 0)
        random = Random(delivery.shuffle)
        lines = [AWARDS, ACTIONS] if with_schemas else []
        for first in range(start, len(self.events), STATE_EVERY):
            events = self.events[first : first + STATE_EVERY]
            random.shuffle(events)
            lines += [snapshot_line(event) if isinstance(event, Snapshot) else action_line(event) for event in events]
            lines.append(state({"events": first + len(events)}))
        lines += self.all_perks()
        config = {
            "sqlalchemy_url": self.place.url,
            "batch_size_rows": delivery.batch_size_rows,
            # A run without SCHEMAs loads none of its records.
            "max_rejected_fraction": 1,
        }
        target = TargetCrm(config=config, warehouse=self.place.warehouse)
        output = output or io.StringIO()
        try:
            with redirect_stdout(output):
                target.listen(io.StringIO("".join(f"{line}\n" for line in lines)))
        finally:
            assert not any(canary in output.getvalue() for canary in CANARIES)
            for line in output.getvalue().splitlines():
                self.acknowledged = json.loads(line)["events"]
        self.check_perks()

    def replay_all(self) -> None:
        """Do what `crm-balances replay` does."""
        replay({"sqlalchemy_url": self.place.url}, self.place.warehouse)

    @contextmanager
    def killed_at(self, call: int, moment: str) -> Iterator[None]:
        """Simulate the death of the process during a database call."""

        def kill(observed_call: Call) -> None:
            if (observed_call.number, observed_call.moment) == (call, moment):
                if isinstance(observed_call.connection, sqlite3.Connection):
                    # Otherwise a cursor that is not garbage-collected yet would keep the lock.
                    observed_call.connection.rollback()
                raise Killed

        try:
            with observed(kill):
                yield
        except Killed:
            self.place.close()
            count(f"crashes in a lifecycle, {self.place.engine}")

    def teardown(self) -> None:
        """Count the lifecycle."""
        count(f"lifecycles, {self.place.engine}", time.perf_counter() - self.began)


LIFECYCLES = {"sqlite": size(6, 400), "postgresql": size(1, 100)}


def test_balances_stay_correct_whatever_happens_and_whenever_a_run_dies(place: Place, shard: int) -> None:
    lifecycle = type("Lifecycle", (Lifecycle,), {"place": place})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        seed(f"{SEED} {shard}")(lifecycle),
        settings=settings(
            phases=PHASES,
            max_examples=LIFECYCLES[place.engine] // len(SHARDS),
            stateful_step_count=size(25, 50),
            suppress_health_check=list(HealthCheck),
        ),
    )
