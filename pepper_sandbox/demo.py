"""Load a simulated Pepper into `output/crm.db` with Meltano, and compare every balance with Pepper's.

`./dev demo` runs this in the project's root, with Meltano and the plugins on the PATH.
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
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from pepper_sandbox.server import Sandbox
from pepper_sandbox.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

FULL_LOAD = ("meltano", "run", "perks", "loyalty")
POLL = ("meltano", "run", "loyalty")
RUN_SECONDS_MAX = 300
LOG_TAIL_LINES = 25
MISMATCHES_SHOWN_MAX = 10
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
    """Load, advance time, load again and compare. Return the exit code: 0 if all balances match, else 1."""
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
            stored = connection.execute("select award_id, points from award_balances").fetchall()
        mismatches = compare({award_id: Decimal(str(points)) for award_id, points in stored}, world.balances())
    except (DemoError, OSError, sqlite3.Error) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.")
        return 130
    if mismatches:
        print(f"{len(mismatches):,} of {len(world.balances()):,} balances differ from Pepper's:")
        print(*mismatches[:MISMATCHES_SHOWN_MAX], sep="\n")
        return 1
    print(f"Compared {len(stored):,} balances with Pepper's: OK\n")
    print("Query the balances with any SQLite client:")
    print('  sqlite3 -box output/crm.db "select * from user_balances limit 5"')
    return 0


def compare(stored: Mapping[str, Decimal], true: Mapping[str, Decimal]) -> list[str]:
    """Return a line for each award whose stored points differ from the true points or exist on one side only."""
    return [
        f"  award {award_id}: stored {stored.get(award_id, 'nothing')}, Pepper has {true.get(award_id, 'nothing')}"
        for award_id in sorted(stored.keys() | true.keys())
        if stored.get(award_id) != true.get(award_id)
    ]


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
        try:
            finished = subprocess.run(  # noqa: S603 - one of two constants
                arguments, env=environment, stdout=output, stderr=output, timeout=RUN_SECONDS_MAX, check=False
            )
        except FileNotFoundError as error:
            raise DemoError("meltano not found; run ./dev demo, which installs it") from error
        except subprocess.TimeoutExpired as error:
            raise DemoError(f"{command} timed out after {RUN_SECONDS_MAX} s; see {log}") from error
    print(f"{time.monotonic() - started:.1f} s", flush=True)
    if finished.returncode:
        tail = "\n".join(log.read_text().splitlines()[-LOG_TAIL_LINES:])
        raise DemoError(f"{command} failed with exit code {finished.returncode}:\n{tail}\n(full log: {log})")


if __name__ == "__main__":
    sys.exit(main())
