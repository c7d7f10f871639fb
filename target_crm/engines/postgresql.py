"""PostgreSQL."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import Column, PrimaryKeyConstraint, Table, column, event, text
from sqlalchemy import table as any_table
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateTable

from target_crm.engines.base import EngineAdapter, alter_using_cast, column_names, merge_on_conflict, quoted
from target_crm.engines.copy_swap import Written
from target_crm.sql import staging
from target_crm.sql.tables import WORK, WORK_PREFIX

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy import Column, Connection, Dialect, Engine, Select, Table
    from sqlalchemy.sql.compiler import DDLCompiler

    from target_crm.engines.base import Rows
    from target_crm.sql.staging import Merge


class PostgreSQLAdapter(EngineAdapter):
    """A server with advisory locks and COPY."""

    tested = True
    widens_to = ("number", "text")
    views_follow_renames = True
    read_options: ClassVar[Mapping[str, Any]] = {"isolation_level": "REPEATABLE READ"}
    # One loader at a time per schema of a database, told apart by this number and a hash of the schema's name.
    _LOCK_CLASS = 0x63726D
    # Where the tables are, or will be: two roles may find them along different paths.
    _SCHEMA = (
        "coalesce(:schema, (SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace "
        "WHERE pg_class.oid = to_regclass('award_balances')), current_schema(), '')"
    )
    _JSON_OID = 114

    def listen(self, engine: Engine) -> None:
        """Let the server speak of times in UTC: the driver can't read the year 9999 in some other zones."""

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
        """Yes, unless a table has parts on other servers: each of them commits by itself."""
        foreign_tables = (
            "SELECT 1 FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE relkind = 'f'"
        )
        in_schema = f"{foreign_tables} AND nspname = {self._SCHEMA} LIMIT 1"
        return connection.scalar(text(in_schema), {"schema": schema}) is None

    def keys(self, connection: Connection, table: Table) -> Collection[str]:
        """The primary key; a table that is partitioned over other servers cannot declare one."""
        is_partitioned = text("SELECT relkind = 'p' FROM pg_class WHERE oid = to_regclass(:name)")
        if connection.scalar(is_partitioned, {"name": quoted(connection, table)}):
            return table.primary_key.columns.keys()
        return super().keys(connection, table)

    def widen(self, dialect: Dialect, column: Column[Any]) -> str:
        """By a cast of what is there."""
        return alter_using_cast(dialect, column)

    def empty(self, connection: Connection, table: Table) -> None:
        """By TRUNCATE, which leaves no dead rows behind; but while a backup is made it would have to wait."""
        name = quoted(connection, table)
        connection.exec_driver_sql(
            f"DO $$ BEGIN LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE NOWAIT; TRUNCATE {name}; "  # noqa: S608 - quoted names only
            f"EXCEPTION WHEN lock_not_available THEN DELETE FROM {name}; END $$"
        )

    def replace_all(self, connection: Connection, table: Table, rows: Select[Any]) -> None:
        """By way of a temporary table, which several processes can compute; then only rows that differ are written.

        Without a key, a row could be there twice, and both would be as they should.
        """
        may_have_one = connection.scalar(text("SELECT has_database_privilege(current_database(), 'TEMP')"))
        if not (may_have_one and self.keys(connection, table)):
            super().replace_all(connection, table, rows)
            return
        columns = [column(each.name, each.type) for each in rows.selected_columns]
        computed = any_table(f"{WORK_PREFIX}computed", *columns)
        connection.execute(Written(f"CREATE TEMPORARY TABLE {computed.name} ON COMMIT DROP AS", rows))
        connection.execute(staging.delete_others(table, computed))
        connection.execute(staging.insert_missing(table, computed))

    def merge(self, connection: Connection, merge: Merge) -> None:
        """By ON CONFLICT."""
        connection.execute(merge_on_conflict(insert, merge))

    def _bulk_load(self, connection: Connection, table: Table, rows: Rows) -> None:
        """By binary COPY, where the driver has it."""
        if connection.dialect.driver != "psycopg":
            super()._bulk_load(connection, table, rows)
            return
        name, columns = quoted(connection, table), column_names(connection, table)
        driver_connection: Any = connection.connection.driver_connection
        with driver_connection.cursor() as cursor:
            # As they are: an older loader may have made some wider than this one's schema says.
            types = [column.type_code for column in cursor.execute(f"SELECT {columns} FROM {name} LIMIT 0").description]  # noqa: S608 - quoted names only
            with cursor.copy(f"COPY {name} ({columns}) FROM STDIN (FORMAT BINARY)") as copy:
                # JSON is in the sender's words; the driver would write a string of it.
                copy.set_types(["text" if each == self._JSON_OID else each for each in types])
                for row in rows:
                    copy.write_row(row)


@compiles(CreateTable, "postgresql")
def _create_table(element: CreateTable, compiler: DDLCompiler, **kw: Any) -> str:
    """Work tables, which a crash may empty, are kept out of PostgreSQL's log: it would take as much as the ledger."""
    statement: str = compiler.visit_create_table(element, **kw)  # type: ignore[no-untyped-call]
    return statement.replace("CREATE TABLE", "CREATE UNLOGGED TABLE", 1) if element.element.info == WORK else statement


@compiles(PrimaryKeyConstraint, "postgresql")
def _primary_key(element: PrimaryKeyConstraint, compiler: Any, **kw: Any) -> str | None:
    """None for work tables: they are read as a whole, and an index would take longer than what it saves."""
    if element.table.info == WORK:
        return None
    constraint: str = compiler.visit_primary_key_constraint(element, **kw)
    return constraint
