"""The console script, as a person or a scheduler sees it."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pepper_sandbox.server import Sandbox
from pepper_sandbox.world import World
from tap_pepper import tap as tap_module
from tap_pepper.settings import CONFIG_JSONSCHEMA, Settings, default_user_agent
from tests.helpers.tap import NOW, TOKEN, Reply, Script, config, listing, select_fields, selection

if TYPE_CHECKING:
    from collections.abc import Iterator

SNAPSHOT = Path(__file__).parents[1] / "snapshots" / "tap_catalog.json"
SCRIPT = str(Path(sys.executable).with_name("tap-pepper"))
ERROR_LINE = re.compile(r"^Traceback| \| CRITICAL +\| ")


@dataclass
class Outcome:
    """How a run of the console script ended. `errors` are the error lines on stderr."""

    code: int
    stdout: str
    stderr: str

    @property
    def errors(self) -> list[str]:
        """The lines at the end that say why the run failed."""
        return [line.split(" | ")[-1] for line in self.stderr.splitlines() if ERROR_LINE.search(line)]

    @property
    def verdicts(self) -> list[str]:
        """The lines of `--test` about streams that are not readable."""
        return [line.split(" | ")[-1] for line in self.stderr.splitlines() if " | ERROR " in line]


class Console:
    """Runs `main` in this process."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._folder = folder
        self._monkeypatch = monkeypatch
        self._capfd = capfd

    def file(self, name: str, content: object) -> str:
        path = self._folder / name
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return str(path)

    def __call__(self, *arguments: str, settings: object = None) -> Outcome:
        given = [] if settings is None else ["--config", self.file("config.json", settings)]
        self._monkeypatch.setattr(sys, "argv", ["tap-pepper", *given, *arguments])
        self._capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            tap_module.main()
        sys.stdout.flush()
        out, err = self._capfd.readouterr()
        return Outcome(ended.value.code or 0, out, err)  # type: ignore[arg-type]


