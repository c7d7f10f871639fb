"""Erase a user's personal data; balances stay unchanged.

Balances need only ids, times and points. The ledger keeps those and loses the payload. The same action loaded again is
a duplicate, and does not restore the payload.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, cast, column, false, func, inspect, literal, null, or_, select
from sqlalchemy import table as any_table

from pepper_runtime.progress import display
from target_crm.balances_cli.verify import begin
from target_crm.records import values
from target_crm.records.column_types import Identifier, LongText
from target_crm.records.names import snake_case
from target_crm.records.schemas import DELETED_AT
from target_crm.sql.staging import METADATA_COLUMNS
from target_crm.sql.tables import AWARD_FIELDS
from target_crm.warehouse.stream_names import tables_of_streams

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import ColumnElement, Connection, FromClause, Select, TableClause

    from target_crm.sql.tables import Tables
    from target_crm.warehouse.connection import Warehouse

# The tables that an erasure changes, and the word for one of their rows.
NOUNS = {"actions": "action", "awards": "award", "users": "user", "rejected_records": "quarantined record"}
# Quarantined records in memory at a time; each may have some megabytes.
ROWS_AT_A_TIME = 100


@dataclass(frozen=True)
class Erased:
    """What was erased of a user, or would be.

    Attributes:
        is_known: Whether any row has the user's id.
        rows: The number of changed rows per table.
    """

    is_known: bool
    rows: dict[str, int]


def forget(warehouse: Warehouse, user_id: str, *, dry_run: bool = False) -> Erased:
    """Erase a user's personal data, in one transaction.

    - Payloads of the user's actions, and of other actions that contain the user's id.
    - All columns of the user's rows in `users` and `awards`, except ids, points and times.
    - Quarantined records that contain the id of the user or of one of the user's awards.

    Args:
        warehouse: A warehouse that is set up and has balances.
        user_id: The user's id in Pepper.
        dry_run: Only count the rows that would change.
    """
    begin("Looking for the user's rows" if dry_run else "Erasing the user's personal data")
    if dry_run:
        with warehouse.read() as connection:
            return _Erasure(connection, warehouse.tables, user_id, dry_run=True).run()
    return warehouse.commit_once(lambda connection: _Erasure(connection, warehouse.tables, user_id).run())


class _Erasure:
    """The erasure of a user's personal data in a transaction."""

    def __init__(self, connection: Connection, tables: Tables, user_id: str, *, dry_run: bool = False) -> None:
        self._connection = connection
        self._tables = tables
        self._user_id = user_id
        self._dry_run = dry_run
        self._is_known = False

    def run(self) -> Erased:
        tables = self._tables
        self._look_for(tables.actions, "user_id")
        self._look_for(tables.award_balances, "user_id")
        users = tables_of_streams(self._connection, tables).get("users", "users")
        rows = {
            "actions": self._erase_payloads(),
            "awards": self._erase_columns("awards", "user_id", kept=set(map(snake_case, AWARD_FIELDS))),
            "users": self._erase_columns(users, "_id", kept={"_id"}),
            "rejected_records": self._erase_rejected(),
        }
        return Erased(self._is_known or any(rows.values()), rows)

    def _look_for(self, rows: FromClause, key: str) -> None:
        found = select(literal(1)).select_from(rows).where(rows.c[key] == self._user_id).limit(1)
        self._is_known = self._is_known or self._connection.scalar(found) is not None

    @property
    def _awards(self) -> Select[Any]:
        balances = self._tables.award_balances.c
        return select(balances.award_id).where(balances.user_id == self._user_id)

    def _erase_payloads(self) -> int:
        actions = self._tables.actions
        payload = cast(actions.c.payload, LongText())
        # A payload is stored unchanged: characters outside ASCII and slashes may be escaped.
        spellings = {values.json_text(self._user_id), json.dumps(self._user_id)}
        spellings |= {each.replace("/", "\\/") for each in spellings}
        is_users = or_(
            actions.c.user_id == self._user_id,
            actions.c.award_id.in_(self._awards),
            # Unlike LIKE, this is case-sensitive on every engine.
            *(func.replace(payload, each, "") != payload for each in sorted(spellings)),
        )
        return self._erase(actions, is_users, "payload")

    def _erase_columns(self, name: str, key: str, *, kept: set[str]) -> int:
        schema = self._tables.metadata.schema
        inspector = inspect(self._connection)
        if not inspector.has_table(name, schema=schema):
            return 0
        names = {each["name"] for each in inspector.get_columns(name, schema=schema)}
        personal = sorted(names - kept - METADATA_COLUMNS - {DELETED_AT})
        columns = [column(key, Identifier()), *map(column, personal)]
        rows = any_table(name, *columns, schema=schema)
        self._look_for(rows, key)
        return self._erase(rows, rows.c[key] == self._user_id, *personal)

    def _erase(self, rows: TableClause, where: ColumnElement[bool], *names: str) -> int:
        """Set columns of some rows to null; return how many rows had a value in one of them."""
        filled = and_(where, or_(false(), *(rows.c[name].is_not(None) for name in names)))
        count = self._connection.scalar(select(func.count()).select_from(rows).where(filled)) or 0
        if count and not self._dry_run:
            self._connection.execute(rows.update().where(filled).values(dict.fromkeys(names, null())))
        return count

    def _erase_rejected(self) -> int:
        """Empty the payloads that contain an id. The rows stay, with the reason why the record was quarantined."""
        rejected = self._tables.rejected_records
        ids = {self._user_id, *self._connection.scalars(self._awards)}
        count, last_id = 0, ""
        page = select(rejected.c.rejected_id, rejected.c.payload).order_by(rejected.c.rejected_id).limit(ROWS_AT_A_TIME)
        while rows := self._connection.execute(page.where(rejected.c.rejected_id > last_id)).all():
            last_id = rows[-1].rejected_id
            affected = [row.rejected_id for row in rows if _contains(row.payload, ids)]
            if affected and not self._dry_run:
                update = rejected.update().where(rejected.c.rejected_id.in_(affected)).values(payload="")
                self._connection.execute(update)
            count += len(affected)
            display.advance(len(rows))
        return count


def _contains(payload: str, ids: set[str]) -> bool:
    """Whether a record has one of the ids as a value, or, if it is not JSON, in its text."""
    try:
        document = values.from_json(payload)
    except ValueError:
        return any(each in payload for each in ids)
    return not ids.isdisjoint(_texts(document))


def _texts(document: Any) -> Iterator[str]:
    """Yield all values in a JSON document as text."""
    pending = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list):
            pending += value
        else:
            yield str(value)
