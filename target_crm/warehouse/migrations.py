"""DDL: the statements that create the target's tables, and upgrade older tables to this version.

An upgrade adds, widens and renames columns. It drops only a single column, which older ledgers had, and only on engines
where this column cannot become nullable.
"""

from __future__ import annotations

import logging
import re
from itertools import chain
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    Boolean,
    Column,
    Date,
    DateTime,
    Float,
    Index,
    Insert,
    Integer,
    MetaData,
    Numeric,
    Table,
    case,
    false,
    func,
    inspect,
    literal_column,
    or_,
    select,
    text,
    true,
)
from sqlalchemy import column as any_column
from sqlalchemy import table as any_table
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import DDL, CreateColumn, CreateIndex, CreateSchema, CreateTable, DropTable, ExecutableDDLElement
from sqlalchemy.types import JSON, String, TypeDecorator

from pepper_runtime.wording import counted
from target_crm.engines.registry import adapter_for
from target_crm.errors import WarehouseError
from target_crm.records.column_types import Identifier
from target_crm.records.schemas import BATCHED_AT, EXTRA, EXTRACTED_AT, FORMER_NAMES, RANK, Stored
from target_crm.sql.functions import row_number
from target_crm.sql.tables import FORMER_COLUMN, STAGING_PREFIX, WORK, rebuilt_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sqlalchemy import ColumnElement, Connection, Delete, Dialect, Select, TextClause
    from sqlalchemy.engine.interfaces import ReflectedColumn
    from sqlalchemy.types import TypeEngine

    from target_crm.engines.base import EngineAdapter
    from target_crm.sql.tables import Tables

    Statement = ExecutableDDLElement | TextClause | Insert | Delete

logger = logging.getLogger("target-crm.warehouse")

# Raise this number whenever the target's own tables or views change. The next run then upgrades older warehouses.
VERSION = 5
# The version that added the newest columns of balances. To fill these columns, the upgrade recomputes all balances.
_BALANCES_VERSION = 5

_KINDS: tuple[tuple[type[TypeEngine[Any]], str], ...] = (
    (JSON, "JSON"),
    (Boolean, "boolean"),
    (Integer, "integer"),
    # Float comes before Numeric, because it is a subclass of Numeric before SQLAlchemy 2.1.
    (Float, "number"),
    (Numeric, "decimal"),
    (DateTime, "time"),
    (Date, "date"),
    (String, "text"),
)
# The kind of the wider column → the column kinds that can be widened to it. Every kind can be widened to `text`.
_WIDENED_FROM = {"number": {"integer", "decimal"}, "decimal": {"integer", "decimal"}, "time": {"date"}}
# The kind of an existing column, and the kind in the new schema. For these pairs, the column stays unchanged.
_KEPT = {("number", "integer"), ("number", "decimal"), ("decimal", "integer"), ("decimal", "number")}
# A double is exact for numbers with at most this many digits.
_DOUBLE_DIGITS = 15
# Dialect types that do not inherit from SQLAlchemy's types.
_KINDS_BY_NAME = {"TIMESTAMP_TZ": "time", "TINYINT": "boolean"}
# The name of a type's class → its bits, for types that cannot hold every number that the target may store.
_BITS = {
    "TinyInteger": 8,
    "UTinyInteger": 8,
    "SMALLINT": 16,
    "USmallInteger": 16,
    "MEDIUMINT": 24,
    "INTEGER": 32,
    "UInteger": 32,
    "UBigInteger": 64,
    "REAL": 32,
    "FLOAT": 32,
}
# MySQL's types for short text → how many bytes they hold.
_TEXT_BYTES = {"TINYTEXT": 2**8 - 1, "TEXT": 2**16 - 1}


class AlterTable(ExecutableDDLElement):
    """An ALTER TABLE statement, with the table that it changes."""

    def __init__(self, table: Table, statement: str) -> None:
        self.element = table
        self.statement = statement


@compiles(AlterTable)
def _alter_table(element: AlterTable, _compiler: object, **_: object) -> str:
    return element.statement


