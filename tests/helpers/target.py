"""Functions that return Singer messages, and runs of target-crm in this process or as a console script."""

from __future__ import annotations

import io
import json
import subprocess
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from select import select as select_readable
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, select, text

from target_crm.errors import InputError
from target_crm.loader.sinks import BatchContext, TableSink
from target_crm.loader.target import TargetCrm
from target_crm.settings import Settings
from target_crm.warehouse.connection import Warehouse, parse_url
from tests.helpers.commands import RUN_SECONDS_MAX, command, environment

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from sqlalchemy import Table

TEXT, NUMBER, INTEGER = {"type": "string"}, {"type": ["number", "null"]}, {"type": ["integer", "null"]}
READ_AT = "2026-10-05T00:00:00Z"
DELTAS = {
    "REWARD_EARNED": "pointsAdded",
    "REDEEM_PERK": "pointsRedeemed",
    "AWARD_POINTS_REFUNDED": "pointsRefunded",
}


def _line(**message: Any) -> str:
    return json.dumps(message)


def schema(stream: str, properties: Mapping[str, Any], *keys: str, **more: Any) -> str:
    """A SCHEMA message."""
    definition = {"properties": dict(properties), **more}
    return _line(type="SCHEMA", stream=stream, schema=definition, key_properties=list(keys))


def record(stream: str, fields: Mapping[str, Any], at: str | None = READ_AT) -> str:
    """A RECORD message; `at` is its `time_extracted`."""
    times = {"time_extracted": at} if at else {}
    return _line(type="RECORD", stream=stream, record=fields, **times)


def state(value: Any) -> str:
    """A STATE message."""
    return _line(type="STATE", value=value)


def activate(stream: str, version: Any) -> str:
    """An ACTIVATE_VERSION message."""
    return _line(type="ACTIVATE_VERSION", stream=stream, version=version)


def with_version(version: int | None, message: str) -> str:
    """A RECORD message with a version."""
    return _line(**{**json.loads(message), "version": version})


ACTIONS = schema("actions", {"_id": {"type": "string"}}, "_id")
AWARDS = schema(
    "awards",
    {
        "_id": {"type": "string"},
        "points": {"type": ["number", "null"]},
        "userId": {"type": ["string", "null"]},
        "perkId": {"type": ["string", "null"]},
        "updatedAt": {"type": ["string", "null"], "format": "date-time"},
    },
    "_id",
)


def action(
    action_id: str,
    action_type: str = "REWARD_EARNED",
    *,
    delta: Any = 2,
    available: Any = 2,
    at: str = "2026-10-01T12:00:00Z",
    award: str = "w1",
    user: str = "u1",
    **more: Any,
) -> str:
    """A RECORD of a loyalty action."""
    fields = {
        "_id": action_id,
        "type": action_type,
        "when": {"timestamp": at},
        "context": {"user": {"_id": user}},
        "metadata": {"awardId": award, "perkId": "p1", "pointsAvailable": available, DELTAS[action_type]: delta},
    }
    return record("actions", {**fields, **more})


def snapshot(
    award: str = "w1", points: Any = 5, at: str | None = "2026-10-01T12:00:00Z", read_at: str | None = READ_AT
) -> str:
    """A RECORD of an award; `at` is its `updatedAt`."""
    fields = {"_id": award, "points": points, "userId": "u1", "perkId": "p1", "updatedAt": at}
    return record("awards", fields, read_at)


def table_sink(warehouse: Warehouse, stream: str, *properties: str) -> TableSink:
    """The sink of a stream whose properties are all text. The first property is the key."""
    context = BatchContext(warehouse, Settings())
    return TableSink(context, stream, {"properties": dict.fromkeys(properties, TEXT)}, properties[:1])


@dataclass(frozen=True)
class Loaded:
    """The output of a run: its STATE lines, and a tally per stream."""

    states: list[str]
    tallies: dict[str, str]


