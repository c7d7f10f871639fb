"""Connections to the warehouse, with transactions and retries. No other module opens a database."""

from __future__ import annotations

import logging
import time
import uuid
import weakref
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Table, UpdateBase, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.pool import NullPool, QueuePool
from sqlalchemy.schema import DropTable

from target_crm.engines.registry import adapter_for, missing_driver
from target_crm.errors import ConnectionLost, CrmError, RowRefused, SettingError, WarehouseError
from target_crm.sql.staging import Staged
from target_crm.sql.tables import WORK, tables_in, temporary
from target_crm.warehouse import migrations
from target_crm.warehouse.stream_names import StreamNames, name_bytes_max

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Connection, Engine

    from target_crm.engines.base import EngineAdapter
    from target_crm.records.schemas import TableLimits
    from target_crm.warehouse.migrations import Statement
    from target_crm.warehouse.stream_names import StreamTables

# After a lost connection, wait this many seconds before the second attempt, the third attempt and so on.
RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)
# Keep the markers of committed batches this long, which is much longer than all retries take.
MARKERS_KEPT = timedelta(days=1)
# Advice for a role that may not create or change tables (`_ASK_FOR_DDL`), or may not read or write them.
_ASK_FOR_DDL = (
    "as the owner of the tables, run the SQL that `crm-balances ddl --schemas` prints: see Roles in docs/deploy.md"
)
_ASK_FOR_ROLE = "use a role with this privilege: see Roles in docs/deploy.md"
_DRIVERS = {
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
}

_T = TypeVar("_T")
logger = logging.getLogger("target-crm.warehouse")
# If a rollback fails, the pool would also log a traceback. The error itself is raised in any case.
logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)


class _Attempt:
    """One attempt at a transaction. As a context manager, it catches `ConnectionLost` and keeps the error."""

    def __init__(self, *, is_first: bool) -> None:
        self.is_first = is_first
        self.error: ConnectionLost | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> bool:
        if isinstance(error, ConnectionLost):
            self.error = error
        return self.error is not None