def set_up(
    connection: Connection, tables: Tables, *others: Table, balances: bool, allow_key_change: bool = False
) -> list[Statement]:
    """Return the statements that upgrade the target's own tables and views, and those of `ensure` for other tables.

    A table in `others` may have the same name as one of the target's own tables. Then the table in `others` is created,
    because it has more columns.

    Args:
        connection: A connection in a transaction.
        tables: The target's tables.
        others: The tables of streams.
        balances: Whether to create the tables and views of Pepper's streams as well. If they exist, they are always
            upgraded.
        allow_key_change: Whether to rebuild a stream's table if its key differs from the key in the SCHEMA message.

    Raises:
        WarehouseError: The tables have a newer version.
    """
    schema, inspector, adapter = tables.metadata.schema, inspect(connection), adapter_of(connection)
    found = version(connection, tables)
    if found > VERSION:
        raise WarehouseError(f"the tables have version {found}, but this target supports {VERSION}: upgrade pepper-crm")
    is_older = found < VERSION
    missing: set[Table] = set()
    recomputes = found < _BALANCES_VERSION and inspector.has_table(tables.award_balances.name, schema=schema)
    if is_older:
        balances |= any(inspector.has_table(table.name, schema=schema) for table in tables.of_balances)
    else:
        # Someone may have dropped a table.
        missing = {each for each in tables.metadata.sorted_tables if not inspector.has_table(each.name, schema=schema)}
        balances = bool(missing & tables.of_balances) if has_balances(connection, tables) else balances
        recomputes = tables.award_balances in missing and inspector.has_table(tables.actions.name, schema=schema)
    # Create the schema only if it is missing, because the loader may lack the privilege to create schemas.
    is_missing = schema and not inspector.has_schema(schema)
    statements: list[Statement] = [CreateSchema(schema)] if schema and is_missing else []
    owned = [
        each
        for each in tables.metadata.sorted_tables
        if (balances if each in tables.of_balances else is_older or each in missing)
    ]
    wanted = {table.name: table for table in (*owned, *others)}
    last = wanted.pop(tables.merged.name, None)
    if is_older:
        statements += _renames_of_others(connection, tables, wanted)
        statements += _leave_out_former_column(connection, tables.actions)
    for table in wanted.values():
        statements += ensure(connection, table, allow_key_change=allow_key_change)
    if last is not None:
        for name, query in tables.views.items():
            # MariaDB cannot return the SQL of a view whose column was renamed, but can replace the view.
            exists = not adapter.replaces_views and inspector.has_table(name, schema=schema)
            statements += view(adapter, connection.dialect, name, query, schema, exists=exists)
        # Create this table last. `has_balances` looks for it, and DDL that commits immediately may be interrupted.
        statements += ensure(connection, last)
    if recomputes:
        rows = adapter.all_balances(tables)
        stored = tables.award_balances
        statements += [stored.delete(), stored.insert().from_select(rows.selected_columns.keys(), rows)]
    if is_older:
        number: ColumnElement[int] = literal_column(str(VERSION))
        statements += [tables.version.delete(), tables.version.insert().values(version=number)]
    return statements


def recomputes_balances(statements: Sequence[Statement], tables: Tables) -> bool:
    """Return whether some of the statements of `set_up` recompute all balances."""
    return any(isinstance(each, Insert) and each.table is tables.award_balances for each in statements)


def is_set_up(connection: Connection, tables: Tables) -> bool:
    """Return whether a loader has set up its tables."""
    # The oldest warehouses do not have the version table.
    inspector, schema = inspect(connection), tables.metadata.schema
    return any(inspector.has_table(each.name, schema=schema) for each in (tables.version, tables.award_balances))


def has_balances(connection: Connection, tables: Tables) -> bool:
    """Return whether the tables and views of Pepper's streams exist."""
    return inspect(connection).has_table(tables.merged.name, schema=tables.metadata.schema)


