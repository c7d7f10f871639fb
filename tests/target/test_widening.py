"""An existing table whose schema has become wider, has another key, or does not fit. At most its own stream stops."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, inspect

from target_crm.balances_cli.replay import replay
from target_crm.errors import WarehouseError
from target_crm.warehouse.connection import Warehouse, parse_url
from tests.helpers.balances import run_balances
from tests.helpers.target import (
    AWARDS,
    INTEGER,
    TEXT,
    execute,
    load,
    load_rejected,
    query,
    record,
    run_target,
    schema,
    snapshot,
    state,
)

if TYPE_CHECKING:
    from pathlib import Path

BOOLEAN, NUMBER, OBJECT = ({"type": ["null", name]} for name in ("boolean", "number", "object"))
DAY, TIME = ({"type": ["null", "string"], "format": name} for name in ("date", "date-time"))
UNSIGNED = {"type": ["null", "integer"], "minimum": 0, "maximum": 2**64 - 1}
CENTS, MICROS = ({"type": ["null", "number"], "multipleOf": step} for step in (0.01, 1e-06))
# For each column: the schema and a value in the first run, a wider schema and a value in the second run, and both
# values as the warehouse then has them.
WIDENED: dict[str, tuple[Any, Any, Any, Any, tuple[Any, Any]]] = {
    "day_time": (DAY, "2024-01-01", TIME, "2024-03-01T10:00:00Z", ("2024-01-01 00:00", "2024-03-01 10:00")),
    "integer_number": (INTEGER, 5, NUMBER, 0.5, (5, 0.5)),
    "integer_unsigned": (INTEGER, 2**63 - 1, UNSIGNED, 2**64 - 1, (2**63 - 1, 2**64 - 1)),
    "integer_decimal": (INTEGER, 7, CENTS, 0.25, (7, 0.25)),
    "decimal_decimal": (CENTS, 0.25, MICROS, 0.000001, (0.25, 0.000001)),
    "decimal_number": (CENTS, 0.25, NUMBER, 0.125, (0.25, 0.125)),
    "number_decimal": (NUMBER, 0.125, CENTS, 0.25, (0.125, 0.25)),
    "integer_text": (INTEGER, 5, TEXT, "0001", ("5", "0001")),
    "number_text": (NUMBER, 0.1 + 0.2, TEXT, "x", ("0.30000000000000004", "x")),
    "boolean_text": (BOOLEAN, True, TEXT, "x", ("true", "x")),
    "day_text": (DAY, "2024-01-01", TEXT, "x", ("2024-01-01", "x")),
    "time_text": (TIME, "2024-03-01T10:00:00Z", TEXT, "x", ("2024-03-01 10:00", "x")),
    "object_text": (OBJECT, {"a": 1}, TEXT, "x", ('{"a":1}', "x")),
    "object_any": (OBJECT, {"a": 1}, {"type": ["object", "string"]}, "x", ('{"a":1}', "x")),
    "decimal_text": (CENTS, 0.25, TEXT, "x", ("0.25", "x")),
}


def check_widening(url: str) -> None:
    """Load both runs, and then the second run again."""
    first, second = ({"id": TEXT} | {name: case[place] for name, case in WIDENED.items()} for place in (0, 2))
    values = [{"id": f"{place}"} | {name: case[place] for name, case in WIDENED.items()} for place in (1, 3)]

    load(url, [schema("w", first, "id"), record("w", values[0])])
    for _ in range(2):
        load(url, [schema("w", second, "id"), record("w", values[1]), record("w", {"id": "9"})])

    *stored, empty = query(url, f"SELECT {', '.join(WIDENED)} FROM w ORDER BY id")
    for place, (name, case) in enumerate(WIDENED.items()):
        for row, expected in zip(stored, case[4], strict=True):
            found = row[place]
            if isinstance(expected, str):
                assert str(found).startswith(expected), name
            else:
                # SQLite has no decimals.
                assert float(found) == float(expected), name
    assert set(empty) == {None}


def test_an_integer_key_in_a_column_of_doubles_is_exact_or_quarantined(warehouse_url: str) -> None:
    largest = 2**53
    numbers, integers = (schema("k", {"id": kind}, "id") for kind in (NUMBER, INTEGER))
    load(warehouse_url, [numbers, record("k", {"id": 1})])

    load(warehouse_url, [integers, *(record("k", {"id": largest + more}) for more in (0, 1, 2, 3))])

    stored = [int(key) - largest for (key,) in query(warehouse_url, "SELECT id FROM k WHERE id > 1 ORDER BY id")]
    reasons = [reason for (reason,) in query(warehouse_url, "SELECT reason FROM rejected_records")]
    if warehouse_url.startswith("postgresql"):
        assert (stored, reasons) == ([0, 1, 2, 3], [])
    else:
        assert stored == [0, 2]
        assert reasons == ["id has more digits than its column keeps, so it cannot be part of a key"] * 2


def test_a_column_is_widened_and_keeps_its_values(warehouse_url: str) -> None:
    check_widening(warehouse_url)


@pytest.fixture
def duckdb_url(tmp_path: Path) -> str:
    return f"duckdb:///{tmp_path / 'crm.db'}"


def test_every_double_in_a_column_of_integers_becomes_text_with_all_digits(sqlite_url: str) -> None:
    """SQLite's columns of integers keep their type when they become columns of numbers."""
    doubles = [0.12345678901234566, 1.7976931348623157e308, 5e-324]
    load(sqlite_url, [schema("d", {"id": INTEGER, "v": INTEGER}, "id"), record("d", {"id": 9, "v": 2**63 - 1})])
    numbers = [record("d", {"id": place, "v": value}) for place, value in enumerate(doubles)]
    load(sqlite_url, [schema("d", {"id": INTEGER, "v": NUMBER}, "id"), *numbers])

    load(sqlite_url, [schema("d", {"id": INTEGER, "v": TEXT}, "id")])

    *stored, whole = [text for (text,) in query(sqlite_url, "SELECT v FROM d ORDER BY id")]
    assert (list(map(float, stored)), whole) == (doubles, str(2**63 - 1))


