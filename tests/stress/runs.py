"""Runs of target-crm as children of the fork server, their warehouses, and the checks that apply to every run."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import inspect, text

from target_crm.balances_cli.verify import verify
from target_crm.warehouse.connection import Warehouse
from tests.helpers.commands import RUN_SECONDS_MAX, environment
from tests.helpers.postgres import new_database
from tests.helpers.target import table
from tests.stress.fork_server import CRASHED
from tests.stress.scenario import CANARIES, START, TOKEN

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.stress.scenario import Scenario

PROJECT = Path(__file__).parents[2]
CONTENTS = {
    "actions": (),
    "awards": (),
    "award_balances": (),
    "coverage": ("merchant", "action_types", "covered_from", "covered_until"),
    "rejected_records": ("stream", "reason", "payload"),
}
_TALLY = re.compile(r"([\d,]+) read = ([\d,]+) applied \+ ([\d,]+) duplicate \+ ([\d,]+) superseded \+ ([\d,]+) quar")


@dataclass(frozen=True)
class Ended:
    """A finished run: its exit code (negative: the signal that killed it), its STATE lines and its log."""

    exit_code: int
    states: list[str]
    log: str


class Run:
    """A running target-crm."""

    def __init__(self, forks: Forks, pid: int, folder: Path, control: socket.socket) -> None:
        self.pid = pid
        self.control = control
        self._forks = forks
        self._folder = folder

    def next_report(self) -> dict[str, Any]:
        """Wait until a child with a fault reports its pause or, at its end, its number of calls; {} if it is dead."""
        return json.loads(self.control.recv(1 << 12) or b"{}")

    def resume(self) -> None:
        """Resume a paused child, unless a signal has just ended it."""
        with suppress(BrokenPipeError):
            self.control.send(b"!")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal. The process exists even after the run has ended, until `wait` collects its exit code."""
        os.kill(self.pid, number)

    def output(self) -> str:
        """Return what the run has written to standard output so far."""
        return (self._folder / "stdout").read_text()

    def wait(self) -> Ended:
        """Wait for the end of the run, and check what every run promises."""
        exit_code = self._forks.wait(self.pid)
        self.control.close()
        output, log = self.output(), (self._folder / "stderr").read_text(errors="replace")
        shutil.rmtree(self._folder)
        # A kill may cut off the last line. Such a line does not count as a STATE.
        states = [line for line in output.splitlines(keepends=True) if line.endswith("\n")]
        for canary in CANARIES:
            assert canary not in output + log, f"{canary!r} in the output of a run:\n{output}{log}"
        assert exit_code != CRASHED, log
        for tally in _TALLY.findall(log):
            read, *parts = (int(number.replace(",", "")) for number in tally)
            assert read == sum(parts), tally
        return Ended(exit_code, states, log)


