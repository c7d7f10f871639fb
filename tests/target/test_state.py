"""When STATE is emitted: after the commit of all records before it, and never without it."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import time
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import pytest

from target_crm.loader import target
from target_crm.loader.target import TargetCrm
from tests.helpers.commands import RUN_SECONDS_MAX, command, environment, real_command
from tests.helpers.target import ACTIONS, action, all_rows, execute, load, run_target, running_target, state, table

if TYPE_CHECKING:
    from pathlib import Path


class LedgerObserver(io.StringIO):
    """A standard output that, for each line, records which actions another connection can see."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.seen: list[tuple[str, list[str]]] = []

    def write(self, line: str) -> int:
        self.seen.append((line, [row["action_id"] for row in table(self.url, "actions", "action_id")]))
        return len(line)


def states_with_ledger(url: str, *messages: str, **settings: Any) -> list[tuple[str, list[str]]]:
    """Load messages; return each STATE line with the ids in the ledger at the time it was written."""
    observer = LedgerObserver(url)
    with redirect_stdout(observer):
        TargetCrm(config={"sqlalchemy_url": url, **settings}).listen(io.StringIO("\n".join(messages)))
    return observer.seen


def test_state_is_emitted_only_after_its_batch_is_committed(sqlite_url: str) -> None:
    seen = states_with_ledger(
        sqlite_url,
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


def test_a_batch_is_committed_once_batch_wait_seconds_have_passed(sqlite_url: str) -> None:
    seen = states_with_ledger(sqlite_url, ACTIONS, state({}), action("a1"), state({"n": 1}), batch_wait_seconds=0)

    assert seen == [("{}\n", []), ('{"n":1}\n', ["a1"])]


def test_malformed_lines_count_towards_the_batch_size(sqlite_url: str) -> None:
    seen = states_with_ledger(sqlite_url, ACTIONS, state({"n": 1}), "x", "y", state({"n": 2}), "z", batch_size_rows=2)

    assert seen == [('{"n":1}\n', []), ('{"n":2}\n', [])]
    assert len(table(sqlite_url, "rejected_records")) == 3


def test_a_batch_is_committed_when_it_has_reached_its_limit_of_bytes(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "BATCH_BYTES_MAX", 1000)
    messages = [ACTIONS, action("a1"), state({"n": 1}), action("a2", note="x" * 1000), state({"n": 2}), action("a3")]

    assert [line for line, _ in states_with_ledger(sqlite_url, *messages)][:1] == ['{"n":1}\n']


def test_a_failed_batch_leaves_no_rows_and_emits_no_state(sqlite_url: str, tmp_path: Path) -> None:
    load(sqlite_url, [ACTIONS])
    execute(sqlite_url, "CREATE UNIQUE INDEX one_award_per_user ON award_balances (user_id)")
    messages = [ACTIONS, action("a1", award="w1"), action("a2", award="w2"), state({"n": 1})]

    failed = run_target(sqlite_url, tmp_path, *messages)
    rows = all_rows(sqlite_url)
    execute(sqlite_url, "DROP INDEX one_award_per_user")
    second = load(sqlite_url, messages)

    assert (failed.returncode, failed.stdout) == (1, "")
    assert "Traceback" not in failed.stderr
    # It fails without a retry, and quotes no value.
    assert not re.search(r"trying again|\bu1\b", failed.stderr), failed.stderr
    assert rows == {"actions": [], "awards": [], "award_balances": [], "rejected_records": []}
    assert second.states == ['{"n":1}']
    assert len(table(sqlite_url, "award_balances")) == 2


def test_sigterm_exits_with_143_and_emits_no_state_of_uncommitted_rows(sqlite_url: str, tmp_path: Path) -> None:
    committed = [ACTIONS, action("a1"), state({"n": 1}), action("a2")]
    held = [action("a3"), state({"n": 2})]

    with running_target(sqlite_url, tmp_path, batch_size_rows=2) as target_crm:
        target_crm.send(*committed, *held)
        first_state = target_crm.next_state()
        # Standard input stays open: only the signal ends the run.
        target_crm.process.send_signal(signal.SIGTERM)
        later_output, exit_code = target_crm.next_state(), target_crm.wait()

    assert (first_state, later_output, exit_code) == ('{"n":1}', "", 143), target_crm.log
    assert "Traceback" not in target_crm.log
    assert [row["action_id"] for row in table(sqlite_url, "actions")] == ["a1", "a2"]
    assert load(sqlite_url, [ACTIONS, action("a2"), *held]).states == ['{"n":2}']
    assert [row["action_id"] for row in table(sqlite_url, "actions")] == ["a1", "a2", "a3"]


def test_an_idle_target_commits_its_rows_and_emits_state_after_batch_wait_seconds(
    sqlite_url: str, tmp_path: Path
) -> None:
    load(sqlite_url, [ACTIONS])

    # Standard input stays open and idle after each message.
    with running_target(sqlite_url, tmp_path, batch_wait_seconds=1) as target_crm:
        target_crm.send(ACTIONS, action("a1"))
        deadline = time.monotonic() + RUN_SECONDS_MAX
        while not table(sqlite_url, "actions", "action_id") and time.monotonic() < deadline:
            time.sleep(0.1)
        committed = table(sqlite_url, "actions", "action_id")
        target_crm.send(state({"n": 1}))
        emitted = target_crm.next_state()
        target_crm.send(action("a2"), state({"n": 2}))
        emitted_next = target_crm.next_state()
        committed_next = table(sqlite_url, "actions", "action_id")
        still_runs = target_crm.process.poll() is None

    assert committed == [{"action_id": "a1"}]
    assert committed_next == [{"action_id": "a1"}, {"action_id": "a2"}]
    assert (emitted, emitted_next, still_runs) == ('{"n":1}', '{"n":2}', True)


def test_loading_goes_on_when_stdout_is_a_broken_pipe(sqlite_url: str, tmp_path: Path) -> None:
    lines = [ACTIONS, action("a1"), state({"n": 1}), action("a2"), state({"n": 2})]
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(
        command("target-crm", "--config", "ENV"),
        input="".join(f"{line}\n" for line in lines),
        env=environment(TARGET_CRM_SQLALCHEMY_URL=sqlite_url, TARGET_CRM_BATCH_SIZE_ROWS="1"),
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
    assert [row["action_id"] for row in table(sqlite_url, "actions")] == ["a1", "a2"]


@pytest.mark.parametrize(
    ("redirection", "variables", "output"),
    [
        pytest.param(">&-", {}, "", id="closed"),
        pytest.param("", {"PYTHONIOENCODING": "ascii"}, '{"at":"é"}\n', id="ascii"),
        pytest.param("", {"PYTHONIOENCODING": "latin-1"}, '{"at":"é"}\n', id="latin-1"),
    ],
)
def test_loading_works_if_stdout_is_closed_or_not_utf_8(
    sqlite_url: str, tmp_path: Path, redirection: str, variables: dict[str, str], output: str
) -> None:
    ran = subprocess.run(
        ["sh", "-c", f'"$0" "$@" {redirection}', *real_command("target-crm", "--config", "ENV")],
        input=f"{ACTIONS}\n{action('a1')}\n{state({'at': 'é'})}\n".encode(),
        env=environment(TARGET_CRM_SQLALCHEMY_URL=sqlite_url, **variables),
        cwd=tmp_path,
        capture_output=True,
        timeout=RUN_SECONDS_MAX,
        check=False,
    )

    assert (ran.returncode, ran.stdout.decode()) == (0, output), ran.stderr
    assert table(sqlite_url, "actions", "action_id") == [{"action_id": "a1"}]