def test_a_key_of_integers_becomes_a_key_of_texts(warehouse_url: str) -> None:
    load(warehouse_url, [schema("k", {"id": INTEGER, "v": TEXT}, "id"), record("k", {"id": 1, "v": "a"})])
    texts = schema("k", {"id": TEXT, "v": TEXT}, "id")
    load(warehouse_url, [texts, record("k", {"id": "1", "v": "b"}), record("k", {"id": "x", "v": "c"})])

    assert query(warehouse_url, "SELECT id, v FROM k ORDER BY id") == [("1", "b"), ("x", "c")]


def test_a_table_that_is_copied_keeps_the_columns_indexes_and_views_of_users(sqlite_url: str) -> None:
    integers = schema("s", {"id": INTEGER, "x": INTEGER, "n": INTEGER}, "id")
    load(sqlite_url, [integers, record("s", {"id": 1, "x": 7, "n": 2**60 + 1})])
    execute(sqlite_url, "ALTER TABLE s ADD COLUMN mine DATE")
    execute(sqlite_url, "UPDATE s SET mine = '2024-01-01'")
    execute(sqlite_url, "CREATE INDEX by_x ON s (x, mine)")
    execute(sqlite_url, "CREATE VIEW v AS SELECT id, x, mine FROM s")

    wider = schema("s", {"id": INTEGER, "x": TEXT, "n": NUMBER}, "id")
    load(sqlite_url, [wider, record("s", {"id": 2, "x": "0002", "n": 0.5})])

    assert query(sqlite_url, "SELECT id, x, mine FROM v ORDER BY id") == [(1, "7", "2024-01-01"), (2, "0002", None)]
    assert query(sqlite_url, "SELECT n FROM s ORDER BY id") == [(2**60 + 1,), (0.5,)]
    engine = create_engine(sqlite_url)
    assert [index["column_names"] for index in inspect(engine).get_indexes("s")] == [["x", "mine"]]
    assert inspect(engine).get_pk_constraint("s")["constrained_columns"] == ["id"]
    assert [name for name in inspect(engine).get_table_names() if "rebuilt" in name] == []
    engine.dispose()