@pytest.fixture
def console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Console]:
    """Run the console script, and restore the process state that it changes."""
    for name in [name for name in os.environ if name.startswith("TAP_PEPPER_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with warnings.catch_warnings():
        yield Console(tmp_path, monkeypatch, capfd)
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)
    for number, handler in signals.items():
        signal.signal(number, handler)


GOOD: dict[str, Any] = config("https://api.pepperhq.com")


# Settings.


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        pytest.param(
            {"application_id": "x"},
            "auth_token is missing: set it in the config file or as TAP_PEPPER_AUTH_TOKEN",
            id="token-missing",
        ),
        pytest.param(
            GOOD | {"auth_token": 12345678}, "auth_token has the wrong type, expected text", id="token-number"
        ),
        pytest.param(GOOD | {"auth_token": " "}, "auth_token is empty", id="token-empty"),
        pytest.param(
            GOOD | {"auth_token": f"{TOKEN}\nX: 1"},
            "auth_token contains a character that HTTP headers do not allow",
            id="token-with-line-break",
        ),
        pytest.param(
            GOOD | {"application_id": "café"},
            "application_id contains a character that HTTP headers do not allow",
            id="merchant-code-not-ascii",
        ),
        pytest.param(
            GOOD | {"page_size": 0}, "page_size is 0, expected a whole number from 1 to 1000", id="page-size-too-small"
        ),
        pytest.param(
            GOOD | {"lookback_seconds": -1},
            "lookback_seconds is -1, expected a whole number from 0 to 2592000",
            id="lookback-negative",
        ),
        pytest.param(
            GOOD | {"window_hours": "24"},
            'window_hours is "24", expected a whole number from 1 to 8784',
            id="number-as-text",
        ),
        pytest.param(
            GOOD | {"include_credentials": "yes"},
            'include_credentials is "yes", expected true or false',
            id="boolean-as-text",
        ),
        pytest.param(
            GOOD | {"action_types": "REWARD_EARNED"},
            'action_types is "REWARD_EARNED", expected a list of strings, like ["A", "B"]',
            id="types-not-a-list",
        ),
        pytest.param(
            GOOD | {"action_types": ["ORDER", "reward_earned"]},
            'action_types contains "reward_earned", expected types such as REWARD_EARNED',
            id="action-type-in-lower-case",
        ),
        pytest.param(
            GOOD | {"action_types": ["REWARD_EARNED,REDEEM_PERK"]},
            'action_types contains "REWARD_EARNED,REDEEM_PERK", expected types such as REWARD_EARNED',
            id="action-types-with-a-comma",
        ),
        pytest.param(
            GOOD | {"start_date": "01/02/2026"},
            'start_date is "01/02/2026", expected ISO 8601, like 2026-01-01 or 2026-01-01T06:00:00Z',
            id="start-date",
        ),
        pytest.param(
            GOOD | {"api_url": "http://api.pepperhq.com"},
            'api_url is "http://api.pepperhq.com", expected https: http would send the token unencrypted',
            id="http-to-another-machine",
        ),
        pytest.param(
            GOOD | {"api_url": "http://127.0.0.1.example.com"},
            'api_url is "http://127.0.0.1.example.com", expected https: http would send the token unencrypted',
            id="a-name-that-looks-like-this-machine",
        ),
        pytest.param(
            GOOD | {"api_url": "api.pepperhq.com"},
            'api_url is "api.pepperhq.com", expected an address like https://api.pepperhq.com',
            id="no-scheme",
        ),
        pytest.param(
            GOOD | {"api_url": f"https://user:{TOKEN}@api.pepperhq.com"},
            "api_url contains more than a scheme, a host and a path, expected an address like https://api.pepperhq.com",
            id="password-in-the-address",
        ),
        pytest.param(
            {"page_size": 5000},
            "auth_token is missing: set it in the config file or as TAP_PEPPER_AUTH_TOKEN; "
            "application_id is missing: set it in the config file or as TAP_PEPPER_APPLICATION_ID; "
            "page_size is 5000, expected a whole number from 1 to 1000",
            id="all-at-once",
        ),
        pytest.param(
            GOOD | {"stream_maps": {"actions": 1}},
            "stream_maps.actions is 1; check its type",
            id="stream-maps",
        ),
        pytest.param(
            GOOD | {"stream_maps": {"actions": {"__else__": "source"}}},
            "stream_maps contains an __else__ that is neither null nor __NULL__",
            id="stream-map-else",
        ),
    ],
)
@pytest.mark.parametrize("arguments", [pytest.param([], id="sync"), pytest.param(["--test"], id="test")])
def test_an_invalid_setting_is_reported_in_one_line(
    console: Console, settings: dict[str, Any], line: str, arguments: list[str]
) -> None:
    outcome = console(*arguments, settings=settings)
    assert (outcome.code, outcome.stdout) == (1, "")
    assert [sorted(error.split("; ")) for error in outcome.errors] == [sorted(line.split("; "))]
    assert TOKEN not in outcome.stderr
    assert "12345678" not in outcome.stderr


def test_the_token_is_not_shown_even_if_another_setting_contains_it(console: Console) -> None:
    outcome = console(settings=GOOD | {"start_date": TOKEN})
    assert outcome.errors == ['start_date is "***", expected ISO 8601, like 2026-01-01 or 2026-01-01T06:00:00Z']
    assert TOKEN not in outcome.stderr


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "[::1]"])
def test_http_is_allowed_on_this_machine(host: str) -> None:
    tap_module.TapPepper(config=config(f"http://{host}:8765/"))


def test_null_settings_mean_the_default_and_text_is_stripped() -> None:
    given = GOOD | {"page_size": None, "start_date": None, "action_types": None, "auth_token": f" {TOKEN}\n"}
    read = tap_module.TapPepper(config=given).settings
    assert (read.page_size, read.start_date, read.action_types, read.auth_token) == (100, None, (), TOKEN)


