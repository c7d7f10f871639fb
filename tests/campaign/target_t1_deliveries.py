"""T1: permuted, repeated, overlapping, batched anew: the same tables, and they are the oracle's."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, seed, settings

from tests import oracle
from tests.campaign import PHASES, SEED, count, size
from tests.campaign.target_runs import digest
from tests.oracle import Action, Snapshot
from tests.test_target_balances import START, USER_OF, deliver, deliveries

if TYPE_CHECKING:
    from target_crm.warehouse import Warehouse

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


@seed(SEED)
@settings(at_length, max_examples=size(40, 1000))
@given(delivery=deliveries())
def test_any_delivery_gives_the_same_tables_on_sqlite(sqlite: Warehouse, delivery: Any) -> None:
    check(sqlite, delivery)


@seed(SEED)
@settings(at_length, max_examples=size(5, 150))
@given(delivery=deliveries())
def test_any_delivery_gives_the_same_tables_on_postgresql(postgres: Warehouse, delivery: Any) -> None:
    check(postgres, delivery)


@pytest.mark.parametrize("delivery", TIES)
def test_ties_are_broken_alike_in_any_order(sqlite: Warehouse, delivery: Any) -> None:
    check(sqlite, delivery)


def check(warehouse: Warehouse, delivery: Any) -> None:
    began = time.perf_counter()
    history, runs, batch_size_rows = delivery

    delivered = deliver(warehouse, runs, batch_size_rows)
    in_order = deliver(warehouse, [history], 1000)

    assert delivered["award_balances"] == oracle.balances(history, USER_OF)
    assert digest(delivered) == digest(in_order)
    count(
        f"T1 deliveries, {'sqlite' if warehouse.name.startswith('sqlite') else 'postgresql'}",
        time.perf_counter() - began,
    )
