"""`pepper-sandbox serve`: its output, its arguments and its errors."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import requests

from pepper_sandbox import cli
from pepper_sandbox.server import Sandbox
from pepper_sandbox.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVE = [sys.executable, "-m", "pepper_sandbox.cli", "serve", "--port", "0", "--users", "5", "--days", "2"]


@pytest.fixture
def serving() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(SERVE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def greeting(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    lines = []
    while not lines or not lines[-1].startswith("Press Ctrl-C"):
        lines.append(process.stdout.readline())
        assert lines[-1], "the process ended early"
    return "".join(lines)


@pytest.mark.parametrize("stop", [pytest.param(signal.SIGINT, id="ctrl-c"), pytest.param(signal.SIGTERM, id="kill")])
def test_it_prints_how_to_connect_and_a_signal_stops_it(serving: subprocess.Popen[str], stop: signal.Signals) -> None:
    settings = dict(re.findall(r"export TAP_PEPPER_(\w+)=(\S+)", greeting(serving)))
    headers = {
        "Authorization": f"Token {settings['AUTH_TOKEN']}",
        "x-application-id": settings["APPLICATION_ID"],
        "x-api-version": "10",
    }
    assert len(requests.get(f"{settings['API_URL']}/users", headers=headers).json()["items"]) == 5
    serving.send_signal(stop)
    out, err = serving.communicate(timeout=60)
    assert (serving.returncode, out.strip(), err) == (0, "Stopped.", "")


def test_it_serves_another_merchant_with_a_token_of_its_own() -> None:
    with subprocess.Popen([*SERVE, "--merchant", "shop-b", "--token", "b"], stdout=subprocess.PIPE, text=True) as other:
        settings = dict(re.findall(r"export TAP_PEPPER_(\w+)=(\S+)", greeting(other)))
        statuses = [
            requests.get(
                f"{settings['API_URL']}/perks",
                headers={"Authorization": f"Token {token}", "x-application-id": merchant, "x-api-version": "10"},
            ).status_code
            for token, merchant in (("b", "shop-b"), ("b", "pepper-mill"), ("sandbox-token", "shop-b"))
        ]
        other.kill()
    assert (settings["AUTH_TOKEN"], settings["APPLICATION_ID"], statuses) == ("b", "shop-b", [200, 403, 401])


def test_its_history_ends_now_and_time_advances(serving: subprocess.Popen[str]) -> None:
    (url,) = re.findall(r"export TAP_PEPPER_API_URL=(\S+)", greeting(serving))

    def now() -> datetime:
        return datetime.fromisoformat(requests.get(f"{url}/_sandbox/balances").json()["at"])

    first = now()
    assert abs(first - datetime.now(UTC)) < timedelta(minutes=1)
    assert first < now() < first + timedelta(minutes=1)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        pytest.param([], "the following arguments are required: serve", id="nothing"),
        pytest.param(["fly"], "invalid choice: 'fly'", id="unknown-command"),
        pytest.param(["serve", "--port", "70000"], "'70000' is not a whole number from 0 to 65,535", id="port"),
        pytest.param(["serve", "--users", "2.5"], "'2.5' is not a whole number from 1 to 100,000", id="users"),
        pytest.param(["serve", "--days", "nan"], "'nan' is not a number from 0 to 3,660", id="days"),
    ],
)
def test_an_invalid_argument_is_reported_on_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], error: str
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    captured = capsys.readouterr()
    assert exit_info.value.code == 2
    assert error in captured.err
    assert captured.err.startswith("pepper-sandbox")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_port_in_use_is_reported_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Sandbox(World(users=1, days=1, now=datetime.now(UTC))) as other:
        port = other.url.rpartition(":")[2]
        assert cli.main(["serve", "--port", port, "--users", "1", "--days", "0"]) == 1
    captured = capsys.readouterr()
    assert captured.err == f"pepper-sandbox: port {port}: Address already in use; choose another --port\n"
    assert captured.out == ""