def test_settings_do_not_show_the_token() -> None:
    assert TOKEN not in repr(Settings.from_config(GOOD))


def test_defaults_are_as_documented() -> None:
    settings = Settings.from_config({"auth_token": "a", "application_id": "b"})
    assert settings == Settings(
        auth_token="a",
        application_id="b",
        api_url="https://api.pepperhq.com",
        api_version=10,
        start_date=None,
        page_size=100,
        settle_seconds=5,
        lookback_seconds=300,
        window_hours=24,
        concurrency=4,
        max_run_seconds=None,
        action_types=(),
        reconcile_hours=0,
        awards_full_refresh_days=0,
        max_deleted_fraction=0.5,
        include_users=False,
        include_credentials=False,
        request_timeout_seconds=60,
        max_retries=8,
        user_agent=None,
    )
    assert re.fullmatch(r"pepper-crm/\d+\.\d+\.\d+", default_user_agent())


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        pytest.param(
            "PAGE_SIZE", "many", 'TAP_PEPPER_PAGE_SIZE is "many", expected a whole number from 1 to 1000', id="number"
        ),
        pytest.param(
            "INCLUDE_CREDENTIALS",
            "oui",
            'TAP_PEPPER_INCLUDE_CREDENTIALS is "oui", expected true or false',
            id="boolean",
        ),
        pytest.param(
            "MAX_DELETED_FRACTION",
            "1.5",
            "max_deleted_fraction is 1.5, expected a number from 0 to 1",
            id="fraction-too-large",
        ),
        pytest.param("STREAM_MAPS", "{", "TAP_PEPPER_STREAM_MAPS is not JSON, expected an object", id="object"),
    ],
)
def test_an_invalid_environment_variable_is_reported_in_one_line(
    console: Console, monkeypatch: pytest.MonkeyPatch, name: str, value: str, line: str
) -> None:
    monkeypatch.setenv(f"TAP_PEPPER_{name}", value)
    outcome = console("--config", "ENV", settings=GOOD)
    assert (outcome.code, outcome.errors) == (1, [line])


def test_settings_come_from_the_environment(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"action_types": '["A", "B"]', "page_size": 7, "max_deleted_fraction": 0.25, "stream_maps": "{}"}
    with Script(listing()) as script:
        for name, value in config(script.url, **given).items():
            monkeypatch.setenv(f"TAP_PEPPER_{name.upper()}", str(value))
        outcome = console("--config", "ENV")
    assert outcome.code == 0
    assert script.asked[1].query["type.in"] == "A,B"
    assert script.asked[1].query["limit"] == "7"
    assert TOKEN not in outcome.stdout + outcome.stderr


