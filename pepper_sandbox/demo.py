"""Load data from a simulated Pepper into `output/crm.db` with Meltano, and compare every balance with Pepper's.

`./dev demo` runs this module in the project's root, with Meltano and the plugins on the PATH.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pepper_sandbox.server import Sandbox
from pepper_sandbox.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

FULL_LOAD = ("meltano", "run", "perks", "loyalty")
POLL = ("meltano", "run", "loyalty")
READ_AWARDS = ("meltano", "invoke", "tap-pepper--audit")
COMPARE = ("meltano", "invoke", "target-crm:compare")
DIFFERENCES = 1
"""`COMPARE` exits with this code if a balance differs."""
RUN_SECONDS_MAX = 300
LOG_TAIL_LINES = 25
USERS, HISTORY_DAYS = 500, 60
ACTIVITY = timedelta(days=3)

TOP_BALANCES = """\
select user_balances.user_id as "user", coalesce(perks.title, '(deleted perk)') as perk, points,
       earned_total as earned, redeemed_total as redeemed, refunded_total as refunded
from user_balances left join perks on perks._id = user_balances.perk_id
order by points desc, user_id limit 10"""


class DemoError(Exception):
    """The demo cannot continue; the message gives the reason."""


def main() -> int:
    """Load, advance time, load again and compare. Return the exit code: 0 if all balances match."""
    output = Path("output").resolve()
    database = output / "crm.db"
    try:
        _clear(output, database)
        world = World(users=USERS, days=HISTORY_DAYS, now=datetime.now(UTC))
        with Sandbox(world) as pepper:
            environment = {**os.environ, **_settings(pepper, output, database)}
            actions_before = world.action_count()
            print(f"Simulated Pepper at {pepper.url}: {len(world.balances()):,} awards, {actions_before:,} actions")
            _run(FULL_LOAD, environment, output / "demo.log")
            pepper.advance(ACTIVITY)
            print(f"Advanced time by {ACTIVITY.days} days: {world.action_count() - actions_before:,} new actions")
            _run(POLL, environment, output / "demo.log")
            with closing(sqlite3.connect(database)) as connection:
                cursor = connection.execute(TOP_BALANCES)
                print("", *table([column[0] for column in cursor.description], cursor.fetchall()), "", sep="\n")
            compared = _compare(environment, output / "demo.log")
    except (DemoError, OSError, sqlite3.Error) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.")
        return 130
    print(compared.stdout)
    if compared.returncode:
        return 1
    print("Query the balances with any SQLite client:")
    print('  sqlite3 -box output/crm.db "select * from user_balances limit 5"')
    return 0


def table(names: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """Yield lines of aligned columns; numbers are right-aligned, with two decimal places."""
    cells = [[f"{cell:,.2f}" if isinstance(cell, (int, float)) else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    numeric = [all(isinstance(row[index], (int, float)) for row in rows) for index in range(len(names))]
    for line in (list(names), ["─" * width for width in widths], *cells):
        aligned = zip(line, widths, numeric, strict=True)
        yield "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in aligned).rstrip()


def _clear(output: Path, database: Path) -> None:
    """Delete the database, the Meltano state and the log of an earlier demo."""
    output.mkdir(exist_ok=True)
    shutil.rmtree(output / "meltano", ignore_errors=True)
    for path in (output / "demo.log", *output.glob(f"{database.name}*")):
        path.unlink(missing_ok=True)


def _settings(pepper: Sandbox, output: Path, database: Path) -> dict[str, str]:
    return {
        "MELTANO_ENVIRONMENT": "dev",
        "MELTANO_SYS_DIR_ROOT": str(output / "meltano"),
        "MELTANO_DATABASE_URI": f"sqlite:///{output / 'meltano' / 'meltano.db'}",
        "NO_COLOR": "1",
        "TAP_PEPPER_API_URL": pepper.url,
        "TAP_PEPPER_AUTH_TOKEN": pepper.token,
        "TAP_PEPPER_APPLICATION_ID": pepper.application_id,
        "TARGET_CRM_SQLALCHEMY_URL": f"sqlite:///{database}",
    }


def _run(arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
    """Run a command and append its output to the log; on failure, raise a DemoError with the end of the log."""
    command = " ".join(arguments)
    print(f"Running `{command}` …", end=" ", flush=True)
    started = time.monotonic()
    with log.open("a") as output:
        finished = _finish(arguments, environment, stdout=output, stderr=output)
    print(f"{time.monotonic() - started:.1f} s", flush=True)
    if finished.returncode:
        raise _failure(command, finished.returncode, log)


def _compare(environment: Mapping[str, str], log: Path) -> subprocess.CompletedProcess[str]:
    """Compare all awards with the balances, and return the finished command.

    Raises:
        DemoError: The command failed for a reason other than a difference.
    """
    print(f"Running `{' '.join(READ_AWARDS)} | {' '.join(COMPARE)}` …\n", flush=True)
    with (
        log.open("a") as errors,
        subprocess.Popen(  # noqa: S603 - one of this module's constants
            READ_AWARDS, env=environment, stdout=subprocess.PIPE, stderr=errors
        ) as awards,
    ):
        compared = _finish(COMPARE, environment, stdin=awards.stdout, stdout=subprocess.PIPE, stderr=errors, text=True)
        awards.kill()
    if compared.returncode not in {0, DIFFERENCES}:
        raise _failure(" ".join(COMPARE), compared.returncode, log)
    return compared


def _finish(
    arguments: Sequence[str], environment: Mapping[str, str], **streams: Any
) -> subprocess.CompletedProcess[Any]:
    try:
        return subprocess.run(  # noqa: S603 - one of this module's constants
            arguments, env=environment, timeout=RUN_SECONDS_MAX, check=False, **streams
        )
    except FileNotFoundError as error:
        raise DemoError("meltano not found; run ./dev demo, which installs it") from error
    except subprocess.TimeoutExpired as error:
        raise DemoError(f"{' '.join(arguments)} timed out after {RUN_SECONDS_MAX} s") from error


def _failure(command: str, exit_code: int, log: Path) -> DemoError:
    tail = "\n".join(log.read_text().splitlines()[-LOG_TAIL_LINES:])
    return DemoError(f"{command} failed with exit code {exit_code}:\n{tail}\n(full log: {log})")


if __name__ == "__main__":
    sys.exit(main())