def test_exact_numbers_that_a_double_cannot_hold_are_not_widened(duckdb_url: str) -> None:
    load(duckdb_url, [schema("t", {"id": TEXT, "n": INTEGER}, "id"), record("t", {"id": "1", "n": 2**60 + 1})])

    with pytest.raises(WarehouseError, match="'n' holds exact numbers with more than 15 digits"):
        load(duckdb_url, [schema("t", {"id": TEXT, "n": NUMBER}, "id"), record("t", {"id": "2", "n": 0.5})])

    assert query(duckdb_url, "SELECT id, n FROM t") == [("1", 2**60 + 1)]


# Stopped streams

INCOMPATIBLE = [
    schema("t", {"id": TEXT, "v": INTEGER}, "id"),
    record("t", {"id": "1", "v": 5}),
    state({"n": 1}),
    schema("u", {"id": TEXT}, "id"),
    schema("t", {"id": TEXT, "v": BOOLEAN}, "id"),
    record("t", {"id": "2", "v": True}),
    record("u", {"id": "1"}),
    state({"n": 2}),
    schema("t", {"id": TEXT, "v": OBJECT}, "id"),
    record("t", {"id": "3", "v": 5}),
    json.dumps({"type": "ACTIVATE_VERSION", "stream": "t", "version": 1}),
    record("u", {"id": "2"}),
    state({"n": 3}),
]


def test_a_stream_whose_column_cannot_be_widened_stops_without_the_others_and_holds_back_the_state(
    sqlite_url: str, tmp_path: Path
) -> None:
    run = run_target(sqlite_url, tmp_path, *INCOMPATIBLE)

    assert (run.returncode, run.stdout) == (1, '{"n":1}\n')
    (stop,) = (line for line in run.stderr.splitlines() if "Other streams are still loaded" in line)
    reason = (
        "stream 't': table 't': column 'v' holds integer, but the new schema says boolean, and sqlite cannot widen it"
    )
    assert "ERROR" in stop
    assert reason in stop
    assert "ignored ACTIVATE_VERSION" not in run.stderr
    assert "stream 't': did not load 2 records: table 't'" in run.stderr
    assert query(sqlite_url, "SELECT id, v, _sdc_deleted_at FROM t") == [("1", 5, None)]
    assert query(sqlite_url, "SELECT id FROM u ORDER BY id") == [("1",), ("2",)]
    assert query(
        sqlite_url, "SELECT stream, applied, exit_state FROM load_runs WHERE stream <> '' ORDER BY stream"
    ) == [
        ("t", 1, "failed"),
        ("u", 2, "failed"),
    ]


def test_replay_keeps_the_records_of_a_stopped_stream(sqlite_url: str) -> None:
    load_rejected(sqlite_url, [AWARDS, snapshot("w1", "many")])
    execute(sqlite_url, "UPDATE rejected_records SET payload = replace(payload, '\"many\"', '5')")
    execute(sqlite_url, "ALTER TABLE awards RENAME COLUMN updated_at TO mine")
    execute(sqlite_url, "ALTER TABLE awards ADD COLUMN updated_at TEXT")
    crm = Warehouse(sqlite_url)

    with pytest.raises(WarehouseError, match=r"stream 'awards': did not load 1 record: .*'updated_at' holds text"):
        replay({"sqlalchemy_url": sqlite_url}, crm)

    crm.dispose()
    assert query(sqlite_url, "SELECT stream FROM rejected_records") == [("awards",)]


# Keys


