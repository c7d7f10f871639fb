"""crm-balances: prove the balances, compute them afresh, load the quarantine again, prepare a warehouse.

Takes target-crm's settings.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from singer_sdk.exceptions import SingerSDKError
from sqlalchemy import func, select

from target_crm import balances, values
from target_crm.errors import CrmError, WarehouseError
from target_crm.target import TargetCrm, read_config, speak_utf8
from target_crm.warehouse import Warehouse

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Connection, Executable, Row, Select, Table

    from target_crm.sinks import Rejection

logger = logging.getLogger("crm-balances")

# How many awards a check names; it counts them all.
EXAMPLES_MAX = 20
# Rows of the quarantine that are in memory at a time; each may be a line of some megabytes.
REPLAY_ROWS = 100
EXIT_WELL, EXIT_DRIFT, EXIT_ERROR = 0, 1, 2


@dataclass(frozen=True)
class Check:
    """A question put to the warehouse, how many awards or actions answer no, and the first of them."""

    name: str
    question: str
    differing: int
    examples: list[dict[str, Any]]


@dataclass(frozen=True)
class Report:
    """What `verify` finds. A gap is not drift: an edit or an expiry in Pepper makes one, and no action."""

    awards: int
    actions: int
    checks: list[Check]
    gaps: Check

    @property
    def drifted(self) -> bool:
        """Whether a balance is not what the ledger and the snapshots say."""
        return any(check.differing for check in self.checks)


def verify(warehouse: Warehouse) -> Report:
    """Hold every balance against a fold of the whole ledger and against Pepper's snapshots, in one reading."""
    tables = warehouse.tables
    with warehouse.read() as connection:
        awards, actions = _count(connection, tables.award_balances), _count(connection, tables.actions)
        logger.info("holding %s balances against %s actions …", f"{awards:,}", f"{actions:,}")
        return Report(
            awards=awards,
            actions=actions,
            checks=[
                _check(connection, "fold", "balance = fold of ledger and snapshots", balances.drifted(tables)),
                _check(connection, "snapshot", "balance = Pepper's newer snapshot", balances.contradicted(tables)),
            ],
            gaps=_check(connection, "gaps", "balance before + delta = balance after", balances.gaps(tables)),
        )


def rebuild(warehouse: Warehouse) -> int:
    """Fold the whole ledger and all snapshots afresh, in one transaction; returns the number of balances."""
    tables = warehouse.tables
    with warehouse.write() as connection:
        logger.info("folding %s actions …", f"{_count(connection, tables.actions):,}")
        _each(connection, balances.rebuild_statements(tables))
        return _count(connection, tables.award_balances)


def _count(connection: Connection, table: Table) -> int:
    return connection.scalar(select(func.count()).select_from(table)) or 0


