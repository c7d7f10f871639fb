"""Each log line is short text or a JSON object, even if it reports a fatal error."""

from __future__ import annotations

import json
import signal
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pepper_sandbox.server import Sandbox
from pepper_sandbox.world import World
from tests.helpers.commands import command, environment, pepper_settings, run_script

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = datetime(2026, 3, 29, tzinfo=UTC)
THREE_LINES = (Path(__file__).parents[1] / "snapshots" / "three_lines.jsonl").read_text()


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(World(seed=3, users=5, days=2, now=NOW)) as running:
        yield running


def run(*arguments: str, stdin: str = "", **variables: str) -> tuple[int, str]:
    """Run a console script; return its exit code and stderr."""
    ran = run_script(*arguments, stdin=stdin, **variables)
    return ran.returncode, ran.stderr


def objects(stderr: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stderr.splitlines()]


def test_json_logs_are_one_object_per_line_and_metrics_name_their_stream(sandbox: Sandbox) -> None:
    code, stderr = run("tap-pepper", "--config", "ENV", "--log-format=json", **pepper_settings(sandbox))
    lines = objects(stderr)
    metrics = {(line["stream_name"], line["metric_info"]["metric"]) for line in lines if "metric_info" in line}
    assert code == 0
    assert {line["app_name"] for line in lines} == {"tap-pepper"}
    assert {("actions", "record_count"), ("awards", "page_count"), ("perks", "record_count")} <= metrics


def test_text_logs_omit_metrics_and_end_each_stream_with_a_summary(sandbox: Sandbox) -> None:
    code, stderr = run("tap-pepper", "--config", "ENV", **pepper_settings(sandbox))
    assert code == 0
    assert "METRIC" not in stderr
    assert "Parsing" not in stderr
    assert [line for line in stderr.splitlines() if "perks: done, 4 records from 1 page" in line]


def test_environment_and_config_file_choose_the_log_format(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'crm.db'}"
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"sqlalchemy_url": url, "log_format": "json"}))
    runs = [
        run(
            "target-crm",
            "--config",
            "ENV",
            stdin=THREE_LINES,
            TARGET_CRM_SQLALCHEMY_URL=url,
            TARGET_CRM_LOG_FORMAT="json",
        ),
        run("target-crm", "--config", str(config), stdin=THREE_LINES),
    ]
    for code, stderr in runs:
        metrics = {
            (line["stream_name"], line["metric_info"]["metric"]) for line in objects(stderr) if "metric_info" in line
        }
        assert code == 0
        assert ("actions", "records_applied") in metrics


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param(["tap-pepper"], "auth_token is missing", id="tap-setting"),
        pytest.param(["tap-pepper", "--nope"], "No such option", id="tap-option"),
        pytest.param(["target-crm", "--nope"], "No such option", id="target-option"),
        pytest.param(["target-crm", "--config", "missing.json"], "config file missing.json", id="target-config"),
        pytest.param(["crm-balances", "verify", "--nope"], "No such option", id="balances-option"),
        pytest.param(["crm-balances", "verify"], "no balances in sqlite:", id="balances-error"),
    ],
)
def test_json_logs_include_the_fatal_error(arguments: list[str], expected: str) -> None:
    settings = {"TAP_PEPPER_LOG_FORMAT": "json", "TARGET_CRM_LOG_FORMAT": "json"}
    code, stderr = run(*arguments, TARGET_CRM_SQLALCHEMY_URL="sqlite://", **settings)
    last = objects(stderr)[-1]
    assert code != 0
    assert last["level"] == "critical"
    assert expected in last["message"]


def test_json_logs_include_the_message_about_a_signal(tmp_path: Path) -> None:
    settings = {"TARGET_CRM_SQLALCHEMY_URL": f"sqlite:///{tmp_path / 'crm.db'}", "TARGET_CRM_BATCH_WAIT_SECONDS": "1"}
    with subprocess.Popen(
        command("target-crm", "--config", "ENV", "--log-format", "json"),
        env=environment(**settings),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdin
        assert running.stdout
        assert running.stderr
        running.stdin.write(THREE_LINES)
        running.stdin.flush()
        running.stdout.readline()
        running.send_signal(signal.SIGTERM)
        lines = objects(running.stderr.read())
    assert running.returncode == 143
    assert "stopped by a signal" in lines[-1]["message"]
