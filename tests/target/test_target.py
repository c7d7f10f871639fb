"""The whole of target-crm: messages in, tables, STATE and exit code out; mostly through the real console script."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from decimal import Decimal
from hashlib import md5
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import make_url

from target_crm.errors import InputError, WarehouseError
from target_crm.loader import reader as messages_room
from target_crm.loader import target
from target_crm.loader.target import TargetCrm
from tests.helpers.commands import RUN_SECONDS_MAX, command, environment
from tests.helpers.target import (
    ACTIONS,
    AWARDS,
    action,
    execute,
    load,
    query,
    record,
    schema,
    snapshot,
    state,
    table,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Main = Callable[..., Any]

TEXT, NUMBER, INTEGER = {"type": "string"}, {"type": ["number", "null"]}, {"type": ["integer", "null"]}


def nested(levels: int) -> dict[str, Any]:
    """The JSON Schema of an object in an object in …"""
    definition: dict[str, Any] = TEXT
    for _ in range(levels):
        definition = {"type": "object", "properties": {"a": definition}}
    return definition


def run(url: str, folder: Path, *messages: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """The console script, with settings from the environment."""
    variables = {f"TARGET_CRM_{name.upper()}": value for name, value in settings.items()}
    return subprocess.run(
        command("target-crm", "--config", "ENV"),
        input="".join(f"{message}\n" for message in messages),
        env=environment(TARGET_CRM_SQLALCHEMY_URL=url, **variables),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=False,
    )


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Main]:
    """The console script's function in this process: returns 0, or the last words before another exit code."""

    def call(*arguments: str, messages: str = "") -> Any:
        monkeypatch.setattr("sys.argv", ["target-crm", *arguments])
        monkeypatch.setattr("sys.stdin", io.StringIO(messages))
        with pytest.raises(SystemExit) as end:
            target.main()
        said = capsys.readouterr().err
        return said[said.index("target-crm: ") :].strip() if end.value.code else 0

    # The SDK sets up logs and hooks for a process that is its own.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr("sys.excepthook", sys.excepthook)
    yield call
    logging.captureWarnings(capture=False)


def everything(url: str) -> dict[str, Any]:
    return {name: table(url, name) for name in ("actions", "awards", "award_balances", "rejected_records")}


def test_a_run_loads_acknowledges_and_accounts_for_every_record_and_a_replay_changes_nothing(
    warehouse_url: str, tmp_path: Path
) -> None:
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

    first = run(warehouse_url, tmp_path, *messages)
    loaded = everything(warehouse_url)
    second = run(warehouse_url, tmp_path, *messages)

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
    assert everything(warehouse_url) == loaded
    for tally in (
        "awards: 2 read = 2 applied + 0 duplicate + 0 superseded + 0 quarantined",
        "actions: 3 read = 1 applied + 1 duplicate + 0 superseded + 1 quarantined",
        "malformed lines: 1 read = 0 applied + 0 duplicate + 0 superseded + 1 quarantined",
    ):
        assert tally in first.stderr
    assert "awards: 2 read = 0 applied + 2 duplicate + 0 superseded + 0 quarantined" in second.stderr


