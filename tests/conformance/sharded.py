"""PostgreSQL on three servers: one that loaders connect to, and two with most of the ledger and the balances."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import psycopg
from psycopg.conninfo import conninfo_to_dict

from target_crm.warehouse.connection import Warehouse
from tests.helpers.postgres import PostgresServer, new_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHARDS = 2
KEYS = {"actions": "action_id", "award_balances": "award_id"}


@contextmanager
def sharded_postgresql() -> Iterator[Callable[[], str]]:
    """Start the servers; yield a function that returns the URL of a new, sharded database."""
    with ExitStack() as stack:
        first, *shards = [stack.enter_context(PostgresServer()).url for _ in range(SHARDS + 1)]
        yield lambda: _lay_out(new_database(first), [new_database(shard) for shard in shards])


def _lay_out(url: str, shard_urls: list[str]) -> str:
    """Execute what `crm-balances ddl` prints, with the two growing tables partitioned by hash over the servers.

    A table with partitions on other servers cannot have a primary key; each partition has one.
    """
    statements = Warehouse(url).lacks(balances=True)
    growing = {name: next(each for each in statements if each.startswith(f'CREATE TABLE "{name}" ')) for name in KEYS}
    for shard_url in shard_urls:
        _execute(shard_url, growing.values())
    _execute(url, ["CREATE EXTENSION postgres_fdw", *map(_server, range(SHARDS), shard_urls)])
    for statement in statements:
        name = next((name for name, text in growing.items() if text == statement), None)
        _execute(url, [statement] if name is None else _partitioned(name, statement))
    return url


def _server(number: int, url: str) -> str:
    address = conninfo_to_dict(url)
    return (
        f"CREATE SERVER shard_{number} FOREIGN DATA WRAPPER postgres_fdw OPTIONS "
        f"(host '{address['host']}', port '{address['port']}', dbname '{address['dbname']}', batch_size '1000'); "
        f"CREATE USER MAPPING FOR postgres SERVER shard_{number} OPTIONS (user 'postgres')"
    )


def _partitioned(name: str, statement: str) -> Iterator[str]:
    columns, _ = statement.split("PRIMARY KEY")
    yield f"{columns.rstrip().rstrip(',')}) PARTITION BY HASH ({KEYS[name]})"
    parts = f"FOR VALUES WITH (MODULUS {SHARDS + 1}, REMAINDER"
    yield f"CREATE TABLE {name}_here PARTITION OF {name} (PRIMARY KEY ({KEYS[name]})) {parts} {SHARDS})"
    for number in range(SHARDS):
        yield (
            f"CREATE FOREIGN TABLE {name}_{number} PARTITION OF {name} {parts} {number}) "
            f"SERVER shard_{number} OPTIONS (table_name '{name}')"
        )


def _execute(url: str, statements: object) -> None:
    with psycopg.connect(url) as connection:
        for statement in statements:  # type: ignore[attr-defined]
            connection.execute(statement)
