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

    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.sql.base import ReadOnlyColumnCollection

WORK_PREFIX = "_crm_"
# In a table's `info`, this marks a work table, which is empty between transactions.
WORK = {"work": True}
STAGING_PREFIX = f"{WORK_PREFIX}staging_"
RUN_ID_CHARS = 32
# The counts of a run's records. `read` is the sum of the others.
COUNT_DOCS = {
    "read": "Records that target-crm read: the sum of the next four columns.",
    "applied": "Records that inserted or updated a row.",
    "duplicate": "Records that the warehouse already had.",
    "superseded": "Records older than the row with the same key in the warehouse or in the batch.",
    "quarantined": "Records that were quarantined: see rejected_records.",
}
COUNTS = tuple(COUNT_DOCS)
# In a table's `info`, this key names a column with times. An engine may partition the table by month of this column.
MONTHS_OF = "months_of"
# In a table's `info`, this key names a NOT NULL column that the table had in an earlier version.
FORMER_COLUMN = "former_column"
# `DESCRIPTION` in a table's `info` says what the table holds. `SOURCE` in a column's `info` names the field in Pepper
# that the column comes from.
DESCRIPTION, SOURCE = "description", "source"
# Descriptions of the columns that every stream's table has.
METADATA_DOCS = {
    EXTRA: "Fields that the stream's schema does not name, as a JSON object.",
    EXTRACTED_AT: "When the tap read the row (time_extracted in the RECORD message).",
    BATCHED_AT: "When the target loaded the row.",
    TABLE_VERSION: "The version of the last complete read that emitted the row; null if the tap sent no version.",
    DELETED_AT: "When the row was deleted in the source, or found missing there; null while it exists.",
}
# Descriptions of the columns of `awards` that balances need.
AWARD_DOCS = {
    "_id": "The award's key.",
    "points": "The points of the award in this snapshot.",
    "user_id": "The user who holds the award.",
    "perk_id": "The perk that the award belongs to.",
    "updated_at": "When Pepper last changed the award.",
}
# Descriptions of the views' columns that `award_balances` does not have.
VIEW_DOCS = {
    "award_count": "The number of the user's awards for this perk that are not deleted.",
    "explained": "earned_total - redeemed_total + refunded_total.",
    "unexplained": "points - explained: the sum of opening and adjusted.",
    "adjusted": "points - opening - explained: edits in Pepper, expiries, or actions that were not read.",
    "snapshot_points": "The points of the award's snapshot.",
    "snapshot_as_of": "The time of the award's snapshot.",
}
# The properties of an award that balances need. Their types do not depend on the SCHEMA message.
AWARD_FIELDS = {"_id": IDENTIFIER, "points": POINTS, "userId": IDENTIFIER, "perkId": IDENTIFIER, "updatedAt": INSTANT}


