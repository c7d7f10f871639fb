"""DDL: the statements that create the target's tables and bring older ones to this version.

Columns are only ever added, widened and renamed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    Boolean,
    Date,
    DateTime,
    Float,
    Integer,
    MetaData,
    Numeric,
    Table,
    inspect,
    literal_column,
    select,
    text,
)
from sqlalchemy.schema import CreateColumn, CreateIndex, CreateSchema, CreateTable, DropTable
from sqlalchemy.types import JSON, String, TypeDecorator

from target_crm.engines.registry import adapter_for
from target_crm.errors import WarehouseError
from target_crm.records.schemas import BATCHED_AT, EXTRA, EXTRACTED_AT, FORMER_NAMES
from target_crm.sql.tables import STAGING_PREFIX, WORK

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import Column, ColumnElement, Connection, Delete, Dialect, Insert, Select, TextClause
    from sqlalchemy.schema import ExecutableDDLElement
    from sqlalchemy.types import TypeEngine

    from target_crm.engines.base import EngineAdapter
    from target_crm.sql.tables import Tables

    Statement = ExecutableDDLElement | TextClause | Insert | Delete

# Raise this whenever the target's own tables or views change. Older warehouses are migrated.
VERSION = 3

_KINDS: tuple[tuple[type[TypeEngine[Any]], str], ...] = (
    (JSON, "JSON"),
    (Boolean, "boolean"),
    (Integer, "integer"),
    (Numeric, "number"),
    # In SQLAlchemy 2.1, a Float is not Numeric.
    (Float, "number"),
    (DateTime, "time"),
    (Date, "date"),
    (String, "text"),
)
# What a column has to hold to be widened; `text` takes anything.
_WIDENED_FROM = {"number": "integer", "time": "date"}
# Types of dialects that do not inherit from SQLAlchemy's.
_KINDS_BY_NAME = {"TIMESTAMP_TZ": "time", "TINYINT": "boolean"}


def set_up(connection: Connection, tables: Tables, *others: Table, balances: bool) -> list[Statement]:
    """Return the statements that bring the target's own tables and views to this version, and `ensure` other tables.

    Another table with the name of an own one replaces it here, because it has more columns.

    Args:
        connection: A transaction.
        tables: The target's tables.
        others: Tables of streams.
        balances: Create the tables and views of Pepper's streams, too. Where they exist they are migrated anyway.

    Raises:
        WarehouseError: The tables have a newer version.
    """
    schema, inspector = tables.metadata.schema, inspect(connection)
    found = version(connection, tables)
    if found > VERSION:
        raise WarehouseError(f"the tables have version {found}, this target supports {VERSION}: upgrade pepper-crm")
    is_older = found < VERSION
    if is_older:
        balances |= any(inspector.has_table(table.name, schema=schema) for table in tables.of_balances)
    else:
        balances &= not has_balances(connection, tables)
    # The loader may lack the privilege to create its schema.
    is_missing = schema and not inspector.has_schema(schema)
    statements: list[Statement] = [CreateSchema(schema)] if schema and is_missing else []
    owned = [each for each in tables.metadata.sorted_tables if (balances if each in tables.of_balances else is_older)]
    wanted = {table.name: table for table in (*owned, *others)}
    last = wanted.pop(tables.merged.name, None)
    if is_older:
        statements += _renames_of_others(connection, tables, wanted)
    for table in wanted.values():
        statements += ensure(connection, table)
    if last is not None:
        for name, query in tables.views.items():
            exists = inspector.has_table(name, schema=schema)
            statements += view(_adapter(connection), connection.dialect, name, query, schema, exists=exists)
        # `has_balances` looks for it: DDL that commits at once may be interrupted before.
        statements += ensure(connection, last)
    if is_older:
        number: ColumnElement[int] = literal_column(str(VERSION))
        statements += [tables.version.delete(), tables.version.insert().values(version=number)]
    return statements


def is_set_up(connection: Connection, tables: Tables) -> bool:
    """Whether a loader has set up its tables."""
    # The oldest warehouses have no table of the version.
    inspector, schema = inspect(connection), tables.metadata.schema
    return any(inspector.has_table(each.name, schema=schema) for each in (tables.version, tables.award_balances))


def has_balances(connection: Connection, tables: Tables) -> bool:
    """Whether the tables and views of Pepper's streams exist."""
    return inspect(connection).has_table(tables.merged.name, schema=tables.metadata.schema)


def ensure(connection: Connection, table: Table) -> list[Statement]:
    """Return the statements that create a table, or add, widen and rename columns of an existing one.

    Raises:
        WarehouseError: The table cannot be changed to the new schema.
    """
    inspector = inspect(connection)
    if not inspector.has_table(table.name, schema=table.schema):
        return creation(table)
    found = {column["name"]: column["type"] for column in inspector.get_columns(table.name, schema=table.schema)}
    renames = _renames(found)
    found = {renames.get(name, name): type_ for name, type_ in found.items()}
    adapter = _adapter(connection)
    keys = adapter.keys(connection, table)
    wanted_keys = [column.name for column in table.primary_key.columns]
    # Whether work tables have keys depends on the engine, and may have changed since an older version.
    if set(keys) != set(wanted_keys) and table.info != WORK:
        raise WarehouseError(
            f"table {table.name!r} has the key {list(keys)}, the new schema {wanted_keys}: rename the stream"
        )
    try:
        changes = [
            change for column in table.columns if (change := _change(adapter, connection.dialect, table, column, found))
        ]
    except WarehouseError:
        if not table.name.startswith(STAGING_PREFIX):
            raise
        # A work table is empty between transactions.
        return [DropTable(table), *creation(table)]
    name = connection.dialect.identifier_preparer.format_table(table)
    return [
        *_rename_statements(connection, table, renames),
        *(text(f"ALTER TABLE {name} {change}") for change in changes),
    ]


