"""A pooler in transaction mode: each transaction may be executed in another session of the server."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import psycopg
import pytest

from target_crm.balances_cli.verify import verify
from target_crm.warehouse.connection import Warehouse
from tests.helpers.pgbouncer import find_pgbouncer, pgbouncer
from tests.helpers.postgres import new_database
from tests.helpers.target import (
    ACTIONS,
    AWARDS,
    TEXT,
    action,
    load,
    query,
    record,
    schema,
    snapshot,
    state,
    table,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

SESSIONS = 3


@pytest.fixture(scope="module")
def pooled_url(postgres_url: str) -> Iterator[str]:
    """The URL of a pooler with several sessions, for a database whose time zone is far from UTC."""
    binary = find_pgbouncer()
    if binary is None:
        pytest.skip("pgbouncer is not installed; ./dev test fetches it where it can")
    database_url = new_database(postgres_url)
    name = database_url.rpartition("/")[2]
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} SET timezone = 'Pacific/Auckland'")
    with pgbouncer(binary, database_url) as url:
        with ExitStack() as stack:
            for _ in range(SESSIONS):
                stack.enter_context(psycopg.connect(url)).execute("SELECT 1")
        yield url


MESSAGES = [
    AWARDS,
    *(snapshot(f"w{n}") for n in range(3)),
    ACTIONS,
    *(action(f"a{n}", award=f"w{n % 3}") for n in range(7)),
    schema("perks", {"_id": TEXT, "title": TEXT}, "_id"),
    *(record("perks", {"_id": f"p{n}", "title": "x"}) for n in range(3)),
    state({"n": 1}),
]


def test_a_run_through_a_pooler_gives_the_same_tables(pooled_url: str, sqlite_url: str) -> None:
    load(sqlite_url, MESSAGES)

    loaded = load(pooled_url, MESSAGES, batch_size_rows=1)

    assert loaded.states == ['{"n":1}']

    assert table(pooled_url, "award_balances") == table(sqlite_url, "award_balances")
    assert query(pooled_url, "SELECT count(*) FROM perks") == [(3,)]
    assert not verify(Warehouse(pooled_url)).drifted


def test_no_session_of_the_pool_keeps_a_lock_or_a_setting(pooled_url: str) -> None:
    load(pooled_url, [AWARDS, snapshot("w9", at="9999-12-31T23:00:00Z")])

    assert query(pooled_url, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]
    assert {query(pooled_url, "SHOW lock_timeout")[0] for _ in range(SESSIONS)} == {("0",)}


def test_instants_are_read_in_utc_in_every_session(pooled_url: str) -> None:
    load(pooled_url, [AWARDS, snapshot("w9", at="9999-12-31T23:00:00Z")])

    for _ in range(SESSIONS):
        rows = table(pooled_url, "award_balances", "award_id", "as_of")
        assert {"award_id": "w9", "as_of": datetime(9999, 12, 31, 23, tzinfo=UTC)} in rows


@pytest.mark.parametrize("threshold", ["0", "none", "3"])
def test_statements_are_prepared_only_on_request(new_postgres_url: str, threshold: str) -> None:
    crm = Warehouse(f"{new_postgres_url}?prepare_threshold={threshold}")
    with crm.read() as connection:
        for _ in range(6):
            connection.exec_driver_sql("SELECT 1")
        prepared = connection.exec_driver_sql("SELECT count(*) FROM pg_prepared_statements").scalar_one()
    crm.dispose()

    assert bool(prepared) == (threshold == "3")
