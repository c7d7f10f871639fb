"""The console script target-crm: settings, exit codes and error messages."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import singer_sdk
from sqlalchemy import make_url

from target_crm.loader import target
from tests.helpers.commands import RUN_SECONDS_MAX, environment, real_command
from tests.helpers.target import (
    ACTIONS,
    AWARDS,
    TEXT,
    action,
    all_rows,
    execute,
    load,
    query,
    record,
    run_target,
    schema,
    snapshot,
    state,
    table,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Main = Callable[..., Any]


def nested_object(levels: int) -> dict[str, Any]:
    """The JSON Schema of objects nested this many levels deep."""
    definition: dict[str, Any] = TEXT
    for _ in range(levels):
        definition = {"type": "object", "properties": {"a": definition}}
    return definition


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Main]:
    """Runs the console script in this process. Returns 0, or the error message if it fails without output."""

    def call(*arguments: str, messages: str = "") -> Any:
        monkeypatch.setattr("sys.argv", ["target-crm", *arguments])
        monkeypatch.setattr("sys.stdin", io.StringIO(messages))
        with pytest.raises(SystemExit) as end:
            target.main()
        stdout, log = capsys.readouterr()
        if not end.value.code:
            return 0
        assert not stdout
        return log[log.index("target-crm: ") :].strip()

    # The SDK sets up logging and hooks for the whole process.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr("sys.excepthook", sys.excepthook)
    yield call
    logging.captureWarnings(capture=False)


def test_a_run_accounts_for_every_record_and_a_second_run_changes_nothing(sqlite_url: str, tmp_path: Path) -> None:
    messages = [
        AWARDS,
        snapshot("w1", 5, at="2026-09-01T00:00:00Z"),
        snapshot("w2", 0.25),
        ACTIONS,
        action("a1", delta=2, available=7),
        action("a1", delta=2, available=7),
        action("a2", delta=True),
        "no message",
        '{"type": "STATE", "value": {"bookmarks": {"actions": {"at": "é", "share": 1.50}}}}',
    ]

    first = run_target(sqlite_url, tmp_path, *messages)
    loaded = all_rows(sqlite_url)
    second = run_target(sqlite_url, tmp_path, *messages)

    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert first.stdout == second.stdout == '{"bookmarks":{"actions":{"at":"é","share":1.50}}}\n'
    assert [(row["award_id"], row["points"]) for row in loaded["award_balances"]] == [
        ("w1", Decimal(7)),
        ("w2", Decimal("0.25")),
    ]
    assert sorted((row["stream"], row["reason"], row["input_line"]) for row in loaded["rejected_records"]) == [
        ("", "the line is not a Singer message", 8),
        ("actions", "metadata.pointsAdded is a boolean, expected points", 7),
    ]
    assert all_rows(sqlite_url) == loaded
    for tally in (
        "awards: 2 read = 2 applied + 0 duplicate + 0 superseded + 0 quarantined",
        "actions: 3 read = 1 applied + 1 duplicate + 0 superseded + 1 quarantined",
        "malformed lines: 1 read = 0 applied + 0 duplicate + 0 superseded + 1 quarantined",
    ):
        assert tally in first.stderr
    assert "awards: 2 read = 0 applied + 2 duplicate + 0 superseded + 0 quarantined" in second.stderr


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        pytest.param(
            action("a2", delta="Tom Jones"),
            "actions line 3: metadata.pointsAdded is text, expected points",
            id="invalid-record",
        ),
        pytest.param("Tom Jones", "input line 3: the line is not a Singer message", id="malformed-line"),
        pytest.param(
            record("tom", {"name": "Tom Jones"}),
            "stream 'tom': a record came before its SCHEMA",
            id="record-before-its-schema",
        ),
        pytest.param(
            action("a1", available=3),
            "actions line 3: the ledger has this _id with another award, effect, time or points",
            id="conflict-with-the-ledger",
        ),
        pytest.param(
            '{"type": "BATCH", "stream": "actions", "encoding": {}, "manifest": ["file:///Tom Jones"]}',
            "stream 'actions': BATCH messages are not supported; turn batches off",
            id="batch-message",
        ),
        pytest.param(
            schema("tom", {"name": TEXT}, "id"),
            "stream 'tom': key property 'id' is not in its schema; select it in the tap",
            id="key-not-in-the-schema",
        ),
        pytest.param(
            schema("actions", {"verb": TEXT}),
            "stream 'actions' is not Pepper's: its schema has no _id; rename the stream with a stream map",
            id="actions-of-another-source",
        ),
        pytest.param(
            schema("awards", {"title": TEXT}, "title"),
            "stream 'awards' is not Pepper's: its schema has no _id; rename the stream with a stream map",
            id="awards-of-another-source",
        ),
        pytest.param(
            '{"type": "SCHEMA", "stream": "actions", "schema": {"properties": 5}, "key_properties": ["_id"]}',
            "stream 'actions', in its SCHEMA message: \"properties\" is a number, expected an object",
            id="properties-not-an-object",
        ),
        pytest.param(
            '{"type": "SCHEMA", "stream": "tom", "schema": {"properties": {}}, "key_properties": "id"}',
            "line 3: a SCHEMA message needs a stream, a schema and a list of keys",
            id="keys-not-a-list",
        ),
        pytest.param(
            schema("", {"id": TEXT}),
            "line 3: a SCHEMA message needs a stream, a schema and a list of keys",
            id="stream-without-a-name",
        ),
        pytest.param(
            schema("tom", {"id": nested_object(400)}),
            "stream 'tom': its SCHEMA message is nested too deeply",
            id="schema-nested-too-deeply",
        ),
        pytest.param(
            schema("tom", {"id": "string"}),
            "stream 'tom', in its SCHEMA message: property 'id': its schema is text, expected an object",
            id="invalid-json-schema",
        ),
        pytest.param(
            schema("User Balances", {}),
            "stream 'User Balances': table 'user_balances' is the target's own; rename the stream with a stream map",
            id="reserved-table-name",
        ),
        pytest.param(
            schema("_crm_staging_a", {}),
            "stream '_crm_staging_a': table '_crm_staging_a' is the target's own; rename the stream with a stream map",
            id="reserved-table-prefix",
        ),
    ],
)
def test_invalid_input_ends_the_run_with_one_line_and_loads_no_later_row(
    main: Main,
    sqlite_url: str,
    tmp_path: Path,
    bad: str,
    message: str,
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"sqlalchemy_url": sqlite_url, "on_invalid_record": "fail"}))
    messages = "\n".join([ACTIONS, action("a1"), bad, action("a9"), state({"n": 1})])

    output = main("--config", str(tmp_path / "config.json"), messages=messages)

    assert "\n" not in output
    assert output.removeprefix("target-crm: ").removeprefix("Record Message Validation Error: ") == message
    assert "a9" not in [row["action_id"] for row in table(sqlite_url, "actions")]


def test_an_unreachable_warehouse_exits_with_1_and_reveals_no_secrets(tmp_path: Path) -> None:
    result = run_target(
        "postgresql://loader:pa55word@127.0.0.1:1/crm", tmp_path, ACTIONS, action("a1", user="Tom Jones"), state({})
    )

    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1].startswith(
        "target-crm: postgresql+psycopg://127.0.0.1:1/crm: OperationalError: "
    )
    assert "Traceback" not in result.stderr
    assert "pa55word" not in result.stderr
    assert "Tom" not in result.stderr


@pytest.mark.parametrize(
    ("config", "message"),
    [
        pytest.param("[]", "config file {path}: expected a JSON object", id="config-is-a-list"),
        pytest.param("{", "config file {path}: not JSON (line 1)", id="config-is-not-json"),
        pytest.param(None, "config file {path}: No such file or directory", id="config-is-missing"),
        pytest.param(
            '{"batch_size_rows": 0}',
            "batch_size_rows is invalid, expected a whole number from 1 to 1000000",
            id="number-out-of-range",
        ),
        pytest.param(
            '{"on_invalid_record": "pa55word"}',
            "on_invalid_record is invalid, expected one of quarantine, fail",
            id="unknown-choice",
        ),
        pytest.param(
            '{"sqlalchemy_url": ["pa55word"]}', "sqlalchemy_url has the wrong type, expected text", id="url-is-a-list"
        ),
        pytest.param(
            '{"sqlalchemy_url": "pa55word"}',
            "sqlalchemy_url: not a SQLAlchemy URL, expected e.g. sqlite:///crm.db",
            id="not-a-url",
        ),
        pytest.param(
            '{"sqlalchemy_url": "postgresql://u:1@h:pa55word/db"}',
            "sqlalchemy_url: not a SQLAlchemy URL, expected e.g. sqlite:///crm.db",
            id="port-is-not-a-number",
        ),
        pytest.param(
            '{"sqlalchemy_url": "nosql://u:pa55word@h/db"}',
            "nosql (sqlalchemy_url or dialect): its SQLAlchemy dialect is missing; check the name, or install it",
            id="unknown-engine",
        ),
        pytest.param(
            '{"sqlalchemy_url": "sqlite://", "dialect": "sqlite", "password": "pa55word"}',
            "sqlalchemy_url and dialect, password both set the warehouse's address; use one of them",
            id="url-and-parts",
        ),
        pytest.param(
            '{"host": "h", "password": "pa55word"}',
            "dialect is missing; set it, e.g. to postgresql, or use sqlalchemy_url instead of host, password",
            id="parts-without-dialect",
        ),
        pytest.param(
            '{"dialect": "nosql"}',
            "nosql (sqlalchemy_url or dialect): its SQLAlchemy dialect is missing; check the name, or install it",
            id="unknown-dialect",
        ),
        pytest.param(
            '{"dialect": "sqlite", "options": {"timeout": ["pa55word"]}}',
            "options.timeout has the wrong type, expected text",
            id="option-is-not-text",
        ),
        pytest.param(
            '{"dialect": "sqlite", "options": "timeout=pa55word"}',
            "options has the wrong type, expected an object",
            id="options-are-text",
        ),
        pytest.param(
            '{"sqlalchemy_url": "sqlite:///crm.db?timeout=pa55word"}',
            "sqlite rejects one of the driver options in sqlalchemy_url or options; check their names and values",
            id="invalid-option-of-the-driver",
        ),
        pytest.param(
            '{"sqlalchemy_url": "postgresql://localhost:1/crm?prepare_threshold=pa55word"}',
            "prepare_threshold in sqlalchemy_url or options: expected a number of executions, or 0 for never",
            id="invalid-prepare-threshold",
        ),
        pytest.param(
            '{"sqlalchemy_url": "sqlite://", "default_target_schema": "crm"}',
            "default_target_schema: SQLite has no schemas; leave this setting empty",
            id="target-schema-on-sqlite",
        ),
        pytest.param(
            '{"sqlalchemy_url": "sqlite://", "flattening_enabled": true, "flattening_max_depth": 1}',
            "flattening_enabled: target-crm keeps objects as JSON, and computes balances from the object metadata",
            id="flattening",
        ),
        pytest.param(
            '{"sqlalchemy_url": "sqlite://", "stream_maps": {"actions": {"source": "("}}}',
            "Failed to parse expression (.",
            id="map-with-a-syntax-error",
        ),
        pytest.param(
            '{"sqlalchemy_url": "sqlite://", "stream_maps": {"actions": {"source": "md5(nope)"}}}',
            "stream 'actions' line 2: a stream map fails: Failed to evaluate simpleeval expressions md5(nope).",
            id="map-with-an-unknown-name",
        ),
        pytest.param(
            '{"sqlalchemy_url": "sqlite://", "stream_maps": {"actions": {"source": "md5(context)"}}}',
            "stream 'actions' line 2: a stream map fails: AttributeError",
            id="map-with-a-value-of-the-wrong-type",
        ),
        pytest.param(
            '{"sqlalchemy_url": "sqlite://", "stream_maps": {"actions": {"source": "md5"}}}',
            "stream 'actions' line 2: a stream map fails: TypeError",
            id="map-that-returns-a-function",
        ),
        pytest.param(
            '{"sqlalchemy_url": "sqlite://", "stream_maps": {"actions": {"source": 5}}}',
            "stream_maps.actions is invalid; check its type",
            id="map-is-a-number",
        ),
        pytest.param(
            '{"sqlalchemy_url": "sqlite://", "stream_maps": {"actions": {"__else__": "source"}}}',
            "stream_maps contains an __else__ that is neither null nor __NULL__",
            id="map-for-all-other-properties",
        ),
        pytest.param(
            '{"sqlalchemy_url": "sqlite://", "default_target_schema": "crm", "stream_maps": null}',
            "default_target_schema: SQLite has no schemas; leave this setting empty",
            id="maps-are-null",
        ),
    ],
)
def test_an_invalid_setting_is_reported_in_one_line_without_secrets(
    main: Main, tmp_path: Path, config: str | None, message: str
) -> None:
    path = tmp_path / "config.json"
    if config is not None:
        path.write_text(config)

    output = main("--config", str(path), messages=f"{ACTIONS}\n{action('a1')}\n")

    assert output == f"target-crm: {message.format(path=path)}"


def test_the_log_warns_of_an_in_memory_database(main: Main, tmp_path: Path, caplog: Any) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"sqlalchemy_url": "sqlite://"}')

    assert main("--config", str(path), messages=f"{ACTIONS}\n{action('a1')}\n") == 0
    assert "is an in-memory database: all data is lost when this run ends" in caplog.text


def test_settings_are_read_from_the_environment(main: Main, monkeypatch: pytest.MonkeyPatch, sqlite_url: str) -> None:
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", sqlite_url)
    monkeypatch.setenv("TARGET_CRM_BATCH_WAIT_SECONDS", "5")
    monkeypatch.setenv("TARGET_CRM_STORE_PAYLOAD", "false")

    assert main("--config", "ENV", messages=f"{ACTIONS}\n{action('a1')}\n") == 0
    assert table(sqlite_url, "actions", "action_id", "payload") == [{"action_id": "a1", "payload": None}]

    monkeypatch.setenv("TARGET_CRM_BATCH_WAIT_SECONDS", "soon")
    assert "\n" not in main("--config", "ENV")


@pytest.mark.parametrize(("folder", "is_read"), [("project", True), ("environment", False)])
def test_variables_override_the_dotenv_file_and_only_the_file_in_the_working_directory_is_read(
    tmp_path: Path, sqlite_url: str, folder: str, *, is_read: bool
) -> None:
    project, packages = tmp_path / "project", tmp_path / "environment" / "packages"
    project.mkdir()
    packages.mkdir(parents=True)
    # The SDK looks for the file in the folders above its own.
    (packages / "singer_sdk").symlink_to(Path(singer_sdk.__file__).parent)
    (tmp_path / folder / ".env").write_text(
        "TARGET_CRM_SQLALCHEMY_URL=sqlite:///other.db\nTARGET_CRM_STORE_PAYLOAD=false\n", encoding="utf-8"
    )

    subprocess.run(
        real_command("target-crm", "--config", "ENV"),
        env=environment(TARGET_CRM_SQLALCHEMY_URL=sqlite_url, PYTHONPATH=str(packages)),
        input=f"{ACTIONS}\n{action('a1')}\n",
        cwd=project,
        text=True,
        check=True,
        capture_output=True,
        timeout=RUN_SECONDS_MAX,
    )

    assert query(sqlite_url, "SELECT action_id, payload IS NULL FROM actions") == [("a1", is_read)]


def test_an_empty_environment_variable_counts_as_unset(
    main: Main, monkeypatch: pytest.MonkeyPatch, sqlite_url: str
) -> None:
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", sqlite_url)
    for name in ("PORT", "BATCH_SIZE_ROWS", "STORE_PAYLOAD", "MAX_REJECTED_FRACTION", "STREAM_MAPS", "DIALECT"):
        monkeypatch.setenv(f"TARGET_CRM_{name}", "")

    assert main("--config", "ENV", messages=f"{ACTIONS}\n{action('a1')}\n") == 0

    # By default the payload is stored.
    assert query(sqlite_url, "SELECT count(payload) FROM actions") == [(1,)]


def test_spaces_around_an_environment_variable_are_ignored_if_the_setting_is_not_text(
    main: Main, monkeypatch: pytest.MonkeyPatch, sqlite_url: str
) -> None:
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", sqlite_url)
    for name, value in {"STORE_PAYLOAD": " TRUE ", "HARD_DELETE": "no\n", "BATCH_SIZE_ROWS": " 7 "}.items():
        monkeypatch.setenv(f"TARGET_CRM_{name}", value)

    assert main("--config", "ENV", messages=f"{ACTIONS}\n{action('a1')}\n") == 0

    assert query(sqlite_url, "SELECT count(payload) FROM actions") == [(1,)]


@pytest.mark.parametrize(
    "name", ["port", "batch_size_rows", "hard_delete", "max_rejected_fraction", "stream_maps", "options"]
)
def test_empty_text_in_a_config_file_counts_as_unset_if_the_setting_is_not_text(
    main: Main, sqlite_url: str, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"sqlalchemy_url": sqlite_url, name: ""}))

    assert main("--config", str(path), messages=f"{ACTIONS}\n{action('a1')}\n") == 0


def test_an_unknown_setting_is_a_warning_that_suggests_the_right_name(
    main: Main, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TARGET_CRM_BATCHSIZE_ROWS", "s3cret")
    monkeypatch.setenv("TARGET_CRM__DIALECT", "s3cret")
    path = tmp_path / "config.json"
    path.write_text(f'{{"sqlalchemy_url": "sqlite:///{tmp_path}/crm.db", "hard_deletes": true, "colour": "s3cret"}}')

    assert main("--config", str(path), "--config", "ENV") == 0

    warnings = [record.getMessage() for record in caplog.records if "not a setting" in record.getMessage()]
    assert warnings == [
        '"colour" is not a setting and is ignored',
        '"hard_deletes" is not a setting and is ignored; did you mean hard_delete?',
        "TARGET_CRM_BATCHSIZE_ROWS is not a setting and is ignored; did you mean batch_size_rows?",
    ]


def test_a_password_in_a_setting_of_its_own_needs_no_url_encoding(
    main: Main, monkeypatch: pytest.MonkeyPatch, new_postgres_url: str
) -> None:
    password = "p@ss/w%rd:#?"
    execute(
        new_postgres_url,
        f"CREATE ROLE points_loader LOGIN PASSWORD '{password}'; GRANT CREATE ON SCHEMA public TO points_loader",
    )
    url = make_url(new_postgres_url)
    parts = {
        "dialect": "postgresql",
        "host": url.host,
        "port": url.port,
        "user": "points_loader",
        "database": url.database,
    }
    for name, value in {**parts, "password": password, "options": '{"application_name": "points"}'}.items():
        monkeypatch.setenv(f"TARGET_CRM_{name.upper()}", str(value))

    assert main("--config", "ENV", messages=f"{ACTIONS}\n{action('a1')}\n") == 0

    assert query(new_postgres_url, "SELECT award_id FROM award_balances") == [("w1",)]
    assert query(new_postgres_url, "SELECT tableowner FROM pg_tables WHERE tablename = 'actions'") == [
        ("points_loader",)
    ]


def test_a_null_setting_means_its_default(sqlite_url: str) -> None:
    load(sqlite_url, [ACTIONS, action("a1")], batch_size_rows=None, batch_wait_seconds=None, store_payload=None)

    assert query(sqlite_url, "SELECT count(payload) FROM actions") == [(1,)]


def test_the_loader_may_lack_the_right_to_create_the_target_schema(new_postgres_url: str) -> None:
    execute(new_postgres_url, 'CREATE ROLE schema_owner LOGIN; CREATE SCHEMA "Loyalty" AUTHORIZATION schema_owner')
    loader_url = new_postgres_url.replace("//postgres@", "//schema_owner@")
    generic = [schema("t", {"id": TEXT}, "id"), record("t", {"id": "1"})]

    for _ in range(2):
        load(loader_url, [ACTIONS, action("a1"), *generic], default_target_schema="Loyalty")

    assert query(loader_url, 'SELECT award_id FROM "Loyalty".award_balances') == [("w1",)]
    assert query(loader_url, 'SELECT user_id FROM "Loyalty".user_balances') == [("u1",)]
    assert query(loader_url, 'SELECT id FROM "Loyalty".t') == [("1",)]


def test_a_missing_target_schema_is_created(new_postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    load(new_postgres_url, [ACTIONS, action("a1")], default_target_schema="elsewhere")

    assert query(new_postgres_url, "SELECT award_id FROM elsewhere.award_balances") == [("w1",)]
    assert ", schema elsewhere" in next(line for line in caplog.messages if line.startswith("loading into "))


def test_a_closed_standard_input_is_reported_in_one_line(sqlite_url: str) -> None:
    ran = subprocess.run(
        ["sh", "-c", '"$0" "$@" <&-', *real_command("target-crm", "--config", "ENV")],
        env=environment(TARGET_CRM_SQLALCHEMY_URL=sqlite_url),
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=False,
    )

    assert ran.returncode == 1
    assert ran.stderr.endswith("\ntarget-crm: standard input is closed: nothing can be read\n")
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("last", [state({"n": 1}), "broken"], ids=["succeeds", "fails"])
def test_a_run_closes_its_connections(
    new_postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    # Meltano also sets this variable.
    monkeypatch.setenv("PYTHONWARNINGS", "once")

    ended = run_target(new_postgres_url, tmp_path, ACTIONS, action("a1"), last, on_invalid_record="fail")

    assert ended.returncode == (last == "broken")
    assert "ResourceWarning" not in ended.stderr
