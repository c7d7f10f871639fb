"""crm-balances: look after the balances in a warehouse.

Takes target-crm's settings.
"""

from __future__ import annotations

import argparse
import csv
import io
import logging
import os
import sys
from dataclasses import asdict
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from singer_sdk.exceptions import SingerSDKError

from pepper_runtime import logs
from pepper_runtime.cli import discard_stdout, fatal, unexpected
from pepper_runtime.config import ConfigFileError, read_config
from target_crm.balances_cli import status
from target_crm.balances_cli.ddl import missing_statements
from target_crm.balances_cli.forget import forget
from target_crm.balances_cli.replay import replay
from target_crm.balances_cli.report import page as report
from target_crm.balances_cli.verify import as_text, rebuild, verify
from target_crm.errors import CrmError, SettingError, WarehouseError
from target_crm.loader.target import TargetCrm
from target_crm.records import values
from target_crm.sql import balances
from target_crm.warehouse.connection import Warehouse

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterable, Sequence

logger = logging.getLogger("crm-balances")

# Balances that are in memory at a time on their way out.
ROWS_AT_A_TIME = 1000
EXIT_WELL, EXIT_DRIFT, EXIT_ERROR = 0, 1, 2
PROGRAM = "crm-balances"


def _verify(arguments: Namespace, warehouse: Warehouse, _: TargetCrm) -> int:
    """Hold every balance against its ledger and snapshots; exit code 1 where one drifts."""
    proof = verify(warehouse)
    _print({**asdict(proof), "drifted": proof.drifted} if arguments.json else as_text(proof))
    return EXIT_DRIFT if proof.drifted else EXIT_WELL


def _status(arguments: Namespace, warehouse: Warehouse, _: TargetCrm) -> int:
    """Tell how fresh each stream is, what was refused, whether balances drift, how the last runs ended."""
    told = status.status(warehouse, full=arguments.verify)
    _print({**asdict(told), "drifted": told.drifted} if arguments.json else status.as_text(told))
    return EXIT_DRIFT if told.drifted else EXIT_WELL


def _as_of(arguments: Namespace, warehouse: Warehouse, _: TargetCrm) -> int:
    """Print every balance as of a time, as CSV: the newest sight of each award at or before it."""
    with warehouse.read() as connection:
        streamed = connection.execution_options(yield_per=ROWS_AT_A_TIME)
        rows = streamed.execute(balances.as_of(warehouse.tables), {"moment": arguments.moment})
        if arguments.json:
            lines = ((",\n" if place else "") + values.json_text(row._asdict()) for place, row in enumerate(rows))
            sys.stdout.writelines(chain(["[\n"], lines, ["\n]\n"]))
        else:
            writer = csv.writer(sys.stdout, lineterminator="\n")
            writer.writerow(rows.keys())
            writer.writerows([_in_csv(value) for value in row] for row in rows)
    sys.stdout.flush()
    return EXIT_WELL


def _report(arguments: Namespace, warehouse: Warehouse, _: TargetCrm) -> int:
    """Tell what is outstanding, what was issued and redeemed, and when and where, as a page for people to look at."""
    told = report.gather(warehouse, days=arguments.days, zone=arguments.timezone)
    text = {"html": report.page, "json": report.as_json, "csv": report.as_csv}[arguments.format](told)
    _write(text, arguments.output)
    return EXIT_WELL


def _rebuild(arguments: Namespace, warehouse: Warehouse, _: TargetCrm) -> int:
    """Compute every balance afresh from ledger and snapshots, in one transaction."""
    counts = {"balances": rebuild(warehouse)}
    _print(counts if arguments.json else "{balances:,} balances computed afresh".format(**counts))
    return EXIT_WELL


def _replay(arguments: Namespace, warehouse: Warehouse, target: TargetCrm) -> int:
    """Load what is in quarantine and has become loadable."""
    counts = replay(target.config, warehouse)
    words = "{tried:,} records tried, {loaded:,} loaded, {rejected:,} still rejected"
    _print(counts if arguments.json else words.format(**counts))
    return EXIT_WELL


def _forget(arguments: Namespace, warehouse: Warehouse, _: TargetCrm) -> int:
    """Erase what names a person from payloads, columns and quarantine; ids, points and sums stay."""
    counts = forget(warehouse, arguments.user_id)
    _print(counts if arguments.json else "erased in " + ", ".join(f"{n:,} {name}" for name, n in counts.items()))
    return EXIT_WELL


