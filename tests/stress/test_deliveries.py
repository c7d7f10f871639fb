"""Permuted, repeated, overlapping and re-batched deliveries give the same tables, which match the oracle."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, seed, settings

from tests.helpers.deliveries import START
from tests.helpers.oracle import Action, Snapshot
from tests.stress import SEED, SHARDS, size
from tests.stress.deliveries import check_delivery, combined_deliveries, delivery_settings

if TYPE_CHECKING:
    from target_crm.warehouse.connection import Warehouse

# At the same instant, the greater action id wins (compared byte by byte), and an action wins over a snapshot.
ACTION, GREATER = (Action(name, "w1", START, "earned", Decimal(1), Decimal(n), "p1") for n, name in enumerate("Ba"))
SNAPSHOT = Snapshot("w1", Decimal(5), START, START, "p1")
TIES = [
    ([ACTION, GREATER, SNAPSHOT], [[GREATER, ACTION], [SNAPSHOT]], batch_size_rows) for batch_size_rows in (1, 3)
] + [([ACTION, SNAPSHOT], [[SNAPSHOT], [ACTION]], 1), ([ACTION, SNAPSHOT], [[ACTION, SNAPSHOT]], 1)]


def check_random_deliveries(warehouse: Warehouse, examples: int, shard: int) -> None:
    """Check the deliveries that the campaign's seed and the shard determine."""

    @seed(f"{SEED} {shard}")
    @settings(delivery_settings, max_examples=examples // len(SHARDS))
    @given(delivery=combined_deliveries())
    def check(delivery: Any) -> None:
        check_delivery(warehouse, delivery)

    check()


def test_any_delivery_gives_the_same_tables_on_sqlite(sqlite: Warehouse, shard: int) -> None:
    check_random_deliveries(sqlite, size(6, 900), shard)


def test_any_delivery_gives_the_same_tables_on_postgresql(postgres: Warehouse, shard: int) -> None:
    check_random_deliveries(postgres, size(2, 100), shard)


@pytest.mark.parametrize("delivery", TIES)
def test_ties_are_broken_the_same_way_in_any_order(sqlite: Warehouse, delivery: Any) -> None:
    check_delivery(sqlite, delivery, histories=1)