def test_an_empty_environment_variable_counts_as_unset(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("START_DATE", "PAGE_SIZE", "MAX_DELETED_FRACTION", "ACTION_TYPES", "STREAM_MAPS", "INCLUDE_USERS"):
        monkeypatch.setenv(f"TAP_PEPPER_{name}", "")
    with Script(listing()) as script:
        outcome = console("--config", "ENV", settings=config(script.url))
    assert (outcome.code, outcome.errors) == (0, [])
    assert script.asked[1].query["limit"] == "100"


def test_empty_text_in_a_config_file_counts_as_unset_if_the_setting_is_not_text(console: Console) -> None:
    names = ("page_size", "max_deleted_fraction", "action_types", "stream_maps", "include_users", "max_run_seconds")
    with Script(listing()) as script:
        outcome = console(settings=config(script.url) | dict.fromkeys(names, ""))
    assert (outcome.code, outcome.errors) == (0, [])
    assert script.asked[1].query["limit"] == "100"


def test_an_unknown_setting_is_a_warning_that_suggests_the_right_name(console: Console) -> None:
    outcome = console("--discover", settings=GOOD | {"strat_date": "2026-01-01"})
    assert outcome.code == 0
    assert '"strat_date" is not a setting and is ignored; did you mean start_date?' in outcome.stderr


# Files.


@pytest.mark.parametrize(
    ("option", "content", "line"),
    [
        pytest.param("--config", None, "config file {}: No such file or directory", id="config-missing"),
        pytest.param("--config", b'{"a": s3cret', "config file {}: not JSON (line 1)", id="config-not-json"),
        pytest.param("--config", ["s3cret"], "config file {}: expected a JSON object", id="config-a-list"),
        pytest.param("--config", b"\xff\xfe", "config file {}: not UTF-8 text", id="config-not-text"),
        pytest.param("--state", None, "Invalid value for '--state': '{}': No such file or directory", id="no-state"),
        pytest.param("--state", b"{", "state file {}: not JSON (line 1)", id="state-not-json"),
        pytest.param("--state", [], "state file {}: expected a JSON object", id="state-a-list"),
        pytest.param("--state", b"\xff\xfe", "state file {}: not UTF-8 text", id="state-not-text"),
        pytest.param(
            "--state",
            {"bookmarks": 1},
            'state: expected {"bookmarks": {"actions": {…}}}, as in the last STATE of the previous run',
            id="state-without-bookmarks",
        ),
        pytest.param(
            "--state",
            {"bookmarks": {"actions": {}}},
            "state: all bookmarks are empty; to start from the beginning, run without a state",
            id="state-with-empty-bookmarks",
        ),
        pytest.param("--state", b'{"bookmarks": {"actions": NaN}}', "state file {}: not JSON", id="state-with-nan"),
        pytest.param(
            "--state",
            b'{"bookmarks": {}}\n{"bookmarks": {}}\n',
            "state file {}: not JSON (line 2)",
            id="state-file-with-two-lines",
        ),
        pytest.param(
            "--catalog", None, "Invalid value for '--catalog': '{}': No such file or directory", id="no-catalog"
        ),
        pytest.param(
            "--catalog",
            {"streams": [{"stream": "actions"}]},
            "catalog file {}: not a Singer catalog; make one with tap-pepper --discover",
            id="catalog-invalid",
        ),
        pytest.param(
            "--catalog",
            {},
            "catalog file {}: not a Singer catalog; make one with tap-pepper --discover",
            id="catalog-empty",
        ),
        pytest.param(
            "--catalog",
            {"streams": [{"tap_stream_id": "perks", "schema": {}, "metadata": [], "selected": "false"}]},
            "catalog: perks: 'selected' is 'false', expected true or false",
            id="catalog-with-text-for-a-selection",
        ),
    ],
)
def test_an_unreadable_file_is_reported_in_one_line(
    console: Console, tmp_path: Path, option: str, content: object, line: str
) -> None:
    path = str(tmp_path / "file.json") if content is None else console.file("file.json", content)
    outcome = console(option, path, settings=GOOD)
    assert (outcome.code, outcome.stdout) == (1, "")
    assert outcome.errors == [line.replace("{}", path)]


@pytest.mark.parametrize(
    ("catalog", "read"),
    [
        pytest.param(
            b'\xef\xbb\xbf{"streams": [{"tap_stream_id": "perks", "schema": {}}]}', ["/perks"], id="byte-order-mark"
        ),
        pytest.param({"streams": [{"tap_stream_id": "perks", "schema": {}, "metadata": None}]}, ["/perks"], id="null"),
        pytest.param({"streams": []}, [], id="nothing-selected"),
    ],
)
def test_a_catalog_of_another_program_is_read(console: Console, catalog: object, read: list[str]) -> None:
    with Script(listing()) as script:
        outcome = console("--catalog", console.file("catalog.json", catalog), settings=config(script.url))
    assert (outcome.code, outcome.errors) == (0, [])
    assert [asked.path for asked in script.asked] == read
    assert ("no stream is selected in the catalog; nothing is read" in outcome.stderr) == (not read)


def test_an_unknown_option_is_reported_in_one_line(console: Console) -> None:
    outcome = console("--fast")
    assert (outcome.code, len(outcome.errors)) == (1, 1)
    assert "No such option" in outcome.errors[0]


# Failures during a run.


def test_test_prints_a_line_per_readable_stream_and_no_records(console: Console) -> None:
    rows = [{"_id": str(number), "userId": "u1"} for number in range(3)]
    with Script(listing(), listing(*rows), Reply(status=403), listing(rows[0])) as script:
        outcome = console("--test", settings=config(script.url, start_date="2026-09-30T00:00:00Z"))
    assert outcome.code == 1
    assert outcome.stdout == "actions: readable, 3 rows seen\nperks: readable, 1 row seen\n"
    assert len(outcome.verdicts) == 1
    assert outcome.verdicts[0].startswith("awards: not readable: ")
    assert "check that auth_token belongs to application_id, and that its role may read this" in outcome.stderr


@pytest.mark.parametrize("is_catalog_first", [True, False], ids=["catalog-first", "catalog-last"])
def test_test_schema_prints_the_fields_that_a_catalog_selects(console: Console, *, is_catalog_first: bool) -> None:
    """`crm-balances ddl` creates the columns of these fields."""
    catalog = selection("awards", change=lambda entry: select_fields(entry, "perk"))
    options = [["--catalog", console.file("catalog.json", catalog)], ["--test=schema"]]
    first, last = options if is_catalog_first else reversed(options)
    outcome = console(*first, *last, settings=GOOD)
    assert (outcome.code, outcome.errors) == (0, [])
    schemas = {message["stream"]: message["schema"] for message in map(json.loads, outcome.stdout.splitlines())}
    assert "perk" in schemas["awards"]["properties"]
    assert list(schemas) == ["awards"]


@pytest.mark.parametrize("arguments", [pytest.param([], id="sync"), pytest.param(["--test"], id="test")])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"auth_token": "wr0ng-t0ken"}, "Pepper answered 401; check auth_token", id="wrong-token"),
        pytest.param(
            {"application_id": "another"}, "check that auth_token belongs to application_id", id="wrong-merchant"
        ),
        pytest.param({"api_version": 1}, "Pepper answered 422 Validation; check api_version", id="old-version"),
        pytest.param({"api_url": "{}/v9"}, "Pepper answered 404; check api_url", id="wrong-path"),
        pytest.param(
            {"api_url": "http://127.0.0.1:9"}, "no connection to 127.0.0.1:9: Connection refused", id="dead-host"
        ),
    ],
)
def test_a_request_that_pepper_rejects_is_reported_in_one_line(
    console: Console, settings: dict[str, Any], message: str, arguments: list[str]
) -> None:
    with Sandbox(World(users=1, days=1, now=NOW)) as sandbox:
        given = config(sandbox.url, auth_token=sandbox.token, application_id=sandbox.application_id, max_retries=0)
        wrong = {
            name: value.replace("{}", sandbox.url) if name == "api_url" else value for name, value in settings.items()
        }
        outcome = console(*arguments, settings=given | wrong)
    assert outcome.code == 1
    errors = outcome.verdicts if arguments else outcome.errors
    # A rejected token fails all streams at once; another rejection may concern one stream only.
    assert len(errors) == (1 if "auth_token" in settings else 3)
    assert all(message in error for error in errors)
    assert "Traceback" not in outcome.stderr
    assert "done" not in outcome.stderr
    if len(outcome.errors) == 3:
        assert re.search(
            r" ERROR .* actions: failed after 0 records from 0 pages: .*" + re.escape(message), outcome.stderr
        )
    assert sandbox.token not in outcome.stderr


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        pytest.param({"actions": {"x": "("}}, "Failed to parse expression (", id="syntax-error"),
        pytest.param({"actions": {"x": "1 / 0"}}, "actions: a stream map fails: ZeroDivisionError", id="on-a-record"),
    ],
)
def test_a_failing_stream_map_is_reported_in_one_line(console: Console, maps: dict[str, Any], message: str) -> None:
    row = {"_id": "a", "when": {"timestamp": "2026-10-01T11:59:00.000Z"}}
    with Script(listing(row)) as script:
        outcome = console(settings=config(script.url, stream_maps=maps))
    assert (outcome.code, len(outcome.errors)) == (1, 1)
    assert message in outcome.errors[0]


