"""Statements for engines that no test can run: each must parse in the engine's dialect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlglot
from sqlalchemy import TIMESTAMP, Column, Date, Numeric, String
from sqlalchemy.exc import NoSuchModuleError
from sqlglot import exp

from target_crm.engines.registry import adapter_for
from target_crm.errors import ConnectionLost
from target_crm.records.column_types import Identifier, Instant, JsonText, LongText, Points
from target_crm.warehouse import migrations
from target_crm.warehouse.connection import Warehouse
from tests.helpers.statements import URLS, dialect_of, record_statements

if TYPE_CHECKING:
    from sqlalchemy import Dialect

# sqlglot's names of dialects, where they differ.
SQLGLOT_NAMES = {"mssql": "tsql"}
# BigQuery's load jobs are no SQL, and sqlglot does not know THROW, with which SQL Server's lock ends.
NOT_PARSED = ("LOAD PARQUET ", "DECLARE @got int; EXEC @got = sp_getapplock ")


def installed_dialect(engine: str) -> Dialect:
    try:
        return dialect_of(engine)
    except (ImportError, NoSuchModuleError) as error:
        pytest.skip(f"{engine}: {error}")


@pytest.fixture(scope="module", params=URLS)
def engine(request: pytest.FixtureRequest) -> str:
    installed_dialect(request.param)
    return request.param


@pytest.fixture(scope="module")
def statements(engine: str) -> list[str]:
    return [statement for part in record_statements(engine).values() for statement in part]


def test_every_statement_parses_in_the_dialect_of_its_engine(engine: str, statements: list[str]) -> None:
    sql = [statement for statement in statements if not statement.startswith(NOT_PARSED)]

    parsed = [sqlglot.parse_one(statement, dialect=SQLGLOT_NAMES.get(engine, engine)) for statement in sql]

    # If sqlglot does not understand a statement, it parses the statement as a command.
    assert [tree.sql() for tree in parsed if tree.find(exp.Command)] == []
    assert {type(tree) for tree in parsed} >= {exp.Create, exp.Insert, exp.Select}


def test_each_engine_changes_rows_with_a_statement_that_it_supports(engine: str, statements: list[str]) -> None:
    changes = [statement for statement in statements if statement.startswith(("UPDATE", "MERGE"))]
    keywords = {statement.split(" ", 1)[0] for statement in changes if "_crm_staging_awards" in statement}

    assert keywords == {"MERGE" if engine in {"databricks", "oracle"} else "UPDATE"}


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        pytest.param("bigquery", "PARTITION BY TIMESTAMP_TRUNC(occurred_at, MONTH) CLUSTER BY award_id", id="bigquery"),
        pytest.param("bigquery", "TRUNCATE TABLE `_crm_staging_actions`", id="bigquery-delete-all"),
        pytest.param("bigquery", "description='The points of the newest observation.'", id="bigquery-comment"),
        pytest.param("databricks", "CLUSTER BY (award_id)", id="databricks"),
        pytest.param("databricks", "COMMENT 'The points of the newest observation.'", id="databricks-comment"),
        pytest.param("mssql", "CREATE OR ALTER VIEW user_balances AS", id="mssql-view"),
        pytest.param("mssql", "EXEC sp_rename 'perks._extra', '_sdc_extra', 'COLUMN'", id="mssql-rename"),
        pytest.param("mssql", "action_id VARCHAR(1020) COLLATE Latin1_General_100_BIN2_UTF8 NOT NULL", id="mssql-id"),
        pytest.param(
            "mssql",
            "execute sp_addextendedproperty 'MS_Description', N'The points of the newest observation.', "
            "'schema', dbo, 'table', award_balances, 'column', points",
            id="mssql-comment",
        ),
        pytest.param("oracle", "reason VARCHAR2(4000 CHAR) NOT NULL", id="oracle-text"),
        pytest.param(
            "oracle",
            "COMMENT ON COLUMN award_balances.points IS 'The points of the newest observation.'",
            id="oracle-comment",
        ),
        pytest.param("oracle", '"_sdc_extra" CLOB', id="oracle-json"),
        pytest.param("redshift", "reason VARCHAR(65535) NOT NULL", id="redshift-text"),
        pytest.param("redshift", "action_id VARCHAR(1020) NOT NULL", id="redshift-id"),
        pytest.param("redshift", "COMMENT ON TABLE award_balances IS 'One row per award: ", id="redshift-comment"),
        pytest.param("snowflake", "CLUSTER BY (TO_DATE(occurred_at))", id="snowflake"),
        pytest.param("snowflake", "COMMENT 'The points of the newest observation.'", id="snowflake-comment"),
        pytest.param("snowflake", "COMMENT = 'One row per award: ", id="snowflake-table-comment"),
        pytest.param(
            "snowflake", "FILE_FORMAT = (TYPE = PARQUET USE_LOGICAL_TYPE = TRUE) PURGE = TRUE", id="copy-into"
        ),
    ],
    indirect=["engine"],
)
def test_each_engine_gets_statements_in_its_own_syntax(expected: str, statements: list[str]) -> None:
    assert any(expected in statement for statement in statements)


@pytest.mark.parametrize("engine", URLS)
def test_a_column_that_reflection_reports_with_a_generic_type_is_not_widened(engine: str) -> None:
    dialect = installed_dialect(engine)
    found = {"at": TIMESTAMP(), "id": String(), "text": String(), "json": String(), "points": Numeric(), "day": Date()}
    wanted = {
        "at": Instant(),
        "id": Identifier(),
        "text": LongText(),
        "json": JsonText(),
        "points": Points(),
        "day": Date(),
    }
    for name, type_ in wanted.items():
        assert not migrations._widens(adapter_for(engine), dialect, Column(name, type_), found)


def test_snowflake_sessions_use_the_key_file_and_a_short_lock_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    connector = pytest.importorskip("snowflake.connector")
    arguments: dict[str, Any] = {}

    def refuse(**given: Any) -> None:
        arguments.update(given)
        raise connector.errors.OperationalError("unreachable")

    monkeypatch.setattr(connector, "connect", refuse)
    with pytest.raises(ConnectionLost, match="unreachable"):
        Warehouse("snowflake://LOADER@acme-eu/CRM/LOYALTY?role=LOADER&private_key_file=/keys/loader.p8").set_up()

    wanted = {"database": "CRM", "schema": "LOYALTY", "role": "LOADER", "private_key_file": "/keys/loader.p8"}
    assert {name: arguments[name] for name in wanted} == wanted
    assert arguments["session_parameters"]["LOCK_TIMEOUT"] == 60


@pytest.mark.parametrize(
    ("number", "state", "retriable"),
    [
        pytest.param(625, "57014", True, id="lock-timeout"),
        pytest.param(390111, "08001", True, id="session-expired"),
        pytest.param(603, "XX000", True, id="internal-error"),
        pytest.param(2003, "42S02", False, id="no-such-table"),
        pytest.param(100038, "22018", False, id="not-a-number"),
    ],
)
def test_snowflake_errors_are_retriable_by_number_and_state(number: int, state: str, retriable: bool) -> None:
    errors = pytest.importorskip("snowflake.connector.errors")
    error = errors.ProgrammingError("…", errno=number, sqlstate=state)
    assert adapter_for("snowflake").is_retriable(error) is retriable


@pytest.mark.parametrize(
    ("kind", "reason", "message", "retriable"),
    [
        pytest.param("TooManyRequests", "rateLimitExceeded", "…", True, id="too-many-jobs"),
        pytest.param("BadRequest", "invalidQuery", "… due to concurrent update", True, id="another-update"),
        pytest.param("ServiceUnavailable", "backendError", "…", False, id="the-job-may-still-run"),
        pytest.param("Forbidden", "quotaExceeded", "…", False, id="daily-quota"),
    ],
)
def test_bigquery_errors_are_retriable_if_the_job_never_started(
    kind: str, reason: str, message: str, retriable: bool
) -> None:
    exceptions, driver = (
        pytest.importorskip("google.api_core.exceptions"),
        pytest.importorskip("google.cloud.bigquery.dbapi"),
    )
    error = getattr(exceptions, kind)(message, errors=[{"reason": reason}])
    for raised in (error, driver.DatabaseError(error)):
        assert adapter_for("bigquery").is_retriable(raised) is retriable