def load(warehouse: str | Warehouse, messages: Iterable[str], **settings: Any) -> Loaded:
    """Load messages in this process. Pass an open `Warehouse` to save the time of setting one up."""
    url = warehouse if isinstance(warehouse, str) else "sqlite://"
    opened = warehouse if isinstance(warehouse, Warehouse) else None
    target = TargetCrm(config={"sqlalchemy_url": url, **settings}, warehouse=opened)
    output = io.StringIO()
    try:
        with redirect_stdout(output):
            target.listen(io.StringIO("".join(f"{message}\n" for message in messages)))
    finally:
        if not opened:
            target.warehouse.dispose()
    tallies = {stream: str(tally) for stream, tally in target.writer.tallies.items() if tally.read}
    return Loaded(output.getvalue().splitlines(), tallies)


def run_target(url: str, folder: Path, *messages: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run the console script, with settings as environment variables."""
    return subprocess.run(
        command("target-crm", "--config", "ENV"),
        input="".join(f"{message}\n" for message in messages),
        env=_settings(url, settings),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=False,
    )


class RunningTarget:
    """The console script, with a standard input that stays open."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        assert process.stdin
        assert process.stdout
        self.process = process
        self._stdin, self._stdout = process.stdin, process.stdout
        self._log = log

    def send(self, *messages: str) -> None:
        """Write messages to standard input."""
        self._stdin.write("".join(f"{message}\n" for message in messages))
        self._stdin.flush()

    def next_state(self) -> str:
        """Wait for the next line of standard output. At the end of the output, the line is empty."""
        assert select_readable([self._stdout], [], [], RUN_SECONDS_MAX)[0], f"no output; the log: {self.log}"
        return self._stdout.readline().rstrip("\n")

    def wait(self) -> int:
        """Wait until the process ends, and return its exit code."""
        return self.process.wait(RUN_SECONDS_MAX)

    def kill(self) -> None:
        """Kill the process, and wait until its output ends. The fork server kills a fork a little later."""
        self.process.kill()
        while self.next_state():
            pass

    @property
    def log(self) -> str:
        """The text that the process has logged so far."""
        return self._log.read_text()


@contextmanager
def running_target(url: str, folder: Path, **settings: Any) -> Iterator[RunningTarget]:
    """Start the console script, with settings as environment variables. At the end, kill it if it still runs."""
    log = folder / "target.log"
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            command("target-crm", "--config", "ENV"),
            env=_settings(url, settings),
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        running = RunningTarget(process, log)
        try:
            yield running
        finally:
            running.kill()


def _settings(url: str, settings: Mapping[str, Any]) -> dict[str, str]:
    variables = {f"TARGET_CRM_{name.upper()}": str(value) for name, value in settings.items()}
    return environment(TARGET_CRM_SQLALCHEMY_URL=url, **variables)


def load_rejected(url: str, messages: Iterable[str], **settings: Any) -> None:
    """Load messages, and expect that so many are quarantined that the run fails at its end."""
    with pytest.raises(InputError, match="see rejected_records"):
        load(url, messages, **settings)


def table(warehouse: str | Warehouse, name: str, *columns: str) -> list[dict[str, Any]]:
    """The rows of one of the target's own tables, with these columns. By default, only the load times are left out."""
    opened = Warehouse(warehouse) if isinstance(warehouse, str) else warehouse
    source: Table = getattr(opened.tables, name)
    times_of_loading = {"loaded_at", "_sdc_batched_at", "updated_at" if name == "award_balances" else None}
    chosen = columns or [column.name for column in source.c if column.name not in times_of_loading]
    with opened.read() as connection:
        query = select(*(source.c[column] for column in chosen)).order_by(*source.primary_key.columns)
        return [dict(row) for row in connection.execute(query).mappings()]


def all_rows(url: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of ledger, snapshots, balances and quarantine."""
    return {name: table(url, name) for name in ("actions", "awards", "award_balances", "rejected_records")}


def query(url: str, statement: str) -> list[tuple[Any, ...]]:
    """The rows of a query in SQL."""
    engine = create_engine(parse_url(url))
    with engine.connect() as connection:
        rows = [tuple(row) for row in connection.execute(text(statement))]
    engine.dispose()
    return rows


def execute(url: str, statement: str) -> None:
    """Execute a statement in SQL, without the target."""
    engine = create_engine(parse_url(url))
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()
