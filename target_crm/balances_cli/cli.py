"""The command `crm-balances`: verify, report on and repair the balances in a warehouse, with target-crm's settings."""

from __future__ import annotations

import csv
import logging
import os
import re
import shutil
import signal
import sys
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import click
from singer_sdk.exceptions import SingerSDKError

from pepper_runtime import logs
from pepper_runtime.cli import run_cli
from pepper_runtime.config import read_config
from pepper_runtime.progress import display
from pepper_runtime.wording import counted
from target_crm.balances_cli import compare as comparison
from target_crm.balances_cli import coverage as read
from target_crm.balances_cli import explain as explanation
from target_crm.balances_cli import forget as erasure
from target_crm.balances_cli import limits
from target_crm.balances_cli import status as warehouse_status
from target_crm.balances_cli import verify as verification
from target_crm.balances_cli.ddl import missing_statements
from target_crm.balances_cli.prometheus import as_metrics
from target_crm.balances_cli.replay import replay as replay_quarantine
from target_crm.balances_cli.report import page as report_page
from target_crm.errors import CrmError, SettingError, WarehouseError
from target_crm.loader.target import TargetCrm
from target_crm.records import values
from target_crm.settings import ENVIRONMENT_PREFIX, URL_PARTS
from target_crm.sql import balances

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import timedelta

    from target_crm.warehouse.connection import Warehouse

PROGRAM = "crm-balances"
logger = logging.getLogger(PROGRAM)
EXIT_OK, EXIT_DRIFT, EXIT_UNKNOWN, EXIT_ERROR = 0, 1, 1, 2
# Fetch and print only this many balances at a time, to save memory.
ROWS_AT_A_TIME = 1000
REPORT_FILE = "loyalty-report.html"
STDOUT = "-"


@dataclass
class Options:
    """The options that all commands accept, before or after the command's name."""

    config: str | None = None
    url: str | None = None
    schema: str | None = None
    json: bool = False

    @cached_property
    def target(self) -> TargetCrm:
        """The target whose settings this command uses.

        `--url` and `--schema` take precedence over the config file and the environment.
        """
        reads_environment = self.config in {None, "ENV"}
        config = {} if reads_environment else read_config(str(self.config))
        given: dict[str, str | None] = {"default_target_schema": self.schema} if self.schema else {}
        if self.url:
            given |= {**dict.fromkeys(URL_PARTS), "sqlalchemy_url": self.url}
        if reads_environment:
            # The environment variables of these settings would take precedence over `config`. Set them to empty
            # strings: if they were removed, `.env` could set them.
            os.environ.update({f"{ENVIRONMENT_PREFIX}{name.upper()}": "" for name in given})
        target = TargetCrm(config={**config, **given}, parse_env_config=reads_environment)
        # Let SIGTERM end the command as usual. The target's own handler would print a message about uncommitted
        # records.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return target

    @contextmanager
    def warehouse(self, *, needs_balances: bool = True) -> Iterator[Warehouse]:
        """Open the warehouse and bring its tables up to date.

        Raises:
            WarehouseError: The warehouse has no target-crm tables, or lacks the balances that the command needs.
        """
        warehouse = self.target.warehouse
        what = "balances" if needs_balances else "target-crm tables"
        try:
            warehouse.check_schema()
            if not warehouse.is_set_up():
                raise WarehouseError(
                    f"no {what} in {warehouse.place}: target-crm has loaded nothing there; "
                    "check --url (sqlalchemy_url) and --schema (default_target_schema)"
                )
            warehouse.set_up()
            if needs_balances and not warehouse.has_balances():
                raise WarehouseError(
                    f"no balances in {warehouse.place}; load Pepper's streams actions or awards there first"
                )
            yield warehouse
        finally:
            warehouse.dispose()

    def print(self, result: object, text: str) -> None:
        """Print `result` as JSON if the user asked for it, and otherwise print `text`."""
        display.stop()
        print(values.json_text(result) if self.json else text, flush=True)


def _store(context: click.Context, parameter: click.Parameter, value: object) -> None:
    """Store an option's value in the `Options` object that the group and its command share."""
    if value:
        setattr(context.ensure_object(Options), str(parameter.name), value)


