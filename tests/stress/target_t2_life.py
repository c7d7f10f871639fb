"""T2: a programme lives on while it is polled, with crashes, resumed runs, direct edits and rebuilds in between."""

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
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from sqlalchemy import text

from target_crm.balances_cli.replay import Replay
from target_crm.balances_cli.verify import rebuild
from target_crm.loader.target import TargetCrm
from tests.helpers import oracle
from tests.helpers.oracle import Action, Snapshot
from tests.helpers.target import ACTIONS, AWARDS, load, record, schema, state, table
from tests.stress import PHASES, SEED, SHARDS, count, size
from tests.stress.target_calls import AFTER, BEFORE, Call, watched
from tests.stress.target_story import AWARD_IDS, CANARIES, START, TYPES, USER_OF, line_of, snapshot_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.stress.target_runs import Place

CRASH_CALL_MAX = 80
STATE_EVERY = 4

awards = st.sampled_from(AWARD_IDS[:4])
seconds = st.sampled_from([0, 0, 1, 60])
points = st.integers(-50, 500).map(lambda units: Decimal(units) / 4)


moments = st.sampled_from([BEFORE, AFTER])
TEXT = {"type": ["string", "null"]}
# The type of a perk's price as time goes by; it has none at first.
PRICES = ["", "integer", "number"]


@dataclass(frozen=True)
class Delivery:
    """How far a run looks back, the rows of a batch, and the order between two STATEs."""

    lookback: int
    batch: int
    shuffle: int


deliveries = st.builds(Delivery, st.integers(0, 6), st.integers(1, 7), st.integers(0, 99))


@dataclass(frozen=True)
class Perk:
    """What is sold, and for how much."""

    title: str
    price: Decimal


