"""The target's own tables and views, and the tables of streams."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, Column, Integer, MetaData, Table, cast, func, select, text

from target_crm.records.column_types import Identifier, Instant, JsonText, LongText, Number, Points
from target_crm.records.names import NAME_BYTES_MAX
from target_crm.records.schemas import (
    BATCHED_AT,
    DELETED_AT,
    EXTRA,
    EXTRACTED_AT,
    IDENTIFIER,
    INSTANT,
    POINTS,
    SEQ,
    TABLE_VERSION,
    Shape,
)
from target_crm.sql.functions import exact, exact_sum
from target_crm.sql.staging import Staged

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Select

WORK_PREFIX = "_crm_"
# Marks tables that are empty between transactions.
WORK = {"work": True}
STAGING_PREFIX = f"{WORK_PREFIX}staging_"
RUN_ID_CHARS = 32
# What became of the records of a run. `read` is the sum of the others.
COUNTS = ("read", "applied", "duplicate", "superseded", "quarantined")
# In a table's `info`: the column by whose months an engine may partition it.
MONTHS_OF = "months_of"
# In a table's `info`: a column that it had in an earlier version, which was NOT NULL.
FORMER_COLUMN = "former_column"
# Properties of an award that balances need. Their types do not depend on the SCHEMA message.
AWARD_FIELDS = {"_id": IDENTIFIER, "points": POINTS, "userId": IDENTIFIER, "perkId": IDENTIFIER, "updatedAt": INSTANT}


class Tables:
    """The target's tables in one schema of the warehouse.

    `actions` is the ledger, `award_balances` holds a balance per award, `awards` Pepper's snapshot of each award,
    `rejected_records` the quarantine, and `load_runs` counts what became of the records of each run. Tables named
    `_crm_…` are internal: the version of the tables, the recorded table of each stream and column of each property,
    recently committed batches, which actions were read, and work tables that are empty between transactions.

    The tables `of_balances` and the views exist only where one of Pepper's streams `actions` and `awards` is loaded.
    """

    def __init__(self, schema: str | None = None) -> None:
        self.metadata = MetaData(schema=schema)
        ledger_info = {MONTHS_OF: "occurred_at", FORMER_COLUMN: "content_hash"}
        self.actions = Table("actions", self.metadata, *_ledger_columns(), info=ledger_info)
        self.award_balances = Table("award_balances", self.metadata, *_balance_columns())
        award_shape = Shape.of({"properties": {}}, ["_id"], AWARD_FIELDS)
        self.awards = stream_table("awards", award_shape, schema).to_metadata(self.metadata)
        self.rejected_records = Table(
            "rejected_records",
            self.metadata,
            Column("rejected_id", Identifier(), primary_key=True),
            Column("stream", LongText(), nullable=False),
            Column("reason", LongText(), nullable=False),
            Column("input_line", BigInteger, nullable=False),
            Column("payload", LongText(), nullable=False),
            Column("rejected_at", Instant, nullable=False),
            Column("run_id", Identifier(), nullable=False),
            Column("extracted_at", Instant),
        )
        self.load_runs = Table(
            "load_runs",
            self.metadata,
            # The two of them as a key fit into pages of eight kilobytes, also on engines that count four per character.
            Column("run_id", Identifier(RUN_ID_CHARS), primary_key=True),
            Column("stream", Identifier(NAME_BYTES_MAX), primary_key=True),
            Column("started_at", Instant, nullable=False),
            Column("finished_at", Instant),
            Column("exit_state", Identifier()),
            Column("seconds", Number, nullable=False),
            *(Column(name, BigInteger, nullable=False) for name in COUNTS),
            Column("ignored_activations", BigInteger),
        )
        self.version = Table(f"{WORK_PREFIX}version", self.metadata, Column("version", BigInteger, nullable=False))
        self.commits = Table(
            f"{WORK_PREFIX}commits",
            self.metadata,
            Column("batch_id", Identifier(), primary_key=True),
            Column("committed_at", Instant, nullable=False),
        )
        self.streams = Table(
            f"{WORK_PREFIX}streams",
            self.metadata,
            Column("stream_id", Identifier(), primary_key=True),
            Column("stream", LongText(), nullable=False),
            Column("table_name", LongText(), nullable=False),
        )
        self.columns = Table(
            f"{WORK_PREFIX}columns",
            self.metadata,
            Column("column_id", Identifier(), primary_key=True),
            Column("stream_id", Identifier(), nullable=False),
            Column("property", LongText(), nullable=False),
            Column("column_name", LongText(), nullable=False),
        )
        self.coverage = Table(
            f"{WORK_PREFIX}coverage",
            self.metadata,
            Column("interval_id", Identifier(), primary_key=True),
            Column("merchant", LongText()),
            Column("action_types", LongText()),
            Column("covered_from", Instant, nullable=False),
            Column("covered_until", Instant, nullable=False),
        )
        self.fresh = Table(f"{WORK_PREFIX}fresh", self.metadata, _sequence(), info=WORK)
        self.staged_actions = Staged(staging_of(self.actions).to_metadata(self.metadata), self.fresh)
        self.staged_rejections = Staged(staging_of(self.rejected_records).to_metadata(self.metadata), self.fresh)
        self.merged = Table(f"{WORK_PREFIX}merged", self.metadata, *_balance_columns(work=True), info=WORK)
        self.of_balances = {self.actions, self.award_balances, self.awards, self.staged_actions.table, self.merged}

    @property
    def reserved_names(self) -> set[str]:
        """Table names that no stream may use."""
        return {table.name for table in self.metadata.tables.values()} | set(self.views)

    @property
    def views(self) -> Mapping[str, Select[Any]]:
        """Name → query of each view."""
        return {"user_balances": self._user_balances(), "award_balance_drift": self._award_balance_drift()}

    def _user_balances(self) -> Select[Any]:
        balances = self.award_balances.c
        sums = [
            exact_sum(column).label(column.name)
            for column in (balances.points, balances.earned_total, balances.redeemed_total, balances.refunded_total)
        ]
        return (
            select(
                balances.user_id,
                balances.perk_id,
                *sums,
                func.count().label("award_count"),
                cast(func.sum(balances.action_count), BigInteger).label("action_count"),
                func.max(balances.as_of).label("as_of"),
            )
            .outerjoin_from(self.award_balances, self.awards, self.awards.c["_id"] == balances.award_id)
            .where(self.awards.c[DELETED_AT].is_(None))
            .group_by(balances.user_id, balances.perk_id)
        )

    def _award_balance_drift(self) -> Select[Any]:
        balances, awards = self.award_balances.c, self.awards.c
        from_actions = exact(balances.earned_total - balances.redeemed_total + balances.refunded_total)
        return select(
            balances.award_id,
            balances.user_id,
            balances.perk_id,
            balances.points,
            from_actions.label("explained"),
            exact(balances.points - from_actions).label("unexplained"),
            balances.as_of,
            balances.as_of_source,
            awards.points.label("snapshot_points"),
            func.coalesce(awards.updated_at, awards[EXTRACTED_AT]).label("snapshot_as_of"),
        ).select_from(self.award_balances.outerjoin(self.awards, awards["_id"] == balances.award_id))


@cache
def tables_in(schema: str | None) -> Tables:
    """The target's tables in a schema. Cached, because statements are cached per table object."""
    return Tables(schema)


