"""What all tests share: three warehouses, each test with an empty one of its own."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from target_crm.warehouse.connection import Warehouse
from tests.helpers.postgres import PostgresServer, new_database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENGINES = ["sqlite", "postgresql", "duckdb"]


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server, started once for the tests that ask for it."""
    with PostgresServer() as server:
        yield server.url


@pytest.fixture(params=ENGINES)
def warehouse_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty warehouse; a test that asks for it runs once per engine."""
    if request.param != "postgresql":
        return f"{request.param}:///{tmp_path / 'crm.db'}"
    return new_database(request.getfixturevalue("postgres_url"))


@pytest.fixture(scope="module")
def new_postgres_url(postgres_url: str) -> str:
    """An empty PostgreSQL database for the tests of a file that share one."""
    return new_database(postgres_url)


@pytest.fixture(scope="module")
def sqlite() -> Iterator[Warehouse]:
    """A warehouse in memory, set up, for the tests of a file that empty it themselves."""
    yield from set_up("sqlite://")


@pytest.fixture(scope="module")
def postgres(new_postgres_url: str) -> Iterator[Warehouse]:
    """One in PostgreSQL."""
    yield from set_up(new_postgres_url)


def set_up(url: str) -> Iterator[Warehouse]:
    warehouse = Warehouse(url)
    warehouse.set_up()
    yield warehouse
    warehouse.dispose()


@pytest.fixture(autouse=True)
def signals_are_pytests() -> Iterator[None]:
    """Ctrl-C stops pytest, also after a plugin that was built in this process took the signals for itself."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