def ensure(connection: Connection, table: Table, *, allow_key_change: bool = False) -> list[Statement]:
    """Return the statements that create a table, or add, widen and rename columns of an existing one.

    Args:
        connection: A connection to the warehouse.
        table: The table that the stream's schema needs.
        allow_key_change: Whether to rebuild the table if its key in the warehouse differs from the key in `table`.

    Raises:
        WarehouseError: The table cannot be changed to the new schema.
    """
    inspector, dialect, adapter = inspect(connection), connection.dialect, adapter_of(connection)
    if not inspector.has_table(table.name, schema=table.schema):
        _check_width(connection, table, table.columns.keys())
        if adapter.rename_table and inspector.has_table(rebuilt_of(table), schema=table.schema):
            # On an engine without transactions, an earlier run dropped the table, and stopped before it renamed the new
            # one.
            return _rename_table(connection, Table(rebuilt_of(table), MetaData(schema=table.schema)), table)
        comments = adapter.comments_on(dialect, table)
        return [*creation(table), *(DDL(comment) for comment in comments)]  # type: ignore[no-untyped-call]
    # Only target-crm uses the names of work tables, so a work table is never a view. Skipping the check saves a query.
    if table.info != WORK and table.name in adapter.view_names(connection, table.schema):
        raise WarehouseError(
            f"table {table.name!r} is a view: drop or rename the view, or rename the stream with a stream map"
        )
    existing_columns = inspector.get_columns(table.name, schema=table.schema)
    _check_generated(table, existing_columns)
    found = {column["name"]: column["type"] for column in existing_columns}
    renames = _renames(found)
    found = {renames.get(name, name): type_ for name, type_ in found.items()}
    _check_width(connection, table, found)
    # Ignore the keys of work tables. These keys depend on the engine, and older versions created other keys.
    is_work = table.info == WORK
    has_other_key = not is_work and _changes_key(
        adapter, table, adapter.keys(connection, table), allow_key_change=allow_key_change
    )
    try:
        existing = [column for column in table.columns if column.name in found]
        widened = [column for column in existing if _widens(adapter, dialect, column, found)]
    except WarehouseError:
        if not table.name.startswith(STAGING_PREFIX):
            raise
        # A work table is empty between transactions, so it can be dropped and created again.
        return [DropTable(table), *creation(table)]
    copied = {column.name for column in widened if adapter.rebuilds_to_widen(found[column.name], column)}
    # On SQLite, a numeric column can hold any number, so it needs no change.
    altered = {column.name: clause for column in widened if (clause := adapter.widen_column(dialect, column))}
    if copied and is_work:
        return [DropTable(table), *creation(table)]
    for changed_name in altered:
        _check_doubles(connection, table, table.c[changed_name], found[changed_name])
    statements = _rename_statements(connection, table, renames)
    if copied or has_other_key:
        changed = copied | altered.keys()
        return [*statements, *_rebuild(connection, table, found, changed, has_other_key=has_other_key)]
    name = dialect.identifier_preparer.format_table(table)
    for column in table.columns:
        if column.name not in found:
            clause = f"{adapter.add_column} {_in_create_table(column, dialect)}"
            statements.append(AlterTable(table, f"ALTER TABLE {name} {clause}"))
    statements += [AlterTable(table, f"ALTER TABLE {name} {change}") for change in altered.values()]
    return statements


def joined(connection: Connection, former: Table, table: Table, *, allow_key_change: bool = False) -> Table:
    """Return the table that would exist after `ensure(former)` and then `ensure(table)`.

    Args:
        connection: A connection to the warehouse.
        former: The table that an earlier schema needs. It may not exist yet.
        table: The table that a later schema needs. Its columns were named as if the former table existed.
        allow_key_change: Whether the key may change.

    Raises:
        WarehouseError: The former table cannot be changed to the new schema.
    """
    adapter, dialect = adapter_of(connection), connection.dialect
    if table.info != WORK:
        _changes_key(adapter, table, former.primary_key.columns.keys(), allow_key_change=allow_key_change)
    found = {column.name: _type_in_ddl(column.type, dialect) for column in former.columns}
    result = table.to_metadata(MetaData(schema=table.schema))
    for column in former.columns:
        if column.name not in table.c:
            result.append_column(Column(column.name, column.type, doc=column.doc))
            continue
        is_wider = _widens(adapter, dialect, table.c[column.name], found)
        becomes_key = table.c[column.name].primary_key and not column.primary_key
        if not is_wider and not becomes_key:
            # The former column may be able to hold more, so keep its type.
            result.c[column.name].type = column.type
    return result