class Forks:
    """A client of the fork server."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._orders.settimeout(RUN_SECONDS_MAX)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.stress.fork_server", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=environment(),
            cwd=PROJECT,
        )
        theirs.close()

    def start(
        self,
        url: str,
        stdin: bytes | int = b"",
        *arguments: str,
        fault: dict[str, Any] | None = None,
        memory_bytes: int = 0,
        **settings: Any,
    ) -> Run:
        """Start target-crm, or the script that the arguments name. `stdin` is bytes or a descriptor."""
        settings = {"sqlalchemy_url": url, **settings}
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(RUN_SECONDS_MAX)
        order = {
            "argv": [*arguments] or ["target-crm", "--config", "ENV"],
            "environment": {f"TARGET_CRM_{name.upper()}": str(value) for name, value in settings.items()},
            "fault": fault,
            "memory_bytes": memory_bytes,
        }
        with (
            (folder / "stdin").open("w+b") as file,
            (folder / "stdout").open("wb") as stdout,
            (folder / "stderr").open("wb") as stderr,
        ):
            if isinstance(stdin, bytes):
                file.write(stdin)
                file.seek(0)
            first = file.fileno() if isinstance(stdin, bytes) else stdin
            pid = self._ask(order, [first, stdout.fileno(), stderr.fileno(), theirs.fileno()])
        theirs.close()
        return Run(self, pid, folder, ours)

    def run(self, url: str, stdin: bytes, *arguments: str, **options: Any) -> Ended:
        """Run target-crm and wait for its end."""
        return self.start(url, stdin, *arguments, **options).wait()

    def warm_up(self, url: str, stdin: bytes) -> None:
        """Load a warehouse in the server itself, so that the children need not compile the statements again."""
        path = self._folder / "messages"
        path.write_bytes(stdin)
        self._ask({"warm_up": url, "messages": str(path)}, [])

    def wait(self, pid: int) -> int:
        """Return the exit code of a child."""
        try:
            return self._ask({"wait": pid}, [])
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise

    def close(self) -> None:
        """Stop the server."""
        self._orders.close()
        self._process.wait(RUN_SECONDS_MAX)

    def _ask(self, order: dict[str, Any], descriptors: list[int]) -> int:
        socket.send_fds(self._orders, [json.dumps(order).encode()], descriptors)
        return int(json.loads(self._orders.recv(1 << 12)))


class Place:
    """A warehouse that tests can empty, and inspect from outside the runs that load it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = url.partition(":")[0]
        self.warehouse = Warehouse(url)

    def clear(self) -> None:
        """Remove all tables."""
        raise NotImplementedError

    def tables(self) -> set[str]:
        """Return the names of the existing tables."""
        with self.warehouse.read() as connection:
            return set(inspect(connection).get_table_names())

    def assert_contains(self, scenario: Scenario, lines: int) -> None:
        """Fail unless the warehouse contains every row that a STATE acknowledges if it covers this many lines."""
        required = scenario.required_rows(lines)
        if not required:
            return
        keys = {"actions": "action_id", "awards": "_id", "perks": "_id", "rejected_records": "payload"}
        with self.warehouse.read() as connection:
            found = {
                name: [str(value) for value in connection.scalars(text(f"SELECT {key} FROM {name}"))]
                for name, key in keys.items()
            }
        payloads = "\n".join(found.pop("rejected_records"))
        missing = {
            (name, key)
            for name, key in required
            if (key not in payloads if name == "rejected_records" else key not in found[name])
        }
        assert not missing, f"acknowledged, but not in the warehouse: {sorted(missing)}"

    def assert_consistent(self) -> None:
        """Fail unless each balance matches ledger and snapshots."""
        if {"actions", "awards", "award_balances"} <= self.tables():
            report = verify(self.warehouse)
            assert not report.drifted, report

    def covered_lines(self) -> int:
        """Return how many lines the recorded coverage represents. Fail if there is a hole."""
        columns = ("covered_from", "covered_until")
        rows = table(self.warehouse, "coverage", *columns) if "_crm_coverage" in self.tables() else []
        assert [row["covered_from"] for row in rows] in ([], [START]), rows
        return int((rows[0]["covered_until"] - START).total_seconds()) if rows else 0

    def is_recorded_as_done(self) -> bool:
        """Return whether `load_runs` records a run as done."""
        return "load_runs" in self.tables() and "done" in {
            row["exit_state"] for row in table(self.warehouse, "load_runs", "exit_state")
        }

    def contents(self) -> dict[str, Any]:
        """Return all loaded rows, without the columns that differ from load to load."""
        found: dict[str, Any] = {name: table(self.warehouse, name, *columns) for name, columns in CONTENTS.items()}
        found["rejected_records"].sort(key=str)
        keyless = "visits" in self.tables()
        with self.warehouse.read() as connection:
            if keyless:
                found["visits"] = list(connection.scalars(text("SELECT number FROM visits ORDER BY 1")))
            found["perks"] = [
                (key, title, None if price is None else float(price), bool(deleted))
                for key, title, price, deleted in connection.execute(
                    text("SELECT _id, title, price, _sdc_deleted_at IS NOT NULL FROM perks ORDER BY 1")
                )
            ]
        return found

    def close(self) -> None:
        """Close the connections."""
        self.warehouse.dispose()


class SqlitePlace(Place):
    """A SQLite file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        super().__init__(f"sqlite:///{folder / 'crm.db'}")

    def clear(self) -> None:
        """Delete the file and its journals."""
        self.warehouse.dispose()
        for path in self._folder.glob("crm.db*"):
            path.unlink()


class PostgresPlace(Place):
    """A database on the tests' server. The password in the URL is a canary. The server does not check it."""

    def __init__(self, server_url: str) -> None:
        super().__init__(new_database(server_url).replace("postgres@", f"postgres:{TOKEN}@"))

    def clear(self) -> None:
        """Drop the schema."""
        with self.warehouse.write() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))


class CanaryHandler(logging.Handler):
    """Collects log lines of this process that contain a canary."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines = 0
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line if it contains a canary."""
        self.lines += 1
        line = self.format(record)
        self.found += [line] * any(canary in line for canary in CANARIES)


def digest(contents: Mapping[str, Any]) -> str:
    """Return a hash that does not depend on the order of the tables."""
    return hashlib.blake2b(repr(sorted(contents.items())).encode(), digest_size=16).hexdigest()


@contextmanager
def pipe() -> Iterator[tuple[FileIO, FileIO]]:
    """Open a pipe, and return its reading and writing ends. The caller may close them early."""
    reader, writer = os.pipe()
    with FileIO(reader) as reading, FileIO(writer, "w") as writing:
        yield reading, writing
