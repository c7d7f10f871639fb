"""Random deliveries of random histories, and the check that each leads to the oracle's balances."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.helpers import oracle
from tests.helpers.deliveries import USER_OF, deliver, deliveries
from tests.helpers.oracle import Action, Snapshot
from tests.stress import PHASES, count
from tests.stress.runs import digest

if TYPE_CHECKING:
    from target_crm.warehouse.connection import Warehouse

delivery_settings = settings(
    phases=PHASES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

# One load contains several histories, each with awards of its own. It takes little longer than a load of one history.
HISTORIES = 10
USERS = USER_OF | {f"{award}-{number}": user for award, user in USER_OF.items() for number in range(HISTORIES)}


@st.composite
def combined_deliveries(draw: st.DrawFn) -> Any:
    """Like `deliveries`, but with several histories at once."""
    histories: list[Any] = []
    runs: list[list[Any]] = [[], []]
    batch_size_rows = 0
    for number in range(HISTORIES):
        history, delivered, rows = draw(deliveries())
        histories += [_renamed(event, number) for event in history]
        for run, events in zip(runs, delivered, strict=True):
            run += [_renamed(event, number) for event in events]
        batch_size_rows += rows
    # So a batch may contain only one row, or the rows of several histories.
    return histories, [draw(st.permutations(run)) for run in runs], draw(st.integers(1, batch_size_rows))


def _renamed(event: Action | Snapshot, number: int) -> Action | Snapshot:
    """Return the same event for an award that belongs to one history only."""
    renamed = replace(event, award_id=f"{event.award_id}-{number}")
    return replace(renamed, action_id=f"{renamed.action_id}-{number}") if isinstance(renamed, Action) else renamed


def check_delivery(warehouse: Warehouse, delivery: Any, histories: int = HISTORIES) -> None:
    """Fail unless a delivery gives the oracle's balances and the same tables as one load in order."""
    began = time.perf_counter()
    history, runs, batch_size_rows = delivery

    delivered = deliver(warehouse, runs, batch_size_rows, USERS)
    in_order = deliver(warehouse, [history], 1000, USERS)

    assert delivered["award_balances"] == oracle.balances(history, USERS)
    assert digest(delivered) == digest(in_order)
    engine = warehouse.name.partition(":")[0].partition("+")[0]
    count(f"deliveries, {engine}", time.perf_counter() - began, histories)
