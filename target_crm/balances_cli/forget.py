"""Erase a user's personal data; balances stay unchanged.

Balances need only ids, times and points. The ledger keeps those and loses the payload. The same action loaded again is
a duplicate, and does not restore the payload.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, cast, column, false, func, inspect, null, or_, select
from sqlalchemy import table as any_table

from target_crm.records import values
from target_crm.records.column_types import Identifier, LongText
from target_crm.records.names import snake_case
from target_crm.records.schemas import DELETED_AT
from target_crm.sql.staging import METADATA_COLUMNS
from target_crm.sql.tables import AWARD_FIELDS
from target_crm.warehouse.stream_names import tables_of_streams

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import ColumnElement, Connection, Select, Table, TableClause

    from target_crm.sql.tables import Tables
    from target_crm.warehouse.connection import Warehouse

# Quarantined records in memory at a time; each may have some megabytes.
ROWS_AT_A_TIME = 100


def forget(warehouse: Warehouse, user_id: str) -> dict[str, int]:
    """Erase a user's personal data, in one transaction.

    - Payloads of the user's actions, and of other actions that contain the user's id.
    - All columns of the user's rows in `users` and `awards`, except ids, points and times.
    - Quarantined records that contain the id of the user or of one of the user's awards.

    Returns:
        The number of changed rows per table.
    """
    erased: dict[str, int] = {}
    tables = warehouse.tables
    award_columns = set(map(snake_case, AWARD_FIELDS))

    def work(connection: Connection) -> None:
        erased["actions"] = _erase_payloads(connection, tables, user_id)
        erased["awards"] = _erase_columns(connection, tables, "awards", "user_id", user_id, kept=award_columns)
        users = tables_of_streams(connection, tables).get("users", "users")
        erased["users"] = _erase_columns(connection, tables, users, "_id", user_id, kept={"_id"})
        ids = {user_id, *connection.scalars(_awards_of(tables, user_id))}
        erased["rejected_records"] = _erase_rejected(connection, tables.rejected_records, ids)

    warehouse.commit_once(work)
    return erased


def _awards_of(tables: Tables, user_id: str) -> Select[Any]:
    balances = tables.award_balances.c
    return select(balances.award_id).where(balances.user_id == user_id)


def _erase_payloads(connection: Connection, tables: Tables, user_id: str) -> int:
    actions = tables.actions
    payload = cast(actions.c.payload, LongText())
    # A payload is stored unchanged: characters outside ASCII and slashes may be escaped.
    spellings = {values.json_text(user_id), json.dumps(user_id)}
    spellings |= {each.replace("/", "\\/") for each in spellings}
    is_users = or_(
        actions.c.user_id == user_id,
        actions.c.award_id.in_(_awards_of(tables, user_id)),
        # Unlike LIKE, this is case-sensitive on every engine.
        *(func.replace(payload, each, "") != payload for each in sorted(spellings)),
    )
    return _erase(connection, actions, is_users, "payload")


def _erase_columns(connection: Connection, tables: Tables, name: str, key: str, user_id: str, *, kept: set[str]) -> int:
    schema = tables.metadata.schema
    inspector = inspect(connection)
    if not inspector.has_table(name, schema=schema):
        return 0
    names = {each["name"] for each in inspector.get_columns(name, schema=schema)}
    personal = sorted(names - kept - METADATA_COLUMNS - {DELETED_AT})
    columns = [column(key, Identifier()), *map(column, personal)]
    rows = any_table(name, *columns, schema=schema)
    return _erase(connection, rows, rows.c[key] == user_id, *personal)


def _erase(connection: Connection, rows: TableClause, where: ColumnElement[bool], *names: str) -> int:
    """Set columns of some rows to null; return how many rows had a value in one of them."""
    filled = and_(where, or_(false(), *(rows.c[name].is_not(None) for name in names)))
    count = connection.scalar(select(func.count()).select_from(rows).where(filled)) or 0
    if count:
        connection.execute(rows.update().where(filled).values(dict.fromkeys(names, null())))
    return count


def _erase_rejected(connection: Connection, rejected: Table, ids: set[str]) -> int:
    """Empty the payloads that contain an id. The rows stay, with the reason why the record was quarantined."""
    count, last_id = 0, ""
    page = select(rejected.c.rejected_id, rejected.c.payload).order_by(rejected.c.rejected_id).limit(ROWS_AT_A_TIME)
    while rows := connection.execute(page.where(rejected.c.rejected_id > last_id)).all():
        last_id = rows[-1].rejected_id
        affected = [row.rejected_id for row in rows if _contains(row.payload, ids)]
        connection.execute(rejected.update().where(rejected.c.rejected_id.in_(affected)).values(payload=""))
        count += len(affected)
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
