"""The adapter for PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import JSON, DateTime, Numeric, PrimaryKeyConstraint, String, column, event, inspect, text
from sqlalchemy import table as any_table
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateTable

from target_crm.engines.base import (
    LOCK_WAIT_SECONDS,
    ExtendedSQLAdapter,
    alter_type_using_cast,
    merge_on_conflict,
    quoted_columns,
    quoted_name,
)
from target_crm.engines.copy_swap import PrefixedQuery
from target_crm.engines.driver_errors import describe, response_fields, sqlstate
from target_crm.engines.postgresql_locks import wait_for_lock
from target_crm.errors import SettingError
from target_crm.records.column_types import ID_CHARS_MAX, ColumnTypes, register
from target_crm.records.schemas import TableLimits
from target_crm.sql import balances, staging
from target_crm.sql.tables import WORK, WORK_PREFIX

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sqlalchemy import URL, Column, Connection, Dialect, Engine, Select, Table
    from sqlalchemy.sql.compiler import DDLCompiler

    from target_crm.engines.base import Rows
    from target_crm.sql.staging import Merge
    from target_crm.sql.tables import Tables


class PostgreSQLAdapter(ExtendedSQLAdapter):
    """The adapter uses PostgreSQL's advisory locks, COPY, and temporary or unlogged tables as work tables."""

    tested = True
    quotes_every_name = True
    limits = TableLimits(
        decimal_digits=None,
        reserved_columns=frozenset({"tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"}),
        columns=1_600,
        sizes=True,
    )
    widens_columns_to = ("number", "time", "text")
    views_follow_renames = True
    read_options: ClassVar[Mapping[str, Any]] = {"isolation_level": "REPEATABLE READ"}
    # This number and a hash of the schema's name identify the lock between loaders.
    _LOCK_CLASS = 0x63726D
    # If the settings name no schema, find the one that contains the tables, or will contain them. Two roles may have
    # different search paths, but must use the same lock.
    _SCHEMA = (
        "coalesce(:schema, (SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace "
        "WHERE pg_class.oid = coalesce(to_regclass('_crm_version'), to_regclass('award_balances'))), "
        "current_schema(), '')"
    )
    _JSON_OID = 114
    # Limit the waits for locks, unless the role or the database has its own limit.
    _LIMIT_WAITS = (
        f"set_config('lock_timeout', coalesce(nullif(current_setting('lock_timeout'), '0'), '{LOCK_WAIT_SECONDS}s'), "
        "true)"
    )
    # Compress long payloads with LZ4, unless someone has chosen another method. LZ4 takes the server less time than
    # pglz. Servers before version 14, or built without LZ4, only have pglz.
    _COMPRESSION = (
        "(SELECT set_config(name, 'lz4', true) FROM pg_settings "
        "WHERE name = 'default_toast_compression' AND source = 'default' AND 'lz4' = ANY(enumvals))"
    )
    _LOCK_PAUSE_SECONDS = 2
    temporary_schema = "pg_temp"
    # These states mean, in this order: no connection; a deadlock or another conflict; too few resources; a lock that
    # another session held for too long; a server that stops or starts; a session that was idle for too long.
    _RETRIABLE_STATES = ("08", "40", "53", "55P03", "57P01", "57P02", "57P03", "57P05", "25P03")
    # Errors about a statement or an object. Their detail names objects, but quotes no values.
    _STATES_WITH_DETAIL = ("0A", "2B", "42", "53", "54", "55")
    # A value is too long or out of range. The message quotes the value only if the server was converting text.
    _STATES_OF_SIZE = frozenset({"22001", "22003"})
    # A view, a rule or a generated column depends on the object that should change.
    _STATES_OF_DEPENDENTS = frozenset({"0A000", "2BP01"})

    def create_engine(self, url: URL, **options: Any) -> Engine:
        """Create a SQLAlchemy engine that also works behind a pooler.

        A pooler may execute each transaction in another session, which lacks the statements that the driver has
        prepared. So the driver prepares no statements. The option `prepare_threshold` in the URL can change this: it
        sets after how many executions psycopg prepares a statement. 0 and `none` mean never.

        The connection uses UTF-8, even if the URL, the environment or the role sets another encoding, because another
        encoding cannot represent every text.
        """
        arguments: dict[str, Any] = {}
        driver = url.get_driver_name()
        if driver == "psycopg":
            arguments["prepare_threshold"] = _prepare_threshold(url.query.get("prepare_threshold"))
        if driver in {"psycopg", "psycopg2"}:
            arguments |= {"fallback_application_name": "target-crm", "client_encoding": "utf8"}
            # A transaction that stages rows begins before the batch before is committed, but must see this batch later.
            options["isolation_level"] = "READ COMMITTED"
        return super().create_engine(
            url.difference_update_query(["prepare_threshold"]), connect_args=arguments, **options
        )

    def add_event_listeners(self, engine: Engine) -> None:
        """Set the time zone to UTC, because in some other zones the driver cannot read the year 9999.

        Set the date style to ISO, because psycopg reads times in no other style. Set both for each transaction, because
        a pooler may execute the next transaction in another session.
        """

        def on_begin(connection: Connection) -> None:
            # Set both in one statement, to save a round trip.
            connection.exec_driver_sql(
                "SELECT set_config('TimeZone', 'UTC', true), set_config('DateStyle', 'ISO', true)"
            ).one()

        event.listen(engine, "begin", on_begin)

    def is_retriable(self, error: Exception) -> bool:
        """Decide by the SQLSTATE. An error without a SQLSTATE comes from the driver, so decide by the error's class."""
        state = sqlstate(error)
        return state.startswith(self._RETRIABLE_STATES) if state else super().is_retriable(error)

    def describe_error(self, error: Exception) -> str:
        """Return the server's message, and for some errors its detail. Leave both out if they may quote a value."""
        state, server = sqlstate(error), getattr(error, "diag", None)
        fields = response_fields(error)
        message = getattr(server, "message_primary", None) or fields.get("M", "")
        detail = getattr(server, "message_detail", None) or fields.get("D")
        quotes_value = state.startswith("22") and not (state in self._STATES_OF_SIZE and '"' not in message)
        if not message or quotes_value:
            return describe(error)
        parts = [message]
        if detail and state.startswith(self._STATES_WITH_DETAIL):
            parts += detail.splitlines()
        if detail and state in self._STATES_OF_DEPENDENTS:
            parts.append("drop the dependent objects, load once, and create them again")
        return f"{type(error).__name__}: {'; '.join(part.rstrip('.') for part in parts)}"

    def transaction_lock(self, connection: Connection, schema: str | None) -> None:
        """Take an advisory lock, limit waits for other locks, and choose a compression method for this transaction."""
        key = f"(:class, hashtext({self._SCHEMA}))"
        parameters = {"class": self._LOCK_CLASS, "schema": schema}
        try_it = text(f"SELECT pg_try_advisory_xact_lock{key}, {self._LIMIT_WAITS}, {self._COMPRESSION}")
        if not connection.execute(try_it, parameters).scalar_one():
            lock = text(f"SELECT pg_advisory_xact_lock{key}")
            held = (
                "locktype = 'advisory' AND classid::bigint = :class AND objsubid = 2 "  # noqa: S608 - our own SQL
                f"AND objid::bigint = hashtext({self._SCHEMA})::bigint & {2**32 - 1} "
                "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
            wait_for_lock(connection, lambda: connection.execute(lock, parameters), held, parameters)

    def lock_tables(self, connection: Connection, tables: Sequence[Table]) -> None:
        """Lock tables in short attempts. Readers queue behind a waiting attempt, and continue between attempts.

        Lock all tables in one statement. Otherwise readers of the first table would also have to wait while this
        transaction waits for the second table.
        """
        is_table = text("SELECT relkind IN ('r', 'p') FROM pg_class WHERE oid = to_regclass(:name)")
        quoted = [quoted_name(connection, table) for table in tables]
        names = [name for name in quoted if connection.scalar(is_table, {"name": name})]
        if names:
            wait_for_lock(
                connection,
                lambda: connection.exec_driver_sql(f"LOCK TABLE {', '.join(names)} IN ACCESS EXCLUSIVE MODE"),
                "locktype = 'relation' AND relation = ANY(CAST(:names AS regclass[]))",
                {"names": names},
                pause_seconds=self._LOCK_PAUSE_SECONDS,
            )

    def is_atomic(self, connection: Connection, schema: str | None) -> bool:
        """Return True, unless the schema has foreign tables.

        They may be partitions on other servers, and each of these servers commits separately.
        """
        foreign_tables = (
            "SELECT 1 FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE relkind = 'f'"
        )
        in_schema = f"{foreign_tables} AND nspname = {self._SCHEMA} LIMIT 1"
        return connection.scalar(text(in_schema), {"schema": schema}) is None

    def may_create_temporary(self, connection: Connection) -> bool:
        """Return whether the role has the privilege TEMPORARY on the database."""
        return bool(connection.scalar(text("SELECT has_database_privilege(current_database(), 'TEMP')")))

    def stage_ahead(self, connection: Connection, table: Table, rows: Rows) -> None:
        """Stage rows in the transaction that will read them, because a pooler may execute the next one elsewhere."""
        connection.begin()
        # A payload keeps its compression method when it moves to the ledger.
        connection.exec_driver_sql(f"SELECT {self._COMPRESSION}")
        self.stage(connection, table, rows)

    def system_tables(self, connection: Connection) -> Collection[str]:
        """Return the names in the schema `pg_catalog`. PostgreSQL looks up unqualified names there first."""
        in_catalog = "SELECT relname FROM pg_class WHERE relnamespace = CAST('pg_catalog' AS regnamespace)"
        return connection.scalars(text(in_catalog)).all()

    def view_names(self, connection: Connection, schema: str | None) -> Collection[str]:
        """Return the names of the views and materialized views in a schema."""
        return [*super().view_names(connection, schema), *inspect(connection).get_materialized_view_names(schema)]

    def keys(self, connection: Connection, table: Table) -> Collection[str]:
        """Return the primary key. For a partitioned table, return the key from the stream's schema.

        A table with partitions on other servers cannot declare a key.
        """
        is_partitioned = text("SELECT relkind = 'p' FROM pg_class WHERE oid = to_regclass(:name)")
        if connection.scalar(is_partitioned, {"name": quoted_name(connection, table)}):
            return table.primary_key.columns.keys()
        return super().keys(connection, table)

    def comments_on(self, dialect: Dialect, table: Table) -> list[str]:
        """Comment on the table and all columns in a single statement, to save round trips."""
        statements = super().comments_on(dialect, table)
        return [f"DO $$ BEGIN {'; '.join(statements)}; END $$"] if statements else []

    def widen_column(self, dialect: Dialect, column: Column[Any]) -> str:
        """Return the clause that changes the type, and casts the stored values to it."""
        return alter_type_using_cast(dialect, column)

    def empty(self, connection: Connection, table: Table) -> None:
        """Use TRUNCATE, which leaves no dead rows. If the table is locked, as during a backup, use DELETE instead."""
        name = quoted_name(connection, table)
        connection.exec_driver_sql(
            f"DO $$ BEGIN LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE NOWAIT; TRUNCATE {name}; "  # noqa: S608 - quoted names only
            f"EXCEPTION WHEN lock_not_available THEN DELETE FROM {name}; END $$"
        )

    def all_balances(self, tables: Tables) -> Select[Any]:
        """Join actions and snapshots, because grouping both of them would take longer on PostgreSQL."""
        return balances.all_balances(tables, balances.partials_from_actions(tables.actions), balances.by_full_join)

    def replace_all(self, connection: Connection, table: Table, rows: Select[Any]) -> None:
        """Write the new rows to a temporary table. Then change only the rows of the table that differ.

        PostgreSQL can use several processes to fill a new table, but not to change an existing one.

        The comparison relies on the table's key. Without a key, a row that is stored twice would stay in the table.
        """
        if not (self.may_create_temporary(connection) and self.keys(connection, table)):
            super().replace_all(connection, table, rows)
            return
        columns = [column(each.name, each.type) for each in rows.selected_columns]
        computed = any_table(f"{WORK_PREFIX}computed", *columns)
        connection.execute(PrefixedQuery(f"CREATE TEMPORARY TABLE {computed.name} ON COMMIT DROP AS", rows))
        connection.execute(staging.delete_others(table, computed))
        connection.execute(staging.insert_missing(table, computed))

    def merge(self, connection: Connection, merge: Merge) -> None:
        """Merge rows with a single INSERT … ON CONFLICT statement."""
        connection.execute(merge_on_conflict(insert, merge))

    def _bulk_load(self, connection: Connection, table: Table, rows: Rows) -> None:
        """Use binary COPY if the driver is psycopg."""
        if connection.dialect.driver != "psycopg":
            super()._bulk_load(connection, table, rows)
            return
        name, columns = quoted_name(connection, table), quoted_columns(connection, table)
        driver_connection: Any = connection.connection.driver_connection
        with driver_connection.cursor() as cursor:
            # Use the types in the warehouse, because another loader may have given the columns wider types.
            types = [column.type_code for column in cursor.execute(f"SELECT {columns} FROM {name} LIMIT 0").description]  # noqa: S608 - quoted names only
            with cursor.copy(f"COPY {name} ({columns}) FROM STDIN (FORMAT BINARY)") as copy:
                # JSON values are already JSON text. The driver would encode the text again as a JSON string.
                copy.set_types(["text" if each == self._JSON_OID else each for each in types])
                for row in rows:
                    copy.write_row(row)


ADAPTERS = {"postgresql": PostgreSQLAdapter()}

# Long text keeps the default collation, which distinguishes any two texts, and sorts as users expect.
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
    """Keep work tables out of the write-ahead log. A crash may then empty them, which does no harm."""
    statement: str = compiler.visit_create_table(element, **kw)  # type: ignore[no-untyped-call]
    return statement.replace("CREATE TABLE", "CREATE UNLOGGED TABLE", 1) if element.element.info == WORK else statement


@compiles(PrimaryKeyConstraint, "postgresql")
def _primary_key(element: PrimaryKeyConstraint, compiler: Any, **kw: Any) -> str | None:
    """Give work tables no key. Queries read them as a whole, so an index would cost more than it saves."""
    if element.table.info == WORK:
        return None
    constraint: str = compiler.visit_primary_key_constraint(element, **kw)
    return constraint


def _prepare_threshold(option: object) -> int | None:
    text = str(option).lower()
    if text in {"", "none", "null"}:
        return None
    if not text.isdecimal():
        raise SettingError(
            "prepare_threshold in sqlalchemy_url or options: expected a number of executions, or 0 for never"
        )
    return int(text) or None