class Replay(TargetCrm):
    """Loads quarantined records of `actions` and `awards` as if they came for the first time.

    Records of other streams stay: without their SCHEMA nobody knows their columns.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._refused: dict[int, str] = {}

    @classmethod
    def run(cls, config: Mapping[str, Any]) -> dict[str, int]:
        """Replay into the warehouse of the settings.

        Returns:
            How many records were tried, and loaded, and how many are left in the quarantine, also of other streams.
        """
        # Whatever a loader does, here is where what it refuses belongs.
        mapped = {**config, "on_invalid_record": "quarantine"}
        # A record that was refused as one of its stream has been through the stream maps; a whole message has not.
        unmapped = {name: value for name, value in mapped.items() if not name.startswith("stream_map")}
        records, messages = cls(config=unmapped), cls(config=mapped)
        replayed = records.replay(*_STREAMS), messages.replay("")
        with messages.warehouse.read() as connection:
            left = _count(connection, messages.warehouse.tables.rejected_records)
        tried, loaded = (sum(counts) for counts in zip(*replayed, strict=True))
        return {"tried": tried, "loaded": loaded, "rejected": left}

    def replay(self, *streams: str) -> tuple[int, int]:
        """Replay what was refused of some streams; `""` stands for messages that were refused as a whole.

        A record leaves the quarantine after it is committed, so a replay that is killed can simply be repeated.

        Returns:
            How many were tried, and how many of them loaded.
        """
        tried = loaded = 0
        last_id = ""
        while rows := self._rows_after(last_id, streams):
            last_id = rows[-1].rejected_id
            messages = {row.rejected_id: message for row in rows if (message := _as_message(row))}
            self._refused.clear()
            first_line = self.input_line + len(_SCHEMAS) + 1
            self.process_lines(io.StringIO("".join(f"{line}\n" for line in [*_SCHEMAS, *messages.values()])))
            self._drain()
            # What is refused for another reason than before stands in the quarantine a second time.
            self._forget(messages.keys() - self._refused.values())
            tried += len(messages)
            loaded += len(messages) - sum(line in self._refused for line in range(first_line, self.input_line + 1))
        return tried, loaded

    def _rows_after(self, rejected_id: str, streams: Sequence[str]) -> Sequence[Row[Any]]:
        """The next rows of the quarantine, but for those that this replay has put there."""
        rejected = self.warehouse.tables.rejected_records
        query = (
            select(rejected)
            .where(
                rejected.c.rejected_id > rejected_id, rejected.c.stream.in_(streams), rejected.c.run_id != self.run_id
            )
            .order_by(rejected.c.rejected_id)
            .limit(REPLAY_ROWS)
        )
        with self.warehouse.read() as connection:
            return connection.execute(query).all()

    def _forget(self, rejected_ids: Iterable[str]) -> None:
        rejected = self.warehouse.tables.rejected_records
        forget = rejected.delete().where(rejected.c.rejected_id.in_(rejected_ids))
        self.warehouse.commit_once(lambda connection: _each(connection, [forget]))

    def _tell(self, *_: Any) -> None:
        """Nothing: a replay is no run of a tap's messages."""

    def _quarantine(self, connection: Connection, rejections: list[Rejection]) -> None:
        super()._quarantine(connection, rejections)
        self._refused.update((rejection.input_line, rejection.rejected_id) for rejection in rejections)


_STREAMS = ("actions", "awards")
_SCHEMA = {"properties": {"_id": {"type": "string"}}}
_SCHEMAS = [
    json.dumps({"type": "SCHEMA", "stream": stream, "schema": _SCHEMA, "key_properties": ["_id"]})
    for stream in _STREAMS
]


def _as_message(row: Row[Any]) -> str | None:
    """A quarantined record as the RECORD message that it came in; None where it can't be tried."""
    try:
        payload = values.from_json(row.payload)
    except ValueError:
        return None
    if not isinstance(payload, dict):
        return None
    if row.stream:
        payload = {"stream": row.stream, "record": payload, "time_extracted": row.rejected_at.isoformat()}
    replayable = payload.get("stream") in _STREAMS and "record" in payload
    return values.json_text({**payload, "type": "RECORD"}) if replayable else None


class Plan(Warehouse):
    """A warehouse that notes what a target would need in it, and changes nothing."""

    def __init__(self, sqlalchemy_url: str, schema: str | None = None) -> None:
        super().__init__(sqlalchemy_url, schema)
        self._needed: list[Table] = []

    @classmethod
    def of(cls, target: TargetCrm, messages: Iterable[str]) -> Plan:
        """What a target needs for the streams that messages announce; only SCHEMA messages are looked at."""
        target.warehouse = plan = cls(target.settings.sqlalchemy_url, target.settings.default_target_schema)
        target.process_lines(io.StringIO("".join(line for line in messages if _is_schema(line))))
        return plan

    def ensure(self, *tables: Table) -> None:
        """Note the tables."""
        self._needed += tables

    def statements(self) -> list[str]:
        """What to execute, so that a loader has nothing to create or to change any more."""
        return self.lacks(*self._needed)


def _is_schema(line: str) -> bool:
    try:
        message = values.from_json(line)
    except ValueError:
        return False
    return isinstance(message, dict) and message.get("type") == "SCHEMA"


def _each(connection: Connection, statements: Iterable[Executable]) -> None:
    for statement in statements:
        connection.execute(statement)