COMMANDS: dict[str, Callable[[Namespace, Warehouse, TargetCrm], int]] = {
    "verify": _verify,
    "status": _status,
    "report": _report,
    "as-of": _as_of,
    "rebuild": _rebuild,
    "replay": _replay,
    "forget": _forget,
}
DDL = "Print the statements that create what a loader lacks, to be run by someone who may."


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say how it is used, or where each line is to be JSON, only what is wrong."""
        if not logs.is_structured():
            super().error(message)
        fatal(PROGRAM, message)
        sys.exit(EXIT_ERROR)


def _arguments(argv: Sequence[str] | None) -> Namespace:
    parser = _Parser(prog=PROGRAM, description="Look after the balances that target-crm keeps in a warehouse.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in {**{name: command.__doc__ for name, command in COMMANDS.items()}, "ddl": DDL}.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--config", metavar="FILE", help="target-crm's settings; else TARGET_CRM_… variables")
        command.add_argument(logs.OPTION, choices=logs.FORMATS, help=logs.HELP.replace(", metrics included", ""))
        if name != "report":
            command.add_argument("--json", action="store_true", help="speak JSON")
    commands.choices["status"].add_argument(
        "--verify", action="store_true", help="hold every balance against the whole ledger, instead of their sums"
    )
    figures = commands.choices["report"]
    figures.add_argument("--format", choices=report.FORMATS, default="html", help="default: html")
    figures.add_argument("--json", dest="format", action="store_const", const="json", help="the same as --format json")
    figures.add_argument("--output", metavar="FILE", help="where to write it; default: standard output")
    figures.add_argument("--days", type=_days, default=90, help="how many days, today included; default: 90")
    figures.add_argument("--timezone", default="UTC", metavar="ZONE", help="whose days and hours; default: UTC")
    commands.choices["as-of"].add_argument(
        "moment",
        type=_converted(values.instant),
        metavar="TIMESTAMP",
        help="ISO 8601, e.g. 2026-10-01T00:00Z; in UTC unless it says otherwise",
    )
    commands.choices["forget"].add_argument(
        "user_id", metavar="USER_ID", type=_converted(values.identifier), help="the person's id in Pepper"
    )
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
        return COMMANDS[arguments.command](arguments, warehouse, target)
    finally:
        warehouse.dispose()


def _plan(target: TargetCrm, messages: Iterable[str], *, as_json: bool) -> int:
    try:
        statements = missing_statements(target, messages)
    finally:
        target.warehouse.dispose()
    text = "\n\n".join(f"{statement};" for statement in statements)
    _print(statements if as_json else text or "-- nothing is missing")
    return EXIT_WELL


def _days(text: str) -> int:
    days = int(text)
    if not 1 <= days <= report.DAYS_MAX:
        raise argparse.ArgumentTypeError(f"expected 1 to {report.DAYS_MAX}")
    return days


def _converted(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """A conversion of values as one of arguments."""

    def argument(text: str) -> Any:
        try:
            return convert(text)
        except values.Invalid as reason:
            raise argparse.ArgumentTypeError(str(reason)) from None

    return argument


def _in_csv(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _write(text: str, path: str | None) -> None:
    if path is None:
        print(text, flush=True)
        return
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingError(f"--output {path}: {error.strerror}") from None


def _print(told: Any) -> None:
    """A text as it is, everything else as JSON."""
    print(told if isinstance(told, str) else values.json_text(told), flush=True)


def main() -> None:
    """The console script: 0 where all is well, 1 on drift, 2 where the question could not be answered."""
    logging.basicConfig(level=logging.WARNING, format="crm-balances: %(message)s")
    is_debug = os.environ.get("TARGET_CRM_LOGLEVEL", "").upper() == "DEBUG"
    logger.setLevel(logging.DEBUG if is_debug else logging.INFO)
    logs.set_up(PROGRAM, logs.requested_format(TargetCrm.name, sys.argv[1:], os.environ))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    try:
        sys.exit(run())
    except (ConfigFileError, CrmError, SingerSDKError) as error:
        fatal(PROGRAM, str(error))
    except BrokenPipeError:
        discard_stdout()
    except Exception as error:
        fatal(PROGRAM, unexpected(TargetCrm.name, error))
        logger.debug("where it came from", exc_info=True)
        discard_stdout()
    sys.exit(EXIT_ERROR)
