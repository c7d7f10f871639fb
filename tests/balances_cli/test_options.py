"""The command line of crm-balances: options, help, completion, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from target_crm.balances_cli.cli import crm_balances
from tests.helpers.balances import run_balances
from tests.helpers.commands import RUN_SECONDS_MAX, command, environment
from tests.helpers.target import ACTIONS, action, load

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
def test_common_options_stand_before_or_after_the_command(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], *, before: bool
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"sqlalchemy_url": url}))
    options = ["--json", "--log-format", "text", "--config", str(config)]
    capsys.readouterr()

    assert run_balances([*options, "verify"] if before else ["verify", *options]) == 0

    assert json.loads(capsys.readouterr().out)["awards"] == 1


@pytest.mark.parametrize("name", sorted(crm_balances.commands))
def test_help_of_each_command_has_an_example_and_exit_codes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_balances([name, "--help"]) == 0

    printed = capsys.readouterr().out
    assert f"Example:\n    crm-balances {name}" in printed
    assert "Exit codes:\n    0 " in printed


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([], id="no-command"),
        pytest.param(["nope"], id="unknown-command"),
        pytest.param(["verify", "--nope"], id="unknown-option"),
        pytest.param(["report", "--days", "0"], id="out-of-range"),
        pytest.param(["as-of", "yesterday"], id="not-a-time"),
        pytest.param(["ddl", "--schemas", "missing.jsonl"], id="missing-file"),
    ],
)
def test_usage_error_exits_with_2_and_one_line(arguments: list[str], tmp_path: Path) -> None:
    ran = run(*arguments, stdout=subprocess.PIPE, cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("crm-balances: ")
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