def stored_kinds(connection: Connection, table: str, schema: str | None) -> dict[str, str]:
    """Column → its kind, of an existing table; nothing for a missing one."""
    inspector = inspect(connection)
    if not inspector.has_table(table, schema=schema):
        return {}
    return {column["name"]: _kind(column["type"]) for column in inspector.get_columns(table, schema=schema)}


def _renames_of_others(connection: Connection, tables: Tables, wanted: Collection[str]) -> list[Statement]:
    """The statements that give metadata columns their present names in all tables but those `wanted`.

    Raises:
        WarehouseError: a view would break.
    """
    schema = tables.metadata.schema
    inspector = inspect(connection)
    statements: list[Statement] = []
    renamed = False
    for name in sorted(inspector.get_table_names(schema)):
        renames = _renames({column["name"] for column in inspector.get_columns(name, schema=schema)})
        renamed |= bool(renames)
        if name not in wanted:
            statements += _rename_statements(connection, Table(name, MetaData(), schema=schema), renames)
    if renamed and not _adapter(connection).views_follow_renames:
        _check_views(connection, tables)
    return statements


def _renames(columns: Collection[str]) -> dict[str, str]:
    """Former → present names of the metadata columns of a stream's table, in the order of renaming.

    A stream's table is one that has the three oldest of these columns, by either name: a migration may have been
    interrupted between two columns.
    """
    former = {new: old for old, new in FORMER_NAMES.items()}
    if not all(former[new] in columns or new in columns for new in (EXTRA, EXTRACTED_AT, BATCHED_AT)):
        return {}
    renames: dict[str, str] = {}
    for old, new in FORMER_NAMES.items():
        if old in columns:
            # A property of this name had it for its column; from now on `assign_columns` gives it the next.
            renames |= {new: f"{new}_2"} if new in columns else {}
            renames[old] = new
    return renames


def _rename_statements(connection: Connection, table: Table, renames: dict[str, str]) -> list[Statement]:
    adapter = _adapter(connection)
    return [text(adapter.rename_column(connection.dialect, table, old, new)) for old, new in renames.items()]


def _check_views(connection: Connection, tables: Tables) -> None:
    schema, adapter = tables.metadata.schema, _adapter(connection)
    former_name = re.compile(rf"\b({'|'.join(FORMER_NAMES)})\b", re.IGNORECASE)
    for name in set(inspect(connection).get_view_names(schema)) - set(tables.views):
        found = former_name.search(adapter.view_definition(connection, name, schema))
        if found:
            former = found[1].lower()
            raise WarehouseError(
                f"view {name!r} reads the column {former}, which this version renames to {FORMER_NAMES[former]}: "
                "drop the view, load once, and create it again with the new name"
            )


def version(connection: Connection, tables: Tables) -> int:
    """The version of the tables; 0 if there are none or if they are older than the table of the version."""
    if not inspect(connection).has_table(tables.version.name, schema=tables.metadata.schema):
        return 0
    return connection.scalar(select(tables.version.c.version)) or 0


def _change(
    adapter: EngineAdapter, dialect: Dialect, table: Table, column: Column[Any], found: dict[str, TypeEngine[Any]]
) -> str | None:
    """The ALTER TABLE clause that adds or widens a column, if one is needed."""
    if column.name not in found:
        return f"{adapter.add_column} {CreateColumn(column).compile(dialect=dialect)}"
    old, new = _kind(found[column.name]), _kind(_type_in_ddl(column.type, dialect))
    if old == new or (old, new) == ("number", "integer"):
        return None
    if new not in adapter.widens_columns_to or old != _WIDENED_FROM.get(new, old):
        raise WarehouseError(
            f"table {table.name!r}: column {column.name!r} holds {old}, the new schema says {new}, and {dialect.name} "
            "can't widen it: rename the property by a stream map"
        )
    return adapter.widen_column(dialect, column)


def _type_in_ddl(type_: TypeEngine[Any], dialect: Dialect) -> TypeEngine[Any]:
    """The type that CREATE TABLE uses for one of our types. The dialect's own implementation may have no known kind."""
    return type_.load_dialect_impl(dialect) if isinstance(type_, TypeDecorator) else type_


def _kind(type_: TypeEngine[Any]) -> str:
    decorated = getattr(type_, "impl_instance", type_)
    if getattr(type(decorated), "python_type", None) is str:
        return "text"
    named = _KINDS_BY_NAME.get(decorated.__visit_name__)
    return named or next((kind for base, kind in _KINDS if isinstance(decorated, base)), "something else")


def creation(table: Table) -> list[Statement]:
    """Return the statements that create a table."""
    return [CreateTable(table), *map(CreateIndex, table.indexes)]


def view(
    adapter: EngineAdapter, dialect: Dialect, name: str, query: Select[Any], schema: str | None, *, exists: bool
) -> list[Statement]:
    """Return the statements that create a view or replace an older one."""
    quote = dialect.identifier_preparer.quote
    quoted = f"{quote(schema)}.{quote(name)}" if schema else quote(name)
    body = query.compile(dialect=dialect, compile_kwargs={"literal_binds": True})
    drop = [text(f"DROP VIEW {quoted}")] if exists and not adapter.replaces_views else []
    return [*drop, text(adapter.create_view.format(name=quoted, query=body))]


def _adapter(connection: Connection) -> EngineAdapter:
    # A dialect may call itself otherwise than its URL does.
    return adapter_for(connection.engine.url.get_backend_name())