def _changes_key(adapter: EngineAdapter, table: Table, keys: Collection[str], *, allow_key_change: bool) -> bool:
    """Return whether an existing table's key differs from the key that the stream's schema needs.

    Raises:
        WarehouseError: The key differs, but the setting does not allow a rebuild, or the engine cannot rebuild tables.
    """
    wanted_keys = table.primary_key.columns.keys()
    has_other_key = set(keys) != set(wanted_keys)
    if has_other_key and not (allow_key_change and adapter.rename_table):
        rebuild = "set allow_key_change to rebuild the table, or " if adapter.rename_table else ""
        raise WarehouseError(
            f"table {table.name!r} has the key {sorted(keys)}, but the new schema has {wanted_keys}: "
            f"{rebuild}rename the stream with a stream map"
        )
    return has_other_key


def _check_generated(table: Table, existing: Sequence[ReflectedColumn]) -> None:
    """Raise an error for a column that the warehouse computes. Not all dialects report such columns."""
    for column in existing:
        is_generated = "computed" in column or column.get("identity", {}).get("always")
        if is_generated and column["name"] in table.c:
            raise WarehouseError(
                f"table {table.name!r}: column {column['name']!r} is generated and takes no value: make it an ordinary "
                "column, or remove or rename the property with a stream map"
            )


def _check_width(connection: Connection, table: Table, found: Collection[str]) -> None:
    """Raise an error for a table with too many columns. Its staging table needs one more column, `_seq`."""
    columns_max = adapter_of(connection).limits.columns
    columns = len({*found, *table.columns.keys()})
    if columns_max and columns >= columns_max and table.info != WORK:
        raise WarehouseError(
            f"table {table.name!r} would have {columns:,} columns, more than the {columns_max - 1:,} that fit on "
            f"{connection.dialect.name}: select fewer properties in the tap, or remove some with a stream map"
        )


def _check_doubles(connection: Connection, table: Table, column: Column[Any], old: TypeEngine[Any]) -> None:
    """Raise an error if existing exact numbers would change when they become doubles."""
    has_doubles = adapter_of(connection).limits.decimal_digits is not None
    if not has_doubles or _kind_in_ddl(column, connection.dialect) != "number":
        return
    stored = any_table(table.name, any_column(column.name, old), schema=table.schema)
    exact_max = 10 ** (_DOUBLE_DIGITS - _stored(old).places)
    is_large = func.abs(stored.c[column.name]) >= exact_max
    if connection.scalar(select(func.count()).select_from(stored).where(is_large)):
        raise WarehouseError(
            f"table {table.name!r}: column {column.name!r} holds exact numbers with more than {_DOUBLE_DIGITS} digits, "
            "which the new schema would make doubles: give the property a multipleOf, or rename it with a stream map"
        )


