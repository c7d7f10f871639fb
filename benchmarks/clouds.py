"""Calculate the cost of five-minute polls on BigQuery and Snowflake, and simulate the workers that many merchants need.

    python -m benchmarks.clouds [--merchants 1000] [--ledger 10000000] [--awards 200000] [--poll-minutes 5]

The program records the statements of a poll without executing them. It uses public list prices in US regions. Prices
change, and you may get a discount.
"""

from __future__ import annotations

import argparse
import heapq
import re
from dataclasses import dataclass
from functools import cache
from random import Random
from statistics import quantiles

from tests.helpers.statements import record_statements

MIB, TIB = 1 << 20, 1 << 40
DAY_MINUTES = 24 * 60
# How many bytes a value takes in BigQuery. A string takes its length plus two bytes. Pepper's ids are 24 hexadecimal
# digits.
TYPE_BYTES = {"STRING": 26, "TIMESTAMP": 8, "NUMERIC": 16, "INT64": 8, "FLOAT64": 8, "BOOL": 1, "DATE": 8}
COLUMN_BYTES = {
    "payload": 900,
    "type": 18,
    "effect": 8,
    "source": 8,
    "environment": 12,
    "_sdc_extra": 100,
}
# BigQuery bills a query for at least this many bytes of each table that it names.
BILLED_BYTES_MIN = 10 * MIB
# What a poll executes. The last statements of each section write to `load_runs` and `_crm_commits`.
SECTIONS = ("a batch of actions", "a batch of awards", "the end of a run")


@dataclass(frozen=True)
class Prices:
    """List prices in US dollars.

    Attributes:
        scanned_tib: BigQuery on demand, per TiB that a query reads.
        slot_hour: BigQuery Standard edition, per slot and hour.
        credit: Snowflake Standard edition, per credit. An X-Small warehouse takes one credit an hour.
    """

    scanned_tib: float = 6.25
    slot_hour: float = 0.04
    credit: float = 2.0


def statements(engine: str) -> list[str]:
    """The statements that the target executes for a poll with new rows."""
    recorded = record_statements(engine)
    return [each for section in SECTIONS for each in recorded[section] if not each.startswith("CREATE")]


@cache
def columns() -> dict[str, dict[str, int]]:
    """The size of a value in bytes, by table and column."""
    return {
        table: {
            name: COLUMN_BYTES.get(name, TYPE_BYTES[kind])
            for name, kind in re.findall(r"^\t`(\w+)` ([A-Z0-9]+)", body, re.MULTILINE)
        }
        for statements in record_statements("bigquery").values()
        for statement in statements
        for table, body in re.findall(r"CREATE TABLE `(\w+)` \((.*?)\n\)", statement, re.DOTALL)
    }


def billed_bytes(statement: str, rows: dict[str, int]) -> dict[str, int]:
    """The bytes that BigQuery bills for a statement, by table.

    BigQuery bills the columns that the statement names. If the statement changes a table, BigQuery bills all columns of
    this table.
    """
    if statement.startswith(("TRUNCATE", "LOAD ")):
        return {}
    known, billed = columns(), {}
    changed = re.match(r"(?:UPDATE|DELETE FROM) `(\w+)`", statement)
    read = statement.split(" SELECT ", 1)[-1] if statement.startswith("INSERT") else statement
    for table in set(re.findall(r"(?:FROM|JOIN|UPDATE) `(\w+)`", read)) & known.keys():
        named = set(re.findall(rf"`{table}`\.`(\w+)`", read))
        whole = changed is not None and changed[1] == table
        row_bytes = sum(size for name, size in known[table].items() if whole or name in named)
        billed[table] = max(BILLED_BYTES_MIN, row_bytes * rows.get(table, 0))
    return billed


def bigquery(polls: int, merchants: int, rows: dict[str, int], prices: Prices, slot_seconds: float) -> None:
    """Print the daily cost of BigQuery, on demand and with slots."""
    executed = statements("bigquery")
    billed = [billed_bytes(each, rows) for each in executed]
    loads = sum(each.startswith("LOAD ") for each in executed)
    ledger = sum(each.get("actions", 0) for each in billed)
    total = sum(sum(each.values()) for each in billed)
    on_demand = total / TIB * polls * prices.scanned_tib
    slot_hours = slot_seconds * (len(executed) - loads) * polls / 3600
    print(f"BigQuery: a poll with new rows takes {len(executed) - loads} statements and {loads} load jobs")
    print(f"  BigQuery bills {total / MIB:,.0f} MiB, of which {ledger / MIB:,.0f} MiB come from the ledger")
    for statement, by_table in zip(executed, billed, strict=True):
        if "actions" in by_table:
            print(f"    {by_table['actions'] / MIB:8,.0f} MiB from the ledger: {' '.join(statement.split())[:60]} …")
    each = on_demand / merchants
    print(f"  on demand: {total / TIB * polls:,.1f} TiB a day = ${on_demand:,.0f} a day, ${each:,.2f} a merchant")
    print(f"  by slots: {slot_hours:,.0f} slot hours a day = ${slot_hours * prices.slot_hour:,.0f} a day")
    print(f"  load jobs: {loads * polls:,} a day; a project may run 100,000")


