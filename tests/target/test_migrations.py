"""Tables of an earlier version or of an earlier schema."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, inspect, text

from target_crm.balances_cli.verify import rebuild, verify
from target_crm.errors import InputError, WarehouseError
from target_crm.loader.target import TargetCrm
from target_crm.records.values import from_json
from target_crm.sql.tables import DESCRIPTION, Tables
from target_crm.warehouse import migrations
from target_crm.warehouse.connection import Warehouse, parse_url
from tests.helpers.balances import NOTHING_IS_MISSING, run_balances
from tests.helpers.commands import environment
from tests.helpers.postgres import new_database
from tests.helpers.target import ACTIONS, AWARDS, action, execute, load, query, record, schema, snapshot, state, table

# The version in which the ledger lost its column `content_hash`.
LEFT_OUT_CONTENT_HASH = 4
SHAPES = Path(__file__).parents[1] / "snapshots" / "shapes"
TEXT, INTEGER, NUMBER, BOOLEAN = ({"type": [name, "null"]} for name in ("string", "integer", "number", "boolean"))


def lay_out(url: str, shape: int) -> None:
    """Create the target's tables as they were in an earlier version."""
    engine = create_engine(parse_url(url))
    path = SHAPES / f"{shape}.{engine.dialect.name}.sql"
    if not path.exists():
        pytest.skip(f"version {shape} did not support {engine.dialect.name}")
    statements = path.read_text().split(";\n")
    with engine.begin() as connection:
        for statement in filter(str.strip, statements):
            connection.execute(text(statement))
    engine.dispose()


@pytest.mark.parametrize("shape", range(migrations.VERSION))
def test_tables_of_every_earlier_version_are_migrated_and_keep_their_rows(warehouse_url: str, shape: int) -> None:
    lay_out(warehouse_url, shape)
    former_column, its_value = (", content_hash", ", 'x'") if shape < LEFT_OUT_CONTENT_HASH else ("", "")
    execute(
        warehouse_url,
        "INSERT INTO actions (action_id, award_id, user_id, occurred_at, effect, points_available, points_added, "
        f"loaded_at{former_column}) VALUES ('old', 'w1', 'u1', '2026-10-01 10:00:00', 'earned', 7, 4, "
        f"'2026-10-01 10:00:00'{its_value})",
    )
    execute(
        warehouse_url,
        "INSERT INTO award_balances (award_id, user_id, points, as_of, as_of_source, last_action_id, earned_total, "
        "action_count, first_action_at, last_action_at, updated_at) VALUES ('w1', 'u1', 7, '2026-10-01 10:00:00', "
        "'action', 'old', 4, 1, '2026-10-01 10:00:00', '2026-10-01 10:00:00', '2026-10-01 10:00:00')",
    )

    load(warehouse_url, [AWARDS, snapshot("w2", 4), ACTIONS, action("new", delta=2, available=9), state({})])

    names = ("award_id", "points", "opening", "earned_total", "action_count", "first_action_id")
    assert [tuple(row.values()) for row in table(warehouse_url, "award_balances", *names)] == [
        ("w1", Decimal(9), Decimal(3), Decimal(6), 2, "old"),
        ("w2", Decimal(4), Decimal(4), Decimal(0), 0, None),
    ]
    assert not verify(Warehouse(warehouse_url)).drifted
    assert query(warehouse_url, "SELECT version FROM _crm_version") == [(migrations.VERSION,)]


