"""What an error of the warehouse says: where it happened, why, and no value of a record."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from target_crm.engines.driver_errors import describe
from target_crm.engines.registry import adapter_for
from target_crm.errors import ConnectionLost, WarehouseError
from target_crm.warehouse.connection import Warehouse
from tests.helpers.postgres import new_database
from tests.helpers.target import INTEGER, NUMBER, TEXT, execute, load, query, record, schema, table

if TYPE_CHECKING:
    from collections.abc import Iterator

PERSON = "Teodora Example"
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
def test_an_error_about_a_column_that_others_depend_on_names_it_and_them(url: str, statement: str, detail: str) -> None:
    load(url, [schema("sales", {"id": INTEGER, "x": INTEGER}, "id"), record("sales", {"id": 1, "x": 5})])
    execute(url, statement)

    with pytest.raises(WarehouseError, match=rf"stream 'sales': .* table sales: .*{detail}.*; drop what depends on it"):
        load(url, [schema("sales", {"id": INTEGER, "x": NUMBER}, "id"), record("sales", {"id": 2, "x": 5.5})])


def test_an_error_about_a_row_names_stream_table_and_constraint_but_no_value(url: str) -> None:
    people = schema("People", {"id": INTEGER, "name": TEXT}, "id")
    load(url, [people])
    execute(url, "ALTER TABLE people ADD CONSTRAINT short CHECK (length(name) < 9)")

    with pytest.raises(WarehouseError) as caught:
        load(url, [people, record("People", {"id": 1, "name": PERSON})])

    message = str(caught.value)
    assert message.endswith(
        "stream 'People', table people: CheckViolation: "
        'new row for relation "people" violates check constraint "short"'
    )
    assert PERSON not in message


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
        "n is out of the range of its column's 32 bits",
        "d is out of range, expected at most 3 digits before the point",
        "d has more than 2 decimal places",
    ]
    by_engine: dict[str, list[str]] = {
        # SQLite's types have no sizes, and DuckDB's texts have none.
        "sqlite": [],
        "duckdb": numbers,
        "postgresql": [*numbers, "v has 4 characters, its column takes at most 3"],
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
        "n is out of the range of its column's 16 bits",
    ]


def test_a_number_that_exceeds_a_column_of_32_bits_is_quarantined(warehouse_url: str) -> None:
    execute(warehouse_url, "CREATE TABLE t (id BIGINT PRIMARY KEY, d REAL)")
    numbers = [3.4e38, -1.5e-45, 0, 3.5e38, -1e300, 1e-46]

    load(
        warehouse_url,
        [schema("t", VALUES, "id"), *(record("t", {"id": number, "d": d}) for number, d in enumerate(numbers))],
        max_rejected_fraction=1.0,
    )

    limit = "d is out of the range of its column's 32 bits, expected a magnitude of 1.4e-45 to 3.4e38"
    # SQLite's REAL has 64 bits.
    exceeding = 0 if warehouse_url.startswith("sqlite") else 3
    assert [row["reason"] for row in table(warehouse_url, "rejected_records", "reason", "input_line")] == (
        [limit] * exceeding
    )
    assert query(warehouse_url, "SELECT count(*) FROM t") == [(6 - exceeding,)]


def test_the_counts_add_up_if_a_user_s_column_rounds(url: str) -> None:
    execute(url, "CREATE TABLE t (id bigint PRIMARY KEY, d real)")

    rows = [record("t", {"id": 1, "d": 0.123456789}), record("t", {"id": 2, "d": 0.5})]

    loaded = load(url, [schema("t", {"id": INTEGER, "d": NUMBER}, "id"), *rows])

    assert loaded.tallies == {"t": "2 read = 2 applied + 0 duplicate + 0 superseded + 0 quarantined"}


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
def test_only_errors_that_can_pass_are_retried(postgres_warehouse: Warehouse, state: str, can_pass: bool) -> None:
    raising = f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{state}'; END $$"

    with pytest.raises(WarehouseError, match="no") as caught, postgres_warehouse.write() as connection:
        connection.exec_driver_sql(raising)

    assert isinstance(caught.value, ConnectionLost) == can_pass


# Drivers


class DatabaseError(Exception):
    """As a driver raises it."""

    def __init__(self, said: object, sqlstate: str = "") -> None:
        super().__init__(said)
        self.sqlstate = sqlstate


class DataError(DatabaseError):
    """As a driver raises it for a value."""


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
            "DatabaseError: a value was refused",
            id="value-by-sqlstate",
        ),
        pytest.param(DataError(f"{PERSON} is no number"), "DataError: a value was refused", id="value-by-class"),
        pytest.param(DatabaseError("", "HY000"), "DatabaseError: HY000", id="no-text"),
    ],
)
def test_a_driver_s_error_becomes_one_line_without_values(error: Exception, expected: str) -> None:
    assert describe(error) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({"C": "23505", "M": "duplicate key", "D": f"Key=({PERSON})"}, "duplicate key", id="row"),
        pytest.param(
            {"C": "2BP01", "M": "cannot drop", "D": "view v depends"}, "cannot drop; view v depends; drop", id="object"
        ),
        pytest.param({"C": "22P02", "M": f'invalid input "{PERSON}"'}, "a value was refused", id="value"),
    ],
)
def test_the_fields_of_an_error_of_pg8000_become_one_line_without_values(fields: dict[str, str], expected: str) -> None:
    found = adapter_for("postgresql").describe_error(DatabaseError(fields))

    assert found.startswith(f"DatabaseError: {expected}")
    assert PERSON not in found
