"""PostgreSQL."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import JSON, DateTime, Numeric, PrimaryKeyConstraint, String, column, event, text
from sqlalchemy import table as any_table
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateTable

from target_crm.engines.base import (
    ExtendedSQLAdapter,
    alter_type_using_cast,
    merge_on_conflict,
    quoted_columns,
    quoted_name,
)
from target_crm.engines.copy_swap import PrefixedQuery
from target_crm.records.column_types import ID_CHARS_MAX, ColumnTypes, register
from target_crm.records.schemas import TableLimits
from target_crm.sql import staging
from target_crm.sql.tables import WORK, WORK_PREFIX

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy import Column, Connection, Dialect, Engine, Select, Table
    from sqlalchemy.sql.compiler import DDLCompiler

    from target_crm.engines.base import Rows
    from target_crm.sql.staging import Merge


class PostgreSQLAdapter(ExtendedSQLAdapter):
    """Advisory locks, COPY, and unlogged work tables."""

    tested = True
    quotes_every_name = True
    limits = TableLimits(
        decimal_digits=None,
        reserved_columns=frozenset({"tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"}),
        columns=1_600,
    )
    widens_columns_to = ("number", "time", "text")
    views_follow_renames = True
    read_options: ClassVar[Mapping[str, Any]] = {"isolation_level": "REPEATABLE READ"}
    # The lock of a schema is this number and a hash of the schema's name: one loader at a time.
    _LOCK_CLASS = 0x63726D
    # The schema that has the tables, or will have them: two roles may have different search paths.
    _SCHEMA = (
        "coalesce(:schema, (SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace "
        "WHERE pg_class.oid = coalesce(to_regclass('_crm_version'), to_regclass('award_balances'))), "
        "current_schema(), '')"
    )
    _JSON_OID = 114

    def add_event_listeners(self, engine: Engine) -> None:
        """Set the time zone to UTC: in some others, the driver cannot read the year 9999."""

        def on_connect(driver_connection: Any, _record: object) -> None:
            with closing(driver_connection.cursor()) as cursor:
                cursor.execute("SET TIME ZONE 'UTC'")
            driver_connection.commit()

        event.listen(engine, "connect", on_connect)

    def transaction_lock(self, connection: Connection, schema: str | None) -> None:
        """Take an advisory lock, which ends with the transaction."""
        connection.execute(
            text(f"SELECT pg_advisory_xact_lock(:class, hashtext({self._SCHEMA}))"),
            {"class": self._LOCK_CLASS, "schema": schema},
        )

    def is_atomic(self, connection: Connection, schema: str | None) -> bool:
        """Yes, unless a table has partitions on other servers, each of which commits by itself."""
        foreign_tables = (
            "SELECT 1 FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE relkind = 'f'"
        )
        in_schema = f"{foreign_tables} AND nspname = {self._SCHEMA} LIMIT 1"
        return connection.scalar(text(in_schema), {"schema": schema}) is None

    def keys(self, connection: Connection, table: Table) -> Collection[str]:
        """The primary key; a table that is partitioned over other servers cannot declare one."""
        is_partitioned = text("SELECT relkind = 'p' FROM pg_class WHERE oid = to_regclass(:name)")
        if connection.scalar(is_partitioned, {"name": quoted_name(connection, table)}):
            return table.primary_key.columns.keys()
        return super().keys(connection, table)

    def widen_column(self, dialect: Dialect, column: Column[Any]) -> str:
        """Cast the values."""
        return alter_type_using_cast(dialect, column)

    def empty(self, connection: Connection, table: Table) -> None:
        """Truncate, which leaves no dead rows; but delete during a backup, for which TRUNCATE would have to wait."""
        name = quoted_name(connection, table)
        connection.exec_driver_sql(
            f"DO $$ BEGIN LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE NOWAIT; TRUNCATE {name}; "  # noqa: S608 - quoted names only
            f"EXCEPTION WHEN lock_not_available THEN DELETE FROM {name}; END $$"
        )

    def replace_all(self, connection: Connection, table: Table, rows: Select[Any]) -> None:
        """Compute the rows into a temporary table, in parallel, and write only those that differ.

        Without a key this would miss duplicates: a row that exists twice does not differ.
        """
        may_create_it = connection.scalar(text("SELECT has_database_privilege(current_database(), 'TEMP')"))
        if not (may_create_it and self.keys(connection, table)):
            super().replace_all(connection, table, rows)
            return
        columns = [column(each.name, each.type) for each in rows.selected_columns]
        computed = any_table(f"{WORK_PREFIX}computed", *columns)
        connection.execute(PrefixedQuery(f"CREATE TEMPORARY TABLE {computed.name} ON COMMIT DROP AS", rows))
        connection.execute(staging.delete_others(table, computed))
        connection.execute(staging.insert_missing(table, computed))

    def merge(self, connection: Connection, merge: Merge) -> None:
        """Merge by ON CONFLICT."""
        connection.execute(merge_on_conflict(insert, merge))

    def _bulk_load(self, connection: Connection, table: Table, rows: Rows) -> None:
        """Use binary COPY, if the driver is psycopg."""
        if connection.dialect.driver != "psycopg":
            super()._bulk_load(connection, table, rows)
            return
        name, columns = quoted_name(connection, table), quoted_columns(connection, table)
        driver_connection: Any = connection.connection.driver_connection
        with driver_connection.cursor() as cursor:
            # The types in the warehouse: another loader may have made some wider than this one's schema.
            types = [column.type_code for column in cursor.execute(f"SELECT {columns} FROM {name} LIMIT 0").description]  # noqa: S608 - quoted names only
            with cursor.copy(f"COPY {name} ({columns}) FROM STDIN (FORMAT BINARY)") as copy:
                # JSON is the sender's text; the driver would encode it as a JSON string.
                copy.set_types(["text" if each == self._JSON_OID else each for each in types])
                for row in rows:
                    copy.write_row(row)


ADAPTERS = {"postgresql": PostgreSQLAdapter()}

# Long texts keep the default collation: it distinguishes any two texts, and sorts as users expect.
register(
    "postgresql",
    ColumnTypes(
        identifier=String(ID_CHARS_MAX, collation="C"),
        whole=Numeric(),
        json=JSON(),
        instant=DateTime(timezone=True),
        keeps_time_zone=True,
    ),
)


@compiles(CreateTable, "postgresql")
def _create_table(element: CreateTable, compiler: DDLCompiler, **kw: Any) -> str:
    """Keep work tables, which a crash may empty, out of the write-ahead log."""
    statement: str = compiler.visit_create_table(element, **kw)  # type: ignore[no-untyped-call]
    return statement.replace("CREATE TABLE", "CREATE UNLOGGED TABLE", 1) if element.element.info == WORK else statement


@compiles(PrimaryKeyConstraint, "postgresql")
def _primary_key(element: PrimaryKeyConstraint, compiler: Any, **kw: Any) -> str | None:
    """Give work tables no key: they are read as a whole, so an index costs more than it saves."""
    if element.table.info == WORK:
        return None
    constraint: str = compiler.visit_primary_key_constraint(element, **kw)
    return constraint