class Tables:
    """The target's tables in one schema of the warehouse.

    - `actions`: the ledger
    - `award_balances`: a balance per award
    - `awards`: Pepper's snapshot of each award
    - `rejected_records`: the quarantine
    - `load_runs`: how many records of each run were applied, skipped or quarantined
    - `_crm_version`, `_crm_commits`, `_crm_streams`, `_crm_columns`, `_crm_coverage`: internal tables
    - all other tables whose name begins with `_crm_`: work tables, which are empty between transactions. On some
      engines, temporary tables with the same names replace them.

    The tables in `of_balances` and the views exist only if Pepper's stream `actions` or `awards` is loaded.
    """

    def __init__(self, schema: str | None = None) -> None:
        self.metadata = MetaData(schema=schema)
        ledger_info = {
            MONTHS_OF: "occurred_at",
            FORMER_COLUMN: "content_hash",
            DESCRIPTION: "The ledger: one row per action. The target never changes a row that a balance counts.",
        }
        self.actions = Table("actions", self.metadata, *_ledger_columns(), info=ledger_info)
        self.award_balances = Table(
            "award_balances",
            self.metadata,
            *_balance_columns(),
            info={DESCRIPTION: "One row per award: its newest known points, and sums over its actions."},
        )
        award_shape = Shape.of({"properties": {}}, ["_id"], AWARD_FIELDS)
        self.awards = stream_table("awards", award_shape, schema).to_metadata(self.metadata)
        self.awards.info[DESCRIPTION] = (
            "One row per award, as Pepper last showed it. Each other selected field also has a column."
        )
        for field in award_shape.fields:
            column = self.awards.c[field.column]
            column.doc, column.info = AWARD_DOCS[field.column], {SOURCE: field.property}
        self.rejected_records = Table(
            "rejected_records",
            self.metadata,
            Column("rejected_id", Identifier(), primary_key=True, doc="A hash of stream, reason and record."),
            Column("stream", LongText(), nullable=False, doc="The stream; empty if the line does not name one."),
            Column(
                "reason",
                LongText(),
                nullable=False,
                doc="Why the record was quarantined, without values from the record.",
            ),
            Column("input_line", BigInteger, nullable=False, doc="The number of the line in the target's input."),
            Column("payload", LongText(), nullable=False, doc="The record, or the whole line if it is not a record."),
            Column("rejected_at", Instant, nullable=False, doc="When the record was quarantined."),
            Column("run_id", Identifier(), nullable=False, doc="The run that quarantined the record; see load_runs."),
            Column("extracted_at", Instant, doc="When the tap read the record (time_extracted in the RECORD message)."),
            info={DESCRIPTION: "The quarantine: one row per record that is invalid or contradicts the ledger."},
        )
        self.load_runs = Table(
            "load_runs",
            self.metadata,
            # `run_id` is short, because the size of a key is limited, and some engines count four bytes per character.
            Column("run_id", Identifier(RUN_ID_CHARS), primary_key=True, doc="The id of the run."),
            Column(
                "stream",
                Identifier(NAME_BYTES_MAX),
                primary_key=True,
                doc="The name of the stream's table; empty in the row that counts lines that name no stream.",
            ),
            Column("started_at", Instant, nullable=False, doc="When the run started."),
            Column("finished_at", Instant, doc="When the run ended; null if it has not ended yet or was killed."),
            Column("exit_state", Identifier(), doc="done or failed; null if the run has not ended yet or was killed."),
            Column("seconds", Number, nullable=False, doc="Seconds from the start of the run to its last commit."),
            *(Column(name, BigInteger, nullable=False, doc=COUNT_DOCS[name]) for name in COUNTS),
            Column(
                "ignored_activations",
                BigInteger,
                doc="The number of ACTIVATE_VERSION messages that target-crm ignored.",
            ),
            info={DESCRIPTION: "One row per run and stream, with record counts. The target keeps rows for 90 days."},
        )
        self.version = Table(
            f"{WORK_PREFIX}version",
            self.metadata,
            Column("version", BigInteger, nullable=False, doc="The version of the tables."),
            info={DESCRIPTION: "A single row with the version of the target's own tables."},
        )
        self.commits = Table(
            f"{WORK_PREFIX}commits",
            self.metadata,
            Column("batch_id", Identifier(), primary_key=True, doc="The id of the batch."),
            Column("committed_at", Instant, nullable=False, doc="When the batch was committed."),
            info={DESCRIPTION: "One row per recent batch. After a lost COMMIT, a retry looks for its batch here."},
        )
        self.streams = Table(
            f"{WORK_PREFIX}streams",
            self.metadata,
            Column("stream_id", Identifier(), primary_key=True, doc="A hash of the stream's name."),
            Column("stream", LongText(), nullable=False, doc="The stream's name."),
            Column("table_name", LongText(), nullable=False, doc="The stream's table."),
            info={DESCRIPTION: "One row per stream, with the name of its table."},
        )
        self.columns = Table(
            f"{WORK_PREFIX}columns",
            self.metadata,
            Column(
                "column_id", Identifier(), primary_key=True, doc="A hash of the stream's name and the property's name."
            ),
            Column("stream_id", Identifier(), nullable=False, doc="The stream's key in _crm_streams."),
            Column("property", LongText(), nullable=False, doc="The property's name in the stream's schema."),
            Column("column_name", LongText(), nullable=False, doc="The column that holds the property."),
            info={DESCRIPTION: "One row per property of a stream, with the name of its column."},
        )
        self.coverage = Table(
            f"{WORK_PREFIX}coverage",
            self.metadata,
            Column("interval_id", Identifier(), primary_key=True, doc="A hash of the other columns."),
            Column("merchant", LongText(), doc="A hash of Pepper's host and the merchant's code."),
            Column(
                "action_types",
                LongText(),
                doc="The types of action that were read, as a JSON list; null if all types were read.",
            ),
            Column("covered_from", Instant, nullable=False, doc="The beginning of the interval, exclusive."),
            Column("covered_until", Instant, nullable=False, doc="The end of the interval, inclusive."),
            info={DESCRIPTION: "One row per time interval for which all actions were read and committed."},
        )
        self.fresh = Table(f"{WORK_PREFIX}fresh", self.metadata, _sequence(), info=WORK)
        self.staged_actions = Staged(staging_of(self.actions).to_metadata(self.metadata), self.fresh)
        self.staged_rejections = Staged(staging_of(self.rejected_records).to_metadata(self.metadata), self.fresh)
        self.merged = Table(f"{WORK_PREFIX}merged", self.metadata, *_balance_columns(work=True), info=WORK)
        self.of_balances = {self.actions, self.award_balances, self.awards, self.staged_actions.table, self.merged}
        for table in self.metadata.tables.values():
            if DESCRIPTION in table.info:
                table.comment = table.info[DESCRIPTION]
                for column in table.columns:
                    column.comment = column.doc

    @property
    def reserved_names(self) -> set[str]:
        """Table names that no stream may use."""
        return {table.name for table in self.metadata.tables.values()} | set(self.views)

    @property
    def views(self) -> Mapping[str, Select[Any]]:
        """Return the name of each view, with the query that defines it."""
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
                # New columns must come last, because otherwise PostgreSQL cannot replace the view.
                exact_sum(balances.opening).label("opening"),
                exact_sum(adjusted(balances)).label("adjusted"),
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
            balances.opening,
            adjusted(balances).label("adjusted"),
        ).select_from(self.award_balances.outerjoin(self.awards, awards["_id"] == balances.award_id))