class Warehouse:
    """A merchant's SQL warehouse: the target's tables in one schema of a database."""

    def __init__(self, sqlalchemy_url: str, schema: str | None = None) -> None:
        url = parse_url(sqlalchemy_url)
        # Leave out the URL's user and query string, because some drivers accept secrets there.
        self.name = URL.create(url.drivername, host=url.host, port=url.port, database=url.database).render_as_string()
        self.adapter = adapter_for(url.get_backend_name())
        if schema and not self.adapter.has_schemas:
            raise SettingError("default_target_schema: SQLite has no schemas; leave this setting empty")
        self.tables = tables_in(schema)
        self._engine = _create_engine(url, self.adapter)
        # Close connections at the end of the process at the latest, because some drivers warn about open connections.
        weakref.finalize(self, self._engine.dispose)
        self.tested = self.adapter.tested
        self.is_in_memory = self.adapter.is_in_memory(url)
        self._was_reached = False
        self._is_atomic: bool | None = None
        self._may_create_temporary = False
        self._limits_resources = True

    @property
    def place(self) -> str:
        """Name the schema and the warehouse of the tables, for messages."""
        schema = self.tables.metadata.schema
        return f"schema {schema} of {self.name}" if schema else self.name

    @property
    def limits(self) -> TableLimits:
        """The limits of a table. The maximum length of a name is known only after the first connection."""
        return replace(self.adapter.limits, name_bytes=name_bytes_max(self._engine.dialect))

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a read-only transaction with one consistent view of the warehouse."""
        with self._connect() as connection:
            connection.execution_options(**self.adapter.read_options)
            with connection.begin():
                yield connection

    @contextmanager
    def write(self, session: Connection | None = None) -> Iterator[Connection]:
        """Open a transaction that excludes other loaders. It commits at the end, or rolls back on an error.

        Args:
            session: A session from `stage_ahead`, which is closed at the end. None means a new session.
        """
        with self._connect(session) as connection:
            writer, schema = connection.execution_options(crm_writes=True), self.tables.metadata.schema
            with self.adapter.session_lock(writer, schema), writer.get_transaction() or writer.begin():
                self.adapter.transaction_lock(writer, schema)
                yield writer

    def temporary_if_possible(self, work: Table) -> Table:
        """Return the temporary variant of a work table.

        Return the work table itself if the engine has no temporary tables, or if the role may not create them.
        """
        schema = self.adapter.temporary_schema
        return work if schema is None or not self._may_create_temporary else temporary(work, schema)

    def with_temporary(self, staged: Staged) -> Staged:
        """Return the temporary variants of staging tables, if possible."""
        return Staged(self.temporary_if_possible(staged.table), self.temporary_if_possible(staged.fresh))

    def stage_ahead(self, table: Table, rows: Sequence[tuple[Any, ...]]) -> Connection | None:
        """Stage rows in a new session, while another session commits the batch before.

        Returns:
            The session, for `commit_once`. None if the transaction has to stage the rows itself: the staging table is
            not temporary, or staging failed. In the second case, the transaction will report the error.
        """
        # Other pools may give both threads the same connection.
        if not (self.adapter.is_temporary(table) and isinstance(self._engine.pool, QueuePool | NullPool)):
            return None
        try:
            with self.errors(), ExitStack() as stack:
                session = stack.enter_context(self._open())
                self.adapter.stage_ahead(session, table, rows)
                stack.pop_all()
        except WarehouseError as error:
            logger.debug("cannot stage rows ahead: %s", error)
            return None
        return session

    def dispose(self) -> None:
        """Close all connections that are not in use."""
        self._engine.dispose()

    def set_up(self, *, balances: bool = False) -> None:
        """Upgrade the target's own tables and views to this version, and create missing ones.

        Args:
            balances: Whether to also create the tables and views of Pepper's streams.
        """
        for attempt in self._attempts():
            with attempt:
                # This check comes first because it needs no lock.
                with self.read() as connection:
                    self._may_create_temporary = self.adapter.may_create_temporary(connection)
                    is_up_to_date = migrations.version(connection, self.tables) == migrations.VERSION and (
                        not balances or migrations.has_balances(connection, self.tables)
                    )
                if not is_up_to_date:
                    with self._change_tables() as (connection, statements):
                        statements.extend(migrations.set_up(connection, self.tables, balances=balances))
                        if migrations.recomputes_balances(statements, self.tables):
                            # After the upgrade, `crm-balances verify` can no longer find drift that existed before.
                            logger.warning(
                                "recomputing all balances for version %d of the tables, which also repairs drift",
                                migrations.VERSION,
                            )

    def check_schema(self) -> None:
        """Check that the schema's name does not make table names ambiguous. Only warn if the schema already has tables.

        Raises:
            SettingError: The names are ambiguous, and the schema has no target-crm tables yet.
        """
        schema = self.tables.metadata.schema
        problem = schema and self.adapter.schema_problem(self._engine.url, schema)
        if problem and not self.is_set_up():
            raise SettingError(problem)
        if problem:
            logger.warning("%s", problem)

    def is_set_up(self) -> bool:
        """Return whether a loader has set up its tables. The check creates nothing, not even an empty file."""
        if not self.adapter.database_exists(self._engine.url):
            return False
        with self.read() as connection:
            return migrations.is_set_up(connection, self.tables)

    def has_balances(self) -> bool:
        """Return whether the tables of Pepper's streams exist."""
        with self.read() as connection:
            return migrations.has_balances(connection, self.tables)

    def is_atomic(self, connection: Connection) -> bool:
        """Return whether a transaction is atomic. Query the warehouse only the first time."""
        if self._is_atomic is None:
            self._is_atomic = self.adapter.is_atomic(connection, self.tables.metadata.schema)
        return self._is_atomic

    def ensure(self, stream: StreamTables) -> None:
        """Create the tables of a stream, or add and widen columns, and record the names of new tables and columns."""
        for attempt in self._attempts():
            with attempt, self._change_tables() as (connection, statements):
                # Assign names under the lock, so that two loaders assign the same ones.
                names = StreamNames(connection, self.tables)
                names.place(stream)
                # Record names before the DDL, which commits on some engines. Otherwise an interruption could leave a
                # column without its property.
                for table, rows in names.added.items():
                    self.adapter.load(connection, table, rows)
                for table in stream.own_tables:
                    statements.extend(migrations.ensure(connection, table, allow_key_change=stream.allow_key_change))

    def lacks(self, *streams: StreamTables, balances: bool) -> list[str]:
        """Return the SQL that `set_up` would execute now, followed by the SQL of `ensure` for each of these streams."""
        with self._or_empty() as warehouse, warehouse.read() as connection:
            names = StreamNames(connection, self.tables)
            for stream in streams:
                names.place(stream)
            allow_key_change = any(stream.allow_key_change for stream in streams)
            statements = migrations.set_up(
                connection, self.tables, *names.needed.values(), balances=balances, allow_key_change=allow_key_change
            )
            return [
                *(_sql(connection, each) for each in statements),
                *(_insert(connection, table, row) for table, rows in names.added.items() for row in rows),
            ]

    @contextmanager
    def _or_empty(self) -> Iterator[Warehouse]:
        """Yield this warehouse. If its file is missing, yield an empty one, because connecting would create it."""
        url = self._engine.url
        if self.adapter.database_exists(url):
            yield self
            return
        with TemporaryDirectory() as folder:
            empty = url.set(database=str(Path(folder) / "empty")).render_as_string(hide_password=False)
            warehouse = Warehouse(empty, self.tables.metadata.schema)
            try:
                yield warehouse
            finally:
                warehouse.dispose()

    def commit_once(self, work: Callable[[Connection], _T], session: Connection | None = None) -> _T:
        """Run `work` in a transaction that is committed exactly once, even if the connection is lost.

        The first attempt uses `session`, if it is not None. Later attempts use new sessions.

        If the reply to COMMIT is lost, the transaction may or may not be committed. So each transaction leaves a
        marker, and the next attempt looks for it. The next attempt first waits for the lock of the lost transaction, so
        the lost transaction has ended by then.

        Returns:
            The result of `work` from the committed transaction.

        Raises:
            ConnectionLost: All attempts lost the connection, or the first attempt failed before the server answered.
        """
        batch_id = uuid.uuid4().hex
        for attempt in self._attempts():
            with attempt, self.write(session if attempt.is_first else None) as connection:
                # The first attempt may have failed because of our own resource limits. Lift them for the rest of the
                # run.
                self._limits_resources &= attempt.is_first
                if self._limits_resources:
                    self.adapter.limit_resources(connection)
                if attempt.is_first or not self._is_committed(connection, batch_id):
                    result = work(connection)
                    self._mark_committed(connection, batch_id)
        return result

    def _attempts(self) -> Iterator[_Attempt]:
        """Yield attempts, with waits between them, until an attempt ends without losing the connection.

        Do not retry if the server has never answered, because then a wrong setting is more likely.
        """
        for number, wait_seconds in enumerate((*RETRY_SECONDS, None)):
            attempt = _Attempt(is_first=number == 0)
            yield attempt
            if attempt.error is None:
                return
            if wait_seconds is None or not self._was_reached:
                raise attempt.error
            logger.warning("%s; trying again in %.1f s", attempt.error, wait_seconds)
            time.sleep(wait_seconds)

    @contextmanager
    def _change_tables(self) -> Iterator[tuple[Connection, list[Statement]]]:
        """Open a transaction as `write` does, and yield an empty list, to which the caller adds statements.

        The statements are executed at the end of the transaction. On an engine whose transactions cannot use tables
        that they have created, each statement instead gets its own transaction.
        """
        statements: list[Statement] = []
        with self.write() as connection:
            yield connection, statements
            if self.adapter.mixes_ddl_and_dml:
                self._execute(connection, statements)
                return
        for statement in statements:
            with self.write() as connection:
                self._execute(connection, [statement])

    @contextmanager
    def _connect(self, session: Connection | None = None) -> Iterator[Connection]:
        with self.errors(), session or self._open() as connection:
            self._was_reached = True
            yield connection

    def _open(self) -> Connection:
        expected: tuple[type[Exception], ...] = (CrmError, *self.adapter.driver_errors(self._engine.dialect))
        try:
            return self._engine.connect()
        except expected:
            raise
        # Any other driver error may quote the connection arguments, including the password, so do not show its message.
        except (TypeError, ValueError):
            raise _wrong_option(self._engine.dialect.name) from None
        except Exception as error:  # noqa: BLE001 - drivers raise anything
            if isinstance(error, OSError):
                reason = error.strerror
            else:
                # Errors of these types are about the driver's own code, and quote no arguments.
                reason = str(error) if isinstance(error, AttributeError | ImportError | NotImplementedError) else None
            raise WarehouseError(": ".join(filter(None, (self.name, type(error).__name__, reason)))) from None

    def _is_committed(self, connection: Connection, batch_id: str) -> bool:
        commits = self.tables.commits
        return connection.scalar(select(commits.c.batch_id).where(commits.c.batch_id == batch_id)) is not None

    def _mark_committed(self, connection: Connection, batch_id: str) -> None:
        commits, now = self.tables.commits, datetime.now(UTC)
        self.adapter.execute(connection, commits.delete().where(commits.c.committed_at < now - MARKERS_KEPT))
        self.adapter.load(connection, commits, [(batch_id, now)])

    def _execute(self, connection: Connection, statements: Sequence[Statement]) -> None:
        """Execute DDL. First lock the tables that the statements alter.

        If the statements replace a table with a copy, lock the table only after its rows have been copied.
        """
        altered = (each.element for each in statements if isinstance(each, migrations.AlterTable))
        emptied = (each.element for each in statements if isinstance(each, DropTable) and each.element.info == WORK)
        with self.errors(is_ddl=True):
            self.adapter.lock_tables(connection, [*dict.fromkeys((*altered, *emptied))])
            for statement in statements:
                table = getattr(statement, "element", None)
                if not isinstance(table, Table):
                    connection.execute(statement)
                    continue
                with self.errors(f"table {table}", is_ddl=True), self.adapter.altering(connection, table):
                    if isinstance(statement, DropTable):
                        self.adapter.lock_tables(connection, [table])
                    connection.execute(statement)

    @contextmanager
    def errors(self, place: str = "", *, is_ddl: bool = False) -> Iterator[None]:
        """Convert driver errors to a `WarehouseError` that names the warehouse and `place`."""
        try:
            yield
        except self.adapter.driver_errors(self._engine.dialect) as error:
            original = getattr(error, "orig", None) or error
            refused = RowRefused if self.adapter.is_about_row(original) else WarehouseError
            kind = ConnectionLost if self.adapter.is_retriable(original) else refused
            description = self.adapter.describe_error(original)
            if self.adapter.lacks_privilege(original):
                description += f"; {_ASK_FOR_DDL if is_ddl else _ASK_FOR_ROLE}"
            raise kind(": ".join(filter(None, (self.name, place, description)))) from error