def _check(connection: Connection, name: str, question: str, query: Select[Any]) -> Check:
    logger.info("%s …", question)
    counted = query.add_columns(func.count().over().label("differing")).limit(EXAMPLES_MAX)
    found = [dict(row) for row in connection.execute(counted).mappings()]
    differing = found[0]["differing"] if found else 0
    examples = [
        {key: None if value is None else str(value) for key, value in row.items() if key != "differing"}
        for row in found
    ]
    return Check(name, question, differing, examples)


def _as_text(report: Report) -> str:
    lines = [f"{'check':<42}{'differ':>8}"]
    for check in (*report.checks, report.gaps):
        lines.append(f"{check.question:<42}{check.differing:>8,}")
        if check is not report.gaps:
            lines += ["    " + ", ".join(f"{key} {value}" for key, value in row.items()) for row in check.examples]
    if report.gaps.differing:
        lines.append(f"{report.gaps.differing:,} changes came without an action, as edits and expiries do: no drift.")

    verdict = "DRIFT: run crm-balances rebuild" if report.drifted else "all proven" if report.awards else "none yet"
    lines.append(f"{report.awards:,} balances from {report.actions:,} actions: {verdict}")
    return "\n".join(lines)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="crm-balances",
        description="Prove the balances in the warehouse, compute them afresh, load the quarantine, print the DDL.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in {
        "verify": "hold every balance against its ledger and snapshots; exit code 1 where one drifts",
        "rebuild": "compute every balance afresh from ledger and snapshots, in one transaction",
        "replay": "load what is in quarantine and has become loadable",
        "ddl": "print the statements that create what a loader lacks, to be run by someone who may",
    }.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--config", metavar="FILE", help="target-crm's settings; else TARGET_CRM_… variables")
        command.add_argument("--json", action="store_true", help="speak JSON")
    commands.choices["ddl"].add_argument(
        "--schemas",
        metavar="FILE",
        type=argparse.FileType(encoding="utf-8"),
        help="SCHEMA messages of the streams to load, as tap-pepper --test=schema prints them; - is standard input",
    )
    return parser.parse_args(argv)


def run(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    arguments = _arguments(argv)
    from_environment = arguments.config in {None, "ENV"}
    config = {} if from_environment else read_config(arguments.config)
    target = TargetCrm(config=config, parse_env_config=from_environment)
    if arguments.command == "ddl":
        return _plan(target, arguments.schemas or [], as_json=arguments.json)
    warehouse = Warehouse(target.settings.sqlalchemy_url, target.settings.default_target_schema)
    try:
        if not warehouse.is_set_up():
            raise WarehouseError(f"{warehouse.name}: no balances here; is this the URL that target-crm loads?")
        warehouse.set_up()
        return _answer(arguments.command, warehouse, target.config, as_json=arguments.json)
    finally:
        warehouse.dispose()


def _plan(target: TargetCrm, messages: Iterable[str], *, as_json: bool) -> int:
    plan = Plan.of(target, messages)
    try:
        statements = plan.statements()
    finally:
        plan.dispose()
    text = "\n\n".join(f"{statement};" for statement in statements)
    print(json.dumps(statements) if as_json else text or "-- nothing is missing", flush=True)
    return EXIT_WELL


def _answer(command: str, warehouse: Warehouse, config: Mapping[str, Any], *, as_json: bool) -> int:
    if command == "verify":
        report = verify(warehouse)
        print(json.dumps({**asdict(report), "drifted": report.drifted}) if as_json else _as_text(report), flush=True)
        return EXIT_DRIFT if report.drifted else EXIT_WELL
    if command == "rebuild":
        counts = {"balances": rebuild(warehouse)}
        words = "{balances:,} balances computed afresh"
    else:
        counts = Replay.run(config)
        words = "{tried:,} records tried, {loaded:,} loaded, {rejected:,} still rejected"
    print(json.dumps(counts) if as_json else words.format(**counts), flush=True)
    return EXIT_WELL


def main() -> None:
    """The console script: 0 where all is well, 1 on drift, 2 where the question could not be answered."""
    logging.basicConfig(level=logging.WARNING, format="crm-balances: %(message)s")
    logger.setLevel(logging.INFO)
    speak_utf8()
    try:
        sys.exit(run())
    except (CrmError, SingerSDKError) as error:
        print(f"crm-balances: {error}", file=sys.stderr)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(EXIT_ERROR)