def day(number: int) -> str:
    return f"2026-10-0{number}T00:00:00Z"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        pytest.param(["id"], ["id", "v"], [(1, "b"), (2, "a"), (3, "c")], id="added"),
        pytest.param(["id", "v"], ["id"], [(1, "b"), (2, "a"), (3, "c")], id="dropped"),
        pytest.param([], ["id"], [(1, "b"), (2, "a"), (3, "c")], id="first"),
        pytest.param(["id"], [], [(1, "b"), (2, "a"), (3, "c"), (3, "c")], id="none"),
    ],
)
def test_a_changed_key_needs_a_setting_which_keeps_the_newest_row_of_each_key(
    warehouse_url: str, old: list[str], new: list[str], expected: list[tuple[int, str]]
) -> None:
    properties = {"id": INTEGER, "v": TEXT, "w": DAY}
    rows = [(1, "b", 2), (1, "a", 1), (2, "a", 3)]
    sent = [record("r", {"id": n, "v": v, "w": f"2024-01-0{on}"}, at=day(on)) for n, v, on in rows]
    load(warehouse_url, [schema("r", properties, *old), *sent])
    changed = [schema("r", {"id": INTEGER, "v": TEXT}, *new), record("r", {"id": 3, "v": "c"}), state({"n": 1})]

    with pytest.raises(WarehouseError, match=r"stream 'r': did not load 1 record: .* set allow_key_change"):
        load(warehouse_url, [*changed, schema("other", {"id": TEXT}, "id"), record("other", {"id": "1"})])
    assert query(warehouse_url, "SELECT count(*) FROM other") == [(1,)]

    for _ in range(2):
        loaded = load(warehouse_url, changed, allow_key_change=True)
        assert loaded.states == ['{"n":1}']
    assert query(warehouse_url, "SELECT id, v FROM r ORDER BY id, v") == expected
    days = query(warehouse_url, "SELECT w FROM r WHERE id < 3 ORDER BY id")
    assert [str(value) for (value,) in days] == ["2024-01-02", "2024-01-03"]


def test_rows_that_a_new_key_merges_are_counted_in_a_warning(sqlite_url: str, caplog: pytest.LogCaptureFixture) -> None:
    properties = {"id": INTEGER, "v": TEXT}
    load(sqlite_url, [schema("r", properties, "id"), *(record("r", {"id": n, "v": "eu"}) for n in range(5))])

    load(sqlite_url, [schema("r", properties, "v")], allow_key_change=True)

    assert "table 'r': keeping 1 of 5 rows, the newest row for each value of the new key ['v']" in caplog.text
    assert query(sqlite_url, "SELECT count(*) FROM r") == [(1,)]


def test_a_new_key_that_some_rows_have_no_value_for_is_refused(warehouse_url: str) -> None:
    load(warehouse_url, [schema("r", {"id": INTEGER, "v": INTEGER}, "id"), record("r", {"id": 1, "v": None})])

    with pytest.raises(WarehouseError, match=r"table 'r': the new key \['id', 'v'\] has no value in 1 row"):
        load(warehouse_url, [schema("r", {"id": INTEGER, "v": INTEGER}, "id", "v")], allow_key_change=True)

    assert query(warehouse_url, "SELECT id, v FROM r") == [(1, None)]