def test_an_upgrade_that_repairs_drift_logs_the_repair(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lay_out(sqlite_url, 4)
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", sqlite_url)

    assert run_balances(["verify"]) == run_balances(["verify"]) == 0

    said = [record.getMessage() for record in caplog.records if record.name == "target-crm.warehouse"]
    assert said == [
        f"recomputing all balances for version {migrations.VERSION} of the tables, which also repairs drift"
    ]


def test_ledgers_of_version_3_keep_their_readers_and_need_no_content_hash(
    warehouse_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_out(warehouse_url, 3)
    execute(
        warehouse_url,
        "INSERT INTO actions (action_id, content_hash, loaded_at) VALUES ('old', 'x', '2026-10-01 10:00:00')",
    )
    execute(warehouse_url, "CREATE VIEW all_actions AS SELECT * FROM actions")
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", warehouse_url)
    alter, *others = printed(capsys).split(";\n")
    assert "content_hash" in alter
    assert not any("content_hash" in each for each in others)

    # A migration that was interrupted after its first statement.
    execute(warehouse_url, alter)
    load(warehouse_url, [ACTIONS, action("old"), action("new"), action("new")])

    assert query(warehouse_url, "SELECT action_id FROM all_actions ORDER BY action_id") == [("new",), ("old",)]
    assert printed(capsys) == NOTHING_IS_MISSING


RENAMED = {"_extra", "_extracted_at", "_loaded_at"}
PERKS = schema("perks", {"_id": TEXT, "title": TEXT}, "_id")


def lay_out_perks(url: str, shape: int) -> None:
    """Create an earlier version's tables, with a stream's table that holds one row."""
    lay_out(url, shape)
    json, time = ("JSON", "TIMESTAMPTZ") if url.startswith("postgresql") else ("TEXT", "TIMESTAMP")
    version_columns = f"_version BIGINT, _deleted_at {time}, " if shape else ""
    for name, columns in (("perks", "_id VARCHAR(255) PRIMARY KEY"), ("_crm_staging_perks", "_seq INT, _id TEXT")):
        execute(
            url,
            f"CREATE TABLE {name} ({columns}, _extra {json}, _extracted_at {time}, _loaded_at {time}, "
            f"{version_columns} title TEXT)",
        )
    execute(url, "INSERT INTO perks (_id, title, _extracted_at) VALUES ('p1', 'Tea', '2026-10-01 10:00:00')")


def columns_of(url: str, name: str) -> set[str]:
    engine = create_engine(parse_url(url))
    columns = {column["name"] for column in inspect(engine).get_columns(name)}
    engine.dispose()
    return columns


@pytest.mark.parametrize("shape", range(3))
def test_metadata_columns_of_every_stream_are_renamed(warehouse_url: str, shape: int) -> None:
    lay_out_perks(warehouse_url, shape)
    execute(warehouse_url, "CREATE TABLE strangers (_extra TEXT, _extracted_at TIMESTAMP)")

    load(warehouse_url, [ACTIONS, action("a1")])

    assert RENAMED & columns_of(warehouse_url, "perks") == set()
    assert RENAMED & columns_of(warehouse_url, "strangers") == {"_extra", "_extracted_at"}
    load(warehouse_url, [PERKS, record("perks", {"_id": "p1", "title": "Cake"}), AWARDS, snapshot("w2")])
    load(warehouse_url, [PERKS, record("perks", {"_id": "p1", "title": "Bun"}, at="2026-09-01T00:00:00Z")])
    assert query(warehouse_url, "SELECT _id, title, _sdc_deleted_at FROM perks") == [("p1", "Cake", None)]


def test_an_interrupted_migration_renames_the_remaining_columns(warehouse_url: str) -> None:
    lay_out_perks(warehouse_url, 2)
    execute(warehouse_url, "ALTER TABLE perks RENAME COLUMN _extra TO _sdc_extra")

    load(warehouse_url, [ACTIONS, action("a1")])

    assert columns_of(warehouse_url, "perks") == {
        *("_id", "title", "_sdc_extra", "_sdc_extracted_at", "_sdc_batched_at", "_sdc_table_version"),
        "_sdc_deleted_at",
    }


def test_a_property_with_the_new_name_of_a_metadata_column_moves_to_another_column(
    warehouse_url: str,
) -> None:
    lay_out_perks(warehouse_url, 2)
    execute(warehouse_url, "ALTER TABLE perks ADD COLUMN _sdc_deleted_at VARCHAR(9)")
    execute(warehouse_url, "UPDATE perks SET _sdc_deleted_at = 'mine'")

    load(warehouse_url, [schema("perks", {"_id": TEXT, "_sdc_deleted_at": TEXT}, "_id")])

    assert query(warehouse_url, "SELECT _sdc_deleted_at_2, _sdc_deleted_at FROM perks") == [("mine", None)]


def test_a_view_on_a_renamed_column_still_works_or_is_named_by_an_error(warehouse_url: str) -> None:
    lay_out_perks(warehouse_url, 2)
    execute(warehouse_url, "CREATE VIEW fresh_perks AS SELECT _id FROM perks WHERE _deleted_at IS NULL")

    if warehouse_url.startswith("duckdb"):
        with pytest.raises(WarehouseError, match="view 'fresh_perks' reads the column _deleted_at, which"):
            load(warehouse_url, [ACTIONS, action("a1")])
        assert "_deleted_at" in columns_of(warehouse_url, "perks")
        execute(warehouse_url, "DROP VIEW fresh_perks")
        load(warehouse_url, [ACTIONS, action("a1")])
    else:
        load(warehouse_url, [ACTIONS, action("a1")])
        assert query(warehouse_url, "SELECT _id FROM fresh_perks") == [("p1",)]


def test_ddl_prints_the_renames_and_a_loader_finds_nothing_left_to_do(
    warehouse_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_out_perks(warehouse_url, 2)
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", warehouse_url)

    statements = printed(capsys)

    assert 'ALTER TABLE "perks" RENAME COLUMN "_deleted_at" TO "_sdc_deleted_at";' in statements
    assert "_deleted_at" in columns_of(warehouse_url, "perks")
    for statement in filter(str.strip, statements.split(";\n")):
        execute(warehouse_url, statement)
    assert printed(capsys) == NOTHING_IS_MISSING


@pytest.mark.parametrize(
    "dropped",
    [
        pytest.param(["TABLE _crm_coverage"], id="internal"),
        pytest.param(["VIEW user_balances", "VIEW award_balance_drift", "TABLE award_balances"], id="balances"),
    ],
)
def test_ddl_prints_what_is_missing_if_someone_has_dropped_a_table(
    warehouse_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], dropped: list[str]
) -> None:
    load(warehouse_url, [ACTIONS, action("a1")])
    for each in dropped:
        execute(warehouse_url, f"DROP {each}")
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", warehouse_url)

    for statement in filter(str.strip, printed(capsys).split(";\n")):
        execute(warehouse_url, statement)

    assert printed(capsys) == NOTHING_IS_MISSING
    load(warehouse_url, [ACTIONS, action("a2", available=4)])
    assert not verify(Warehouse(warehouse_url)).failed
    assert query(warehouse_url, "SELECT points, action_count FROM user_balances") == [(4, 2)]


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert run_balances(["ddl", *arguments]) == 0
    return capsys.readouterr().out


def test_the_snapshot_of_this_versions_tables_is_current(
    warehouse_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a release, raise `VERSION` before you change a table. Until then, `GOLDEN=renew` updates the snapshot."""
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", warehouse_url)
    # A description may change without a new version.
    statements = ";\n".join(each for each in printed(capsys).split(";\n") if "COMMENT ON" not in each)
    golden = SHAPES / f"{migrations.VERSION}.{parse_url(warehouse_url).get_backend_name()}.sql"
    if environment().get("GOLDEN") == "renew":
        golden.write_text(statements)
    assert statements == golden.read_text()


def test_ddl_refuses_a_file_without_a_schema_message(
    warehouse_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", warehouse_url)
    schemas = tmp_path / "schemas.jsonl"
    schemas.write_text("tap-pepper: auth_token is missing\n")

    with pytest.raises(InputError, match="--schemas: the file has no SCHEMA message"):
        run_balances(["ddl", "--schemas", str(schemas)])


def test_a_loader_without_the_create_privilege_loads_into_prepared_tables(
    new_postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    perks = schema("perks", {"_id": TEXT, "title": TEXT}, "_id")
    awards = schema("awards", {"_id": TEXT, "points": NUMBER, "updatedAt": TEXT, "notes": TEXT}, "_id")
    schemas = tmp_path / "schemas.jsonl"
    schemas.write_text(f"{perks}\nno message\n{record('perks', {'_id': 'p1'})}\n{awards}\n{ACTIONS}\n")
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", new_postgres_url)
    monkeypatch.setenv("TARGET_CRM_DEFAULT_TARGET_SCHEMA", "loyalty")
    execute(new_postgres_url, "CREATE ROLE table_writer LOGIN")

    execute(new_postgres_url, printed(capsys, "--schemas", str(schemas)))
    execute(
        new_postgres_url,
        "GRANT USAGE ON SCHEMA loyalty TO table_writer; "
        "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA loyalty TO table_writer",
    )

    assert printed(capsys, "--schemas", str(schemas)) == "-- nothing is missing\n"
    assert printed(capsys, "--json") == "[]\n"
    loader_url = new_postgres_url.replace("//postgres@", "//table_writer@")
    messages = [
        *(
            perks,
            record("perks", {"_id": "p1", "title": "Cake"}),
            '{"type": "ACTIVATE_VERSION", "stream": "perks", "version": 1}',
        ),
        *(awards, snapshot("w2", 4), ACTIONS, action("a1", available=2)),
    ]
    load(loader_url, messages, default_target_schema="loyalty")
    assert query(new_postgres_url, "SELECT award_id, points FROM loyalty.award_balances ORDER BY award_id") == [
        ("w1", 2),
        ("w2", 4),
    ]
    database = new_postgres_url.rsplit("/", 1)[1]
    execute(new_postgres_url, f"REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC")
    assert rebuild(Warehouse(loader_url, "loyalty")) == 2
    load(loader_url, [ACTIONS, action("a2", available=7), awards, snapshot("w2", 5)], default_target_schema="loyalty")
    assert query(new_postgres_url, "SELECT award_id, points FROM loyalty.award_balances ORDER BY award_id") == [
        ("w1", 7),
        ("w2", 5),
    ]
    with pytest.raises(
        WarehouseError, match=r"table loyalty.other: .*denied for schema loyalty; .*`crm-balances ddl --schemas`"
    ):
        load(loader_url, [schema("other", {"id": TEXT}, "id")], default_target_schema="loyalty")


def test_tables_of_a_newer_version_are_not_touched(warehouse_url: str) -> None:
    load(warehouse_url, [ACTIONS, action("a1")])
    execute(warehouse_url, f"UPDATE _crm_version SET version = {migrations.VERSION + 1}")

    with pytest.raises(WarehouseError, match="upgrade pepper-crm"):
        load(warehouse_url, [ACTIONS, action("a2")])

    assert query(warehouse_url, "SELECT action_id FROM actions") == [("a1",)]


def test_a_loader_goes_on_when_another_uses_a_narrower_schema_of_the_same_stream(
    warehouse_url: str,
) -> None:
    wide, narrow = ({"id": TEXT, "n": NUMBER, "more": TEXT}, {"id": TEXT, "n": INTEGER})
    crm = Warehouse(warehouse_url)
    loader = TargetCrm(config={"sqlalchemy_url": warehouse_url})
    loader.set_up()
    loader._process_schema_message(from_json(schema("t", wide, "id")))

    load(crm, [schema("t", narrow, "id"), record("t", {"id": "1", "n": 1})])
    loader._process_record_message(from_json(record("t", {"id": "2", "n": 0.5, "more": "x"})))
    loader.process_endofpipe()

    rows = query(warehouse_url, "SELECT id, n, more FROM t ORDER BY id")
    assert [(key, float(n), more) for key, n, more in rows] == [("1", 1, None), ("2", 0.5, "x")]
    crm.dispose()
    loader.warehouse.dispose()


@pytest.mark.parametrize(
    ("properties", "keys", "complaint"),
    [
        pytest.param({"id": TEXT, "v": BOOLEAN}, ["id"], "column 'v' holds integer.*says boolean", id="narrower"),
        pytest.param({"id": TEXT, "v": INTEGER}, ["id", "v"], "key", id="other-key"),
    ],
)
def test_an_incompatible_schema_is_refused_before_a_row_is_loaded(
    warehouse_url: str, properties: Any, keys: list[str], complaint: str
) -> None:
    messages = [
        schema("t", {"id": TEXT, "v": INTEGER}, "id"),
        record("t", {"id": "1", "v": 5}),
        schema("t", properties, *keys),
        record("t", {"id": "2", "v": None}),
    ]

    with pytest.raises(WarehouseError, match=complaint):
        load(warehouse_url, messages)

    assert query(warehouse_url, "SELECT id, v FROM t") == [("1", 5)]


def test_on_postgresql_only_work_tables_are_unlogged(new_postgres_url: str) -> None:
    load(new_postgres_url, [schema("w", {"id": TEXT}, "id"), ACTIONS])

    logged = dict(query(new_postgres_url, "SELECT relname, relpersistence = 'p' FROM pg_class WHERE relkind = 'r'"))
    ours = {name: is_logged for name, is_logged in logged.items() if not name.startswith(("pg_", "sql_"))}
    assert {name for name, is_logged in ours.items() if not is_logged} == {
        name for name in ours if name.startswith(("_crm_staging_", "_crm_fresh", "_crm_merged"))
    }


def test_postgresql_has_a_comment_on_each_column_of_the_targets_tables(postgres_url: str) -> None:
    url = new_database(postgres_url)
    load(url, [ACTIONS, action("a1", delta=2, available=7)])

    described = query(
        url,
        "SELECT relname, attname, col_description(attrelid, attnum) FROM pg_attribute "
        "JOIN pg_class ON pg_class.oid = attrelid WHERE attnum > 0 AND col_description(attrelid, attnum) IS NOT NULL",
    )
    own = [each for each in Tables().metadata.tables.values() if DESCRIPTION in each.info]
    assert sorted(described) == sorted((each.name, column.name, column.doc) for each in own for column in each.columns)
    assert ("award_balances", "points", "The points of the newest observation.") in described


def test_duckdb_has_comments_on_the_targets_tables_and_columns(tmp_path: Path) -> None:
    url = f"duckdb:///{tmp_path / 'crm.db'}"
    load(url, [ACTIONS, action("a1", delta=2, available=7)])

    own = [each for each in Tables().metadata.tables.values() if DESCRIPTION in each.info]
    tables = "SELECT table_name, comment FROM duckdb_tables() WHERE comment IS NOT NULL"
    assert dict(query(url, tables)) == {each.name: each.info[DESCRIPTION] for each in own}
    columns = "SELECT table_name, column_name, comment FROM duckdb_columns() WHERE comment IS NOT NULL"
    assert sorted(query(url, columns)) == sorted(
        (each.name, column.name, column.doc) for each in own for column in each.columns
    )
