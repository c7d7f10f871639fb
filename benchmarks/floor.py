"""The floor: a minimal loader for each engine, with no checks, no quarantine and no retries.

    python -m benchmarks.floor postgresql://… < messages

The benchmarks compare target-crm with this loader. It decodes lines with msgspec, and stages them in the fastest way
that the engine offers. Then it inserts new actions into the ledger and adds them to the balances. It commits every
20,000 rows. The tables have the same columns as those of target-crm.
"""

from __future__ import annotations

import sqlite3
import sys
from datetime import datetime
from decimal import Decimal
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

BATCH_ROWS = 20_000
EFFECTS = {"REWARD_EARNED": "earned", "REDEEM_PERK": "redeemed", "AWARD_POINTS_REFUNDED": "refunded"}

Row = tuple[Any, ...]


class Named(msgspec.Struct):
    """A tenant, a user or a location."""

    id: str = msgspec.field(name="_id")


class Context(msgspec.Struct):
    """The user and the location of an action."""

    user: Named
    location: Named | None = None


class When(msgspec.Struct):
    """The time of an action."""

    timestamp: datetime


class Metadata(msgspec.Struct, rename="camel"):
    """The effect of an action on an award."""

    award_id: str | None = None
    perk_id: str | None = None
    points_available: Decimal | None = None
    points_added: Decimal | None = None
    points_redeemed: Decimal | None = None
    points_refunded: Decimal | None = None


class Action(msgspec.Struct, rename="camel"):
    """The fields of an action that have a column in the ledger."""

    id: str = msgspec.field(name="_id")
    type: str
    tenant_id: str
    source: str
    environment: str
    context: Context
    when: When
    metadata: Metadata


class Message(msgspec.Struct):
    """A Singer message."""

    type: str
    record: msgspec.Raw = msgspec.Raw()


def rows(lines: Iterable[bytes]) -> Iterator[Row]:
    """Decode each RECORD into a row of the ledger."""
    message = msgspec.json.Decoder(Message).decode
    action = msgspec.json.Decoder(Action, strict=False).decode
    for line in lines:
        record = message(line).record
        if record:
            a = action(record)
            context, metadata = a.context, a.metadata
            counts = a.type in EFFECTS and metadata.points_available is not None
            yield (
                a.id,
                a.type,
                a.tenant_id,
                context.user.id,
                metadata.award_id,
                metadata.perk_id,
                context.location and context.location.id,
                a.when.timestamp,
                EFFECTS[a.type] if counts else None,
                metadata.points_available,
                metadata.points_added,
                metadata.points_redeemed,
                metadata.points_refunded,
                a.source,
                a.environment,
                bytes(record).decode(),
            )


COLUMNS = """action_id {id}, type {text}, tenant_id {id}, user_id {id}, award_id {id}, perk_id {id}, location_id {id},
    occurred_at {time}, effect {text}, points_available {points}, points_added {points}, points_redeemed {points},
    points_refunded {points}, source {text}, environment {text}, payload {json}"""
BALANCES = """CREATE TABLE award_balances (award_id {id} PRIMARY KEY, user_id {id}, perk_id {id}, points {points},
    as_of {time}, last_action_id {id}, earned_total {points}, redeemed_total {points}, refunded_total {points},
    action_count BIGINT, first_action_at {time}, updated_at {time})"""
TYPES = {
    "postgresql": {
        "id": 'VARCHAR(255) COLLATE "C"',
        "text": "TEXT",
        "time": "TIMESTAMPTZ",
        "points": "NUMERIC(19, 4)",
        "json": "JSON",
    },
    "sqlite": dict.fromkeys(("id", "text", "time", "json"), "TEXT") | {"points": "NUMERIC(19, 4)"},
    "duckdb": dict.fromkeys(("id", "text", "json"), "VARCHAR") | {"time": "TIMESTAMP", "points": "DECIMAL(18, 4)"},
}
# First insert the rows that the ledger lacks, then add these rows to the balances of their awards.
INSERT = "INSERT INTO actions SELECT * FROM {staged} WHERE true ON CONFLICT DO NOTHING"
MERGE_BALANCES = """
    INSERT INTO award_balances AS b
    SELECT award_id, max(user_id), max(perk_id), max(CASE WHEN rank = 1 THEN points_available END), max(occurred_at),
        max(CASE WHEN rank = 1 THEN action_id END), sum(coalesce(points_added, 0)), sum(coalesce(points_redeemed, 0)),
        sum(coalesce(points_refunded, 0)), count(*), min(occurred_at), current_timestamp
    FROM (SELECT *, row_number() OVER (PARTITION BY award_id ORDER BY occurred_at DESC, action_id DESC) AS rank
          FROM {fresh} WHERE effect IS NOT NULL) AS ranked
    GROUP BY award_id
    ON CONFLICT (award_id) DO UPDATE SET
        points = CASE WHEN excluded.as_of >= b.as_of THEN excluded.points ELSE b.points END,
        last_action_id = CASE WHEN excluded.as_of >= b.as_of THEN excluded.last_action_id ELSE b.last_action_id END,
        as_of = CASE WHEN excluded.as_of >= b.as_of THEN excluded.as_of ELSE b.as_of END,
        earned_total = b.earned_total + excluded.earned_total,
        redeemed_total = b.redeemed_total + excluded.redeemed_total,
        refunded_total = b.refunded_total + excluded.refunded_total,
        action_count = b.action_count + excluded.action_count,
        first_action_at = CASE WHEN excluded.first_action_at < b.first_action_at
            THEN excluded.first_action_at ELSE b.first_action_at END,
        updated_at = excluded.updated_at"""