def adjusted(balances: ReadOnlyColumnCollection[str, Any]) -> ColumnElement[Any]:
    """Return the points of a balance that neither its opening balance nor an action explains.

    The table has no column for these points, because they follow from the other columns. Storing them would make each
    merge of a batch 15 % slower.
    """
    from_actions = balances.earned_total - balances.redeemed_total + balances.refunded_total
    return exact(balances.points - balances.opening - from_actions)


@cache
def tables_in(schema: str | None) -> Tables:
    """Return the target's tables in a schema. The result is cached, because statements are cached per table object."""
    return Tables(schema)


@cache
def stream_table(name: str, shape: Shape, schema: str | None) -> Table:
    """Return the table of a stream: its fields, `_sdc_extra` for properties without a column, and metadata columns."""
    fields = [
        Column(field.column, field.kind.type, primary_key=field.column in shape.keys, autoincrement=False)
        for field in shape.fields
    ]
    return Table(
        name,
        MetaData(schema=schema),
        *fields,
        Column(EXTRA, JsonText, doc=METADATA_DOCS[EXTRA]),
        Column(EXTRACTED_AT, Instant, doc=METADATA_DOCS[EXTRACTED_AT]),
        Column(BATCHED_AT, Instant, doc=METADATA_DOCS[BATCHED_AT]),
        Column(TABLE_VERSION, BigInteger, doc=METADATA_DOCS[TABLE_VERSION]),
        Column(DELETED_AT, Instant, doc=METADATA_DOCS[DELETED_AT]),
    )


def rebuilt_of(table: Table) -> str:
    """Return the name of the new table that receives a copy of the rows when the key or the columns change."""
    return _fitted(f"{WORK_PREFIX}rebuilt_{table.name}", NAME_BYTES_MAX)


@cache
def staging_of(table: Table, name_bytes: int = NAME_BYTES_MAX) -> Table:
    """Return the staging table of a table.

    The staging table has the same columns without constraints, and the column `_seq` with the order of arrival. Its
    name has at most `name_bytes` bytes.
    """
    columns = [Column(column.name, column.type) for column in table.columns]
    name = _fitted(f"{STAGING_PREFIX}{table.name}", name_bytes)
    return Table(name, MetaData(schema=table.schema), _sequence(), *columns, info=WORK)


@cache
def temporary(work: Table, schema: str) -> Table:
    """Return a temporary table with the name and the columns of a work table, in the schema of temporary tables."""
    columns = (Column(each.name, each.type, primary_key=each.primary_key, autoincrement=False) for each in work.columns)
    return Table(work.name, MetaData(), *columns, schema=schema, info=WORK, prefixes=["TEMPORARY"])