def snowflake(polls: int, merchants: int, prices: Prices, statement_seconds: float, at_once: int) -> None:
    """Print the daily cost of Snowflake, for a shared warehouse and for a single merchant."""
    count = len(statements("snowflake"))
    busy_seconds = count * statement_seconds
    clusters = polls * busy_seconds / (24 * 3600 * at_once)
    awake = min(24.0, polls / merchants * max(60, busy_seconds + 60) / 3600)
    print(f"Snowflake: a poll with new rows takes {count} statements, and {busy_seconds:,.0f} s of a session")
    print(
        f"  shared: {clusters:,.1f} X-Small clusters with {at_once} sessions each, all day = "
        f"${clusters * 24 * prices.credit:,.0f} a day, ${clusters * 24 * prices.credit / merchants:,.2f} a merchant"
    )
    print(
        f"  one merchant: {awake:,.1f} h a day (suspended after 60 idle seconds) = ${awake * prices.credit:,.0f} a day"
    )


def workers(
    merchants: int, poll_minutes: int, run_seconds: float, count: int, seed: int = 1
) -> tuple[float, list[float]]:
    """Simulate an hour of polls; return the workers' load, and the delay of runs in seconds (median, 99th percentile).

    Each merchant begins at a random second of the interval. The median run takes `run_seconds`, and some runs take ten
    times as long.
    """
    random, period = Random(seed), poll_minutes * 60
    due = sorted(
        random.uniform(0, period) + n * period for _ in range(merchants) for n in range(60 // poll_minutes or 1)
    )
    free, late, busy = [0.0] * count, [], 0.0
    for at in due:
        begin = max(at, heapq.heappop(free))
        taken = run_seconds * random.lognormvariate(0, 0.8)
        heapq.heappush(free, begin + taken)
        late.append(begin - at)
        busy += taken
    percentiles = quantiles(late, n=100)
    return busy / (count * max(due[-1], period)), [percentiles[49], percentiles[98]]


def main() -> None:
    """Print the costs on both engines and the simulation of the workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--merchants", type=int, default=1000)
    parser.add_argument("--ledger", type=int, default=10_000_000, help="number of actions per merchant")
    parser.add_argument("--awards", type=int, default=200_000, help="number of awards per merchant")
    parser.add_argument("--poll-minutes", type=int, default=5)
    parser.add_argument("--share-with-new-rows", type=float, default=1.0, help="fraction of polls that find new rows")
    parser.add_argument("--slot-seconds", type=float, default=2.0, help="slot seconds per statement on BigQuery")
    parser.add_argument("--statement-seconds", type=float, default=0.4, help="seconds per statement on Snowflake")
    parser.add_argument("--sessions", type=int, default=8, help="concurrent sessions on a Snowflake cluster")
    parser.add_argument("--run-seconds", type=float, default=20.0, help="median duration of a run, in seconds")
    given = parser.parse_args()
    polls = round(given.merchants * DAY_MINUTES / given.poll_minutes * given.share_with_new_rows)
    rows = {"actions": given.ledger, "awards": given.awards, "award_balances": given.awards}
    print(f"{given.merchants:,} merchants of {given.ledger:,} actions each, {polls:,} polls with new rows a day\n")
    bigquery(polls, given.merchants, rows, Prices(), given.slot_seconds)
    snowflake(polls, given.merchants, Prices(), given.statement_seconds, given.sessions)
    print("Workers: their number, how busy they are, and the delay of runs")
    least = given.merchants * given.run_seconds * 1.38 / (given.poll_minutes * 60)
    for factor in (1.05, 1.25, 1.5, 2.0):
        count = max(1, round(least * factor))
        load, (median, tail) = workers(given.merchants, given.poll_minutes, given.run_seconds, count)
        print(f"  {count:5,} workers, {load:4.0%} busy: median delay {median:5.1f} s, 1 run in 100 over {tail:5.1f} s")


if __name__ == "__main__":
    main()
