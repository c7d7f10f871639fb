"""What each engine wants done its own way, in a module for each, and what is the same for all.

A new engine works with `Ways`, and gets a class of its own where it can do better. Column types and functions that
differ by engine are in `columns.py`. An engine's module is imported when the engine is first asked for.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from threading import Lock
from typing import TYPE_CHECKING, Any

from target_crm.engines.base import LOCK_WAIT_SECONDS, Ways, pep_249_names

if TYPE_CHECKING:
    from sqlalchemy import Connection, Select, Table

    from target_crm.engines.base import Rows, Statement
    from target_crm.sql.staging import Merge, Replacement

__all__ = [
    "LOCK_WAIT_SECONDS",
    "Ways",
    "binding",
    "empty",
    "execute",
    "heal",
    "load",
    "merge",
    "pep_249_names",
    "refill",
    "replace",
    "ways_of",
]

# Held while rows are made what a driver takes, which keeps the interpreter busy: whoever reads on meanwhile makes both
# slower, and then has nothing to do while the engine works.
binding = Lock()
# SQLAlchemy's name of an engine → its module and class.
_WAYS = {
    "sqlite": ("sqlite", "Sqlite"),
    "postgresql": ("postgresql", "Postgresql"),
    "duckdb": ("duckdb", "Duckdb"),
    "mysql": ("mysql", "Mysql"),
    "mariadb": ("mysql", "Mariadb"),
    "snowflake": ("snowflake", "Snowflake"),
    "bigquery": ("bigquery", "Bigquery"),
    "databricks": ("databricks", "Databricks"),
    "oracle": ("databricks", "Oracle"),
    "mssql": ("mssql", "Mssql"),
    "clickhousedb": ("clickhouse", "Clickhouse"),
    "spark": ("spark", "Spark"),
}


@cache
def ways_of(backend_name: str) -> Ways:
    """The ways of an engine, by SQLAlchemy's name of it."""
    if backend_name not in _WAYS:
        return Ways()
    module, name = _WAYS[backend_name]
    ways: type[Ways] = getattr(import_module(f"{__name__}.{module}"), name)
    return ways()


def empty(connection: Connection, table: Table) -> None:
    """Remove all rows of a table."""
    ways_of(connection.dialect.name).empty(connection, table)


def execute(connection: Connection, statement: Statement) -> int:
    """Change the rows of a table; returns how many were updated or deleted."""
    return ways_of(connection.dialect.name).execute(connection, statement)


def heal(connection: Connection, *tables: Table) -> None:
    """Finish the changes of tables that were cut off, where no transaction has undone them."""
    for table in tables:
        ways_of(connection.dialect.name).heal(connection, table)


def merge(connection: Connection, rows: Merge) -> None:
    """Merge rows into those of a table."""
    ways_of(connection.dialect.name).merge(connection, rows)


def refill(connection: Connection, table: Table, rows: Select[Any]) -> None:
    """Let a table hold what is computed from a whole ledger, and nothing else."""
    ways_of(connection.dialect.name).refill(connection, table, rows)


def replace(connection: Connection, rows: Replacement) -> None:
    """Put rows in the place of those with the same keys."""
    ways_of(connection.dialect.name).replace(connection, rows)


def load(connection: Connection, table: Table, rows: Rows) -> None:
    """Put rows, with a value for every column in the table's order, into a table."""
    if rows:
        with binding:
            ways_of(connection.dialect.name).load(connection, table, rows)