class Unheard(io.StringIO):
    """A standard output whose reader is gone."""

    nowhere = Path(os.devnull).open("wb")  # noqa: SIM115 - for as long as the process

    def write(self, _: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    def fileno(self) -> int:
        return self.nowhere.fileno()


class Killed(BaseException):
    """The process is gone, in the middle of a database call."""


class Life(RuleBasedStateMachine):
    """What happened in Pepper, how much of it is acknowledged, and a warehouse that follows."""

    place: Place

    def __init__(self) -> None:
        super().__init__()
        self.began = time.perf_counter()
        self.place.clear()
        self.now = START
        self.points: dict[str, Decimal] = dict.fromkeys(AWARD_IDS, Decimal(0))
        self.happened: list[Action | Snapshot] = []
        self.late: list[Action] = []
        self.acknowledged = 0
        self.perks: dict[str, Perk] = {}
        self.columns = 0
        self.walks = 0
        load(self.place.url, [AWARDS, ACTIONS, self.perk_schema()])

    @rule(
        award=awards, effect=st.sampled_from([*TYPES, None]), delta=points.map(abs), after=seconds, late=st.booleans()
    )
    def act(self, award: str, effect: str | None, delta: Decimal, after: int, late: bool) -> None:
        """An action, which may show up only later."""
        self.now += timedelta(seconds=after)
        if effect:
            self.points[award] += -delta if effect == "redeemed" else delta
        number = len(self.happened) + len(self.late)
        action = Action(f"{'aBé'[number % 3]}{number}", award, self.now, effect, delta, self.points[award], "p1")
        (self.late if late else self.happened).append(action)

    @rule()
    def show_late_actions(self) -> None:
        """What was late is to be seen."""
        self.happened += self.late
        self.late = []

    @rule(award=awards, value=points, after=seconds)
    def edit(self, award: str, value: Decimal, after: int) -> None:
        """Someone changes the points by hand: only a snapshot tells."""
        self.now += timedelta(seconds=after)
        self.points[award] = value
        self.look(award)

    @rule(award=awards)
    def look(self, award: str) -> None:
        """A snapshot is taken."""
        read_at = self.now + timedelta(microseconds=len(self.happened))
        self.happened.append(Snapshot(award, self.points[award], self.now, read_at, "p1"))

    @rule(perk=st.sampled_from(["p1", "p2", "p3"]), price=points)
    def sell(self, perk: str, price: Decimal) -> None:
        """A perk is new, or costs something else."""
        self.perks[perk] = Perk(f"{perk} for {price}", price)

    @rule(perk=st.sampled_from(["p1", "p2", "p3"]))
    def withdraw(self, perk: str) -> None:
        """A perk is no more."""
        self.perks.pop(perk, None)

    @rule()
    def say_more(self) -> None:
        """From now on perks have a price, in whole points at first, then in any."""
        self.columns = min(self.columns + 1, len(PRICES) - 1)

    @rule(delivery=deliveries)
    def poll(self, delivery: Delivery) -> None:
        """A run from the last STATE on, with some of the past again, ends well: the balances are the oracle's."""
        self.run(delivery)
        assert self.acknowledged == len(self.happened)
        self.check()

    @rule(delivery=deliveries)
    def poll_unheard(self, delivery: Delivery) -> None:
        """A run whose STATE nobody takes loads all the same."""
        self.run(delivery, output=Unheard())
        self.check()
        count(f"T2 runs that nobody listens to, {self.place.engine}")

    @rule(delivery=deliveries, call=st.integers(1, CRASH_CALL_MAX), moment=moments)
    def crash(self, delivery: Delivery, call: int, moment: str) -> None:
        """A run that is gone in the middle of a database call, unless it is over before."""
        with self.killed_at(call, moment):
            self.run(delivery)
        acknowledged = {event.action_id for event in self.happened[: self.acknowledged] if isinstance(event, Action)}
        assert acknowledged <= {row["action_id"] for row in table(self.place.warehouse, "actions", "action_id")}
        self.place.is_consistent()

    @rule(delivery=deliveries, call=st.integers(1, CRASH_CALL_MAX), moment=moments)
    def replay(self, delivery: Delivery, call: int, moment: str) -> None:
        """What comes without its SCHEMA is set aside, and loaded by a replay, also after one that is gone half way."""
        self.run(delivery, announced=False)
        with self.killed_at(call, moment):
            self.replay_all()
        self.place.is_consistent()
        self.replay_all()
        assert table(self.place.warehouse, "rejected_records") == []
        self.check()
        count(f"T2 replays, {self.place.engine}")

    @rule()
    def rebuild(self) -> None:
        """All balances are computed afresh, and nothing changes."""
        before = table(self.place.warehouse, "award_balances")
        rebuild(self.place.warehouse)
        assert table(self.place.warehouse, "award_balances") == before

    def check(self) -> None:
        """The balances are the oracle's, and verify says so too."""
        assert table(self.place.warehouse, "award_balances") == oracle.balances(self.happened, USER_OF)
        self.place.is_consistent()

    def check_perks(self) -> None:
        """Those that are sold are there as they are, all others are marked."""
        with self.place.warehouse.read() as connection:
            price = ", price" if self.columns else ""
            query = text(f"SELECT _id, title{price} FROM perks WHERE _deleted_at IS NULL")
            found = {key: (title, *map(float, prices)) for key, title, *prices in connection.execute(query)}
        assert found == {
            key: (perk.title, *[float(self.price_of(perk))] * bool(self.columns)) for key, perk in self.perks.items()
        }

    def perk_schema(self) -> str:
        """The SCHEMA of perks as it is now."""
        price = PRICES[self.columns]
        return schema("perks", {"_id": TEXT, "title": TEXT, **({"price": {"type": price}} if price else {})}, "_id")

    def price_of(self, perk: Perk) -> Decimal:
        """As the tap tells it."""
        return round(perk.price) if PRICES[self.columns] == "integer" else perk.price

    def walk(self) -> list[str]:
        """All perks, and the word that there are no others."""
        self.walks += 1
        read_at = (START + timedelta(seconds=self.walks)).isoformat()
        records = [
            record("perks", {"_id": key, "title": perk.title, "price": float(self.price_of(perk))}, read_at)
            for key, perk in self.perks.items()
        ]
        versioned = [json.dumps({**json.loads(each), "version": self.walks}) for each in records]
        active = {"type": "ACTIVATE_VERSION", "stream": "perks", "version": self.walks}
        return [self.perk_schema(), *versioned, json.dumps(active)]

    def run(self, delivery: Delivery, *, announced: bool = True, output: io.StringIO | None = None) -> None:
        """Deliver what is not acknowledged, with some of what is, in any order between two STATEs; then all perks."""
        start = max(self.acknowledged - delivery.lookback, 0)
        random = Random(delivery.shuffle)
        lines = [AWARDS, ACTIONS] if announced else []
        for first in range(start, len(self.happened), STATE_EVERY):
            events = self.happened[first : first + STATE_EVERY]
            random.shuffle(events)
            lines += [snapshot_line(event) if isinstance(event, Snapshot) else line_of(event) for event in events]
            lines.append(state({"events": first + len(events)}))
        lines += self.walk()
        target = self.target(TargetCrm, batch_size_rows=delivery.batch)
        output = output or io.StringIO()
        try:
            with redirect_stdout(output):
                target.listen(io.StringIO("".join(f"{line}\n" for line in lines)))
        finally:
            assert not any(canary in output.getvalue() for canary in CANARIES)
            for line in output.getvalue().splitlines():
                self.acknowledged = json.loads(line)["events"]
        self.check_perks()

    def target(self, kind: type[TargetCrm], **settings: Any) -> Any:
        """A target that loads this life's warehouse."""
        target = kind(config={"sqlalchemy_url": self.place.url, **settings})
        target.warehouse = self.place.warehouse
        return target

    def replay_all(self) -> None:
        """As `crm-balances replay` does."""
        self.target(Replay).replay("actions", "awards")
        self.target(Replay).replay("")

    @contextmanager
    def killed_at(self, call: int, moment: str) -> Iterator[None]:
        """Be gone in the middle of a database call, and let the warehouse notice."""

        def kill(seen: Call) -> None:
            if (seen.number, seen.moment) == (call, moment):
                if isinstance(seen.connection, sqlite3.Connection):
                    seen.connection.rollback()  # Or a cursor that nobody has collected would keep the lock.
                raise Killed

        try:
            with watched(kill):
                yield
        except Killed:
            self.place.close()
            count(f"T2 crashes in a life, {self.place.engine}")

    def teardown(self) -> None:
        """Count."""
        count(f"T2 lives, {self.place.engine}", time.perf_counter() - self.began)


LIVES = {"sqlite": size(6, 400), "postgresql": size(1, 100)}


def test_balances_follow_whatever_happens_and_whenever_a_run_dies(place: Place, shard: int) -> None:
    life = type("Life", (Life,), {"place": place})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        seed(f"{SEED} {shard}")(life),
        settings=settings(
            phases=PHASES,
            max_examples=LIVES[place.engine] // len(SHARDS),
            stateful_step_count=size(25, 50),
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
