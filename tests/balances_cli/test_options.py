"""The command line of crm-balances: options, help, completion, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from target_crm.balances_cli.cli import crm_balances
from target_crm.errors import SettingError, WarehouseError
from tests.helpers.balances import run_balances
from tests.helpers.commands import RUN_SECONDS_MAX, command, environment, run_script
from tests.helpers.postgres import new_database
from tests.helpers.target import ACTIONS, action, load, query

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A warehouse with one balance."""
    url = f"sqlite:///{tmp_path / 'crm.db'}"
    load(url, [ACTIONS, action("a1")])
    return url


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    variables = environment(**options.pop("variables", {}))
    return subprocess.run(
        command("crm-balances", *arguments),
        env=variables,
        stderr=subprocess.PIPE,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=False,
        **options,
    )


@pytest.mark.parametrize("before", [True, False], ids=["before-the-command", "after-the-command"])
def test_common_options_may_stand_before_or_after_the_command(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], *, before: bool
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"sqlalchemy_url": url}))
    options = ["--json", "--log-format", "text", "--config", str(config)]
    capsys.readouterr()

    assert run_balances([*options, "verify"] if before else ["verify", *options]) == 0

    assert json.loads(capsys.readouterr().out)["awards"] == 1


@pytest.mark.parametrize("source", ["environment", "config-file"])
def test_url_and_schema_win_over_settings(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    settings = {"dialect": "postgresql", "host": "127.0.0.1", "port": 1}
    config = tmp_path / "config.json"
    config.write_text(json.dumps(settings))
    for name, value in settings.items():
        monkeypatch.setenv(f"TARGET_CRM_{name.upper()}", str(value))
    capsys.readouterr()

    assert (
        run_balances(["verify", "--json", "--url", url, *(["--config", str(config)] * (source == "config-file"))]) == 0
    )

    assert json.loads(capsys.readouterr().out)["awards"] == 1


def test_url_wins_over_a_dotenv_file(url: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"TARGET_CRM_SQLALCHEMY_URL=sqlite:///{tmp_path / 'other.db'}\n")

    verified = run_script("crm-balances", "verify", "--json", "--url", url, cwd=tmp_path)

    assert json.loads(verified.stdout)["awards"] == 1


def test_schema_selects_the_tables_and_a_wrong_one_has_no_balances(
    postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = new_database(postgres_url)
    load(url, [ACTIONS, action("a1")], default_target_schema="shop_a")
    capsys.readouterr()

    assert run_balances(["verify", "--json", "--url", url, "--schema", "shop_a"]) == 0

    assert json.loads(capsys.readouterr().out)["awards"] == 1
    with pytest.raises(
        WarehouseError, match=r"no balances in schema shop_b of postgresql\+psycopg://[^ ]+: target-crm "
    ):
        run_balances(["verify", "--url", url, "--schema", "shop_b"])
    assert query(url, "SELECT count(*) FROM pg_namespace WHERE nspname = 'shop_b'") == [(0,)]


@pytest.mark.parametrize("scheme", ["sqlite", "duckdb"])
@pytest.mark.parametrize("command_line", [["ddl"], ["verify"], ["status"]], ids=lambda each: each[0])
def test_commands_create_no_file(scheme: str, command_line: list[str], tmp_path: Path) -> None:
    ran = run(*command_line, "--url", f"{scheme}:///{tmp_path / 'crm.db'}", stdout=subprocess.PIPE)

    assert ran.returncode == (0 if command_line == ["ddl"] else 2), ran.stderr
    assert ("CREATE TABLE" in ran.stdout) is (command_line == ["ddl"])
    assert list(tmp_path.iterdir()) == []


def test_ddl_creates_no_schema_and_no_table(postgres_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    url = new_database(postgres_url)

    assert run_balances(["ddl", "--url", url, "--schema", "shop_a"]) == 0

    assert 'CREATE SCHEMA "shop_a"' in capsys.readouterr().out
    assert (
        query(url, "SELECT tablename FROM pg_tables WHERE tablename LIKE '\\_crm\\_%' OR tablename = 'actions'") == []
    )
    assert query(url, "SELECT count(*) FROM pg_namespace WHERE nspname = 'shop_a'") == [(0,)]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        pytest.param(["--output", "no/such.html"], "the folder no does not exist", id="missing-folder"),
        pytest.param(["--output", "."], ". is a folder, expected a file", id="a-folder"),
        pytest.param(["--timezone", "Mars/Phobos"], "--timezone Mars/Phobos: unknown time zone", id="time-zone"),
    ],
)
def test_report_finds_errors_before_it_connects(arguments: list[str], complaint: str, tmp_path: Path) -> None:
    unreachable = "postgresql://127.0.0.1:1/crm"

    ran = run("report", "--url", unreachable, *arguments, stdout=subprocess.PIPE, cwd=tmp_path)

    assert (ran.returncode, ran.stdout) == (2, "")
    assert complaint in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_report_names_a_missing_extra_before_it_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)

    with pytest.raises(
        SettingError,
        match=r"--format html needs .*vl_convert: pip install 'pepper-crm\[report\]', or use --format json",
    ):
        run_balances(["report", "--url", "postgresql://127.0.0.1:1/crm"])


@pytest.mark.parametrize("name", sorted(crm_balances.commands))
def test_help_of_each_command_has_an_example_and_exit_codes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_balances([name, "--help"]) == 0

    printed = capsys.readouterr().out
    assert f"Example:\n    crm-balances {name}" in printed
    assert "Exit codes:\n    0 " in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param([], "", id="no-command"),
        pytest.param(["nope"], "", id="unknown-command"),
        pytest.param(["verify", "--nope"], "See crm-balances verify --help.", id="unknown-option"),
        pytest.param(["as-of"], "Missing argument 'TIMESTAMP'. See crm-balances as-of --help.", id="no-argument"),
        pytest.param(["report", "--days", "0"], "0 is not in the range", id="out-of-range"),
        pytest.param(["as-of", "yesterday"], "'yesterday' is not an ISO 8601 time", id="not-a-time"),
        pytest.param(["status", "--max-age", "soon"], "'soon' is not a duration", id="not-a-duration"),
        pytest.param(["ddl", "--schemas", "missing.jsonl"], "", id="missing-file"),
    ],
)
def test_usage_error_exits_with_2_and_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    ran = run(*arguments, stdout=subprocess.PIPE, cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("crm-balances: ")
    assert message in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_version_and_shell_completion_need_no_settings() -> None:
    version = run("--version", stdout=subprocess.PIPE)
    completion = run(stdout=subprocess.PIPE, variables={"_CRM_BALANCES_COMPLETE": "bash_source"})
    assert (version.returncode, version.stdout[:21]) == (0, "crm-balances, version")
    assert (completion.returncode, completion.stdout.split()[0]) == (0, "_crm_balances_completion()")


def test_closed_pipe_is_no_drift_and_no_traceback(url: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ran = run("as-of", "2030-01-01", stdout=writer, variables={"TARGET_CRM_SQLALCHEMY_URL": url})
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (2, "")
