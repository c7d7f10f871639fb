"""Erase a user's personal data. Balances stay unchanged.

Balances need only ids, times and points. So in the ledger, only payloads are erased. If an erased action is loaded
again, it counts as a duplicate, and its payload stays erased.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    and_,
    case,
    cast,
    column,
    false,
    func,
    inspect,
    literal,
    literal_column,
    null,
    or_,
    select,
    union_all,
)
from sqlalchemy import table as any_table

from pepper_runtime.progress import display
from pepper_runtime.wording import counted
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

    from sqlalchemy import ColumnClause, ColumnElement, CompoundSelect, Connection, Select, TableClause

    from target_crm.sql.tables import Tables
    from target_crm.warehouse.connection import Warehouse

OWN, OTHERS = "actions", "other_actions"
# The kinds of rows that an erasure changes, in the singular and the plural.
NOUNS = {
    OWN: ("action of the user", "actions of the user"),
    OTHERS: ("other action that contains the id", "other actions that contain the id"),
    "awards": ("award", None),
    "users": ("user", None),
    "rejected_records": ("quarantined record", None),
}
# Keep only this many quarantined records in memory at a time, because each may have several megabytes.
ROWS_AT_A_TIME = 100


@dataclass(frozen=True)
class Erased:
    """The result of an erasure, or of a dry run.

    Attributes:
        is_user: Whether the id belongs to a user, according to the actions, awards, balances and `users`.
        applies: Whether data was erased, or would be erased without `dry_run`. Either the id belongs to a user, or
            `anywhere` is set and some rows contain the id.
        rows: The number of rows of each kind in `NOUNS`.
    """

    is_user: bool
    applies: bool
    rows: dict[str, int]


def forget(warehouse: Warehouse, user_id: str, *, anywhere: bool = False, dry_run: bool = False) -> Erased:
    """Erase a user's personal data, in one transaction.

    The erased data is in:

    - Payloads of the user's actions, of actions on the user's awards, and of all other actions that contain the user's
      id.
    - All columns in the user's rows of `users` and `awards`, except ids, points and times.
    - Quarantined records that contain the id of the user or of one of the user's awards.

    If the id does not belong to a user, data is erased only with `anywhere`. Without this rule, an operator who passes
    the id of a perk or a location by mistake would erase the payloads of many users.

    Args:
        warehouse: A warehouse that is set up and has balances.
        user_id: The user's id in Pepper.
        anywhere: Erase payloads that contain the id even if it does not belong to a user.
        dry_run: Only count the rows that would change.
    """
    begin("Looking for the user's rows" if dry_run else "Erasing the user's personal data")

    def erase(connection: Connection) -> Erased:
        return _Erasure(connection, warehouse.tables, user_id, anywhere=anywhere, dry_run=dry_run).run()

    if dry_run:
        with warehouse.read() as connection:
            return erase(connection)
    return warehouse.commit_once(erase)


class _Erasure:
    """The erasure of a user's personal data in a transaction."""

    def __init__(self, connection: Connection, tables: Tables, user_id: str, *, anywhere: bool, dry_run: bool) -> None:
        self._connection = connection
        self._tables = tables
        self._user_id = user_id
        self._anywhere = anywhere
        self._only_counts = dry_run

    def run(self) -> Erased:
        users = tables_of_streams(self._connection, self._tables).get("users", "users")
        is_user = self._is_user(users)
        self._only_counts |= not (is_user or self._anywhere)
        key = column("_id", Identifier())
        # A snapshot may lack the user whom an action names. The balance then has the user.
        is_own_award = or_(column("user_id", Identifier()) == self._user_id, key.in_(self._balances))
        rows = {
            **self._erase_payloads(),
            "awards": self._erase_columns("awards", is_own_award, kept=set(map(snake_case, AWARD_FIELDS))),
            "users": self._erase_columns(users, key == self._user_id, kept={"_id", "updated_at"}),
            "rejected_records": self._erase_rejected(),
        }
        return Erased(is_user, is_user or (self._anywhere and any(rows.values())), rows)

    def _is_user(self, users: str) -> bool:
        """Return whether the id belongs to a user.

        Ignore payloads, where the same text may be the id of something else.
        """
        tables, schema = self._tables, self._tables.metadata.schema
        keys: list[ColumnClause[Any]] = [
            tables.actions.c.user_id,
            tables.award_balances.c.user_id,
            tables.awards.c.user_id,
        ]
        if inspect(self._connection).has_table(users, schema=schema):
            keys.append(any_table(users, column("_id", Identifier()), schema=schema).c["_id"])
        found = (select(literal(1)).where(key == self._user_id).limit(1) for key in keys)
        return any(self._connection.scalar(each) is not None for each in found)

    @property
    def _balances(self) -> Select[Any]:
        balances = self._tables.award_balances.c
        return select(balances.award_id).where(balances.user_id == self._user_id)

    @property
    def _awards(self) -> CompoundSelect[Any]:
        awards = self._tables.awards.c
        return union_all(self._balances, select(awards["_id"]).where(awards.user_id == self._user_id))

    def _erase_payloads(self) -> dict[str, int]:
        actions = self._tables.actions
        payload = cast(actions.c.payload, LongText())
        # A payload is stored unchanged, so slashes and non-ASCII characters may be escaped in it.
        spellings = {values.json_text(self._user_id), json.dumps(self._user_id)}
        spellings |= {each.replace("/", "\\/") for each in spellings}
        if self._user_id.isdecimal():
            # The number alone could also be points. So find it only in properties such as `_id` and `friendId`.
            spellings |= {
                f'{name}":{space}{self._user_id}{end}' for name in ("id", "Id") for space in ("", " ") for end in ",}"
            }
        is_own = or_(actions.c.user_id == self._user_id, actions.c.award_id.in_(self._awards))
        # Do not use `NOT is_own`, which would be null for an action without a user or an award.
        is_other = case((is_own, literal_column("0")), else_=literal_column("1")) == literal_column("1")
        # Use REPLACE, because LIKE ignores case on some engines.
        contains_id = or_(*(func.replace(payload, each, "") != payload for each in sorted(spellings)))
        return {
            OWN: self._erase(actions, is_own, "payload"),
            OTHERS: self._erase(actions, and_(is_other, contains_id), "payload"),
        }

    def _erase_columns(self, name: str, where: ColumnElement[bool], *, kept: set[str]) -> int:
        schema = self._tables.metadata.schema
        inspector = inspect(self._connection)
        if not inspector.has_table(name, schema=schema):
            return 0
        names = {each["name"] for each in inspector.get_columns(name, schema=schema)}
        personal = sorted(names - kept - METADATA_COLUMNS - {DELETED_AT})
        return self._erase(any_table(name, *map(column, personal), schema=schema), where, *personal)

    def _erase(self, rows: TableClause, where: ColumnElement[bool], *names: str) -> int:
        """Set columns to null in the rows that meet a condition.

        Returns:
            The number of these rows in which at least one of the columns had a value.
        """
        filled = and_(where, or_(false(), *(rows.c[name].is_not(None) for name in names)))
        count = self._connection.scalar(select(func.count()).select_from(rows).where(filled)) or 0
        if count and not self._only_counts:
            self._connection.execute(rows.update().where(filled).values(dict.fromkeys(names, null())))
        return count

    def _erase_rejected(self) -> int:
        """Set each quarantined payload that contains one of the ids to an empty string. The row and its reason stay."""
        rejected = self._tables.rejected_records
        ids = {self._user_id, *self._connection.scalars(self._awards)}
        count, last_id = 0, ""
        page = select(rejected.c.rejected_id, rejected.c.payload).order_by(rejected.c.rejected_id).limit(ROWS_AT_A_TIME)
        while rows := self._connection.execute(page.where(rejected.c.rejected_id > last_id)).all():
            last_id = rows[-1].rejected_id
            affected = [row.rejected_id for row in rows if _contains(row.payload, ids)]
            if affected and not self._only_counts:
                update = rejected.update().where(rejected.c.rejected_id.in_(affected)).values(payload="")
                self._connection.execute(update)
            count += len(affected)
            display.advance(len(rows))
        return count


def as_text(erased: Erased, *, dry_run: bool) -> str:
    """Format the result of an erasure on one line. If nothing was erased, give the reason."""
    counts = {name: counted(count, *NOUNS[name]) for name, count in erased.rows.items()}
    if erased.applies:
        return f"{'Would erase' if dry_run else 'Erased'} personal data in {', '.join(counts.values())}"
    if not any(erased.rows.values()):
        return "No row has this id; nothing to erase"
    payloads = counted(sum(erased.rows.values()), "payload")
    return (
        f"No user has this id; nothing was erased. The id is in {payloads}, perhaps as the id of an award, a perk "
        "or a location. If it is a user's id, --anywhere erases these payloads"
    )


def _contains(payload: str, ids: set[str]) -> bool:
    """Return whether a record has one of the ids as a value. If the record is not JSON, search its text."""
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