def _common_options() -> list[click.Parameter]:
    return [
        click.Option(
            ["--config"],
            metavar="FILE",
            expose_value=False,
            callback=_store,
            help="target-crm's settings as a JSON file. Default: ENV, the TARGET_CRM_… variables and .env.",
        ),
        click.Option(
            ["--url"],
            expose_value=False,
            callback=_store,
            help="The warehouse, as a SQLAlchemy URL. Other users of this machine can see command lines, so put a URL "
            "with a password into TARGET_CRM_SQLALCHEMY_URL instead.",
        ),
        click.Option(["--schema"], expose_value=False, callback=_store, help="The schema of target-crm's tables."),
        click.Option(["--json"], is_flag=True, expose_value=False, callback=_store, help="Print JSON."),
        logs.format_option("Write the log as short text, or as one JSON object per line. Default: text."),
    ]


def _command(example: str, exit_codes: str) -> Callable[[Callable[..., int]], click.Command]:
    """Add a command with the common options. Its help ends with an example and the exit codes."""
    epilog = f"\b\nExample:\n  crm-balances {example}\n\n\b\nExit codes:\n  {exit_codes}"
    return crm_balances.command(params=_common_options(), epilog=epilog)


@click.group(
    PROGRAM, params=_common_options(), no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="pepper-crm")
@click.pass_context
def crm_balances(context: click.Context) -> None:
    """Verify, report on and repair the balances that target-crm keeps in a warehouse."""
    context.ensure_object(Options)


