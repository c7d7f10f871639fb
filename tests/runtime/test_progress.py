"""The progress line, on a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from pepper_sandbox.server import Sandbox
from pepper_sandbox.world import World
from tests.helpers.commands import RUN_SECONDS_MAX, command, environment, pepper_settings
from tests.helpers.postgres import new_database
from tests.helpers.target import ACTIONS, action, load

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = datetime(2026, 3, 29, tzinfo=UTC)
THREE_LINES = (Path(__file__).parents[1] / "snapshots" / "three_lines.jsonl").read_bytes()
SHOWS_CURSOR, HIDES_CURSOR = "\x1b[?25h", "\x1b[?25l"
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A pseudo-terminal that keeps everything written to it."""

    def __init__(self) -> None:
        self._ours, self.theirs = pty.openpty()
        self.written = ""

    def read_until(self, seen: Callable[[str], bool]) -> str:
        """Read until `seen` accepts the output, or the last writer has closed the terminal."""
        give_up_seconds = time.monotonic() + RUN_SECONDS_MAX
        while not seen(self.written):
            assert time.monotonic() < give_up_seconds, f"not seen in {self.written!r}"
            if select.select([self._ours], [], [], 0.1)[0]:
                try:
                    self.written += os.read(self._ours, 65536).decode()
                except OSError:
                    break
        return self.written

    def read_all(self) -> str:
        """Read to the end; all writers must have exited."""
        os.close(self.theirs)
        return self.read_until(lambda _: False)


def target(terminal: Terminal, folder: Path, stdout: int, **variables: str) -> subprocess.Popen[bytes]:
    settings = {
        "TERM": "xterm",
        "TARGET_CRM_SQLALCHEMY_URL": f"sqlite:///{folder / 'crm.db'}",
        "TARGET_CRM_BATCH_WAIT_SECONDS": "1",
        **variables,
    }
    running = subprocess.Popen(
        command("target-crm", "--config", "ENV"),
        env=environment(**settings),
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=terminal.theirs,
    )
    assert running.stdin
    running.stdin.write(THREE_LINES)
    running.stdin.flush()
    return running


def test_target_draws_rows_and_lag_and_cleans_the_terminal(tmp_path: Path) -> None:
    terminal = Terminal()
    with target(terminal, tmp_path, subprocess.DEVNULL) as running:
        shown = terminal.read_until(lambda text: "1 row " in text and "behind" in text)
        assert " behind" in shown
        assert running.stdin
        running.stdin.close()
        running.wait(RUN_SECONDS_MAX)
    after = terminal.read_all()[len(shown) :]
    assert "target-crm" in shown
    assert HIDES_CURSOR in shown
    assert after.rindex(SHOWS_CURSOR) > after.rfind(HIDES_CURSOR)
    # Log lines are complete and on lines of their own.
    lines = [CONTROL.sub("", line).strip("\r") for line in after.split("\n")]
    assert any(
        line.endswith("actions: 1 read = 1 applied + 0 duplicate + 0 superseded + 0 quarantined") for line in lines
    )


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signal_cleans_the_terminal(signum: signal.Signals, tmp_path: Path) -> None:
    terminal = Terminal()
    with target(terminal, tmp_path, subprocess.DEVNULL) as running:
        terminal.read_until(lambda text: "1 row " in text)
        running.send_signal(signum)
        running.wait(RUN_SECONDS_MAX)
    written = terminal.read_all()
    assert running.returncode == 128 + signum
    assert written.rindex(SHOWS_CURSOR) > written.rindex(HIDES_CURSOR)
    assert "\r\x1b[2K" + SHOWS_CURSOR in written


def test_state_on_the_same_terminal_is_on_a_line_of_its_own(tmp_path: Path) -> None:
    terminal = Terminal()
    with target(terminal, tmp_path, terminal.theirs) as running:
        terminal.read_until(lambda text: "1 row " in text)
        assert running.stdin
        running.stdin.write(b'{"type":"STATE","value":{"bookmarks":{"more":1}}}\n')
        running.stdin.close()
        running.wait(RUN_SECONDS_MAX)
    lines = [CONTROL.sub("", line).strip("\r") for line in terminal.read_all().split("\n")]
    assert '{"bookmarks":{"more":1}}' in lines


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({"TERM": "dumb"}, id="dumb-terminal"),
        pytest.param({"PEPPER_PROGRESS": "off"}, id="turned-off"),
        pytest.param({"TARGET_CRM_LOG_FORMAT": "json"}, id="json"),
    ],
)
def test_no_progress_is_drawn_on_dumb_terminals_with_json_logs_or_if_turned_off(
    variables: dict[str, str], tmp_path: Path
) -> None:
    terminal = Terminal()
    with target(terminal, tmp_path, subprocess.PIPE, **variables) as running:
        assert running.stdout
        running.stdout.readline()
        assert running.stdin
        running.stdin.close()
        running.wait(RUN_SECONDS_MAX)
    assert "\x1b" not in terminal.read_all()


def test_only_the_last_program_of_a_pipeline_draws_progress(tmp_path: Path) -> None:
    with Sandbox(World(seed=3, users=200, days=90, now=NOW)) as sandbox:
        settings = environment(
            **pepper_settings(sandbox),
            TERM="xterm",
            TAP_PEPPER_PAGE_SIZE="5",
            TAP_PEPPER_CONCURRENCY="1",
            TAP_PEPPER_START_DATE="2026-01-01",
        )
        drawn = {}
        for name, stdout in (("alone", subprocess.DEVNULL), ("piped", subprocess.PIPE)):
            terminal = Terminal()
            with subprocess.Popen(
                command("tap-pepper", "--config", "ENV"), env=settings, stdout=stdout, stderr=terminal.theirs
            ) as running:
                if running.stdout:
                    terminal.read_until(lambda text: ", window " in text)
                    for _ in range(2000):
                        running.stdout.readline()
                else:
                    terminal.read_until(lambda text: "rows" in text and "%" in text)
                running.terminate()
                if running.stdout:
                    running.stdout.read()
                running.wait(RUN_SECONDS_MAX)
            drawn[name] = terminal.read_all()
    assert "tap-pepper" in drawn["alone"]
    assert re.search(r"\d+%", CONTROL.sub("", drawn["alone"]))
    assert drawn["alone"].rindex(SHOWS_CURSOR) > drawn["alone"].rindex(HIDES_CURSOR)
    assert "\x1b" not in drawn["piped"]


def test_balances_draw_their_step_while_the_warehouse_works(postgres_url: str) -> None:
    url = new_database(postgres_url)
    load(url, [ACTIONS, action("a1")])
    terminal = Terminal()
    blocking = psycopg.connect(url)
    blocking.execute("LOCK TABLE actions")
    with (
        subprocess.Popen(
            command("crm-balances", "verify", "--url", url),
            env=environment(TERM="xterm"),
            stdout=subprocess.DEVNULL,
            stderr=terminal.theirs,
        ) as running,
        # This connection is closed first. So if the test fails, the command gets the lock and ends.
        blocking,
    ):
        shown = terminal.read_until(
            lambda text: re.search(r"0:\d\d Comparing every balance with the ledger", CONTROL.sub("", text)) is not None
        )
    after = terminal.read_all()[len(shown) :]
    assert running.returncode == 0
    assert " rows" not in shown
    assert after.rindex(SHOWS_CURSOR) > after.rfind(HIDES_CURSOR)