def _fitted(name: str, bytes_max: int) -> str:
    """Shorten a name that is too long for the engine. A shortened name ends in a hash, so that names stay distinct."""
    digest = hashlib.blake2b(name.encode(), digest_size=4).hexdigest()
    encoded = name.encode()
    if len(encoded) <= bytes_max:
        return name
    return f"{encoded[: bytes_max - 9].decode(errors='ignore')}_{digest}"


def _sequence() -> Column[int]:
    # On SQLite, a primary key of type INTEGER is the rowid, so it needs no extra index.
    place = BigInteger().with_variant(Integer(), "sqlite")
    return Column(SEQ, place, primary_key=True, autoincrement=False)


def _from(field: str) -> dict[str, str]:
    """Return the `info` of a column that comes from a field in Pepper."""
    return {SOURCE: field}


def _ledger_columns() -> list[Column[Any]]:
    return [
        Column("action_id", Identifier(), primary_key=True, doc="The action's key.", info=_from("_id")),
        Column("type", LongText(), doc="What happened, such as REDEEM_PERK. New types may appear.", info=_from("type")),
        Column("tenant_id", Identifier(), doc="The merchant's key in Pepper.", info=_from("tenantId")),
        Column("user_id", Identifier(), doc="The user who acted.", info=_from("context.user._id")),
        Column("award_id", Identifier(), doc="The award whose points changed.", info=_from("metadata.awardId")),
        Column("perk_id", Identifier(), doc="The award's perk.", info=_from("metadata.perkId")),
        Column(
            "location_id",
            Identifier(),
            doc="The location of the action; null if there was none.",
            info=_from("context.location._id"),
        ),
        Column("occurred_at", Instant, doc="When the action happened, in UTC.", info=_from("when.timestamp")),
        Column("effect", Identifier(), doc="earned, redeemed or refunded; null if the action changes no balance."),
        Column(
            "points_available",
            Points,
            doc="The award's points after the action.",
            info=_from("metadata.pointsAvailable"),
        ),
        Column("points_added", Points, doc="Points earned.", info=_from("metadata.pointsAdded")),
        Column("points_redeemed", Points, doc="Points redeemed.", info=_from("metadata.pointsRedeemed")),
        Column("points_refunded", Points, doc="Points refunded.", info=_from("metadata.pointsRefunded")),
        Column("source", LongText(), doc="The part of Pepper that reported the action.", info=_from("source")),
        Column("environment", LongText(), doc="Pepper's environment, such as BETA.", info=_from("environment")),
        Column(
            "payload",
            JsonText,
            doc="The whole action as JSON; null if store_payload is false, or if the user's data was erased.",
        ),
        Column("loaded_at", Instant, nullable=False, doc="When the target loaded the action."),
    ]


def _balance_columns(*, work: bool = False) -> list[Column[Any]]:
    zero = text("0")
    return [
        Column("award_id", Identifier(), primary_key=not work, nullable=False, doc="The award's key."),
        Column("user_id", Identifier(), doc="The user who holds the award."),
        Column("perk_id", Identifier(), doc="The award's perk."),
        Column("points", Points, nullable=False, doc="The points of the newest observation."),
        Column("as_of", Instant, nullable=False, doc="The time of the newest observation, in UTC."),
        Column(
            "as_of_source", Identifier(), nullable=False, doc="The source of points: action, or award (a snapshot)."
        ),
        Column("last_action_id", Identifier(), doc="The key of the last action with an effect; null if there is none."),
        Column(
            "earned_total", Points, nullable=False, server_default=zero, doc="Points earned: the sum over all actions."
        ),
        Column(
            "redeemed_total",
            Points,
            nullable=False,
            server_default=zero,
            doc="Points redeemed: the sum over all actions.",
        ),
        Column(
            "refunded_total",
            Points,
            nullable=False,
            server_default=zero,
            doc="Points refunded: the sum over all actions.",
        ),
        Column(
            "action_count", BigInteger, nullable=False, server_default=zero, doc="The number of actions with an effect."
        ),
        Column("first_action_at", Instant, doc="The time of the first action with an effect."),
        Column("last_action_at", Instant, doc="The time of the last action with an effect."),
        Column("updated_at", Instant, nullable=False, doc="When the target last changed the row."),
        # Columns of later versions come last and are nullable, because some engines can add columns only at the end,
        # and only nullable ones. But `opening` is never null.
        Column(
            "first_action_id", Identifier(), doc="The key of the first action with an effect; null if there is none."
        ),
        Column(
            "opening", Points, doc="The points before the first action; if there is no action, the snapshot's points."
        ),
    ]
