"""Fixtures for all tests, such as an empty warehouse on each engine. In CI, a test with an unexpected skip fails."""

from __future__ import annotations

import os
import re
import signal
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from target_crm.warehouse.connection import Warehouse
from tests.helpers.postgres import PostgresServer, new_database

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

ENGINES = ["sqlite", "postgresql", "duckdb"]
# Reasons for which a test may be skipped in CI. Any other skip fails there: it would hide a test that runs nowhere.
EXPECTED_SKIPS = (
    # The case does not apply to the engine.
    "version . did not support .*",
    ".*: cannot widen integers to numbers; a load reports it",
    ".*: cannot widen dates to times; a load reports it",
    ".*: the emulator does not know all .*",
    ".*: has no users here",
    ".*: has no temporary tables that a session can fill before its transaction",
    ".*: runs inside one process here",
    "Firebird, without an adapter: .*",
)

# On a busy machine, an example may take longer than Hypothesis allows by default.
settings.register_profile(
    "busy machine", deadline=None, database=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("busy machine")


def pytest_xdist_auto_num_workers() -> int:
    """Run one worker more than there are cores, because workers often wait for their programs; at most four."""
    return min((os.cpu_count() or 1) + 1, 4)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In `./dev warehouses`, leave out what `./dev test` runs, except the conformance tests."""
    if "WAREHOUSES" not in os.environ:
        return
    left_out = [
        item for item in items if "conformance" not in item.path.parts and not item.get_closest_marker("warehouse")
    ]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI, fail a test that is skipped for an unexpected reason."""
    report = yield
    if os.environ.get("CI") and report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not any(re.fullmatch(expected, reason) for expected in EXPECTED_SKIPS):
            report.outcome = "failed"
            report.longrepr = f"unexpected skip: {reason}"
    return report


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server, started once per process."""
    with PostgresServer() as server:
        yield server.url


@pytest.fixture(params=["sqlite", *(pytest.param(each, marks=pytest.mark.warehouse) for each in ENGINES[1:])])
def warehouse_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty warehouse; a test that requests it runs on SQLite, and in `./dev warehouses` once per engine.

    In `./dev test`, the conformance tests cover the other engines.
    """
    if request.param != "postgresql":
        return f"{request.param}:///{tmp_path / 'crm.db'}"
    return new_database(request.getfixturevalue("postgres_url"))


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """An empty SQLite warehouse, for tests that do not depend on the engine."""
    return f"sqlite:///{tmp_path / 'crm.db'}"


@pytest.fixture(scope="module")
def new_postgres_url(postgres_url: str) -> str:
    """A PostgreSQL database that the tests of a file share."""
    return new_database(postgres_url)


@pytest.fixture(scope="module")
def sqlite() -> Iterator[Warehouse]:
    """An in-memory warehouse with its tables. The tests of a file share it, and empty it when necessary."""
    yield from set_up("sqlite://")


@pytest.fixture(scope="module")
def postgres(new_postgres_url: str) -> Iterator[Warehouse]:
    """A PostgreSQL warehouse with its tables. The tests of a file share it, and empty it when necessary."""
    yield from set_up(new_postgres_url)


def set_up(url: str) -> Iterator[Warehouse]:
    warehouse = Warehouse(url)
    warehouse.set_up(balances=True)
    yield warehouse
    warehouse.dispose()


@pytest.fixture(autouse=True)
def restore_signal_handlers() -> Iterator[None]:
    """Restore pytest's signal handlers, which a plugin created in this process may have replaced."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