def test_ddl_prints_the_statements_that_rebuild_a_table(
    warehouse_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load(warehouse_url, [schema("r", {"id": INTEGER, "v": BOOLEAN}, "id"), record("r", {"id": 1, "v": True})])
    schemas = tmp_path / "schemas.jsonl"
    schemas.write_text(schema("r", {"id": INTEGER, "v": TEXT}, "id", "v"))
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", warehouse_url)
    monkeypatch.setenv("TARGET_CRM_ALLOW_KEY_CHANGE", "true")

    def printed() -> str:
        capsys.readouterr()
        assert run_balances(["ddl", "--schemas", str(schemas)]) == 0
        return capsys.readouterr().out

    statements = printed().split(";\n")
    engine = create_engine(parse_url(warehouse_url))
    with engine.begin() as connection:
        for statement in filter(str.strip, statements):
            connection.exec_driver_sql(statement)
    engine.dispose()

    assert printed() == "-- nothing is missing\n"
    assert query(warehouse_url, "SELECT id, v FROM r") == [(1, "true")]


# Numbers


def test_a_number_is_as_exact_as_its_schema_says(warehouse_url: str) -> None:
    lines = [
        schema("x", {"id": INTEGER, "n": UNSIGNED, "d": MICROS}, "id"),
        '{"type": "RECORD", "stream": "x", "record": {"id": 1, "n": 18446744073709551615, "d": 12345678901234.123456}}',
        '{"type": "RECORD", "stream": "x", "record": {"id": 2, "n": -9223372036854775808, "d": 0.30000000000000004}}',
    ]

    load(warehouse_url, lines)

    found = query(warehouse_url, "SELECT n, d FROM x ORDER BY id")
    if warehouse_url.startswith("sqlite"):
        # SQLite has no decimals: it stores a number beyond 64 bits, and every fraction, as a double.
        assert found == [(2.0**64, 12345678901234.123456), (-(2**63), 0.30000000000000004)]
        return
    assert found[0] == (2**64 - 1, Decimal("12345678901234.123456"))
    assert (found[1][0], float(round(found[1][1], 6))) == (-(2**63), 0.3)


def test_an_integer_that_no_column_can_hold_is_quarantined_by_name(sqlite_url: str) -> None:
    """On SQLite, keys beyond 64 bits would be doubles, and two different keys could become equal."""
    properties = {"id": UNSIGNED, "n": INTEGER}
    rows = [{"id": 2**63, "n": 1}, {"id": 1, "n": -(2**63) - 1}, {"id": 2, "n": 1}]

    load(sqlite_url, [schema("t", properties, "id"), *(record("t", row) for row in rows)])

    span = "is out of the range of 64 bits, -9223372036854775808 to 9223372036854775807"
    reasons = query(sqlite_url, "SELECT reason FROM rejected_records ORDER BY reason")
    assert reasons == [(f"id {span}",), (f"n {span}",)]


def test_keys_that_their_columns_would_change_are_quarantined_by_name(duckdb_url: str) -> None:
    keys = {
        "n": (NUMBER, ["1790000000000000001", "1790000000000000002", "0.30000000000000004", "18014398509481984"]),
        "c": (CENTS, ["0.30000000000000004", "0.3"]),
        "t": (
            TIME,
            ['"2024-01-01T00:00:00.1234567Z"', '"2024-01-01T00:00:00.1234568Z"', '"2024-01-01T00:00:00.12345600Z"'],
        ),
    }
    for name, (definition, texts) in keys.items():
        sent = [f'{{"type": "RECORD", "stream": "{name}", "record": {{"{name}": {text}}}}}' for text in texts]
        load(duckdb_url, [schema(name, {name: definition}, name), *sent])

    counts = [query(duckdb_url, f"SELECT count(*) FROM {name}") for name in keys]
    assert counts == [[(2,)], [(1,)], [(1,)]]
    assert query(duckdb_url, "SELECT reason, count(*) FROM rejected_records GROUP BY reason ORDER BY reason") == [
        ("c has more digits than its column keeps, so it cannot be part of a key", 1),
        ("n has more digits than its column keeps, so it cannot be part of a key", 2),
        ("t is finer than a microsecond, expected at most 6 decimal places in a key", 2),
    ]


def test_a_number_beyond_its_decimal_is_quarantined_by_name(duckdb_url: str) -> None:
    numbers = ["0.1234567", "1e32", "0.5"]
    sent = [record("x", {"id": place, "n": 0}).replace('"n": 0', f'"n": {text}') for place, text in enumerate(numbers)]

    load(duckdb_url, [schema("x", {"id": INTEGER, "n": MICROS}, "id"), *sent])

    assert query(duckdb_url, "SELECT reason FROM rejected_records ORDER BY reason") == [
        ("n has more than 6 decimal places",),
        ("n is out of range, expected at most 32 digits before the point",),
    ]