# DuckDB's tables have no keys here. So select the first staged row of each id that the ledger lacks.
FRESH = """
    CREATE OR REPLACE TEMP TABLE fresh AS SELECT * FROM staged WHERE rowid IN (
        SELECT min(rowid) FROM staged WHERE action_id NOT IN (SELECT action_id FROM actions) GROUP BY action_id)"""


def tables(engine: str) -> list[str]:
    """The statements that create the ledger and the balances."""
    columns = COLUMNS.format(**TYPES[engine])
    return [f"CREATE TABLE actions ({columns}, PRIMARY KEY (action_id))", BALANCES.format(**TYPES[engine])]


def into_postgresql(url: str, batches: Iterable[list[Row]]) -> None:
    """Load into PostgreSQL with binary COPY."""
    import psycopg  # noqa: PLC0415 - import the driver of this engine only

    types = ["varchar", "text", *["varchar"] * 5, "timestamptz", "text", *["numeric"] * 4, "text", "text", "json"]
    merge_balances = MERGE_BALANCES.format(fresh="fresh")
    with psycopg.connect(url) as connection:
        for statement in tables("postgresql"):
            connection.execute(statement)
        connection.execute("CREATE TEMP TABLE staged (LIKE actions) ON COMMIT DELETE ROWS")
        connection.commit()
        for batch in batches:
            with connection.cursor().copy("COPY staged FROM STDIN (FORMAT BINARY)") as copy:
                copy.set_types(types)
                for row in batch:
                    copy.write_row(row)
            insert = INSERT.format(staged="staged")
            connection.execute(f"WITH fresh AS ({insert} RETURNING *) {merge_balances}")
            connection.commit()


def into_sqlite(url: str, batches: Iterable[list[Row]]) -> None:
    """Load into SQLite with `executemany`."""
    sqlite3.register_adapter(Decimal, float)
    sqlite3.register_adapter(datetime, lambda instant: instant.replace(tzinfo=None).isoformat(" "))
    connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    for statement in (*tables("sqlite"), f"CREATE TEMP TABLE staged ({COLUMNS.format(**TYPES['sqlite'])})"):
        connection.execute(statement)
    for batch in batches:
        connection.execute("BEGIN")
        connection.executemany(f"INSERT INTO staged VALUES ({', '.join('?' * 16)})", batch)  # noqa: S608 - marks only
        connection.execute("DELETE FROM staged WHERE action_id IN (SELECT action_id FROM actions)")
        connection.execute("DELETE FROM staged WHERE rowid NOT IN (SELECT min(rowid) FROM staged GROUP BY action_id)")
        connection.execute(INSERT.format(staged="staged"))
        connection.execute(MERGE_BALANCES.format(fresh="staged"))
        connection.execute("DELETE FROM staged")
        connection.execute("COMMIT")


def into_duckdb(url: str, batches: Iterable[list[Row]]) -> None:
    """Load into DuckDB through Arrow tables."""
    import duckdb  # noqa: PLC0415
    import pyarrow  # noqa: PLC0415

    points = pyarrow.decimal128(18, 4)
    types = [*[pyarrow.string()] * 7, pyarrow.timestamp("us"), pyarrow.string(), *[points] * 4, *[pyarrow.string()] * 3]
    # With one thread, small row groups and no indexes, the load is twice as fast.
    connection = duckdb.connect(config={"threads": 1})
    connection.execute(f"ATTACH '{url.removeprefix('duckdb:///')}' AS warehouse (ROW_GROUP_SIZE 20480)")
    connection.execute("USE warehouse")
    for statement in tables("duckdb"):
        connection.execute(statement.replace(", PRIMARY KEY (action_id)", "").replace(" PRIMARY KEY", ""))
    merge_balances, update = MERGE_BALANCES.format(fresh="fresh").split("ON CONFLICT (award_id) DO UPDATE")
    names = ", ".join(name for name, *_ in connection.execute("DESCRIBE award_balances").fetchall())
    merge = f"""
        MERGE INTO award_balances AS b
        USING ({merge_balances.replace("INSERT INTO award_balances AS b", "")}) AS excluded({names})
        ON b.award_id = excluded.award_id WHEN MATCHED THEN UPDATE {update} WHEN NOT MATCHED THEN INSERT"""
    for batch in batches:
        columns = zip(types, zip(*batch, strict=True), strict=True)
        arrays = [pyarrow.array(values, type_) for type_, values in columns]
        connection.execute("BEGIN")
        connection.register("rows", pyarrow.table(arrays, names=[f"c{place}" for place in range(len(arrays))]))
        connection.execute("CREATE OR REPLACE TEMP TABLE staged AS SELECT * FROM actions LIMIT 0")
        connection.execute("INSERT INTO staged SELECT * FROM rows")
        connection.execute(FRESH)
        connection.execute("INSERT INTO actions SELECT * FROM fresh")
        connection.execute(merge)
        connection.execute("COMMIT")


def main(url: str) -> None:
    """Load the messages on standard input into an empty warehouse."""
    load = {"postgresql": into_postgresql, "sqlite": into_sqlite, "duckdb": into_duckdb}[url.split(":", maxsplit=1)[0]]
    incoming = rows(sys.stdin.buffer)
    load(url, ([first, *islice(incoming, BATCH_ROWS - 1)] for first in chain(incoming)))


if __name__ == "__main__":
    main(sys.argv[1])
