"""The engines that the cases run on, and how each is had: a function that yields what gives the URL of a new warehouse.

A function raises `Unavailable` where its engine can't be had on a machine.
"""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from tests.conformance import Unavailable
from tests.conformance.bigquery import bigquery
from tests.conformance.mariadb import mariadb
from tests.conformance.sharded import sharded_postgresql
from tests.conformance.snowflake import snowflake
from tests.helpers.postgres import PostgresServer, fast_folder, new_database
from tests.helpers.target import execute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

DEBIANS_POSTGRESQL = Path("/usr/lib/postgresql/15/bin")


@dataclass(frozen=True)
class Engine:
    """An engine, and what is to be known of it here.

    Attributes:
        title: its name in docs/warehouses.md.
        start: has it for as long as a context lasts.
        deliveries: how many random histories are tried on it.
        processes: whether two processes can load into one warehouse of it at the same time.
        widens: whether a column of whole numbers can become one of fractions.
        lodger: statements that make a user `lodger` who may load into a database, named `{database}`, and no more.
    """

    title: str
    start: Callable[[], AbstractContextManager[Callable[[], str]]]
    deliveries: int = 5
    processes: bool = True
    widens: bool = True
    lodger: tuple[str, ...] = ()


def _files(backend: str) -> Callable[[], AbstractContextManager[Callable[[], str]]]:
    @contextmanager
    def start() -> Iterator[Callable[[], str]]:
        numbers = count()
        with tempfile.TemporaryDirectory(prefix="pepper-crm-") as folder:
            yield lambda: f"{backend}:///{folder}/{next(numbers)}.db"

    return start


@contextmanager
def postgresql(
    binaries: Path | None = None, certificate: tuple[Path, Path] | None = None
) -> Iterator[Callable[[], str]]:
    """Start a server of PostgreSQL; yields what gives the URL of a new database."""
    if binaries and not binaries.exists():
        raise Unavailable(f"there is no {binaries}")
    with PostgresServer(binaries, certificate) as server:
        yield lambda: new_database(server.url)


_POSTGRESQL_LODGER = (
    "DROP ROLE IF EXISTS lodger",
    "CREATE ROLE lodger LOGIN",
    "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public TO lodger",
)
_MYSQL_LODGER = (
    "CREATE OR REPLACE USER lodger",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON {database}.* TO lodger",
)


@contextmanager
def _clickhouse() -> Iterator[Callable[[], str]]:
    """In this process, which has one folder for all its databases; its server is let go with the process."""
    if not find_spec("chdb"):
        raise Unavailable("there is no chdb; ./dev warehouses installs it")
    numbers = count()
    with tempfile.TemporaryDirectory(prefix="pepper-crm-", dir=fast_folder(), ignore_cleanup_errors=True) as folder:

        def new() -> str:
            url = f"clickhousedb:///default?interface=chdb&path={folder}"
            name = f"crm_{next(numbers)}"
            execute(url, f"CREATE DATABASE {name}")
            return url.replace("default", name)

        yield new


ENGINES = {
    "sqlite": Engine("SQLite", _files("sqlite"), deliveries=20),
    "duckdb": Engine("DuckDB", _files("duckdb")),
    "postgresql": Engine("PostgreSQL 18", postgresql, deliveries=10, lodger=_POSTGRESQL_LODGER),
    "postgresql_15": Engine("PostgreSQL 15", lambda: postgresql(DEBIANS_POSTGRESQL), lodger=_POSTGRESQL_LODGER),
    "sharded_postgresql": Engine("PostgreSQL on 3 servers", sharded_postgresql),
    "mariadb": Engine("MariaDB", mariadb, lodger=_MYSQL_LODGER),
    "snowflake": Engine("Snowflake, by fakesnow", snowflake, deliveries=1, processes=False, widens=False),
    "bigquery": Engine("BigQuery, by an emulator", bigquery, deliveries=3, processes=False),
    "clickhouse": Engine("ClickHouse", _clickhouse, deliveries=3, processes=False),
}