def test_no_log_quotes_the_value_on_which_a_stream_map_fails(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAP_PEPPER_LOGLEVEL", "DEBUG")
    row = {"_id": "a", "context": {"user": {"fullName": "Tom Jones"}}}
    with Script(listing(), listing(row)) as script:
        maps = {"actions": {"x": "int(context['user']['fullName'])"}}
        outcome = console(settings=config(script.url, stream_maps=maps))
    assert "a stream map fails: ValueError" in outcome.stderr
    assert "Tom Jones" not in outcome.stderr


def test_debug_shows_the_traceback_of_an_error(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAP_PEPPER_LOGLEVEL", "DEBUG")
    with Script(Reply(status=401)) as script:
        outcome = console(settings=config(script.url))
    assert "Traceback" in outcome.stderr
    assert TOKEN not in outcome.stderr


def test_a_closed_stdout_is_not_an_error(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert console("--version").code == 0


# Output.


def test_about_describes_each_setting_and_marks_secrets(console: Console) -> None:
    about = json.loads(console("--about", "--format=json").stdout)
    properties = about["settings"]["properties"]
    assert set(CONFIG_JSONSCHEMA["properties"]) <= set(properties)
    assert [name for name, schema in properties.items() if schema.get("secret")] == ["auth_token"]
    assert all(schema["description"] and schema["title"] for schema in properties.values())
    assert about["capabilities"] == [
        "catalog",
        "state",
        "discover",
        "test",
        "about",
        "stream-maps",
        "schema-flattening",
        "structured-logging",
    ]
    assert "TAP_PEPPER_AUTH_TOKEN" in console("--about").stdout
    assert "| auth_token | True" in re.sub(r" +", " ", console("--about", "--format=markdown").stdout)


def test_the_discovered_catalog_matches_the_snapshot(console: Console) -> None:
    """After an intended change: `tap-pepper --discover > tests/snapshots/tap_catalog.json`."""
    outcome = console("--discover")
    assert outcome.code == 0
    assert json.loads(outcome.stdout) == json.loads(SNAPSHOT.read_text(encoding="utf-8"))


def test_every_field_in_the_schemas_has_a_description() -> None:
    for entry in json.loads(SNAPSHOT.read_text(encoding="utf-8"))["streams"]:
        assert entry["schema"]["description"]
        assert all(field.get("description") for field in entry["schema"]["properties"].values())


def test_the_discovered_catalog_works_as_input(console: Console) -> None:
    with Script(listing()) as script:
        outcome = console("--catalog", str(SNAPSHOT), settings=config(script.url))
    assert outcome.code == 0
    assert {asked.path for asked in script.asked} == {"/actions", "/awards", "/perks"}


# The installed script, as a process.


@pytest.fixture
def pepper() -> Iterator[Sandbox]:
    with Sandbox(World(seed=7, users=40, days=20, now=NOW)) as sandbox:
        yield sandbox


@pytest.fixture
def process(pepper: Sandbox, tmp_path: Path) -> list[str]:
    path = tmp_path / "config.json"
    settings = config(
        pepper.url, auth_token=pepper.token, application_id=pepper.application_id, start_date="2026-09-01"
    )
    path.write_text(json.dumps(settings))
    return [SCRIPT, "--config", str(path)]


def test_the_console_script_syncs_and_resumes(pepper: Sandbox, process: list[str], tmp_path: Path) -> None:
    first = subprocess.run(process, capture_output=True, text=True, check=True)
    messages = [json.loads(line) for line in first.stdout.splitlines()]
    ids = {m["record"]["_id"] for m in messages if m["type"] == "RECORD" and m["stream"] == "actions"}
    assert ids == {row["_id"] for row in pepper.world.actions(until=NOW - timedelta(seconds=5))}
    assert pepper.token not in first.stdout + first.stderr
    assert "Guest" not in first.stderr

    state = tmp_path / "state.json"
    state.write_text(json.dumps(messages[-1]["value"]))
    before = len(pepper.requests)
    subprocess.run([*process, "--state", str(state)], capture_output=True, check=True)
    assert [request.path for request in pepper.requests[before:]] == ["/actions", "/actions", "/awards", "/perks"]


def test_the_console_script_resumes_from_a_whole_state_message(
    pepper: Sandbox, process: list[str], tmp_path: Path
) -> None:
    bookmark = {"replication_key": "when_timestamp", "replication_key_value": "2026-10-01T00:00:00.000Z"}
    state = tmp_path / "state.json"
    state.write_text(json.dumps({"type": "STATE", "value": {"bookmarks": {"actions": bookmark}}}))
    run = subprocess.run([*process, "--state", str(state)], capture_output=True, text=True, check=True)
    messages = [json.loads(line) for line in run.stdout.splitlines()]
    ids = {m["record"]["_id"] for m in messages if m["type"] == "RECORD" and m["stream"] == "actions"}
    since = NOW - timedelta(hours=12, seconds=300)
    assert ids == {row["_id"] for row in pepper.world.actions(after=since, until=NOW - timedelta(seconds=5))}
    assert ids


@pytest.mark.parametrize("content", [pytest.param(b"", id="empty"), pytest.param(b"\xef\xbb\xbf{}\n", id="object")])
def test_an_empty_state_file_starts_a_first_run(console: Console, content: bytes) -> None:
    with Script(listing()) as script:
        outcome = console("--state", console.file("state.json", content), settings=config(script.url))
    assert outcome.code == 0
    assert ("is empty, so this run starts without a state" in outcome.stderr) == (not content)
    assert script.asked[1].query["when.timestamp.gt"] == "2026-10-01T11:54:55.000Z"


def test_a_downstream_process_that_exits_makes_the_tap_fail_without_a_traceback(process: list[str]) -> None:
    with subprocess.Popen(process, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.readline()
        running.stdout.close()
        stderr = running.stderr.read()
    assert running.returncode == 1
    assert "the downstream process exited; see its log" in stderr
    assert "Traceback" not in stderr
    assert "Exception ignored" not in stderr


@pytest.mark.parametrize(
    ("concurrency", "types"),
    [pytest.param(1, ["SCHEMA", "STATE"], id="one-request"), pytest.param(4, ["SCHEMA"], id="concurrent-requests")],
)
def test_a_terminated_run_exits_with_the_signal_and_writes_only_whole_lines(
    pepper: Sandbox, process: list[str], concurrency: int, types: list[str]
) -> None:
    never = Reply(b"", headers={"Content-Length": "5"})
    answers = [listing(next_key="1"), *[listing()] * (len(types) - 1), never]
    with Script(*answers) as silent:
        patience = {"request_timeout_seconds": 60, "max_retries": 0, "concurrency": concurrency}
        settings = json.loads(Path(process[2]).read_text()) | patience | {"api_url": silent.url}
        Path(process[2]).write_text(json.dumps(settings))
        with subprocess.Popen(process, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
            assert running.stdout is not None
            lines = [running.stdout.readline() for _ in types]
            while len(silent.asked) < len(answers):
                time.sleep(0.01)
            running.send_signal(signal.SIGTERM)
            signalled_seconds = time.monotonic()
            lines += running.stdout.readlines()
    assert time.monotonic() - signalled_seconds < 30
    assert running.returncode == 128 + signal.SIGTERM
    assert [json.loads(line)["type"] for line in lines] == types