class Witness(io.StringIO):
    """A standard output that looks, at every line, at what another connection sees in the ledger."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.seen: list[tuple[str, list[str]]] = []

    def write(self, line: str) -> int:
        self.seen.append((line, [row["action_id"] for row in table(self.url, "actions", "action_id")]))
        return len(line)


def witnessed(url: str, *messages: str, **settings: Any) -> list[tuple[str, list[str]]]:
    witness = Witness(url)
    with redirect_stdout(witness):
        TargetCrm(config={"sqlalchemy_url": url, **settings}).listen(io.StringIO("\n".join(messages)))
    return witness.seen


def test_a_state_goes_out_when_all_before_it_is_committed_also_mid_way(warehouse_url: str) -> None:
    seen = witnessed(
        warehouse_url,
        ACTIONS,
        action("a1"),
        state({"n": 1}),
        action("a2"),
        action("a3"),
        state({"n": 2}),
        state({"n": 3}),
        action("a4"),
        action("a5"),
        state({"n": 4}),
        batch_size_rows=2,
    )

    assert seen == [
        ('{"n":1}\n', ["a1", "a2"]),
        ('{"n":3}\n', ["a1", "a2", "a3", "a4"]),
        ('{"n":4}\n', ["a1", "a2", "a3", "a4", "a5"]),
    ]


def test_rows_do_not_wait_longer_than_they_may(warehouse_url: str) -> None:
    seen = witnessed(warehouse_url, ACTIONS, state({}), action("a1"), state({"n": 1}), batch_wait_seconds=0)

    assert seen == [("{}\n", []), ('{"n":1}\n', ["a1"])]


def test_lines_that_are_no_messages_fill_a_batch_too(warehouse_url: str) -> None:
    seen = witnessed(warehouse_url, ACTIONS, state({"n": 1}), "x", "y", state({"n": 2}), "z", batch_size_rows=2)

    assert seen == [('{"n":1}\n', []), ('{"n":2}\n', [])]
    assert len(table(warehouse_url, "rejected_records")) == 3


def test_a_batch_that_fails_leaves_nothing_behind_and_no_state(warehouse_url: str, tmp_path: Path) -> None:
    load(warehouse_url, [ACTIONS])
    execute(warehouse_url, "CREATE UNIQUE INDEX one_award_a_user ON award_balances (user_id)")
    messages = [ACTIONS, action("a1", award="w1"), action("a2", award="w2"), state({"n": 1})]

    failed = run(warehouse_url, tmp_path, *messages)
    left = everything(warehouse_url)
    execute(warehouse_url, "DROP INDEX one_award_a_user")
    mended = load(warehouse_url, messages)

    assert (failed.returncode, failed.stdout) == (1, "")
    assert "Traceback" not in failed.stderr
    assert left == {"actions": [], "awards": [], "award_balances": [], "rejected_records": []}
    assert mended.states == ['{"n":1}']
    assert len(table(warehouse_url, "award_balances")) == 2


def test_sigterm_acknowledges_what_is_committed_and_no_more(warehouse_url: str, tmp_path: Path) -> None:
    committed = [ACTIONS, action("a1"), state({"n": 1}), action("a2")]
    held = [action("a3"), state({"n": 2})]
    with subprocess.Popen(
        command("target-crm", "--config", "ENV"),
        env=environment(TARGET_CRM_SQLALCHEMY_URL=warehouse_url, TARGET_CRM_BATCH_SIZE_ROWS="2"),
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("".join(f"{message}\n" for message in [*committed, *held]))
        process.stdin.flush()
        first_state = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        # The pipe stays open: the signal alone ends the run.
        rest, log = process.stdout.read(), process.stderr.read() if process.stderr else ""
        exit_code = process.wait(RUN_SECONDS_MAX)

    assert (first_state, rest, exit_code) == ('{"n":1}\n', "", 143), log
    assert "Traceback" not in log
    assert [row["action_id"] for row in table(warehouse_url, "actions")] == ["a1", "a2"]
    assert load(warehouse_url, [ACTIONS, action("a2"), *held]).states == ['{"n":2}']
    assert [row["action_id"] for row in table(warehouse_url, "actions")] == ["a1", "a2", "a3"]


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        pytest.param(
            action("a2", delta="Tom Jones"),
            "actions line 3: metadata.pointsAdded is text, expected points",
            id="a-bad-record",
        ),
        pytest.param("Tom Jones", "input line 3: the line is not a Singer message", id="no-message"),
        pytest.param(
            record("tom", {"name": "Tom Jones"}),
            "stream 'tom': a record came before its SCHEMA",
            id="before-its-schema",
        ),
        pytest.param(
            action("a1", available=3), "actions line 3: the ledger has this _id with other content", id="contradiction"
        ),
        pytest.param(
            '{"type": "BATCH", "stream": "actions", "encoding": {}, "manifest": ["file:///Tom Jones"]}',
            "stream 'actions': BATCH messages are not supported; turn batches off",
            id="batch",
        ),
        pytest.param(
            '{"type": "SCHEMA", "stream": "tom", "schema": {}}',
            "line 3: a SCHEMA message needs a stream, schema.properties and a list of keys",
            id="schema-without-properties",
        ),
        pytest.param(
            '{"type": "SCHEMA", "stream": "tom", "schema": {"properties": {}}, "key_properties": "id"}',
            "line 3: a SCHEMA message needs a stream, schema.properties and a list of keys",
            id="keys-are-no-list",
        ),
        pytest.param(
            schema("", {"id": TEXT}),
            "line 3: a SCHEMA message needs a stream, schema.properties and a list of keys",
            id="a-stream-without-a-name",
        ),
        pytest.param(
            schema("tom", {"id": nested(400)}),
            "stream 'tom': its SCHEMA message is nested too deeply",
            id="a-deep-schema",
        ),
        pytest.param(
            schema("tom", {"id": "string"}),
            "stream 'tom': its SCHEMA message holds no JSON Schema",
            id="no-json-schema",
        ),
        pytest.param(
            schema("User Balances", {}),
            "stream 'User Balances': table 'user_balances' is the target's own; rename the stream by a map",
            id="a-name-of-the-targets-own",
        ),
        pytest.param(
            schema("_crm_staging_tom", {}),
            "stream '_crm_staging_tom': table '_crm_staging_tom' is the target's own; rename the stream by a map",
            id="a-name-that-a-work-table-may-have",
        ),
    ],
)
def test_where_it_has_to_fail_it_says_in_one_line_why_and_no_later_row_is_applied(
    main: Main,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    bad: str,
    complaint: str,
) -> None:
    url = f"sqlite:///{tmp_path / 'crm.db'}"
    (tmp_path / "config.json").write_text(json.dumps({"sqlalchemy_url": url, "on_invalid_record": "fail"}))
    messages = "\n".join([ACTIONS, action("a1"), bad, action("a9"), state({"n": 1})])

    ending = main("--config", str(tmp_path / "config.json"), messages=messages)

    assert "\n" not in ending
    assert ending.removeprefix("target-crm: ").removeprefix("Record Message Validation Error: ") == complaint
    assert capsys.readouterr().out == ""
    assert "a9" not in [row["action_id"] for row in table(url, "actions")]


def test_an_error_ends_the_console_script_with_1_and_one_line_without_secrets(tmp_path: Path) -> None:
    result = run(
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
    ("config", "complaint"),
    [
        pytest.param("[]", "config file {path}: expected a JSON object", id="a-list"),
        pytest.param("{", "config file {path}: not JSON (line 1)", id="cut"),
        pytest.param(None, "config file {path}: No such file or directory", id="no-file"),
        pytest.param(
            '{"batch_size_rows": 0}',
            "batch_size_rows is invalid, expected a whole number from 1 to 1000000",
            id="no-rows",
        ),
        pytest.param(
            '{"on_invalid_record": "pa55word"}',
            "on_invalid_record is invalid, expected one of quarantine, fail",
            id="a-choice",
        ),
        pytest.param(
            '{"sqlalchemy_url": ["pa55word"]}', "sqlalchemy_url has the wrong type, expected text", id="url-is-a-list"
        ),
        pytest.param(
            '{"sqlalchemy_url": "pa55word"}',
            "sqlalchemy_url: not a SQLAlchemy URL, expected e.g. sqlite:///crm.db",
            id="no-url",
        ),
        pytest.param(
            '{"sqlalchemy_url": "postgresql://u:1@h:pa55word/db"}',
            "sqlalchemy_url: not a SQLAlchemy URL, expected e.g. sqlite:///crm.db",
            id="a-port-that-is-no-number",
        ),
        pytest.param(
            '{"sqlalchemy_url": "nosql://u:pa55word@h/db"}',
            "no engine is called 'nosql' (sqlalchemy_url or dialect); is its extra installed?",
            id="an-unknown-engine",
        ),
        pytest.param(
            '{"sqlalchemy_url": "sqlite://", "dialect": "sqlite", "password": "pa55word"}',
            "sqlalchemy_url and dialect, password both set the warehouse's address; use one of them",
            id="two-addresses",
        ),
        pytest.param(
            '{"host": "h", "password": "pa55word"}',
            "dialect is missing next to host, password, e.g. postgresql",
            id="no-dialect",
        ),
        pytest.param(
            '{"dialect": "nosql"}',
            "no engine is called 'nosql' (sqlalchemy_url or dialect); is its extra installed?",
            id="an-unknown-dialect",
        ),
        pytest.param(
            '{"dialect": "sqlite", "options": {"timeout": ["pa55word"]}}',
            "options.timeout has the wrong type, expected text",
            id="an-option-that-is-no-text",
        ),
        pytest.param(
            '{"sqlalchemy_url": "sqlite:///crm.db?timeout=pa55word"}',
            "sqlite can't take one of the options in sqlalchemy_url or options",
            id="an-option-that-the-driver-cannot-take",
        ),
        pytest.param(
            '{"sqlalchemy_url": "sqlite://", "default_target_schema": "crm"}',
            "default_target_schema: SQLite has no schemas, leave it empty",
            id="a-schema-on-sqlite",
        ),
        pytest.param(
            '{"sqlalchemy_url": "sqlite://", "flattening_enabled": true, "flattening_max_depth": 1}',
            "flattening_enabled: target-crm keeps objects as JSON; flatten in the tap if you must",
            id="flattening",
        ),
        pytest.param(
            '{"sqlalchemy_url": "sqlite://", "stream_maps": {"actions": {"source": "("}}}',
            "Failed to parse expression (.",
            id="a-map-that-cannot-be-read",
        ),
        pytest.param(
            '{"sqlalchemy_url": "sqlite://", "stream_maps": {"actions": {"source": "md5(nope)"}}}',
            "stream 'actions' line 2: a stream map fails: Failed to evaluate simpleeval expressions md5(nope).",
            id="a-map-that-names-what-is-not-there",
        ),
        pytest.param(
            '{"sqlalchemy_url": "sqlite://", "stream_maps": {"actions": {"source": "md5(context)"}}}',
            "stream 'actions' line 2: a stream map fails: AttributeError",
            id="a-map-that-cannot-take-the-value",
        ),
        pytest.param(
            '{"sqlalchemy_url": "sqlite://", "stream_maps": {"actions": {"source": "md5"}}}',
            "stream 'actions' line 2: a stream map fails: TypeError",
            id="a-map-that-gives-no-value",
        ),
        pytest.param(
            '{"sqlalchemy_url": "sqlite://", "stream_maps": {"actions": {"source": 5}}}',
            "stream_maps.actions is invalid, which is not allowed there",
            id="a-map-that-is-none",
        ),
        pytest.param(
            '{"sqlalchemy_url": "sqlite://", "stream_maps": {"actions": {"__else__": "source"}}}',
            "stream_maps: __else__ may be null or __NULL__ only",
            id="a-map-for-all-else",
        ),
        pytest.param(
            '{"sqlalchemy_url": "sqlite://", "default_target_schema": "crm", "stream_maps": null}',
            "default_target_schema: SQLite has no schemas, leave it empty",
            id="no-maps",
        ),
    ],
)
def test_a_malformed_setting_is_one_clear_line(main: Main, tmp_path: Path, config: str | None, complaint: str) -> None:
    path = tmp_path / "config.json"
    if config is not None:
        path.write_text(config)

    ending = main("--config", str(path), messages=f"{ACTIONS}\n{action('a1')}\n")

    assert ending == f"target-crm: {complaint.format(path=path)}"


def test_a_warehouse_that_ends_with_the_run_is_no_secret(main: Main, tmp_path: Path, caplog: Any) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"sqlalchemy_url": "sqlite://"}')

    assert main("--config", str(path), messages=f"{ACTIONS}\n{action('a1')}\n") == 0
    assert "an in-memory database; all data is lost when this run ends" in caplog.text


def test_settings_come_from_the_environment_too(main: Main, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'crm.db'}"
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", url)
    monkeypatch.setenv("TARGET_CRM_BATCH_WAIT_SECONDS", "5")
    monkeypatch.setenv("TARGET_CRM_STORE_PAYLOAD", "false")

    assert main("--config", "ENV", messages=f"{ACTIONS}\n{action('a1')}\n") == 0
    assert table(url, "actions", "action_id", "payload") == [{"action_id": "a1", "payload": None}]

    monkeypatch.setenv("TARGET_CRM_BATCH_WAIT_SECONDS", "soon")
    assert "\n" not in main("--config", "ENV")


def test_the_warehouse_can_be_told_in_parts_whose_password_needs_no_escaping(
    main: Main, monkeypatch: pytest.MonkeyPatch, new_postgres_url: str
) -> None:
    password = "p@ss/w%rd:#?"
    execute(
        new_postgres_url, f"CREATE ROLE porter LOGIN PASSWORD '{password}'; GRANT CREATE ON SCHEMA public TO porter"
    )
    url = make_url(new_postgres_url)
    parts = {"dialect": "postgresql", "host": url.host, "port": url.port, "user": "porter", "database": url.database}
    for name, value in {**parts, "password": password, "options": '{"application_name": "points"}'}.items():
        monkeypatch.setenv(f"TARGET_CRM_{name.upper()}", str(value))

    assert main("--config", "ENV", messages=f"{ACTIONS}\n{action('a1')}\n") == 0

    assert query(new_postgres_url, "SELECT award_id FROM award_balances") == [("w1",)]
    assert query(new_postgres_url, "SELECT tableowner FROM pg_tables WHERE tablename = 'actions'") == [("porter",)]


def test_null_settings_mean_their_defaults(warehouse_url: str) -> None:
    load(warehouse_url, [ACTIONS, action("a1")], batch_size_rows=None, batch_wait_seconds=None, store_payload=None)

    assert query(warehouse_url, "SELECT count(payload) FROM actions") == [(1,)]


def test_tables_can_be_in_a_schema_that_the_loader_may_use_but_not_create(new_postgres_url: str) -> None:
    execute(new_postgres_url, 'CREATE ROLE loader LOGIN; CREATE SCHEMA "Loyalty" AUTHORIZATION loader')
    loader_url = new_postgres_url.replace("//postgres@", "//loader@")
    generic = [schema("t", {"id": TEXT}, "id"), record("t", {"id": "1"})]

    for _ in range(2):
        load(loader_url, [ACTIONS, action("a1"), *generic], default_target_schema="Loyalty")

    assert query(loader_url, 'SELECT award_id FROM "Loyalty".award_balances') == [("w1",)]
    assert query(loader_url, 'SELECT user_id FROM "Loyalty".user_balances') == [("u1",)]
    assert query(loader_url, 'SELECT id FROM "Loyalty".t') == [("1",)]


def test_a_schema_that_is_missing_is_created(new_postgres_url: str) -> None:
    load(new_postgres_url, [ACTIONS, action("a1")], default_target_schema="elsewhere")

    assert query(new_postgres_url, "SELECT award_id FROM elsewhere.award_balances") == [("w1",)]


def test_a_state_without_a_value_and_records_without_a_stream_are_set_aside(warehouse_url: str) -> None:
    lines = [
        '{"type":"STATE"}',
        '{"type":"STATE","value":null}',
        '{"type":"RECORD","stream":["x"],"record":{}}',
        '{"type":"RECORD","stream":"actions","record":[]}',
        '{"type":"RECORD","stream":"early","record":{"id":1}}',
    ]

    loaded = load(warehouse_url, [ACTIONS, *lines, state({"n": 1})])

    assert loaded.states == ['{"n":1}']
    assert loaded.tallies == {"": "5 read = 0 applied + 0 duplicate + 0 superseded + 5 quarantined"}
    assert [
        (row["input_line"], row["reason"])
        for row in sorted(table(warehouse_url, "rejected_records"), key=lambda row: row["input_line"])
    ] == [
        (2, "the STATE message has no value"),
        (3, "the STATE message has no value"),
        (4, "the RECORD message has no stream or no record"),
        (5, "the RECORD message has no stream or no record"),
        (6, "the record came before its stream's SCHEMA"),
    ]


def test_a_nul_wherever_it_is_in_a_record_is_set_aside_so_that_json_can_be_asked(warehouse_url: str) -> None:
    messages = [
        *(ACTIONS, action("a1", note=r"no NUL: \u0000"), action("a2", note="\0"), action("a3", **{"n\0": 1})),
        schema("t", {"id": TEXT, "tags": {"type": "array"}}, "id"),
        record("t", {"id": "1", "tags": [r"no NUL: \\u0000"]}),
        record("t", {"id": "2", "tags": [{"a": r"a NUL after a backslash: \\" + "\0"}]}),
        record("t", {"id": "3", "more": "\0"}),
    ]

    load(warehouse_url, messages)

    if warehouse_url.startswith("postgresql"):
        assert query(warehouse_url, "SELECT payload->>'note', payload::jsonb->>'type' FROM actions") == [
            (r"no NUL: \u0000", "REWARD_EARNED")
        ]
    assert table(warehouse_url, "actions", "action_id") == [{"action_id": "a1"}]
    assert query(warehouse_url, "SELECT id FROM t") == [("1",)]
    assert sorted(row["reason"] for row in table(warehouse_url, "rejected_records", "reason")) == [
        "a property that is not in the schema holds a NUL character",
        "tags holds a NUL character",
        "the record holds a NUL character",
        "the record holds a NUL character",
    ]


def test_names_that_a_database_cannot_hold_are_told_without_what_it_cannot(warehouse_url: str) -> None:
    messages = [schema("a\0b", {"id": TEXT, "n\0": INTEGER}, "id"), record("a\0b", {"id": "1", "n\0": "x"})]

    load(warehouse_url, [*messages, record("a\0b", {"id": "2", "n\0": 5}), state({})])

    assert query(warehouse_url, "SELECT id, n_ FROM a_b") == [("2", 5)]
    assert table(warehouse_url, "rejected_records", "stream", "reason") == [
        {
            "stream": "a\N{REPLACEMENT CHARACTER}b",
            "reason": "n\N{REPLACEMENT CHARACTER} is text, expected a whole number",
        }
    ]


# Tables of other streams.


def test_other_streams_are_upserted_by_their_key(warehouse_url: str) -> None:
    perks = schema(
        "perks", {"_id": TEXT, "title": TEXT, "rules": {"type": "object"}, "open": {"type": "boolean"}}, "_id"
    )
    load(
        warehouse_url,
        [
            perks,
            record("perks", {"_id": "p1", "title": "Stamp", "open": True}, "2026-10-01T00:00:00Z"),
            record("perks", {"_id": "p2", "title": "Coin", "rules": {"every": [1.50, "ü"]}}, "2026-10-01T00:00:00Z"),
        ],
    )

    later = load(
        warehouse_url,
        [
            perks,
            record("perks", {"_id": "p1", "title": "Old", "open": True}, "2026-09-01T00:00:00Z"),
            record("perks", {"_id": "p2", "title": "Coins"}, "2026-10-02T00:00:00Z"),
            record("perks", {"_id": "p3", "title": "New", "extra": 1}, "2026-10-02T00:00:00Z"),
            record("perks", {"_id": "p3", "title": "New", "extra": 1}, "2026-10-02T00:00:00Z"),
        ],
    )

    assert later.tallies == {"perks": "4 read = 2 applied + 1 duplicate + 1 superseded + 0 quarantined"}
    rows = query(
        warehouse_url, "SELECT _id, title, CAST(rules AS text), open, CAST(_sdc_extra AS text) FROM perks ORDER BY _id"
    )
    assert rows == [
        ("p1", "Stamp", None, True, None),
        ("p2", "Coins", None, None, None),
        ("p3", "New", None, None, '{"extra":1}'),
    ]


def test_of_rows_read_at_the_same_time_the_last_one_stands(warehouse_url: str) -> None:
    loaded = load(
        warehouse_url,
        [schema("t", {"id": TEXT, "n": INTEGER}, "id"), *(record("t", {"id": "1", "n": n}) for n in (1, 2, 3))],
        batch_size_rows=2,
    )

    assert query(warehouse_url, "SELECT id, n FROM t") == [("1", 3)]
    assert loaded.tallies == {"t": "3 read = 2 applied + 0 duplicate + 1 superseded + 0 quarantined"}


def test_rows_that_do_not_tell_when_they_were_read_come_one_after_the_other(warehouse_url: str) -> None:
    load(
        warehouse_url,
        [schema("t", {"id": TEXT, "n": INTEGER}, "id"), *(record("t", {"id": "1", "n": n}, None) for n in range(5))],
        batch_size_rows=3,
    )

    assert query(warehouse_url, "SELECT id, n FROM t") == [("1", 4)]


def test_a_stream_without_a_key_is_appended(warehouse_url: str) -> None:
    messages = [schema("visits", {"place": TEXT}), record("visits", {"place": "a"}), record("visits", {"place": "a"})]

    loaded = [load(warehouse_url, messages) for _ in range(2)]

    assert query(warehouse_url, "SELECT place FROM visits") == [("a",)] * 4
    assert loaded[1].tallies == {"visits": "2 read = 2 applied + 0 duplicate + 0 superseded + 0 quarantined"}


def test_a_key_may_be_of_two_properties(warehouse_url: str) -> None:
    definition = schema("t", {"shop": TEXT, "day": {"type": "string", "format": "date"}, "n": NUMBER}, "shop", "day")
    rows = [("a", "2026-10-01", 0.1), ("a", "2026-10-02", 1), ("b", "2026-10-01", 2), ("a", "2026-10-01", 0.25)]

    load(
        warehouse_url,
        [definition, *(record("t", {"shop": shop, "day": day, "n": n}) for shop, day, n in rows)],
        batch_size_rows=3,
    )

    found = query(warehouse_url, "SELECT shop, day, n FROM t ORDER BY shop, day")
    assert [(shop, str(day), float(n)) for shop, day, n in found] == [
        ("a", "2026-10-01", 0.25),
        ("a", "2026-10-02", 1.0),
        ("b", "2026-10-01", 2.0),
    ]


def test_new_properties_become_new_columns_in_the_middle_of_a_run_and_in_a_later_one(warehouse_url: str) -> None:
    load(
        warehouse_url,
        [
            schema("t", {"id": TEXT}, "id"),
            record("t", {"id": "1", "name": "early"}),
            schema("t", {"id": TEXT, "name": TEXT}, "id"),
            record("t", {"id": "2", "name": "in time"}),
        ],
    )
    load(warehouse_url, [schema("t", {"id": TEXT, "count": INTEGER}, "id"), record("t", {"id": "3", "count": 5})])

    assert query(warehouse_url, "SELECT id, name, count, CAST(_sdc_extra AS text) FROM t ORDER BY id") == [
        ("1", None, None, '{"name":"early"}'),
        ("2", "in time", None, None),
        ("3", None, 5, None),
    ]


def test_columns_that_a_schema_no_longer_names_keep_what_they_hold(warehouse_url: str) -> None:
    load(
        warehouse_url,
        [
            schema("t", {"id": TEXT, "name": TEXT, "size": INTEGER}, "id"),
            record("t", {"id": "1", "name": "old", "size": 1}),
            record("t", {"id": "2", "name": "kept", "size": 2}),
        ],
    )
    execute(warehouse_url, "ALTER TABLE t ADD COLUMN note text")
    execute(warehouse_url, "UPDATE t SET note = 'by hand'")

    messages = [schema("t", {"id": TEXT, "name": TEXT}, "id"), record("t", {"id": "1", "name": "new"})]
    load(warehouse_url, [*messages, record("t", {"id": "3", "name": "late"})])

    assert query(warehouse_url, "SELECT id, name, size, note FROM t ORDER BY id") == [
        ("1", "new", 1, "by hand"),
        ("2", "kept", 2, "by hand"),
        ("3", "late", None, None),
    ]


def test_names_may_be_reserved_words_or_the_targets_own_or_long_or_clash(warehouse_url: str) -> None:
    properties = {
        "select": TEXT,
        "userName": TEXT,
        "user_name": TEXT,
        "_rank": INTEGER,
        "_seq": INTEGER,
        "x" * 90: TEXT,
    }
    values = {"select": "1", "userName": "a", "user_name": "b", "_rank": 7, "_seq": 8, "x" * 90: "c"}

    load(warehouse_url, [schema("order", properties, "select"), *[record("order", values)] * 2])

    columns = f'"select", user_name, user_name_2, _rank_2, _seq_2, {"x" * 60}'
    assert query(warehouse_url, f'SELECT {columns} FROM "order"') == [("1", "b", "a", 7, 8, "c")]


def test_streams_with_long_names_do_not_share_a_work_table(warehouse_url: str) -> None:
    one, other = "x" * 58 + "1", "x" * 58 + "2"

    load(
        warehouse_url,
        [
            schema(one, {"id": TEXT, "v": INTEGER}, "id"),
            schema(other, {"id": TEXT, "v": TEXT}, "id"),
            record(one, {"id": "1", "v": 5}),
            record(other, {"id": "1", "v": "five"}),
        ],
    )

    assert query(warehouse_url, f"SELECT id, v FROM {one}") == [("1", 5)]
    assert query(warehouse_url, f"SELECT id, v FROM {other}") == [("1", "five")]


def test_two_streams_for_one_table_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refusal:
        load(f"sqlite:///{tmp_path / 'crm.db'}", [schema("myPerks", {}), schema("my_perks", {})])

    assert str(refusal.value) == "streams 'myPerks' and 'my_perks' would share table 'my_perks'; rename one by a map"


def test_streams_that_a_map_joins_into_one_table_land_each_in_its_own_columns(warehouse_url: str) -> None:
    loaded = load(
        warehouse_url,
        [
            schema("north", {"id": TEXT, "wind": INTEGER}, "id", required=["wind"]),
            record("north", {"id": "1", "wind": 1}),
            schema("south", {"id": TEXT, "sun": TEXT}, "id", required=["sun"]),
            record("south", {"id": "2", "sun": "yes"}),
            record("north", {"id": "3", "wind": 3}),
            state({"n": 1}),
        ],
        stream_maps={"north": {"__alias__": "places"}, "south": {"__alias__": "places"}},
    )

    assert query(warehouse_url, "SELECT id, wind, sun FROM places ORDER BY id") == [
        ("1", 1, None),
        ("2", None, "yes"),
        ("3", 3, None),
    ]
    assert loaded.tallies == {"places": "3 read = 3 applied + 0 duplicate + 0 superseded + 0 quarantined"}


def test_a_stream_that_a_map_drops_leaves_nothing(warehouse_url: str) -> None:
    # Not even its name stands in the way.
    messages = [
        schema("user_balances", {"id": TEXT}, "id"),
        record("user_balances", {"id": "1"}),
        activate("user_balances", 1),
    ]

    loaded = load(warehouse_url, [*messages, state({"n": 1})], stream_maps={"user_balances": None})

    assert (loaded.states, loaded.tallies) == (['{"n":1}'], {})


def test_a_user_id_can_be_hashed_on_its_way_into_the_ledger(warehouse_url: str) -> None:
    hashed = "dict(user=dict(_id=md5(context['user']['_id'])))"

    load(warehouse_url, [ACTIONS, action("a1", user="tom@example.com")], stream_maps={"actions": {"context": hashed}})

    user_id = md5(b"tom@example.com").hexdigest()
    assert table(warehouse_url, "award_balances", "award_id", "user_id", "points") == [
        {"award_id": "w1", "user_id": user_id, "points": Decimal(2)}
    ]
    assert query(warehouse_url, "SELECT count(*) FROM actions WHERE CAST(payload AS text) LIKE '%tom@%'") == [(0,)]


def test_what_a_map_computes_is_loaded_as_the_json_that_it_reads_as(warehouse_url: str) -> None:
    maps = {
        "t": {"ratio": "float(a) / 8", "day": "datetime.date(2026, 10, 1)"},
        "awards": {"points": "float(points) / 100", "updatedAt": "datetime.datetime(2026, 10, 1, 12)"},
    }
    messages = [schema("t", {"id": TEXT, "a": NUMBER}, "id"), record("t", {"id": "1", "a": 0.5})]

    load(warehouse_url, [*messages, AWARDS, snapshot("w1", 29)], stream_maps=maps)

    assert table(warehouse_url, "rejected_records") == []
    ((ratio, day),) = query(warehouse_url, "SELECT ratio, day FROM t")
    assert (float(ratio), str(day)) == (0.0625, "2026-10-01")
    (balance,) = table(warehouse_url, "award_balances", "points", "as_of")
    assert (balance["points"], balance["as_of"].isoformat()) == (Decimal("0.29"), "2026-10-01T12:00:00+00:00")


def activate(stream: str, version: Any) -> str:
    return json.dumps({"type": "ACTIVATE_VERSION", "stream": stream, "version": version})


def versioned(stream: str, key: str, version: int, **fields: Any) -> str:
    return of_version(version, record(stream, {"id": key, **fields}))


def of_version(version: int, message: str) -> str:
    return json.dumps({**json.loads(message), "version": version})


def test_rows_that_an_activated_version_does_not_have_are_marked_and_come_back(warehouse_url: str) -> None:
    keyed = schema("perks", {"id": TEXT}, "id")
    gone = "SELECT id, _sdc_deleted_at IS NOT NULL FROM perks ORDER BY id"

    load(warehouse_url, [keyed, versioned("perks", "1", 1), versioned("perks", "2", 1), activate("perks", 1)])
    load(warehouse_url, [keyed, versioned("perks", "1", 2), activate("perks", 2), activate("perks", 1)])
    assert query(warehouse_url, gone) == [("1", False), ("2", True)]

    load(warehouse_url, [keyed, versioned("perks", "2", 3), activate("perks", 3)])
    assert query(warehouse_url, gone) == [("1", True), ("2", False)]


def test_with_hard_delete_they_are_removed(warehouse_url: str) -> None:
    messages = [schema("t", {"id": TEXT}, "id"), versioned("t", "1", 1), versioned("t", "2", 2), activate("t", 2)]

    load(warehouse_url, messages, hard_delete=True)

    assert query(warehouse_url, "SELECT id FROM t") == [("2",)]


def test_an_award_that_is_gone_leaves_its_users_balance_and_keeps_its_history(warehouse_url: str) -> None:
    load(warehouse_url, [AWARDS, snapshot("w1", 5), snapshot("w2", 7), activate("awards", 1)], hard_delete=True)

    assert query(warehouse_url, "SELECT * FROM user_balances") == []
    assert [row["points"] for row in table(warehouse_url, "award_balances")] == [Decimal(5), Decimal(7)]


@pytest.mark.parametrize("batch_size_rows", [1, 9])
@pytest.mark.parametrize("hard_delete", [False, True])
def test_a_row_that_came_is_not_gone_also_if_it_is_refused_or_older(
    warehouse_url: str, hard_delete: bool, batch_size_rows: int
) -> None:
    keyed = schema("perks", {"id": TEXT, "size": INTEGER}, "id")
    first = [versioned("perks", key, 1, size=1) for key in ("refused", "older", "gone")]
    older = json.loads(versioned("perks", "older", 2, size=0)) | {"time_extracted": "2026-10-01T00:00:00Z"}
    second = [versioned("perks", "refused", 2, size="many"), versioned("perks", "new", 2, size=[]), json.dumps(older)]

    settings = {"hard_delete": hard_delete, "batch_size_rows": batch_size_rows}
    load(warehouse_url, [keyed, *first, activate("perks", 1)], **settings)
    load(warehouse_url, [keyed, *second, activate("perks", 2)], **settings)

    assert query(warehouse_url, "SELECT id, size FROM perks WHERE _sdc_deleted_at IS NULL ORDER BY id") == [
        ("older", 1),
        ("refused", 1),
    ]
    assert query(warehouse_url, "SELECT id FROM perks WHERE _sdc_deleted_at IS NOT NULL") == [
        ("gone",) for _ in range(not hard_delete)
    ]


def test_an_award_that_comes_without_points_is_not_gone(warehouse_url: str) -> None:
    silent = snapshot("w1", None, at="2026-10-02T12:00:00Z")

    load(warehouse_url, [AWARDS, *(of_version(1, snapshot(award)) for award in ("w1", "w2", "w3"))])
    load(warehouse_url, [AWARDS, of_version(2, silent), of_version(2, snapshot("w2", True)), activate("awards", 2)])

    assert query(warehouse_url, "SELECT _id, points FROM awards WHERE _sdc_deleted_at IS NULL ORDER BY _id") == [
        ("w1", 5),
        ("w2", 5),
    ]


@pytest.mark.parametrize("version", [2**63, "2", 2.5, None])
def test_a_version_that_is_none_is_set_aside(warehouse_url: str, version: Any) -> None:
    keyed = schema("perks", {"id": TEXT}, "id")

    load(warehouse_url, [keyed, versioned("perks", "1", 1), activate("perks", version), state({})])

    assert query(warehouse_url, "SELECT id FROM perks WHERE _sdc_deleted_at IS NULL") == [("1",)]
    assert [row["reason"] for row in table(warehouse_url, "rejected_records", "reason")] == [
        "the ACTIVATE_VERSION has no known stream or no version"
    ]


def test_the_ledger_keeps_every_action_whatever_version_is_activated(warehouse_url: str) -> None:
    loaded = load(warehouse_url, [ACTIONS, action("a1"), activate("actions", 9), activate("unheard of", 1), state({})])

    assert loaded.states == ["{}"]
    assert [row["action_id"] for row in table(warehouse_url, "actions")] == ["a1"]
    assert table(warehouse_url, "rejected_records", "reason") == [
        {"reason": "the ACTIVATE_VERSION has no known stream or no version"}
    ]


def test_memory_is_bounded_by_the_bytes_held_too(warehouse_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "BATCH_BYTES_MAX", 1000)
    messages = [ACTIONS, action("a1"), state({"n": 1}), action("a2", note="x" * 1000), state({"n": 2}), action("a3")]

    assert [said for said, _ in witnessed(warehouse_url, *messages)][:1] == ['{"n":1}\n']


def test_a_line_that_is_too_long_goes_to_the_quarantine_with_its_head_alone(
    warehouse_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages_room, "LINE_BYTES_MAX", 2000)

    loaded = load(warehouse_url, [ACTIONS, action("a1", note="x" * 3000), action("a2")])

    assert [row["action_id"] for row in table(warehouse_url, "actions")] == ["a2"]
    (rejected,) = table(warehouse_url, "rejected_records", "reason", "payload")
    assert rejected["reason"] == "the line is longer than 2,000 bytes"
    assert len(rejected["payload"]) == messages_room.HEAD_BYTES
    assert loaded.tallies[""] == "1 read = 0 applied + 0 duplicate + 0 superseded + 1 quarantined"


def test_loading_goes_on_when_nobody_takes_the_state(warehouse_url: str, tmp_path: Path) -> None:
    lines = [ACTIONS, action("a1"), state({"n": 1}), action("a2"), state({"n": 2})]
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(
        command("target-crm", "--config", "ENV"),
        input="".join(f"{line}\n" for line in lines),
        env=environment(TARGET_CRM_SQLALCHEMY_URL=warehouse_url, TARGET_CRM_BATCH_SIZE_ROWS="1"),
        cwd=tmp_path,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=False,
    )
    os.close(writer)

    assert ran.returncode == 0, ran.stderr
    assert "cannot write STATE to stdout (Broken pipe)" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert [row["action_id"] for row in table(warehouse_url, "actions")] == ["a1", "a2"]


@pytest.mark.parametrize(
    ("redirection", "variables", "said"),
    [
        pytest.param(">&-", {}, "", id="closed"),
        pytest.param("", {"PYTHONIOENCODING": "ascii"}, '{"at":"é"}\n', id="ascii"),
        pytest.param("", {"PYTHONIOENCODING": "latin-1"}, '{"at":"é"}\n', id="latin-1"),
    ],
)
def test_whatever_standard_output_is_a_state_is_json_and_what_it_covers_is_loaded(
    tmp_path: Path, redirection: str, variables: dict[str, str], said: str
) -> None:
    url = f"sqlite:///{tmp_path / 'crm.db'}"

    ran = subprocess.run(
        ["sh", "-c", f'"$0" "$@" {redirection}', *command("target-crm", "--config", "ENV")],
        input=f"{ACTIONS}\n{action('a1')}\n{state({'at': 'é'})}\n".encode(),
        env=environment(TARGET_CRM_SQLALCHEMY_URL=url, **variables),
        cwd=tmp_path,
        capture_output=True,
        timeout=RUN_SECONDS_MAX,
        check=False,
    )

    assert (ran.returncode, ran.stdout.decode()) == (0, said), ran.stderr
    assert table(url, "actions", "action_id") == [{"action_id": "a1"}]


def test_a_closed_standard_input_is_one_clear_line(tmp_path: Path) -> None:
    ran = subprocess.run(
        ["sh", "-c", '"$0" "$@" <&-', *command("target-crm", "--config", "ENV")],
        env=environment(TARGET_CRM_SQLALCHEMY_URL=f"sqlite:///{tmp_path / 'crm.db'}"),
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=False,
    )

    assert ran.returncode == 1
    assert ran.stderr.endswith("\ntarget-crm: standard input is closed: nothing can be read\n")
    assert "Traceback" not in ran.stderr


def test_awards_are_kept_by_their_id_whatever_key_the_sender_names(warehouse_url: str) -> None:
    keyless = json.loads(AWARDS)
    del keyless["key_properties"]

    loaded = load(warehouse_url, [json.dumps(keyless), snapshot("w1", 5), snapshot("w1", 5), record("awards", {})])

    assert loaded.tallies == {"awards": "3 read = 1 applied + 1 duplicate + 0 superseded + 1 quarantined"}
    assert table(warehouse_url, "award_balances", "award_id", "points") == [{"award_id": "w1", "points": Decimal(5)}]


def test_an_award_brings_its_other_fields_along(warehouse_url: str) -> None:
    more = json.loads(AWARDS)
    more["schema"]["properties"]["updated_at"] = INTEGER

    fields = {"_id": "w1", "points": "0.25", "userId": 7, "perkId": "p1", "updatedAt": None, "updated_at": 5, "x": [1]}
    load(warehouse_url, [json.dumps(more), record("awards", fields, "2026-10-01T00:00:00Z")])

    assert query(warehouse_url, "SELECT user_id, updated_at, updated_at_2, CAST(_sdc_extra AS text) FROM awards") == [
        ("7", None, 5, '{"x":[1]}')
    ]
    (balance,) = table(warehouse_url, "award_balances", "points", "as_of")
    assert (balance["points"], balance["as_of"].isoformat()) == (Decimal("0.25"), "2026-10-01T00:00:00+00:00")


def test_a_time_of_reading_that_is_no_time_is_named_as_the_reason(warehouse_url: str) -> None:
    load(warehouse_url, [AWARDS, snapshot("w1", 5, read_at="yesterday")])

    assert table(warehouse_url, "rejected_records", "stream", "reason") == [
        {"stream": "awards", "reason": "time_extracted is not an ISO 8601 time"}
    ]


def test_a_value_that_the_warehouse_refuses_is_an_error_that_does_not_repeat_it(new_postgres_url: str) -> None:
    load(new_postgres_url, [schema("t", {"id": TEXT, "n": TEXT}, "id"), record("t", {"id": "1", "n": "x"})])
    execute(new_postgres_url, "ALTER TABLE t ALTER COLUMN n TYPE varchar(5)")

    with pytest.raises(WarehouseError) as refusal:
        load(new_postgres_url, [schema("t", {"id": TEXT, "n": TEXT}, "id"), record("t", {"id": "2", "n": "Tom Jones"})])

    assert "Tom" not in str(refusal.value)
    assert query(new_postgres_url, "SELECT id, n FROM t") == [("1", "x")]