def _insert(connection: Connection, table: Table, row: Sequence[Any]) -> str:
    return _sql(connection, table.insert().values(row))


def _sql(connection: Connection, statement: Statement) -> str:
    """Compile a statement to SQL text, with its values in place of parameters."""
    if not isinstance(statement, UpdateBase):
        return str(statement.compile(connection)).strip()
    compiled = str(statement.compile(connection, compile_kwargs={"literal_binds": True})).strip()
    # SQLAlchemy doubles each percent sign for drivers that use `%s` as a placeholder. Undo this.
    return compiled % () if connection.dialect.paramstyle in {"format", "pyformat"} else compiled


def parse_url(sqlalchemy_url: str) -> URL:
    """Parse a SQLAlchemy URL. If a PostgreSQL or MySQL URL names no driver, use the driver from this project's extra.

    Raises:
        SettingError: The text is not a URL. The message does not show the text, which may contain a password.
    """
    try:
        url = make_url(sqlalchemy_url)
    except (ArgumentError, ValueError):
        raise SettingError("sqlalchemy_url: not a SQLAlchemy URL, expected e.g. sqlite:///crm.db") from None
    if "@" in f"{url.host}{url.database if url.host else ''}":
        raise SettingError("sqlalchemy_url: has more than one @; percent-encode the password (@ is %40, / is %2F)")
    return url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))


def _wrong_option(name: str) -> SettingError:
    return SettingError(
        f"{name} rejects one of the driver options in sqlalchemy_url or options; check their names and values"
    )


def _create_engine(url: URL, adapter: EngineAdapter) -> Engine:
    try:
        engine = adapter.create_engine(url, hide_parameters=True, pool_pre_ping=True)
    except NoSuchModuleError:
        raise missing_driver(url.get_backend_name(), None) from None
    except ImportError as error:
        raise missing_driver(url.get_backend_name(), error.name) from None
    except (ArgumentError, TypeError, ValueError):
        raise _wrong_option(url.drivername) from None
    adapter.add_event_listeners(engine)
    return engine
