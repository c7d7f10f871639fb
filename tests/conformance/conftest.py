"""One warehouse for each engine. It is set up once per process, and emptied for each case."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import MetaData, Table, inspect

from target_crm.warehouse.connection import Warehouse
from tests.conformance import Unavailable
from tests.conformance.engines import ENGINES, Engine
from tests.conftest import ENGINES as LOCAL_ENGINES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


# Tests in other folders also have parameters with this name.
_FOLDER = Path(__file__).parent
_outcomes: dict[tuple[str, str], set[str]] = defaultdict(set)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run all cases of an engine in one process, and mark the engines that only `./dev warehouses` runs."""
    for item in items:
        if isinstance(item, pytest.Function) and "engine" in item.fixturenames and item.path.parent == _FOLDER:
            engine = item.callspec.params["engine"]
            item.add_marker(pytest.mark.xdist_group(engine))
            if engine not in LOCAL_ENGINES:
                item.add_marker(pytest.mark.warehouse)
            for warning in ENGINES[engine].ignored_warnings:
                item.add_marker(pytest.mark.filterwarnings(warning))
            case = item.callspec.id.removeprefix(f"{engine}-")
            if reason := ENGINES[engine].cannot.get(item.originalname) or ENGINES[engine].cannot.get(case):
                item.add_marker(pytest.mark.skip(f"{ENGINES[engine].title}: {reason}"))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Record the outcome of each case on each engine."""
    found = re.search(r"test_conformance\.py::(\w+)\[(\w+)", report.nodeid)
    if found and (report.when == "call" or not report.passed):
        _outcomes[found[1], found[2]].add(report.outcome)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the table of docs/warehouses.md if `WAREHOUSES=record` is set."""
    is_worker = hasattr(session.config, "workerinput")
    if os.environ.get("WAREHOUSES") == "record" and _outcomes and not is_worker:
        from tests.conformance import matrix  # noqa: PLC0415 - the cases import this module

        matrix.write(_outcomes)


@pytest.fixture(scope="session", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    """An engine. A case that uses it runs once on each."""
    return ENGINES[request.param]


@pytest.fixture(scope="session")
def new_url(engine: Engine) -> Iterator[Callable[[], str]]:
    """A function that returns the URL of a new warehouse. Cases are skipped if the engine cannot run here."""
    with ExitStack() as stack:
        try:
            new = stack.enter_context(engine.start())
        except Unavailable as reason:
            pytest.skip(f"{engine.title}: {reason}")
        yield new


@pytest.fixture(scope="session")
def shared(new_url: Callable[[], str]) -> Iterator[Warehouse]:
    """A warehouse with the target's own tables."""
    warehouse = Warehouse(new_url())
    warehouse.set_up(balances=True)
    yield warehouse
    warehouse.dispose()


def empty(crm: Warehouse) -> None:
    """Remove all rows of the target's own tables, and the tables of other streams."""
    own = crm.tables.metadata
    with crm.write() as connection:
        for name in inspect(connection).get_table_names():
            of_a_case = name.removeprefix("_crm_staging_").startswith(("t_", "perks", "_crm_changed_"))
            if name not in own.tables and of_a_case:
                Table(name, MetaData()).drop(connection)
        for table in own.sorted_tables:
            if table is not crm.tables.version:
                connection.execute(table.delete())


@pytest.fixture
def crm(shared: Warehouse) -> Warehouse:
    """The shared warehouse, emptied."""
    empty(shared)
    return shared
