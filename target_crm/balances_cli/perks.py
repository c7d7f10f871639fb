"""Find the perk that the option `--perk` names, by id or title."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import column, inspect, select
from sqlalchemy import table as any_table

from target_crm.records.column_types import Identifier, Instant, LongText
from target_crm.records.schemas import DELETED_AT

if TYPE_CHECKING:
    from sqlalchemy import Connection, FromClause
    from sqlalchemy.types import TypeEngine

    from target_crm.sql.tables import Tables


def perks_table(connection: Connection, tables: Tables) -> FromClause | None:
    """Return the perks table, or None if it does not exist.

    The result has the column `_id`, and those of `title`, `type` and `_sdc_deleted_at` that exist in the warehouse.
    """
    inspector, schema = inspect(connection), tables.metadata.schema
    if not inspector.has_table("perks", schema=schema):
        return None
    found = {each["name"] for each in inspector.get_columns("perks", schema=schema)}
    types: dict[str, TypeEngine[Any]] = {"title": LongText(), "type": LongText(), DELETED_AT: Instant()}
    known = [column(name, type_) for name, type_ in types.items() if name in found]
    return any_table("perks", column("_id", Identifier()), *known, schema=schema)


def perk_ids(connection: Connection, tables: Tables, perk: str) -> set[str]:
    """Return the ids of the perks with this id or title. Several perks may have the same title.

    Ignore case, and spaces around a title.
    """
    perks = perks_table(connection, tables)
    if perks is None or "title" not in perks.c:
        return {perk}
    # Compare the titles in Python, because not every engine can compare long text.
    titled = connection.execute(select(perks.c["_id"], perks.c.title)).all()
    return {perk, *(perk_id for perk_id, title in titled if _normalized(title or "") == _normalized(perk))}


def _normalized(title: str) -> str:
    return title.strip().casefold()