def _rebuild(
    connection: Connection,
    table: Table,
    found: Mapping[str, TypeEngine[Any]],
    changed: Collection[str],
    *,
    has_other_key: bool,
) -> list[Statement]:
    """Return the statements that copy a table's rows into a new table, and replace the old table with the new one.

    If several rows have the same new key, only the newest is copied.

    Args:
        connection: A connection to the warehouse.
        table: The table that the stream's schema needs.
        found: Column → type, in the existing table.
        changed: The columns that get a wider type.
        has_other_key: Whether the key changes.
    """
    dialect, adapter = connection.dialect, adapter_of(connection)
    metadata = MetaData(schema=table.schema)
    old = Table(table.name, metadata, *(Column(name, type_) for name, type_ in found.items()))
    keys = table.primary_key.columns.keys()
    if has_other_key:
        _check_key_values(connection, old, keys)
    # Key columns get a new type, because a key cannot contain text without a maximum length.
    kept = {name for name in found if name in table.c and name not in changed and name not in keys}
    wanted_types = {name: _type_in_ddl(table.c[name].type, dialect) for name in kept}
    kept_types = {name: found[name] for name in kept if _stored(found[name]) != _stored(wanted_types[name])}
    new = Table(
        rebuilt_of(table),
        metadata,
        *(
            Column(each.name, kept_types.get(each.name, each.type), primary_key=each.primary_key, autoincrement=False)
            for each in table.columns
        ),
        *(Column(name, type_) for name, type_ in found.items() if name not in table.c),
    )
    values: dict[str, ColumnElement[Any]] = {column.name: column for column in old.c}
    values |= {name: adapter.converted(old.c[name], table.c[name].type) for name in changed}
    rows = select(*(value.label(name) for name, value in values.items()))
    if has_other_key and keys:
        newest = [_last_if_null(old.c[name]) for name in (EXTRACTED_AT, BATCHED_AT)]
        rank = row_number().over(partition_by=[old.c[key] for key in keys], order_by=chain.from_iterable(newest))
        ranked = rows.add_columns(rank.label(RANK)).subquery("ranked")
        rows = select(*(ranked.c[name] for name in values)).where(ranked.c[RANK] == 1)
    return [
        DropTable(new, if_exists=True),
        *creation(new),
        new.insert().from_select(list(values), rows),
        DropTable(old),
        *_rename_table(connection, new, table),
        *_indexes(connection, old),
    ]


def _last_if_null(column: ColumnElement[Any]) -> list[ColumnElement[Any]]:
    return [case((column.is_(None), 1), else_=0), column.desc()]


def _check_key_values(connection: Connection, old: Table, keys: Sequence[str]) -> None:
    """Raise an error if some rows have no value for the new key. Log a warning if several rows share a new key."""
    is_null = or_(*(old.c[key].is_(None) if key in old.c else true() for key in keys), false())
    if count := connection.scalar(select(func.count()).select_from(old).where(is_null)):
        raise WarehouseError(
            f"table {old.name!r}: the new key {list(keys)} has no value in {counted(count, 'row')}: set the value, "
            "delete these rows, or rename the stream with a stream map"
        )
    if keys:
        rows = connection.scalar(select(func.count()).select_from(old)) or 0
        distinct = select(*(old.c[key] for key in keys)).distinct().subquery()
        kept = connection.scalar(select(func.count()).select_from(distinct)) or 0
        if kept < rows:
            logger.warning(
                "table %r: keeping %s of %s rows, the newest row for each value of the new key %s",
                *(old.name, f"{kept:,}", f"{rows:,}", list(keys)),
            )


def _rename_table(connection: Connection, old: Table, new: Table) -> list[Statement]:
    preparer = connection.dialect.identifier_preparer
    names = {"old": preparer.format_table(old), "new": preparer.format_table(new), "name": preparer.quote(new.name)}
    return [text(template.format(**names)) for template in adapter_of(connection).rename_table]


def _indexes(connection: Connection, table: Table) -> list[Statement]:
    """Return the statements that create a table's indexes again, except for indexes on expressions."""
    return [
        CreateIndex(Index(index["name"], *(table.c[name] for name in names), unique=index["unique"]))
        for index in inspect(connection).get_indexes(table.name, schema=table.schema)
        if len(names := [name for name in index["column_names"] if name]) == len(index["column_names"])
    ]


def stored_columns(connection: Connection, table: str, schema: str | None) -> dict[str, Stored]:
    """Return the kind and size of the values in each column of a table. Return no columns if there is no such table."""
    inspector = inspect(connection)
    if not inspector.has_table(table, schema=schema):
        return {}
    return {column["name"]: _stored(column["type"]) for column in inspector.get_columns(table, schema=schema)}


