"""A few cases on Spark, where a load takes a hundred times as long as on other engines. See `./dev warehouses`."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, event, func, select
from sqlalchemy.schema import CreateTable

from target_crm.engines.registry import adapter_for
from target_crm.engines.spark import SparkAdapter
from target_crm.sql.staging import RowUpdate
from target_crm.sql.tables import tables_in
from target_crm.warehouse.connection import Warehouse
from tests.conformance import Unavailable
from tests.conformance.spark import spark
from tests.helpers.target import load, table
from tests.stress.scenario import as_input, make_scenario

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection

TABLES = tables_in(None)


@pytest.fixture(scope="module")
def new_url() -> Iterator[Callable[[], str]]:
    try:
        with spark() as new:
            yield new
    except Unavailable as reason:
        pytest.skip(f"Spark: {reason}")


@pytest.fixture
def crm(new_url: Callable[[], str]) -> Iterator[Warehouse]:
    warehouse = Warehouse(new_url())
    warehouse.set_up(balances=True)
    yield warehouse
    warehouse.dispose()


@pytest.mark.warehouse
def test_two_overlapping_deliveries_give_the_oracles_balances(crm: Warehouse) -> None:
    told = make_scenario(Random("spark"), 60, ordered=False)
    third = len(told.lines) // 3
    for lines in (told.lines[third:], told.lines[: 2 * third]):
        load(crm, as_input([*told.schemas, *lines]).decode().splitlines())

    assert table(crm, "award_balances") == told.balances()


class Cut(Exception):
    """Raised at the point at which the loader is killed."""


@pytest.mark.warehouse
@pytest.mark.parametrize("statement", ["CREATE TABLE", "INSERT OVERWRITE"])
def test_an_interrupted_change_is_finished_by_the_next(crm: Warehouse, statement: str) -> None:
    commits = crm.tables.commits
    change = RowUpdate(commits, {"committed_at": commits.c.committed_at}, commits.c.batch_id == "b")

    def cut(_connection: object, _cursor: object, executed: str, *_: object) -> None:
        if executed.startswith(statement):
            raise Cut

    def rows(connection: Connection) -> list[str]:
        return list(connection.scalars(select(commits.c.batch_id).order_by(commits.c.batch_id)))

    with crm.write() as connection:
        for each in "abc":
            crm.adapter.execute(connection, commits.insert().values(batch_id=each, committed_at=func.now()))
        event.listen(crm._engine, "after_cursor_execute", cut)
        with pytest.raises(Cut):
            crm.adapter.execute(connection, change)
        event.remove(crm._engine, "after_cursor_execute", cut)
    with crm.write() as connection:
        assert crm.adapter.execute(connection, commits.delete().where(commits.c.batch_id == "a")) == 1
        assert rows(connection) == ["b", "c"]


def test_create_table_has_no_constraints_and_insert_names_its_columns() -> None:
    dialect = create_engine("spark://localhost:10000/crm").dialect
    created = str(CreateTable(TABLES.commits).compile(dialect=dialect))
    inserted = str(
        TABLES.commits.insert().from_select(["batch_id"], select(TABLES.actions.c.type)).compile(dialect=dialect)
    )
    assert created == "CREATE TABLE `_crm_commits` (`batch_id` STRING, `committed_at` TIMESTAMP) USING PARQUET"
    assert inserted.startswith("INSERT INTO `_crm_commits` (`batch_id`) SELECT `actions`.`type`")
    assert isinstance(adapter_for("spark"), SparkAdapter)
