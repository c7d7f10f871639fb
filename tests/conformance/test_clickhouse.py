"""The SQL for ClickHouse."""

from __future__ import annotations

import pytest
from sqlalchemy import Date, cast, create_engine, null
from sqlalchemy.schema import Column, CreateColumn, CreateTable

from target_crm.engines import clickhouse  # noqa: F401 - teaches the dialect
from target_crm.records.column_types import Instant
from target_crm.sql.tables import tables_in

TABLES = tables_in(None)


@pytest.fixture(scope="module")
def dialect() -> object:
    return create_engine("clickhousedb://").dialect


def test_the_ledger_is_sorted_by_id_and_partitioned_by_month(dialect: object) -> None:
    statement = str(CreateTable(TABLES.actions).compile(dialect=dialect))
    assert statement.startswith("CREATE TABLE `actions` (`action_id` VARCHAR(255) COMMENT 'The action''s key.', ")
    assert "`occurred_at` Nullable(DateTime64(6, 'UTC')) COMMENT '" in statement
    assert "`points_added` Nullable(NUMERIC(19, 4)) COMMENT '" in statement
    assert (
        " ENGINE = MergeTree PARTITION BY toYYYYMM(coalesce(`occurred_at`, toDateTime64(0, 6, 'UTC'))) "
        "ORDER BY (`action_id`) COMMENT 'The ledger"
    ) in statement


def test_dates_before_1970_are_kept(dialect: object) -> None:
    assert str(CreateColumn(Column("born", Date)).compile(dialect=dialect)) == "`born` Nullable(Date32)"


def test_a_cast_keeps_nulls(dialect: object) -> None:
    assert str(cast(null(), Instant()).compile(dialect=dialect)) == "CAST(NULL AS Nullable(DateTime64(6, 'UTC')))"


def test_a_delete_without_a_condition_truncates(dialect: object) -> None:
    assert str(TABLES.version.delete().compile(dialect=dialect)) == "TRUNCATE TABLE `_crm_version`"
