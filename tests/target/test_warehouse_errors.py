"""What an error of the warehouse says: where it happened, why, and no value of a record."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from target_crm.engines.driver_errors import describe
from target_crm.engines.registry import adapter_for
from target_crm.errors import ConnectionLost, WarehouseError
from target_crm.warehouse.connection import Warehouse
from tests.helpers.commands import run_script
from tests.helpers.postgres import new_database
from tests.helpers.target import (
    ACTIONS,
    INTEGER,
    NUMBER,
    TEXT,
    action,
    activate,
    execute,
    load,
    query,
    record,
    run_target,
    schema,
    state,
    table,
    with_version,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PERSON = "Teodora Example"
TIME, DAY = ({"type": ["string", "null"], "format": name} for name in ("date-time", "date"))
VALUES = {"id": INTEGER, "n": INTEGER, "d": NUMBER, "v": {"type": ["string", "null"]}}


@pytest.fixture
def url(postgres_url: str) -> str:
    return new_database(postgres_url)


# Places


@pytest.mark.parametrize(
    ("statement", "detail"),
    [
        pytest.param(
            "CREATE VIEW report AS SELECT x FROM sales", 'rule _RETURN on view report depends .* "x"', id="view"
        ),
        pytest.param(
            "CREATE MATERIALIZED VIEW report AS SELECT x FROM sales",
            "on materialized view report",
            id="materialized-view",
        ),
        pytest.param(
            "ALTER TABLE sales ADD COLUMN twice bigint GENERATED ALWAYS AS (x * 2) STORED",
            'Column "x" is used by generated column "twice"',
            id="generated-column",
        ),
    ],
)
def test_an_error_about_a_column_with_dependents_names_the_column_and_the_dependents(
    url: str, statement: str, detail: str
) -> None:
    load(url, [schema("sales", {"id": INTEGER, "x": INTEGER}, "id"), record("sales", {"id": 1, "x": 5})])
    execute(url, statement)

    with pytest.raises(
        WarehouseError, match=rf"stream 'sales': .* table sales: .*{detail}.*; drop the dependent objects"
    ):
        load(url, [schema("sales", {"id": INTEGER, "x": NUMBER}, "id"), record("sales", {"id": 2, "x": 5.5})])


# Constraints and generated columns that a user made

PEOPLE = {"id": INTEGER, "name": {"type": ["string", "null"]}, "n": INTEGER}
OTHER = [schema("o", {"id": INTEGER}, "id"), record("o", {"id": 1})]


def people(*rows: dict[str, Any]) -> list[str]:
    return [schema("People", PEOPLE, "id"), *(record("People", row) for row in rows)]


@pytest.mark.parametrize(
    ("constraint", "reason"),
    [
        pytest.param("CONSTRAINT short CHECK (length(name) < 9)", r"CHECK constraint|check constraint", id="check"),
        pytest.param("CHECK (n IS NOT NULL AND id > 0)", r"CHECK constraint|check constraint", id="unnamed-check"),
        pytest.param("CHECK (name <> 'it''s' AND n > 0)", r"CHECK constraint|check constraint", id="check-with-quotes"),
    ],
)
def test_a_record_that_a_constraint_refuses_is_quarantined_and_the_others_are_loaded(
    warehouse_url: str, constraint: str, reason: str
) -> None:
    execute(warehouse_url, f"CREATE TABLE people (id BIGINT PRIMARY KEY, name VARCHAR(99), n BIGINT, {constraint})")
    rows: list[dict[str, Any]] = [{"id": number, "name": "a", "n": 5} for number in range(1, 9)]
    refused = {"id": 9, "name": PERSON, "n": 5} if "short" in constraint else {"id": 9, "name": "a", "n": None}
    refused |= {"n": -1} if "it''s" in constraint else {}

    loaded = load(warehouse_url, [*people(*rows[:5], refused, *rows[5:]), *OTHER, state({"done": 1})])

    assert loaded.states == ['{"done":1}']
    assert loaded.tallies["People"] == "9 read = 8 applied + 0 duplicate + 0 superseded + 1 quarantined"
    assert query(warehouse_url, "SELECT count(*), max(id) FROM people") == [(8, 8)]
    (rejected,) = table(warehouse_url, "rejected_records", "stream", "reason", "input_line", "payload")
    assert json.loads(rejected["payload"]) == refused
    assert (rejected["stream"], rejected["input_line"]) == ("People", 7)
    assert re.match(rf"table people: .*({reason})", rejected["reason"])
    assert not rejected["reason"].endswith(("(", "<", "="))
    assert PERSON not in rejected["reason"]


def test_a_record_that_a_constraint_refuses_keeps_all_its_values_in_the_quarantine(sqlite_url: str) -> None:
    execute(sqlite_url, "CREATE TABLE people (id BIGINT PRIMARY KEY, CHECK (id < 9))")
    kept = {"id": 9, "at": "2026-10-01T00:00:00Z", "day": "2026-10-01", "doc": {"a": [1.50]}, "more": {"b": None}}
    properties = {"id": INTEGER, "at": TIME, "day": DAY, "doc": {"type": "object"}}

    load(sqlite_url, [schema("People", properties, "id"), record("People", {"id": 1}), record("People", kept)])

    ((payload,),) = query(sqlite_url, "SELECT payload FROM rejected_records")
    assert json.loads(payload) == kept


def test_an_action_that_a_constraint_refuses_moves_no_balance(sqlite_url: str) -> None:
    load(sqlite_url, [ACTIONS])
    execute(
        sqlite_url,
        "CREATE TRIGGER small BEFORE INSERT ON actions WHEN NEW.points_added > 5 "
        "BEGIN SELECT RAISE(ABORT, 'too many points'); END",
    )

    load(sqlite_url, [ACTIONS, action("a1"), action("a2", delta=6, available=8, at="2026-10-02T00:00:00Z")])

    assert query(sqlite_url, "SELECT points FROM award_balances") == [(2,)]
    (payload,) = table(sqlite_url, "rejected_records", "payload")
    assert json.loads(payload["payload"])["_id"] == "a2"


def test_records_that_a_constraint_refuses_only_together_stop_their_stream(warehouse_url: str) -> None:
    execute(warehouse_url, "CREATE TABLE people (id BIGINT PRIMARY KEY, name VARCHAR(99) UNIQUE, n BIGINT)")
    rows = [{"id": number, "name": PERSON, "n": 1} for number in (1, 2)]

    with pytest.raises(WarehouseError) as caught:
        load(warehouse_url, [*people(*rows), *OTHER, state({"done": 1})], batch_size_rows=2)

    message = str(caught.value)
    assert re.match("stream 'People': did not load 2 records: .* table people: .*: change the table, or", message)
    assert PERSON not in message
    assert query(warehouse_url, "SELECT id FROM o") == [(1,)]
    assert query(warehouse_url, "SELECT count(*) FROM people") == [(0,)]


def test_a_stream_that_stops_is_not_loaded_and_covered_by_no_state(sqlite_url: str, tmp_path: Path) -> None:
    execute(sqlite_url, "CREATE TABLE people (id BIGINT PRIMARY KEY, name TEXT UNIQUE, n BIGINT)")
    rows = [record("People", {"id": number, "name": name, "n": 1}) for number, name in enumerate("abccd")]
    lines = [
        *people(),
        rows[0],
        state({"n": 0}),
        rows[1],
        *rows[2:4],
        *OTHER,
        state({"n": 1}),
        rows[4],
        state({"n": 2}),
    ]

    ended = run_target(sqlite_url, tmp_path, *lines, batch_size_rows=2)

    assert ended.returncode == 1
    assert ended.stdout == '{"n":0}\n'
    assert ended.stderr.count("Other streams are still loaded") == 1
    assert "stream 'People': did not load 3 records" in ended.stderr
    assert query(sqlite_url, "SELECT id FROM people ORDER BY id") == [(0,), (1,)]
    assert query(sqlite_url, "SELECT id FROM o") == [(1,)]


def test_a_generated_column_stops_its_stream_and_is_named(warehouse_url: str) -> None:
    kept = "VIRTUAL" if warehouse_url.startswith("duckdb") else "STORED"
    columns = f"id BIGINT PRIMARY KEY, name VARCHAR(99), n BIGINT GENERATED ALWAYS AS (id * 2) {kept}"
    execute(warehouse_url, f"CREATE TABLE people ({columns})")

    with pytest.raises(WarehouseError, match=r"stream 'People': did not load 1 record: .*people.*n.*generated"):
        load(warehouse_url, [*people({"id": 1, "name": "a", "n": 2}), *OTHER])

    assert query(warehouse_url, "SELECT id FROM o") == [(1,)]


@pytest.mark.parametrize("keys", [["id"], []], ids=["key", "no-key"])
def test_the_row_of_a_record_that_a_constraint_refuses_is_not_deleted(sqlite_url: str, keys: list[str]) -> None:
    defined = schema("People", PEOPLE, *keys)
    first = [with_version(1, record("People", {"id": number, "name": "a", "n": 1})) for number in (1, 2, 3)]
    load(sqlite_url, [defined, *first, activate("People", 1)])
    execute(
        sqlite_url,
        "CREATE TRIGGER small BEFORE UPDATE ON people WHEN NEW.n > 5 BEGIN SELECT RAISE(ABORT, 'too many'); END",
    )
    execute(
        sqlite_url,
        "CREATE TRIGGER small_too BEFORE INSERT ON people WHEN NEW.n > 5 BEGIN SELECT RAISE(ABORT, 'too many'); END",
    )
    second = [with_version(2, record("People", {"id": number, "name": "a", "n": number * 3})) for number in (1, 2)]

    load(sqlite_url, [defined, *second, activate("People", 2)])

    kept = "SELECT id FROM people WHERE _sdc_deleted_at IS NULL AND n = 1 ORDER BY id"
    assert query(sqlite_url, kept) == ([(2,)] if keys else [(1,), (2,), (3,)])


def test_a_record_that_a_constraint_refuses_ends_the_run_if_invalid_records_do(sqlite_url: str) -> None:
    execute(sqlite_url, "CREATE TABLE people (id BIGINT PRIMARY KEY, CONSTRAINT small CHECK (id < 9))")

    with pytest.raises(WarehouseError, match=r"stream 'People': .*table people: .* constraint failed: small"):
        load(sqlite_url, people({"id": 9, "name": "a", "n": 1}), on_invalid_record="fail")

    assert query(sqlite_url, "SELECT count(*) FROM rejected_records") == [(0,)]


# Columns that a user made narrower


def test_a_value_that_exceeds_a_column_is_quarantined_and_the_others_are_loaded(warehouse_url: str) -> None:
    execute(warehouse_url, "CREATE TABLE t (id BIGINT PRIMARY KEY, n INTEGER, d NUMERIC(5, 2), v VARCHAR(3))")
    fitting = [
        {"id": 1, "n": 2**31 - 1, "d": 999.99, "v": "abc"},
        {"id": 2, "n": -(2**31), "d": -999.99, "v": ""},
        {"id": 3, "n": None, "d": None, "v": None},
    ]
    exceeding = [
        {"id": 4, "n": 2**31},
        {"id": 5, "d": 1000},
        {"id": 6, "d": -999.995},
        {"id": 7, "v": "abcd"},
    ]

    load(
        warehouse_url,
        [schema("t", VALUES, "id"), *(record("t", row) for row in (*fitting, *exceeding))],
        max_rejected_fraction=1.0,
    )

    reasons = [row["reason"] for row in table(warehouse_url, "rejected_records", "reason", "input_line")]
    numbers = [
        "n is out of the range of its column, a signed 32-bit integer",
        "d is out of range, expected at most 3 digits before the point",
        "d has more than 2 decimal places",
    ]
    by_engine: dict[str, list[str]] = {
        # SQLite's types have no sizes, and DuckDB's texts have none.
        "sqlite": [],
        "duckdb": numbers,
        "postgresql": [*numbers, "v has 4 characters, but its column takes at most 3"],
    }
    engine = warehouse_url.partition(":")[0]
    assert sorted(reasons) == sorted(by_engine[engine])
    loaded = [key for (key,) in query(warehouse_url, "SELECT id FROM t ORDER BY id")]
    assert loaded == [1, 2, 3] + [key for key in (4, 5, 6, 7) if engine == "sqlite" or (engine, key) == ("duckdb", 7)]


def test_a_key_that_exceeds_its_column_is_quarantined(url: str) -> None:
    execute(url, "CREATE TABLE t (code varchar(3) PRIMARY KEY, n smallint)")
    rows = [{"code": "abc", "n": 1}, {"code": "abcd", "n": 1}, {"code": "b", "n": 2**15}]

    load(url, [schema("t", {"code": TEXT, "n": INTEGER}, "code"), *(record("t", row) for row in rows)])

    assert query(url, "SELECT code, n FROM t") == [("abc", 1)]
    assert sorted(row["reason"] for row in table(url, "rejected_records", "reason")) == [
        "code has 4 characters, expected at most 3 in a key",
        "n is out of the range of its column, a signed 16-bit integer",
    ]


def test_a_number_that_exceeds_a_column_of_32_bits_is_quarantined(warehouse_url: str) -> None:
    execute(warehouse_url, "CREATE TABLE t (id BIGINT PRIMARY KEY, d REAL)")
    numbers = [3.4e38, -1.5e-45, 0, 3.5e38, -1e300, 1e-46]

    load(
        warehouse_url,
        [schema("t", VALUES, "id"), *(record("t", {"id": number, "d": d}) for number, d in enumerate(numbers))],
        max_rejected_fraction=1.0,
    )

    limit = "d is out of the range of its column, a 32-bit float: expected a magnitude of 1.4e-45 to 3.4e38"
    # SQLite's REAL has 64 bits.
    exceeding = 0 if warehouse_url.startswith("sqlite") else 3
    assert [row["reason"] for row in table(warehouse_url, "rejected_records", "reason", "input_line")] == (
        [limit] * exceeding
    )
    assert query(warehouse_url, "SELECT count(*) FROM t") == [(6 - exceeding,)]


def test_the_counts_add_up_if_a_users_column_rounds(url: str) -> None:
    execute(url, "CREATE TABLE t (id bigint PRIMARY KEY, d real)")

    rows = [record("t", {"id": 1, "d": 0.123456789}), record("t", {"id": 2, "d": 0.5})]

    loaded = load(url, [schema("t", {"id": INTEGER, "d": NUMBER}, "id"), *rows])

    assert loaded.tallies == {"t": "2 read = 2 applied + 0 duplicate + 0 superseded + 0 quarantined"}


# Privileges


def test_a_role_that_may_not_create_tables_is_referred_to_the_ddl(url: str) -> None:
    execute(url, "CREATE ROLE may_not_create LOGIN")
    role_url = url.replace("//postgres@", "//may_not_create@")

    ran = run_script("target-crm", "--config", "ENV", stdin=f"{ACTIONS}\n", TARGET_CRM_SQLALCHEMY_URL=role_url)

    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].endswith(
        "InsufficientPrivilege: permission denied for schema public; "
        "as the owner of the tables, run the SQL that `crm-balances ddl --schemas` prints: see Roles in docs/deploy.md"
    )


def test_a_role_that_may_not_read_is_referred_to_the_roles_not_to_the_ddl(url: str) -> None:
    load(url, [ACTIONS, action("a1")])
    execute(url, "CREATE ROLE may_not_read LOGIN; GRANT SELECT ON _crm_version TO may_not_read")
    role_url = url.replace("//postgres@", "//may_not_read@")

    ran = run_script("crm-balances", "verify", TARGET_CRM_SQLALCHEMY_URL=role_url)

    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1].endswith(
        "InsufficientPrivilege: permission denied for table award_balances; "
        "use a role with this privilege: see Roles in docs/deploy.md"
    )


# Retries


@pytest.fixture
def postgres_warehouse(new_postgres_url: str) -> Iterator[Warehouse]:
    warehouse = Warehouse(new_postgres_url)
    warehouse.set_up()
    yield warehouse
    warehouse.dispose()


@pytest.mark.parametrize(
    ("state", "can_pass"),
    [
        pytest.param("08006", True, id="connection-failure"),
        pytest.param("40001", True, id="serialization-failure"),
        pytest.param("53100", True, id="disk-full"),
        pytest.param("55P03", True, id="lock-not-available"),
        pytest.param("57P03", True, id="server-starts"),
        pytest.param("57014", False, id="statement-cancelled"),
        pytest.param("54000", False, id="program-limit"),
        pytest.param("42501", False, id="no-privilege"),
        pytest.param("58030", False, id="io-error"),
        pytest.param("XX000", False, id="internal-error"),
    ],
)
def test_only_temporary_errors_are_retried(postgres_warehouse: Warehouse, state: str, can_pass: bool) -> None:
    raising = f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{state}'; END $$"

    with pytest.raises(WarehouseError, match="no") as caught, postgres_warehouse.write() as connection:
        connection.exec_driver_sql(raising)

    assert isinstance(caught.value, ConnectionLost) == can_pass


# Drivers


class DatabaseError(Exception):
    """The base class of a driver's errors."""

    def __init__(self, said: object, sqlstate: str = "") -> None:
        super().__init__(said)
        self.sqlstate = sqlstate