def columns_in_ddl(table: Table, dialect: Dialect) -> dict[str, Stored]:
    """Return the kind and size of the values that each column of a table will hold. The table need not exist yet."""
    return {column.name: _stored(_type_in_ddl(column.type, dialect)) for column in table.columns}


def _renames_of_others(connection: Connection, tables: Tables, wanted: Collection[str]) -> list[Statement]:
    """Return the statements that give the metadata columns their current names, in all tables except those in `wanted`.

    Raises:
        WarehouseError: A view reads a column that would be renamed.
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
    if renamed and not adapter_of(connection).views_follow_renames:
        _check_views(connection, tables)
    return statements


def _renames(columns: Collection[str]) -> dict[str, str]:
    """Map the former names of the metadata columns in a stream's table to the current names, in the order of renaming.

    A table with the three oldest metadata columns is a stream's table. Each of these columns may have its former or its
    current name, because an upgrade may have been interrupted between two columns.
    """
    former = {new: old for old, new in FORMER_NAMES.items()}
    if not all(former[new] in columns or new in columns for new in (EXTRA, EXTRACTED_AT, BATCHED_AT)):
        return {}
    renames: dict[str, str] = {}
    for old, new in FORMER_NAMES.items():
        if old in columns:
            # A property's column already has the new name. Rename this column to the name that `assign_columns` will
            # now give the property.
            renames |= {new: f"{new}_2"} if new in columns else {}
            renames[old] = new
    return renames


def _leave_out_former_column(connection: Connection, table: Table) -> list[Statement]:
    """Return the statement that makes a column from an earlier version optional in inserts."""
    inspector, dialect, former = inspect(connection), connection.dialect, table.info[FORMER_COLUMN]
    is_present = inspector.has_table(table.name, schema=table.schema)
    columns = inspector.get_columns(table.name, schema=table.schema) if is_present else []
    if not any(column["name"] == former and not column["nullable"] for column in columns):
        return []
    quoted, type_ = dialect.identifier_preparer.quote(former), Identifier().compile(dialect)
    clause = adapter_of(connection).leave_out_column.format(name=quoted, type=type_)
    name = dialect.identifier_preparer.format_table(table)
    return [AlterTable(table, f"ALTER TABLE {name} {clause}")] if clause else []


def _rename_statements(connection: Connection, table: Table, renames: dict[str, str]) -> list[Statement]:
    adapter = adapter_of(connection)
    dialect = connection.dialect
    return [AlterTable(table, adapter.rename_column(dialect, table, old, new)) for old, new in renames.items()]


def _check_views(connection: Connection, tables: Tables) -> None:
    schema, adapter = tables.metadata.schema, adapter_of(connection)
    former_name = re.compile(rf"\b({'|'.join(FORMER_NAMES)})\b", re.IGNORECASE)
    for name in set(adapter.view_names(connection, schema)) - set(tables.views):
        found = former_name.search(adapter.view_definition(connection, name, schema))
        if found:
            former = found[1].lower()
            raise WarehouseError(
                f"view {name!r} reads the column {former}, which this version renames to {FORMER_NAMES[former]}: "
                "drop the view, load once, and create it again with the new name"
            )


def version(connection: Connection, tables: Tables) -> int:
    """Return the version of the tables.

    The result is 0 if there are no tables, or if they are older than the version table.
    """
    if not inspect(connection).has_table(tables.version.name, schema=tables.metadata.schema):
        return 0
    return connection.scalar(select(tables.version.c.version)) or 0


def _in_create_table(column: Column[Any], dialect: Dialect) -> str:
    return str(CreateColumn(column).compile(dialect=dialect))


def _widens(
    adapter: EngineAdapter, dialect: Dialect, column: Column[Any], found: Mapping[str, TypeEngine[Any]]
) -> bool:
    """Return whether an existing column must be widened.

    Raises:
        WarehouseError: The engine cannot widen the column to the new type.
    """
    old, new = _stored(found[column.name]), _stored(_type_in_ddl(column.type, dialect))
    is_wider = old.kind != new.kind or new.places > old.places
    # Apart from points, the target gives each decimal as many digits as the engine allows. Users created the others.
    is_own_decimal = (old.kind, new.kind) == ("decimal", "number") and old.digits == adapter.limits.decimal_digits
    if not is_wider or ((old.kind, new.kind) in _KEPT and not is_own_decimal):
        return False
    allowed = new.kind in adapter.widens_columns_to
    if not allowed or old.kind not in _WIDENED_FROM.get(new.kind, {old.kind}):
        raise WarehouseError(
            f"table {column.table.name!r}: column {column.name!r} holds {old.kind}, but the new schema says {new.kind}"
            f", and {dialect.name} cannot widen it: rename the property with a stream map"
        )
    return True


def _kind_in_ddl(column: Column[Any], dialect: Dialect) -> str:
    return _stored(_type_in_ddl(column.type, dialect)).kind


def _type_in_ddl(type_: TypeEngine[Any], dialect: Dialect) -> TypeEngine[Any]:
    """Return the type that CREATE TABLE uses for one of our types.

    Do not call `dialect_impl` here, because it may return a type of unknown kind.
    """
    return type_.load_dialect_impl(dialect) if isinstance(type_, TypeDecorator) else type_


def _kind(type_: TypeEngine[Any]) -> str:
    decorated = getattr(type_, "impl_instance", type_)
    if getattr(type(decorated), "python_type", None) is str:
        return "text"
    named = _KINDS_BY_NAME.get(decorated.__visit_name__)
    return named or next((kind for base, kind in _KINDS if isinstance(decorated, base)), "something else")


def _stored(type_: TypeEngine[Any]) -> Stored:
    """Return the kind and size of the values that a column of this type holds.

    A decimal type without a number of decimal places can hold any number.
    """
    kind, places = _kind(type_), getattr(type_, "scale", None)
    if kind == "decimal":
        return Stored("number") if places is None else Stored(kind, getattr(type_, "precision", None) or 0, places)
    name = type(type_).__name__
    if kind == "text":
        # Only MySQL's types have a `charset`.
        bytes_max = _TEXT_BYTES.get(name, 0) if hasattr(type_, "charset") else 0
        return Stored(kind, size=getattr(type_, "length", None) or bytes_max, is_in_bytes=bytes_max > 0)
    if kind == "time":
        # Of the types with this name, only MySQL's TIMESTAMP has an `fsp`. It stores the seconds since 1970 in 31 bits.
        return Stored(kind, size=31 if name == "TIMESTAMP" and hasattr(type_, "fsp") else 0)
    is_unsigned = bool(getattr(type_, "unsigned", False)) or name.startswith("U")
    return Stored(kind, size=_BITS.get(name, 64 if is_unsigned else 0), is_unsigned=is_unsigned)


def creation(table: Table) -> list[Statement]:
    """Return the statements that create a table and its indexes."""
    return [CreateTable(table), *map(CreateIndex, table.indexes)]


def view(
    adapter: EngineAdapter, dialect: Dialect, name: str, query: Select[Any], schema: str | None, *, exists: bool
) -> list[Statement]:
    """Return the statements that create a view. If the view exists, the first statement drops it."""
    quote = dialect.identifier_preparer.quote
    quoted = f"{quote(schema)}.{quote(name)}" if schema else quote(name)
    body = query.compile(dialect=dialect, compile_kwargs={"literal_binds": True})
    drop = [text(f"DROP VIEW {quoted}")] if exists else []
    return [*drop, text(adapter.create_view.format(name=quoted, query=body))]


def adapter_of(connection: Connection) -> EngineAdapter:
    """Return the adapter of a connection's engine."""
    # Use the engine's name from the URL, because the dialect may have another name.
    return adapter_for(connection.engine.url.get_backend_name())
