"""The engines that the cases run on, each with a context manager.

The context manager starts the engine, and yields a function that returns the URL of a new warehouse. It raises
`Unavailable` if the engine cannot run on this machine.
"""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from tests.conformance import Unavailable
from tests.conformance.bigquery import bigquery
from tests.conformance.firebird import firebird
from tests.conformance.mariadb import mariadb
from tests.conformance.sharded import sharded_postgresql
from tests.conformance.snowflake import snowflake
from tests.helpers.postgres import PostgresServer, fast_folder, new_database
from tests.helpers.target import execute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

DEBIANS_POSTGRESQL = Path("/usr/lib/postgresql/15/bin")


@dataclass(frozen=True)
class Engine:
    """An engine, and what the cases can expect of it on this machine.

    Attributes:
        title: Its name in docs/warehouses.md.
        start: Starts the engine for as long as the context lasts.
        deliveries: The number of random histories to load.
        processes: Whether two processes can use one warehouse at the same time.
        widens: Whether an integer column can be widened to numbers.
        loader: Statements that create a user `loader` who may load into `{database}` but create nothing there.
        cannot: The reasons why some cases do not apply to the engine, by the test name or the id of the case.
        ignored_warnings: Warnings that are not about the program.
    """

    title: str
    start: Callable[[], AbstractContextManager[Callable[[], str]]]
    deliveries: int = 5
    processes: bool = True
    widens: bool = True
    loader: tuple[str, ...] = ()
    cannot: Mapping[str, str] = field(default_factory=dict)
    ignored_warnings: tuple[str, ...] = ()


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
    """Start a PostgreSQL server; yield a function that returns the URL of a new database."""
    if binaries and not binaries.exists():
        raise Unavailable(f"{binaries} does not exist")
    with PostgresServer(binaries, certificate) as server:
        yield lambda: new_database(server.url)


_CANNOT_WIDEN = {"a-date-that-becomes-a-time": "cannot widen dates to times; a load reports it"}
_FAKESNOW_CANNOT = dict.fromkeys(
    (
        "keywords",
        "reserved-names",
        "times-in-any-form",
        "integers-of-64-bits-and-beyond",
        "a-schema-that-becomes-narrower",
        "a-time-or-any-text",
    ),
    "the emulator does not know all names and numbers of Snowflake",
)
_POSTGRESQL_LOADER = (
    "DROP ROLE IF EXISTS loader",
    "CREATE ROLE loader LOGIN",
    "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public TO loader",
)
_MYSQL_LOADER = (
    "CREATE OR REPLACE USER loader",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON {database}.* TO loader",
)


@contextmanager
def _clickhouse() -> Iterator[Callable[[], str]]:
    """Run ClickHouse in this process, which has to use the same folder of databases until it ends."""
    if not find_spec("chdb"):
        raise Unavailable("chdb is not installed; ./dev warehouses installs it")
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
    "postgresql": Engine("PostgreSQL 18", postgresql, deliveries=10, loader=_POSTGRESQL_LOADER),
    "postgresql_15": Engine("PostgreSQL 15", lambda: postgresql(DEBIANS_POSTGRESQL), loader=_POSTGRESQL_LOADER),
    "sharded_postgresql": Engine("PostgreSQL on 3 servers", sharded_postgresql),
    "mariadb": Engine("MariaDB", mariadb, loader=_MYSQL_LOADER),
    "snowflake": Engine(
        "Snowflake, by fakesnow",
        snowflake,
        deliveries=1,
        processes=False,
        widens=False,
        cannot=_CANNOT_WIDEN | _FAKESNOW_CANNOT,
    ),
    "bigquery": Engine(
        "BigQuery, by an emulator",
        bigquery,
        deliveries=3,
        processes=False,
        cannot=_CANNOT_WIDEN | {"streams-with-similar-names": "the emulator does not know all names of BigQuery"},
    ),
    "firebird": Engine(
        "Firebird, without an adapter",
        firebird,
        deliveries=3,
        widens=False,
        # When a run is interrupted, the driver's destructors fail.
        ignored_warnings=("ignore::pytest.PytestUnraisableExceptionWarning",),
        cannot={
            "test_ids_stay_distinct_if_only_the_case_or_a_trailing_space_or_an_emoji_differs": "pads texts with spaces",
            "test_a_string_is_updated_even_if_only_its_case_or_an_accent_changes": "pads texts with spaces",
            "test_times_with_any_offset_keep_their_microseconds": "stores instants to a tenth of a millisecond",
            "test_two_concurrent_loaders_give_the_same_tables_as_two_successive_loaders": "has no lock",
            "test_an_upgrade_renames_the_metadata_columns_of_every_stream": "has no tables of an older version",
            "times-in-any-form": "its driver has no dates before the year 1858",
            **_CANNOT_WIDEN,
        },
    ),
    "clickhouse": Engine("ClickHouse", _clickhouse, deliveries=3, processes=False, cannot=_CANNOT_WIDEN),
}