class DataError(DatabaseError):
    """A driver raises this error for a value that does not fit."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param(
            DatabaseError(
                "Dynamic SQL Error\n-SQL error code = -104\n-Token unknown - line 1, column 8\n-foo", "42000"
            ),
            "DatabaseError: Dynamic SQL Error; SQL error code = -104; Token unknown - line 1, column 8; foo",
            id="first-line-says-nothing",
        ),
        pytest.param(
            DatabaseError('relation "t" does not exist\nLINE 1: SELECT 5 FROM t\n ^'),
            'DatabaseError: relation "t" does not exist',
            id="statement-is-left-out",
        ),
        pytest.param(
            DatabaseError(f'violation of UNIQUE KEY constraint "U" on table "T"\n-value is ("{PERSON}")', "23000"),
            "DatabaseError: violation of UNIQUE KEY constraint",
            id="constraint",
        ),
        pytest.param(
            DatabaseError(f'conversion error from string "{PERSON}"', "22018"),
            "DatabaseError: a value was rejected",
            id="value-by-sqlstate",
        ),
        pytest.param(DataError(f"{PERSON} is no number"), "DataError: a value was rejected", id="value-by-class"),
        pytest.param(DatabaseError("", "HY000"), "DatabaseError: HY000", id="no-text"),
    ],
)
def test_a_drivers_error_becomes_one_line_without_values(error: Exception, expected: str) -> None:
    assert describe(error) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({"C": "23505", "M": "duplicate key", "D": f"Key=({PERSON})"}, "duplicate key", id="row"),
        pytest.param(
            {"C": "2BP01", "M": "cannot drop", "D": "view v depends"}, "cannot drop; view v depends; drop", id="object"
        ),
        pytest.param({"C": "22P02", "M": f'invalid input "{PERSON}"'}, "a value was rejected", id="value"),
    ],
)
def test_an_error_from_pg8000_becomes_one_line_without_values(fields: dict[str, str], expected: str) -> None:
    found = adapter_for("postgresql").describe_error(DatabaseError(fields))

    assert found.startswith(f"DatabaseError: {expected}")
    assert PERSON not in found
