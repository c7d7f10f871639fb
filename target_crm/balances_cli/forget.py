"""A person forgotten: what names them leaves the warehouse, and every sum stays what it is.

Balances need ids, times and points, and nothing else. So the ledger keeps those and loses the payload, which its hash
does not cover: the same action read again is known, and leaves nothing behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, cast, column, false, func, inspect, null, or_, select
from sqlalchemy import table as any_table

from target_crm.records import values
from target_crm.records.column_types import Identifier, LongText
from target_crm.records.schemas import DELETED_AT, column_names
from target_crm.sql.staging import METADATA_COLUMNS
from target_crm.sql.tables import AWARD_FIELDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import ColumnElement, Connection, Select, Table, TableClause

    from target_crm.sql.tables import Tables
    from target_crm.warehouse.connection import Warehouse

# Rows of the quarantine that are in memory at a time; each may be a line of some megabytes.
ROWS_AT_A_TIME = 100


def forget(warehouse: Warehouse, user_id: str) -> dict[str, int]:
    """Erase what names a person, in one transaction.

    That is the payloads of their actions, and of others' that name their id; all columns of their rows of `users` and
    `awards` but for ids, points and times; and records in quarantine that name their id, or that of an award of theirs.

    Returns:
        In how many rows of each table something was erased.
    """
    erased: dict[str, int] = {}
    tables = warehouse.tables
    award_columns = set(column_names(AWARD_FIELDS, set()).values())

    def work(connection: Connection) -> None:
        erased["actions"] = _erase_payloads(connection, tables, user_id)
        erased["awards"] = _erase_columns(connection, tables, "awards", "user_id", user_id, kept=award_columns)
        erased["users"] = _erase_columns(connection, tables, "users", "_id", user_id, kept={"_id"})
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
    theirs = or_(
        actions.c.user_id == user_id,
        actions.c.award_id.in_(_awards_of(tables, user_id)),
        # Unlike LIKE, this tells upper from lower case everywhere.
        func.replace(payload, values.json_text(user_id), "") != payload,
    )
    return _erase(connection, actions, theirs, "payload")


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


def _erase(connection: Connection, rows: TableClause, whose: ColumnElement[bool], *names: str) -> int:
    """Empty columns of some rows; returns how many rows had something in them."""
    there = and_(whose, or_(false(), *(rows.c[name].is_not(None) for name in names)))
    count = connection.scalar(select(func.count()).select_from(rows).where(there)) or 0
    if count:
        connection.execute(rows.update().where(there).values(dict.fromkeys(names, null())))
    return count


def _erase_rejected(connection: Connection, rejected: Table, ids: set[str]) -> int:
    """Empty the payloads that name an id. A row stays, and with it that the record was read, and why it was refused."""
    count, last_id = 0, ""
    page = select(rejected.c.rejected_id, rejected.c.payload).order_by(rejected.c.rejected_id).limit(ROWS_AT_A_TIME)
    while rows := connection.execute(page.where(rejected.c.rejected_id > last_id)).all():
        last_id = rows[-1].rejected_id
        naming = [row.rejected_id for row in rows if _names(row.payload, ids)]
        connection.execute(rejected.update().where(rejected.c.rejected_id.in_(naming)).values(payload=""))
        count += len(naming)
    return count


def _names(payload: str, ids: set[str]) -> bool:
    """Whether a record names one of the ids; a line that is no JSON, whether it is in there."""
    try:
        document = values.from_json(payload)
    except ValueError:
        return any(each in payload for each in ids)
    return not ids.isdisjoint(_texts(document))


def _texts(document: Any) -> Iterator[str]:
    """All values in a JSON document, as texts."""
    pending = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list):
            pending += value
        else:
            yield str(value)
