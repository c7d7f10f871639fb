"""A column belongs to the property it was created for, and a table to its stream, in every later run."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, inspect, text

from target_crm.balances_cli.status import status
from target_crm.errors import WarehouseError
from target_crm.loader.sinks import TableSink
from target_crm.records.names import ascii_snake_case, assign_columns, assign_table, from_text, snake_case, to_text
from target_crm.records.schemas import FORMER_NAMES
from target_crm.records.values import without_nul
from target_crm.warehouse.connection import Warehouse, parse_url
from tests.helpers.balances import run_balances
from tests.helpers.target import TEXT, execute, load, query, record, schema, table_sink
from tests.target.test_migrations import lay_out

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Runs = list[list[str]]

# Names


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("_id", "_id"),
        ("updatedAt", "updated_at"),
        ("HTTPCode", "http_code"),
        ("userID", "user_id"),
        ("monthofyear", "monthofyear"),
        ("points2Add", "points2_add"),
        ("home address", "home_address"),
        ('a";drop table b', "a_drop_table_b"),
        ("größe", "größe"),
        ("gro\u0308ße", "größe"),
        ("Имя клиента", "имя_клиента"),
        ("हिन्दी", "हिन्दी"),
        ("数", "数"),
        ("smile 😀", "smile_"),
        ("", "column"),
        ("?!", "column"),
        ("x" * 100, "x" * 60),
        ("я" * 100, "я" * 30),
        ("xя" + "я" * 100, "x" + "я" * 29),
    ],
)
def test_a_name_becomes_snake_case(name: str, column: str) -> None:
    assert snake_case(name) == column


def test_names_that_were_made_before_they_were_recorded_have_ascii_letters_only() -> None:
    assert [ascii_snake_case(each) for each in ("größe", "数", "", "x" * 100)] == ["gr_e", "_", "_", "x" * 60]


@pytest.mark.parametrize("names", [["userName", "user_name", "user name"], ["user name", "user_name", "userName"]])
def test_the_column_of_a_new_property_does_not_depend_on_the_order_of_properties(names: list[str]) -> None:
    assert assign_columns(names, {}, [], []) == {
        "user_name": "user_name",
        "user name": "user_name_2",
        "userName": "user_name_3",
    }


@pytest.mark.parametrize("letter", ["x", "я"])
def test_names_stay_unique_and_within_63_bytes_if_many_clash(letter: str) -> None:
    names = assign_columns([letter * 60 + str(number) for number in range(1000)], {}, [], [])

    assert len(set(names.values())) == 1000
    assert max(len(name.encode()) for name in names.values()) <= 63


def test_a_new_property_avoids_recorded_columns_and_reserved_names() -> None:
    recorded = {"fooBar": "foo_bar", "absent": "straße"}

    names = assign_columns(["foo_bar", "fooBar", "_rank", "strasse"], recorded, [], ["_rank"])

    assert names == {"fooBar": "foo_bar", "foo_bar": "foo_bar_2", "_rank": "_rank_2", "strasse": "strasse_2"}


def test_a_column_without_a_property_goes_to_the_property_that_had_it_before_names_were_recorded() -> None:
    stored = ["_", "__2", "lead_status", "lead_status_2", "имя_2"]

    assert assign_columns(["имя", "Lead Status", "город", "lead_status", "Имя"], {}, stored, []) == {
        "Имя": "_",
        "город": "__2",
        "lead_status": "lead_status",
        "Lead Status": "lead_status_2",
        "имя": "имя",
    }


def test_a_numbered_name_never_takes_what_exists_already() -> None:
    assert assign_columns(["Имя", "имя"], {}, ["имя_2"], []) == {"имя": "имя", "Имя": "имя_3"}
    assert assign_table("Center", ["center"], {"center", "center_2"}, []) == "center_3"
    assert assign_table("écrm", [], {"_crm"}, ["_crm"]) == "écrm"


def test_a_new_name_never_takes_what_exists_in_another_case() -> None:
    assert assign_columns(["name"], {}, ["Name"], []) == {"name": "name_2"}
    assert assign_columns(["name"], {}, ["Name", "name"], []) == {"name": "name"}
    assert assign_table("center", [], {"Center"}, []) == "center_2"


def test_a_property_gets_a_column_next_to_a_users_column_in_another_case(warehouse_url: str) -> None:
    load(warehouse_url, [schema("people", {"id": TEXT}, "id"), record("people", {"id": "1"})])
    execute(warehouse_url, 'ALTER TABLE people ADD COLUMN "Name" VARCHAR(20)')

    wider = schema("people", {"id": TEXT, "name": TEXT}, "id")
    load(warehouse_url, [wider, record("people", {"id": "2", "name": "n"})])

    assert query(warehouse_url, "SELECT id, name_2 FROM people WHERE id = '2'") == [("2", "n")]


@pytest.mark.parametrize("name", ["Lead Status", "имя", "", '"', '"a"', "a\0b", "a\nb", "\ud800"])
def test_every_name_is_stored_as_a_printable_text(name: str) -> None:
    assert from_text(to_text(name)) == name
    assert to_text(name).isprintable()
    assert to_text(name).encode()


# Columns


def load_runs_of(url: str, stream: str, runs: Runs, *, backward: bool = False) -> None:
    """Load a record per run, in which each property has its own name as its value."""
    for number, names in enumerate(runs):
        ordered = names[::-1] if backward else names
        fields = dict.fromkeys(ordered, TEXT)
        load(
            url,
            [
                schema(stream, {"id": TEXT, **fields}, "id"),
                record(stream, {"id": str(number), **{name: without_nul(name) for name in names}}),
            ],
        )


def columns_of(url: str, table: str) -> list[str]:
    engine = create_engine(parse_url(url))
    columns = [each["name"] for each in inspect(engine).get_columns(table)]
    engine.dispose()
    return [each for each in columns if each not in FORMER_NAMES.values()]


def contents(url: str, table: str) -> dict[str, set[Any]]:
    """The values of each column."""
    names = [each for each in columns_of(url, table) if each != "id"]
    quote = '", "'.join(names)
    rows = query(url, f'SELECT "{quote}" FROM "{table}"')
    return {name: {row[place] for row in rows} - {None} for place, name in enumerate(names)}


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        pytest.param(
            [["Lead Status"], ["Lead Status", "lead_status"], ["lead_status"]],
            {"lead_status": "Lead Status", "lead_status_2": "lead_status"},
            id="a-later-property-with-the-name-of-the-column",
        ),
        pytest.param(
            [["a b", "a-b", "a_b"], ["a b"], ["a-b", "a b"], ["a b", "a-b", "a_b"]],
            {"a_b": "a_b", "a_b_2": "a b", "a_b_3": "a-b"},
            id="twins-deselected-and-added-again",
        ),
        pytest.param(
            [["x" * 70], ["x" * 70, "x" * 65], ["x" * 70, "x" * 65, "x" * 60]],
            {"x" * 60: "x" * 70, "x" * 60 + "_2": "x" * 65, "x" * 60 + "_3": "x" * 60},
            id="long-names-added-later",
        ),
        pytest.param(
            [["userId"], ["userId", "user_id"], ["user_id", "user id"]],
            {"user_id": "userId", "user_id_2": "user_id", "user_id_3": "user id"},
            id="camel-case-then-snake-case",
        ),
        pytest.param(
            [["имя", "город"], ["Имя", "город"], ["?", "имя"], ["!", "?", "column"]],
            {"имя": "имя", "город": "город", "имя_2": "Имя", "column": "?", "column_2": "column", "column_3": "!"},
            id="other-alphabets-and-names-without-letters",
        ),
        pytest.param(
            [["_sdc_extra", "a\0b"], ["_sdc extra", "_sdc_extra", "a\0b"]],
            {"_sdc_extra_2": "_sdc_extra", "_sdc_extra_3": "_sdc extra", "a_b": "a\0b"},
            id="reserved-names-and-names-that-no-engine-stores",
        ),
    ],
)
def test_a_column_holds_the_values_of_one_property_over_all_runs(
    warehouse_url: str, runs: Runs, expected: dict[str, str], backward: bool
) -> None:
    load_runs_of(warehouse_url, "t", runs, backward=backward)

    assert contents(warehouse_url, "t") == {column: {without_nul(name)} for column, name in expected.items()}


def test_an_awards_property_never_takes_a_column_that_balances_need(warehouse_url: str) -> None:
    for number in ("1", "2"):
        fields = {"_id": number, "userId": "u1", "user_id": "other", "points": 5}
        load(warehouse_url, [schema("awards", {name: {} for name in fields}, "_id"), record("awards", fields)])

    assert query(warehouse_url, "SELECT user_id, user_id_2 FROM awards") == [("u1", "other")] * 2
    assert query(warehouse_url, "SELECT property, column_name FROM _crm_columns") == [("user_id", "user_id_2")]


# Tables


@pytest.mark.parametrize(
    ("one", "other", "tables"),
    [
        pytest.param("public-orders", "public_orders", ["public_orders", "public_orders_2"], id="punctuation"),
        pytest.param("Center", "center", ["center", "center_2"], id="case"),
        pytest.param("имя", "город", ["имя", "город"], id="cyrillic"),
        pytest.param("?", "!", ["stream", "stream_2"], id="no-letters"),
        pytest.param("x" * 60 + "a", "x" * 60 + "b", ["x" * 60, "x" * 60 + "_2"], id="long"),
        pytest.param("я" * 60 + "a", "я" * 60 + "b", ["я" * 30, "я" * 30 + "_2"], id="long-cyrillic"),
    ],
)
def test_streams_of_similar_names_have_a_table_each(
    warehouse_url: str, one: str, other: str, tables: list[str]
) -> None:
    for names in ([one], [other], [other, one], [one, other]):
        messages = [
            message
            for name in names
            for message in (
                schema(name, {"id": TEXT, "v": TEXT}, "id"),
                record(name, {"id": "1", "v": f"of {name}"}),
            )
        ]
        load(warehouse_url, messages)

    for name, table in zip((one, other), tables, strict=True):
        assert query(warehouse_url, f'SELECT id, v FROM "{table}"') == [("1", f"of {name}")]
    runs = query(warehouse_url, "SELECT stream, sum(read) FROM load_runs WHERE stream <> '' GROUP BY stream")
    assert {stream: int(count) for stream, count in runs} == dict.fromkeys(tables, 3)


def test_a_stream_never_takes_a_table_of_the_engine_itself(warehouse_url: str) -> None:
    tables = {
        "postgresql": {"pg_class": "pg_class_2", "pg_settings": "pg_settings_2", "pg_orders": "pg_orders"},
        "sqlite": {
            "sqlite_master": "stream_sqlite_master",
            "json_each": "json_each_2",
            "pragma_table_info": "pragma_table_info_2",
        },
        "duckdb": {"pg_class": "pg_class", "duckdb_tables": "duckdb_tables"},
    }[warehouse_url.partition(":")[0].partition("+")[0]] | {"information_schema": "information_schema"}

    for number in ("1", "2"):
        load(
            warehouse_url,
            [line for name in tables for line in (schema(name, {"id": TEXT}, "id"), record(name, {"id": number}))],
        )

    for table in tables.values():
        assert query(warehouse_url, f"SELECT id FROM {table} ORDER BY id") == [("1",), ("2",)]


@pytest.mark.parametrize("kind", ["VIEW", "MATERIALIZED VIEW"])
def test_a_stream_never_takes_a_view_for_its_table(warehouse_url: str, kind: str) -> None:
    if kind != "VIEW" and not warehouse_url.startswith("postgresql"):
        kind = "VIEW"
    load(warehouse_url, [schema("people", {"id": TEXT}, "id"), record("people", {"id": "1"})])
    execute(warehouse_url, f"CREATE {kind} report AS SELECT id FROM people")

    report = [schema("Report", {"id": TEXT}, "id"), record("Report", {"id": "2"})]
    for _ in range(2):
        load(warehouse_url, report)

    assert query(warehouse_url, "SELECT id FROM report_2") == [("2",)]
    assert query(warehouse_url, "SELECT id FROM report") == [("1",)]


def test_a_table_that_a_view_has_replaced_stops_its_stream(warehouse_url: str) -> None:
    lines = [schema("people", {"id": TEXT}), record("people", {"id": "1"})]
    load(warehouse_url, lines)
    execute(warehouse_url, "ALTER TABLE people RENAME TO persons")
    execute(warehouse_url, "CREATE VIEW people AS SELECT * FROM persons")

    with pytest.raises(WarehouseError, match="stream 'people': did not load 1 record: table 'people' is a view"):
        load(warehouse_url, lines)

    assert query(warehouse_url, "SELECT id FROM persons") == [("1",)]


def test_status_counts_rejected_records_for_the_table_of_their_stream(warehouse_url: str) -> None:
    for name, key in (("public-orders", "1"), ("public_orders", "1"), ("public_orders", None)):
        sent = [record(name, {"id": key}), record(name, {"id": "2"})]
        load(warehouse_url, [schema(name, {"id": TEXT}, "id"), *sent])

    opened = Warehouse(warehouse_url)
    streams = {each.stream: (each.rows, each.rejected) for each in status(opened).streams}
    opened.dispose()
    assert streams == {"public_orders": (2, 0), "public_orders_2": (2, 1)}


# Warehouses from before names were recorded


@pytest.mark.parametrize("shape", range(3))
def test_a_warehouse_of_an_earlier_version_keeps_its_tables_and_columns(warehouse_url: str, shape: int) -> None:
    lay_out(warehouse_url, shape)
    json, instant = ("JSON", "TIMESTAMPTZ") if warehouse_url.startswith("postgresql") else ("TEXT", "TIMESTAMP")
    own = ["id", "lead_status", "lead_status_2", "_", "__2"]
    for name in ("orders", "_"):
        keyed = ", ".join(f"{column} VARCHAR(255)" for column in own[1:])
        execute(
            warehouse_url,
            f"CREATE TABLE {name} (id VARCHAR(255) PRIMARY KEY, {keyed}, "
            f"_extra {json}, _extracted_at {instant}, _loaded_at {instant})",
        )

    runs = [["имя", "город", "Lead Status", "lead_status"], ["lead_status", "цвет"]]
    for stream in ("Orders", "имя"):
        load_runs_of(warehouse_url, stream, runs)
    load_runs_of(warehouse_url, "город", runs[:1])

    for table in ("orders", "_"):
        assert contents(warehouse_url, table) == {
            "lead_status": {"lead_status"},
            "lead_status_2": {"Lead Status"},
            "_": {"город"},
            "__2": {"имя"},
            "цвет": {"цвет"},
        }
    assert set(contents(warehouse_url, "город")) == {"lead_status", "lead_status_2", "имя", "город"}


# Several loaders, and loaders without rights


def test_loaders_that_add_names_at_the_same_time_agree(warehouse_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = TableSink.place

    def place_slowly(sink: TableSink, table: str, recorded: Mapping[str, str], stored: Mapping[str, str]) -> None:
        place(sink, table, recorded, stored)
        time.sleep(0.2)

    monkeypatch.setattr(TableSink, "place", place_slowly)
    loaders = [Warehouse(warehouse_url) for _ in range(2)]
    loaders[0].set_up()
    sinks = [
        table_sink(loaders[0], "people", "id", "a b", "a-b"),
        table_sink(loaders[1], "people", "id", "a-b", "a b", "a_b"),
        table_sink(loaders[0], "People", "id", "a b"),
        table_sink(loaders[1], "PEOPLE", "id", "a b"),
    ]

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda sink: sink.warehouse.ensure(sink), sinks))

    for crm in loaders:
        crm.dispose()
    recorded = {
        (stream, property_): column
        for stream, property_, column in query(
            warehouse_url,
            "SELECT stream, property, column_name FROM _crm_columns JOIN _crm_streams USING (stream_id)",
        )
    }
    of_people = [column for (stream, _), column in recorded.items() if stream == "people"]
    assert sorted(of_people) == ["a_b", "a_b_2", "a_b_3", "id"]
    assert all(recorded[sink.stream, name] == column for sink in sinks for name, column in sink.columns.items())
    tables = dict(query(warehouse_url, "SELECT stream, table_name FROM _crm_streams"))
    assert sorted(tables.values()) == ["people", "people_2", "people_3"]
    assert all(tables[sink.stream] == sink.table.name for sink in sinks)


def test_ddl_prints_recorded_and_new_names_and_changes_nothing(
    warehouse_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load_runs_of(warehouse_url, "people", [["Lead Status"]])
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", warehouse_url)
    properties = dict.fromkeys(("id", "lead_status", "Lead Status", "it's 100% %s имя"), TEXT)
    schemas = [schema(stream, properties, "id") for stream in ("People", "people", "PEOPLE")]

    assert printed_ddl(tmp_path, capsys, *schemas) == printed_ddl(tmp_path, capsys)
    execute_ddl(warehouse_url, tmp_path, capsys, *schemas)

    assert printed_ddl(tmp_path, capsys) == "-- nothing is missing\n"
    tables = dict(query(warehouse_url, "SELECT stream, table_name FROM _crm_streams"))
    assert tables == {"people": "people", "People": "people_2", "PEOPLE": "people_3"}
    load_runs_of(warehouse_url, "people", [["lead_status", "Lead Status", "it's 100% %s имя"]])
    assert contents(warehouse_url, "people") == {
        "lead_status": {"Lead Status"},
        "lead_status_2": {"lead_status"},
        "it_s_100_s_имя": {"it's 100% %s имя"},
    }


ONE = {"id": TEXT, "points": {"type": "integer"}, "onlyInOne": TEXT}
OTHER = {"id": TEXT, "points": {"type": "number"}, "onlyInOther": TEXT}


@pytest.mark.parametrize(
    "schemas",
    [
        pytest.param([ONE, OTHER], id="each-has-a-field-of-its-own"),
        pytest.param([OTHER, ONE], id="the-wider-type-first"),
        pytest.param([ONE | OTHER, {}], id="the-last-is-empty"),
        pytest.param([{}, ONE, OTHER, {}], id="empty-ones-around-them"),
    ],
)
def test_ddl_creates_the_columns_of_all_schemas_of_a_stream(
    warehouse_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    schemas: list[dict[str, Any]],
) -> None:
    """Several taps print schemas of one stream. A tap that does not select the stream prints an empty schema."""
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", warehouse_url)

    execute_ddl(warehouse_url, tmp_path, capsys, *(schema("people", each, "id") for each in schemas))

    assert printed_ddl(tmp_path, capsys) == "-- nothing is missing\n"
    monkeypatch.setattr("target_crm.warehouse.connection.Warehouse._execute", refuse_ddl)
    values = {"id": "1", "points": 0.5, "onlyInOne": "a", "onlyInOther": "b"}
    load(warehouse_url, [schema("people", ONE | OTHER, "id"), record("people", values)])
    rows = query(warehouse_url, "SELECT id, points, only_in_one, only_in_other FROM people")
    assert [(key, float(points), *others) for key, points, *others in rows] == [("1", 0.5, "a", "b")]


def test_ddl_adds_a_column_to_a_table_in_which_no_earlier_schema_had_it(
    warehouse_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load(warehouse_url, [schema("people", {"id": TEXT}, "id"), record("people", {"id": "1"})])
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", warehouse_url)

    execute_ddl(
        warehouse_url, tmp_path, capsys, schema("people", ONE, "id"), schema("people", {"id": TEXT, "v": TEXT}, "id")
    )

    assert query(warehouse_url, "SELECT id, points, only_in_one, v FROM people") == [("1", None, None, None)]


def test_ddl_refuses_schemas_that_the_loader_would_refuse(
    warehouse_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", warehouse_url)
    schemas = tmp_path / "schemas.jsonl"
    one = schema("people", {"id": TEXT, "v": {"type": "boolean"}}, "id")

    for other, reason in (
        (schema("people", {"id": TEXT, "v": {"type": "string", "format": "date-time"}}, "id"), "column 'v' holds"),
        (schema("people", {"id": TEXT, "v": {"type": "boolean"}}, "v"), "has the key"),
    ):
        schemas.write_text(f"{one}\n{other}\n")
        with pytest.raises(WarehouseError, match=reason):
            run_balances(["ddl", "--schemas", str(schemas)])


@pytest.mark.parametrize("is_by_loader", [True, False], ids=["loader", "ddl"])
def test_a_column_that_is_recorded_but_does_not_exist_is_added(
    warehouse_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_by_loader: bool,
) -> None:
    properties = {"id": TEXT, "updatedAt": TEXT}
    load(warehouse_url, [schema("people", properties, "id")])
    execute(warehouse_url, "ALTER TABLE people DROP COLUMN updated_at")
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", warehouse_url)

    if not is_by_loader:
        execute_ddl(warehouse_url, tmp_path, capsys, schema("people", properties, "id"), schema("people", {}, "id"))
        monkeypatch.setattr("target_crm.warehouse.connection.Warehouse._execute", refuse_ddl)
    load(warehouse_url, [schema("people", properties, "id"), record("people", {"id": "1", "updatedAt": "now"})])

    assert query(warehouse_url, "SELECT id, updated_at FROM people") == [("1", "now")]


def refuse_ddl(_warehouse: Warehouse, _connection: object, statements: list[object]) -> None:
    assert not statements


def printed_ddl(tmp_path: Path, capsys: pytest.CaptureFixture[str], *schemas: str) -> str:
    """What `ddl` prints for these SCHEMA messages. Without messages, the messages of the last call are used."""
    file = tmp_path / "schemas.jsonl"
    if schemas:
        file.write_text("\n".join(schemas))
    capsys.readouterr()
    assert run_balances(["ddl", "--schemas", str(file)]) == 0
    return capsys.readouterr().out


def execute_ddl(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], *schemas: str) -> None:
    statements = printed_ddl(tmp_path, capsys, *schemas).split(";\n")
    engine = create_engine(parse_url(url))
    with engine.begin() as connection:
        for statement in filter(str.strip, statements):
            connection.execute(text(statement))
    engine.dispose()