def _parsed(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """Convert a parser function to a click callback."""

    def callback(context: click.Context, parameter: click.Parameter, text: str | None) -> Any:
        try:
            return text if text is None else parse(text)
        except values.Invalid as reason:
            raise click.BadParameter(f"{text!r} {reason}", context, parameter) from None

    return callback


def _pasted_id(text: str) -> str:
    """Parse an id. Ignore spaces around it, because users may have pasted them with the id."""
    return values.identifier(text.strip())


def _pasted_perk(text: str) -> str:
    """Parse a perk's id or title. Ignore spaces around it."""
    if not text.strip():
        raise values.Invalid("is empty, expected an id or a title")
    return text.strip()


def _writable(_context: click.Context, _parameter: click.Parameter, path: str | None) -> str | None:
    """Reject a file that cannot be written, before any work is done."""
    if path in {None, STDOUT}:
        return path
    file = Path(path)
    if file.is_dir():
        raise click.BadParameter(f"{path} is a folder, expected a file")
    if not file.parent.is_dir():
        raise click.BadParameter(f"the folder {file.parent} does not exist")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise click.BadParameter(f"no permission to write {path}")
    return path


@_command("verify --json", "0 verified, 1 drift or actions that were never read, 2 error")
@click.option("--gaps", is_flag=True, help="Also look for balance changes without an action. This takes longer.")
@click.pass_obj
def verify(options: Options, *, gaps: bool) -> int:
    """Compare every balance with the ledger.

    Also compares the balances with newer snapshots from Pepper, and lists intervals for which actions were never read.
    """
    with options.warehouse() as warehouse:
        found = verification.verify(warehouse, gaps=gaps)
    options.print({**asdict(found), "drifted": found.drifted}, verification.as_text(found))
    return EXIT_DRIFT if found.failed else EXIT_OK


@_command("compare --json < awards.jsonl", "0 no difference, 1 differences, 2 error")
@click.pass_obj
def compare(options: Options) -> int:
    """Compare the balances with Pepper's points.

    Reads award messages from standard input, as in tap-pepper --config ENV | crm-balances compare. Loads nothing. Run
    the tap without a state, so that it reads all awards. An award that changed in Pepper after the last load does not
    count as different.
    """
    with options.warehouse() as warehouse:
        awards = comparison.AwardsInput(options.target)
        awards.read_all()
        with warehouse.read() as connection:
            found = comparison.compare(connection, warehouse.tables, awards)
    options.print(comparison.as_json(found), comparison.as_text(found))
    return EXIT_DRIFT if found.differing else EXIT_OK


@_command("coverage --json", "0 printed, 2 error")
@click.option("--state", is_flag=True, help="Print a state with which tap-pepper reads the missing actions.")
@click.pass_obj
def coverage(options: Options, *, state: bool) -> int:
    """Show which actions were read.

    Lists the intervals for which all actions were read and committed, and the holes between them.
    """
    with options.warehouse(needs_balances=False) as warehouse, warehouse.read() as connection:
        if state:
            print(values.json_text(read.state_to_resume(connection, warehouse.tables)), flush=True)
            return EXIT_OK
        found = read.coverage_in(connection, warehouse.tables)
    options.print({"intervals": found.intervals, "holes": found.holes}, read.as_text(found))
    return EXIT_OK


@_command(
    "status --max-age 15m --max-rejected 0 --max-holes 0",
    "0 no drift and no broken limit, 1 drift or a broken limit, 2 error",
)
@click.option("--verify", is_flag=True, help="Compare every balance with the ledger, instead of only the totals.")
@click.option(
    "--max-age",
    metavar="DURATION",
    callback=_parsed(limits.parse_duration),
    help="Exit with 1 if actions were last read longer ago than this, such as 15m. Units: s, m, h, d.",
)
@click.option(
    "--max-rejected", type=click.IntRange(0), help="Exit with 1 if the quarantine has more records than this."
)
@click.option("--max-holes", type=click.IntRange(0), help="Exit with 1 if the coverage has more holes than this.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["text", "json", "prometheus"]),
    default="text",
    show_default=True,
    help="prometheus prints metrics for the node exporter's textfile collector.",
)
@click.pass_obj
def status(
    options: Options,
    *,
    verify: bool,
    max_age: timedelta | None,
    max_rejected: int | None,
    max_holes: int | None,
    kind: str,
) -> int:
    """Show freshness, quarantine, drift and runs.

    For monitors, set limits: the command prints a line for each broken limit. --json means --format json.
    """
    with options.warehouse(needs_balances=False) as warehouse:
        found = warehouse_status.status(warehouse, full=verify)
    broken = limits.broken(found, limits.Limits(max_age, max_rejected, max_holes))
    options.json |= kind == "json"
    text = as_metrics(found) if kind == "prometheus" else warehouse_status.as_text(found)
    if kind == "text":
        text = "\n".join([text, *(f"LIMIT BROKEN: {line}" for line in broken)])
    options.print({**asdict(found), "drifted": found.drifted, "broken_limits": broken}, text)
    return EXIT_DRIFT if found.drifted or broken else EXIT_OK


_DATE = click.DateTime(["%Y-%m-%d"])


def _point_value(context: click.Context, parameter: click.Parameter, text: str | None) -> Decimal | None:
    if text is None:
        return None
    with suppress(ArithmeticError):
        value = Decimal(text)
        if value.is_finite() and value > 0:
            return value
    raise click.BadParameter(f"{text!r} is not a number above 0", context, parameter)


def _currency(context: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    if text is None or re.fullmatch("[A-Z]{3}", text):
        return text
    raise click.BadParameter(f"{text!r} is not a code of three capital letters, such as GBP", context, parameter)


@_command("report --days 30 --output loyalty.html", "0 written, 2 error")
@click.option("--format", "kind", type=click.Choice(report_page.FORMATS), default="html", show_default=True)
@click.option(
    "--output",
    metavar="FILE",
    callback=_writable,
    help=f"File to write; - is standard output. Default: {REPORT_FILE}; JSON and CSV go to standard output.",
)
@click.option(
    "--days",
    type=click.IntRange(1, report_page.DAYS_MAX),
    help=f"Length of the period in days. Default: {report_page.DAYS_DEFAULT}.",
)
@click.option("--from", "since", type=_DATE, metavar="DATE", help="First day of the period, instead of --days.")
@click.option("--until", type=_DATE, metavar="DATE", help="Last day of the period. Default: today.")
@click.option(
    "--perk", metavar="PERK", callback=_parsed(_pasted_perk), help="Report only on this perk, named by its id or title."
)
@click.option("--title", metavar="NAME", help="Name at the top of the page, such as the merchant's.")
@click.option(
    "--point-value",
    metavar="NUMBER",
    callback=_point_value,
    help="What a point costs, to show the outstanding points as money. Needs --currency.",
)
@click.option("--currency", metavar="CODE", callback=_currency, help="The currency of --point-value, such as GBP.")
@click.option("--timezone", metavar="ZONE", default="UTC", show_default=True, help="Time zone of days and hours.")
@click.pass_obj
def report(
    options: Options,
    *,
    kind: str,
    output: str | None,
    days: int | None,
    since: datetime | None,
    until: datetime | None,
    perk: str | None,
    title: str | None,
    point_value: Decimal | None,
    currency: str | None,
    timezone: str,
) -> int:
    """Report outstanding points and their movements.

    The report is a web page (needs the extra `report`), JSON or CSV. --json means --format json.
    """
    if days and since:
        raise click.UsageError("--days and --from both set the length of the period; give one of them")
    if bool(point_value) != bool(currency):
        raise click.UsageError("--point-value and --currency need each other, as in --point-value 0.01 --currency GBP")
    kind = "json" if options.json else kind
    path = output or (REPORT_FILE if kind == "html" else STDOUT)
    # Check these options before the queries, which may take a long time.
    report_page.zone_of(timezone)
    if kind == "html":
        report_page.check_extra()
    with options.warehouse() as warehouse:
        figures = report_page.gather(
            warehouse,
            days=days or report_page.DAYS_DEFAULT,
            since=since.date() if since else None,
            until=until.date() if until else None,
            perk=perk,
            price=report_page.Price(point_value, currency) if point_value and currency else None,
            zone=timezone,
        )
    render: dict[str, Callable[[report_page.Report], str]] = {
        "html": partial(report_page.page, title=title),
        "json": report_page.as_json,
        "csv": report_page.as_csv,
    }
    text = render[kind](figures)
    display.stop()
    if path == STDOUT:
        print(text, flush=True)
        return EXIT_OK
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingError(f"--output {path}: {error.strerror}") from None
    print(f"Wrote {path}", flush=True)
    return EXIT_OK


@_command("as-of 2026-10-01T12:00Z > balances.csv", "0 printed, 2 error")
@click.argument("moment", metavar="TIMESTAMP", callback=_parsed(values.instant))
@click.pass_obj
def as_of(options: Options, moment: datetime) -> int:
    """Print every balance as of a given time, in CSV.

    The points are those of the award's newest observation at or before TIMESTAMP. TIMESTAMP is in ISO 8601, and in UTC
    if it has no offset.
    """
    with options.warehouse() as warehouse, warehouse.read() as connection:
        streamed = connection.execution_options(yield_per=ROWS_AT_A_TIME)
        rows = streamed.execute(balances.as_of(warehouse.tables), {"moment": moment})
        display.stop()
        if options.json:
            lines = ((",\n" if number else "") + values.json_text(row._asdict()) for number, row in enumerate(rows))
            sys.stdout.writelines(chain(["[\n"], lines, ["\n]\n"]))
        else:
            writer = csv.writer(sys.stdout, lineterminator="\n")
            writer.writerow(rows.keys())
            writer.writerows([each.isoformat() if isinstance(each, datetime) else each for each in row] for row in rows)
        sys.stdout.flush()
    return EXIT_OK


@_command("explain 5e7c0ffee0c0ffee0c0ffee7", "0 printed, 1 unknown award or user, 2 error")
@click.argument("award_id", metavar="[AWARD_ID]", required=False, callback=_parsed(_pasted_id))
@click.option(
    "--user",
    "user_id",
    metavar="USER_ID",
    callback=_parsed(_pasted_id),
    help="Explain the balances of all of this user's awards instead.",
)
@click.option(
    "--perk",
    metavar="PERK",
    callback=_parsed(_pasted_perk),
    help="With --user, explain only the awards of this perk, named by its id or title.",
)
@click.option("--timezone", metavar="ZONE", default="UTC", show_default=True, help="Time zone of the printed times.")
@click.option("--csv", "is_csv", is_flag=True, help="Print CSV.")
@click.pass_obj
def explain(
    options: Options, award_id: str | None, user_id: str | None, perk: str | None, timezone: str, *, is_csv: bool
) -> int:
    """Explain why an award has its points.

    Prints the opening balance, each action with its change and the balance after it, Pepper's snapshot, changes without
    an action, and the intervals for which actions were never read.
    """
    if (award_id is None) == (user_id is None) or (perk and not user_id):
        raise click.UsageError("expected AWARD_ID, or --user with or without --perk")
    if is_csv and options.json:
        raise click.UsageError("--csv and --json are two formats; give one of them")
    zone = report_page.zone_of(timezone)
    with options.warehouse() as warehouse:
        found = explanation.explain(warehouse, award_id=award_id, user_id=user_id, perk=perk)
    if not found:
        asked = f"award {award_id}" if award_id else f"user {user_id}" + (f" and perk {perk}" if perk else "")
        hint = "; for a user's id, use --user" if award_id else "; for an award's id, leave out --user"
        logger.error(
            "no balance for %s in this warehouse: check the id, and whether its data was loaded%s", asked, hint
        )
        return EXIT_UNKNOWN
    found = explanation.in_zone(found, zone)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    options.print(
        [asdict(each) for each in found],
        explanation.as_csv(found) if is_csv else explanation.as_text(found, timezone, width),
    )
    return EXIT_OK


@_command("rebuild", "0 done, 2 error")
@click.pass_obj
def rebuild(options: Options) -> int:
    """Recompute every balance from the ledger.

    Uses Pepper's snapshots as well. On engines with transactions, readers see the old balances until the commit.
    """
    with options.warehouse() as warehouse:
        count = verification.rebuild(warehouse)
    options.print({"balances": count}, f"Recomputed {counted(count, 'balance')}")
    return EXIT_OK


@_command("replay", "0 done, 2 error")
@click.pass_obj
def replay(options: Options) -> int:
    """Retry quarantined records.

    Retries only records from the streams actions and awards. A record leaves the quarantine once it is loaded.
    """
    with options.warehouse(needs_balances=False) as warehouse:
        counts = replay_quarantine(options.target.config, warehouse)
    tried = f"{counted(counts['tried'], 'record')} from actions and awards"
    outcome = f"{counts['loaded']:,} loaded, {counts['tried'] - counts['loaded']:,} still invalid"
    left = f"{counted(counts['rejected'], 'record')} in quarantine"
    reason = "; see the column reason of rejected_records" if counts["rejected"] else ""
    options.print(counts, f"Retried {tried}: {outcome}; {left}{reason}")
    return EXIT_OK


@_command("forget 5e0c0ffee0c0ffee0c0ffee0 --dry-run", "0 done, 1 unknown user and nothing erased, 2 error")
@click.argument("user_id", metavar="USER_ID", callback=_parsed(_pasted_id))
@click.option("--dry-run", is_flag=True, help="Only count the rows that would be changed.")
@click.option(
    "--anywhere",
    is_flag=True,
    help="Erase payloads that contain USER_ID even if no action, award or balance belongs to this user.",
)
@click.pass_obj
def forget(options: Options, user_id: str, *, dry_run: bool, anywhere: bool) -> int:
    """Erase a user's personal data.

    Erases the data from payloads, columns and quarantine, and keeps ids, points and balances. USER_ID is the user's id
    in Pepper.
    """
    with options.warehouse() as warehouse:
        found = erasure.forget(warehouse, user_id, anywhere=anywhere, dry_run=dry_run)
    result = {"is_user": found.is_user, "erased": found.applies and not dry_run, **found.rows}
    options.print(result, erasure.as_text(found, dry_run=dry_run))
    return EXIT_OK if found.applies else EXIT_UNKNOWN


@_command("ddl --schemas schemas.jsonl", "0 printed, 2 error")
@click.option(
    "--schemas",
    metavar="FILE",
    type=click.File(encoding="utf-8"),
    help="File with SCHEMA messages, such as the output of `tap-pepper --test=schema`; - reads standard input.",
)
@click.pass_obj
def ddl(options: Options, schemas: TextIO | None) -> int:
    """Print the DDL that target-crm still needs.

    Run the DDL with a role that may create tables. After that, target-crm can load with a role that may not create
    tables.
    """
    try:
        statements = missing_statements(options.target, schemas or [])
    finally:
        options.target.warehouse.dispose()
    nothing = "-- nothing is missing"
    if schemas is None:
        nothing += " in the target's own tables; --schemas FILE also checks the tables of streams"
    options.print(statements, "\n\n".join(f"{statement};" for statement in statements) or nothing)
    return EXIT_OK


def _with_logging() -> click.Command:
    """Set up logging, then return the command."""
    logging.basicConfig(level=logging.WARNING, format=f"{PROGRAM}: %(message)s")
    is_debug = os.environ.get("TARGET_CRM_LOGLEVEL", "").upper() == "DEBUG"
    logging.getLogger(PROGRAM).setLevel(logging.DEBUG if is_debug else logging.INFO)
    return crm_balances


def main() -> NoReturn:
    """Run the command `crm-balances`."""
    run_cli(
        PROGRAM,
        _with_logging,
        expected=(CrmError, SingerSDKError),
        plugin=TargetCrm.name,
        error_exit_code=EXIT_ERROR,
    )