@cache
def stream_table(name: str, shape: Shape, schema: str | None) -> Table:
    """The table of a stream: its fields, `_sdc_extra` (properties without a column), and metadata columns."""
    fields = [
        Column(field.column, field.kind.type, primary_key=field.column in shape.keys, autoincrement=False)
        for field in shape.fields
    ]
    return Table(
        name,
        MetaData(schema=schema),
        *fields,
        Column(EXTRA, JsonText),
        Column(EXTRACTED_AT, Instant),
        Column(BATCHED_AT, Instant),
        Column(TABLE_VERSION, BigInteger),
        Column(DELETED_AT, Instant),
    )


def rebuilt_of(table: Table) -> str:
    """The name of the table into which the rows of a table are copied, to change its key or its columns."""
    return _fitted(f"{WORK_PREFIX}rebuilt_{table.name}", NAME_BYTES_MAX)


@cache
def staging_of(table: Table, name_bytes: int = NAME_BYTES_MAX) -> Table:
    """The work table of a table: `_seq`, the order of arrival, and its columns without constraints.

    Its name has at most `name_bytes` bytes.
    """
    columns = [Column(column.name, column.type) for column in table.columns]
    name = _fitted(f"{STAGING_PREFIX}{table.name}", name_bytes)
    return Table(name, MetaData(schema=table.schema), _sequence(), *columns, info=WORK)


def _fitted(name: str, bytes_max: int) -> str:
    """A name short enough for the engine. A longer one ends in a hash, so that names stay distinct."""
    digest = hashlib.blake2b(name.encode(), digest_size=4).hexdigest()
    encoded = name.encode()
    if len(encoded) <= bytes_max:
        return name
    return f"{encoded[: bytes_max - 9].decode(errors='ignore')}_{digest}"


def _sequence() -> Column[int]:
    # On SQLite, only INTEGER makes a primary key the rowid, which needs no index.
    place = BigInteger().with_variant(Integer(), "sqlite")
    return Column(SEQ, place, primary_key=True, autoincrement=False)


def _ledger_columns() -> list[Column[Any]]:
    return [
        Column("action_id", Identifier(), primary_key=True),
        Column("type", LongText()),
        Column("tenant_id", Identifier()),
        Column("user_id", Identifier()),
        Column("award_id", Identifier()),
        Column("perk_id", Identifier()),
        Column("location_id", Identifier()),
        Column("occurred_at", Instant),
        Column("effect", Identifier()),
        Column("points_available", Points),
        Column("points_added", Points),
        Column("points_redeemed", Points),
        Column("points_refunded", Points),
        Column("source", LongText()),
        Column("environment", LongText()),
        Column("payload", JsonText),
        Column("loaded_at", Instant, nullable=False),
    ]


def _balance_columns(*, work: bool = False) -> list[Column[Any]]:
    zero = text("0")
    return [
        Column("award_id", Identifier(), primary_key=not work, nullable=False),
        Column("user_id", Identifier()),
        Column("perk_id", Identifier()),
        Column("points", Points, nullable=False),
        Column("as_of", Instant, nullable=False),
        Column("as_of_source", Identifier(), nullable=False),
        Column("last_action_id", Identifier()),
        Column("earned_total", Points, nullable=False, server_default=zero),
        Column("redeemed_total", Points, nullable=False, server_default=zero),
        Column("refunded_total", Points, nullable=False, server_default=zero),
        Column("action_count", BigInteger, nullable=False, server_default=zero),
        Column("first_action_at", Instant),
        Column("last_action_at", Instant),
        Column("updated_at", Instant, nullable=False),
    ]
