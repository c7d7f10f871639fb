"""T1: permuted, repeated, overlapping, batched anew: the same tables, and they are the oracle's."""

from __future__ import annotations

import time
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.helpers import oracle
from tests.helpers.oracle import Action, Snapshot
from tests.stress import PHASES, SEED, SHARDS, count, size
from tests.stress.target_runs import digest
from tests.target.test_balances import START, USER_OF, deliver, deliveries

if TYPE_CHECKING:
    from target_crm.warehouse.connection import Warehouse

at_length = settings(
    phases=PHASES,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


# At one instant: of two actions the greater id, byte by byte, and an action over a snapshot.
ACTION, GREATER = (Action(name, "w1", START, "earned", Decimal(1), Decimal(n), "p1") for n, name in enumerate("Ba"))
SNAPSHOT = Snapshot("w1", Decimal(5), START, START, "p1")
TIES = [
    ([ACTION, GREATER, SNAPSHOT], [[GREATER, ACTION], [SNAPSHOT]], batch_size_rows) for batch_size_rows in (1, 3)
] + [([ACTION, SNAPSHOT], [[SNAPSHOT], [ACTION]], 1), ([ACTION, SNAPSHOT], [[ACTION, SNAPSHOT]], 1)]


# So many histories are told at once, each of awards of its own: a load of all takes little longer than one of one.
HISTORIES = 10


@st.composite
def deliveries_at_once(draw: st.DrawFn) -> Any:
    """As `deliveries`, of several histories side by side."""
    histories: list[Any] = []
    runs: list[list[Any]] = [[], []]
    batch_size_rows = 0
    for number in range(HISTORIES):
        history, told, rows = draw(deliveries())
        histories += [renamed(event, number) for event in history]
        for run, more in zip(runs, told, strict=True):
            run += [renamed(event, number) for event in more]
        batch_size_rows += rows
    # From batches of a row or two to those that hold several histories.
    return histories, [draw(st.permutations(run)) for run in runs], draw(st.integers(1, batch_size_rows))


def renamed(event: Action | Snapshot, number: int) -> Action | Snapshot:
    """The same event of an award that only this history knows."""
    own = replace(event, award_id=f"{event.award_id}-{number}")
    return replace(own, action_id=f"{own.action_id}-{number}") if isinstance(own, Action) else own


USERS = {f"{award}-{number}": user for award, user in USER_OF.items() for number in range(HISTORIES)}


def try_deliveries(warehouse: Warehouse, examples: int, shard: int) -> None:
    """Check some deliveries, which follow from the campaign's seed and the shard."""

    @seed(f"{SEED} {shard}")
    @settings(at_length, max_examples=examples // len(SHARDS))
    @given(delivery=deliveries_at_once())
    def check_delivery(delivery: Any) -> None:
        check(warehouse, delivery, HISTORIES)

    check_delivery()


def test_any_delivery_gives_the_same_tables_on_sqlite(sqlite: Warehouse, shard: int) -> None:
    try_deliveries(sqlite, size(6, 900), shard)


def test_any_delivery_gives_the_same_tables_on_postgresql(postgres: Warehouse, shard: int) -> None:
    try_deliveries(postgres, size(2, 100), shard)


@pytest.mark.parametrize("delivery", TIES)
def test_ties_are_broken_alike_in_any_order(sqlite: Warehouse, delivery: Any) -> None:
    check(sqlite, delivery, 1)


def check(warehouse: Warehouse, delivery: Any, histories: int) -> None:
    began = time.perf_counter()
    history, runs, batch_size_rows = delivery
    users = USER_OF | USERS

    delivered = deliver(warehouse, runs, batch_size_rows, users)
    in_order = deliver(warehouse, [history], 1000, users)

    assert delivered["award_balances"] == oracle.balances(history, users)
    assert digest(delivered) == digest(in_order)
    engine = warehouse.name.partition(":")[0].partition("+")[0]
    count(f"T1 deliveries, {engine}", time.perf_counter() - began, histories)
