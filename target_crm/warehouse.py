"""The only code that opens a database: engine, transactions, retries, bulk load."""

from __future__ import annotations

import logging
import time
import uuid
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Engine, create_engine, event, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from target_crm import ddl
from target_crm.errors import ConnectionLost, SettingError, WarehouseError
from target_crm.tables import tables_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from sqlalchemy import Connection, Table

    from target_crm.ddl import Statement

# Engines on which every test of this project runs.
TESTED_DIALECTS = {"sqlite", "postgresql"}
LOCK_WAIT_SECONDS = 60
# Waits before work is done again whose connection was lost.
RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)
# How long it is remembered which batches were committed: far longer than all waits together.
MARKS_KEPT = timedelta(days=1)
# One loader at a time per schema of a database, told apart by this number and a hash of the schema's name.
_LOCK_CLASS = 0x63726D
_DRIVERS = {"postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}

_T = TypeVar("_T")
logger = logging.getLogger("target-crm.warehouse")
# The pool would log a trace for a connection that can't even be rolled back; what is to be known of it is raised.
logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)


class Warehouse:
    """A merchant's SQL warehouse: the target's tables in one schema of a database."""

    def __init__(self, sqlalchemy_url: str, schema: str | None = None) -> None:
        url = parse_url(sqlalchemy_url)
        # Not the user, nor the query: some drivers take secrets there.
        self.name = URL.create(url.drivername, host=url.host, port=url.port, database=url.database).render_as_string()
        if schema and url.get_backend_name() == "sqlite":
            raise SettingError("default_target_schema: SQLite has no schemas, leave it empty")
        self.tables = tables_in(schema)
        self._engine = _create_engine(url)
        self.tested = self._engine.dialect.name in TESTED_DIALECTS
        self._was_reached = False

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads, and sees one state of the warehouse throughout."""
        with self._connect() as connection:
            if connection.dialect.name == "postgresql":
                connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that no other loader's write runs beside; committed at the end, rolled back on an error."""
        with self._connect() as connection:
            writer = connection.execution_options(crm_writes=True)
            with writer.begin():
                _lock(writer, self.tables.metadata.schema)
                yield writer

    def dispose(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def set_up(self) -> None:
        """Bring the target's own tables and views to this version; create what is missing."""
        if not self._redone(self._is_up_to_date):
            self._redone(
                lambda: self._change(lambda connection: _execute(connection, ddl.set_up(connection, self.tables)))
            )

    def is_set_up(self) -> bool:
        """Whether a loader has been here. Looking leaves no trace, not even an empty file."""
        if self._engine.dialect.name == "sqlite" and not Path(self._engine.url.database or "").exists():
            return False
        with self.read() as connection:
            return ddl.is_set_up(connection, self.tables)

    def ensure(self, *tables: Table) -> None:
        """Create the tables that are missing, and make room for what the others lack."""

        def work(connection: Connection) -> None:
            for table in tables:
                _execute(connection, ddl.ensure(connection, table))

        self._redone(lambda: self._change(work))

    def lacks(self, *tables: Table) -> list[str]:
        """The statements that `set_up`, and `ensure` for these tables, would execute now, in the engine's own words."""
        with self.read() as connection:
            return [str(each.compile(connection)).strip() for each in ddl.set_up(connection, self.tables, *tables)]

    def commit_once(self, work: Callable[[Connection], None]) -> None:
        """Do the work in a transaction that is committed once, also where the connection is lost on the way.

        When even the reply to COMMIT is lost, nobody knows whether it was done. So each transaction leaves a mark, and
        a retry looks for it: under the lock, hence after the lost transaction has come to its end.

        Raises:
            ConnectionLost: it was lost again after each of the waits in `RETRY_SECONDS`.
        """
        batch_id = uuid.uuid4().hex
        tries = count()

        def once(connection: Connection) -> None:
            if next(tries) == 0 or not self._is_committed(connection, batch_id):
                work(connection)
                self._mark_committed(connection, batch_id)

        self._redone(lambda: self._change(once))

    def _redone(self, work: Callable[[], _T]) -> _T:
        """Do work again whose connection was lost: it looks for itself how far it came.

        A server that has never answered is not waited for: more likely, a setting is wrong.
        """
        for wait_seconds in RETRY_SECONDS:
            try:
                return work()
            except ConnectionLost as error:  # noqa: PERF203 - a try for each try
                if not self._was_reached:
                    raise
                logger.warning("%s; trying again in %.1f s", error, wait_seconds)
                time.sleep(wait_seconds)
        return work()

    def _is_up_to_date(self) -> bool:
        with self.read() as connection:
            return ddl.version(connection, self.tables) == ddl.VERSION

    def _change(self, work: Callable[[Connection], None]) -> None:
        with self.write() as connection:
            work(connection)

    @contextmanager
    def _connect(self) -> Iterator[Connection]:
        with self._errors(), self._engine.connect() as connection:
            self._was_reached = True
            yield connection

    def _is_committed(self, connection: Connection, batch_id: str) -> bool:
        commits = self.tables.commits
        return connection.scalar(select(commits.c.batch_id).where(commits.c.batch_id == batch_id)) is not None

    def _mark_committed(self, connection: Connection, batch_id: str) -> None:
        commits, now = self.tables.commits, datetime.now(timezone.utc)
        connection.execute(commits.delete().where(commits.c.committed_at < now - MARKS_KEPT))
        connection.execute(commits.insert().values(batch_id=batch_id, committed_at=now))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, self._driver.Error) as error:
            kind = ConnectionLost if self._is_lost(error) else WarehouseError
            raise kind(f"{self.name}: {self._reason(error)}") from error

    def _is_lost(self, error: Exception) -> bool:
        """Whether the server, or the way to it, failed: worth another try. SQLite has waited for its lock already."""
        original = getattr(error, "orig", None) or error
        failed = isinstance(original, (self._driver.OperationalError, self._driver.InterfaceError))
        return failed and self._engine.dialect.name != "sqlite"

    @property
    def _driver(self) -> Any:
        """The driver's module: what it raises in the middle of a COPY comes as it is."""
        return self._engine.dialect.loaded_dbapi

    def _reason(self, error: Exception) -> str:
        """The first line of an error; of a refused value only the kind, because that line repeats the value."""
        original = getattr(error, "orig", None) or error
        first_line = next(iter(str(original).strip().splitlines()), "")
        refused = isinstance(original, self._driver.DataError)
        return type(original).__name__ if refused else f"{type(error).__name__}: {first_line}"


def _execute(connection: Connection, statements: Iterable[Statement]) -> None:
    for statement in statements:
        connection.execute(statement)


def empty(connection: Connection, table: Table) -> None:
    """Remove all rows. PostgreSQL's TRUNCATE leaves no dead rows behind, and rolls back like any statement."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"TRUNCATE {connection.dialect.identifier_preparer.format_table(table)}"))
    else:
        connection.execute(table.delete())


def load(connection: Connection, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
    """Put rows, with a value for every column in the table's order, into a table as fast as the engine can."""
    if not rows:
        return
    if connection.dialect.driver == "psycopg":
        _copy(connection, table, rows)
    elif connection.dialect.name == "sqlite":
        _execute_many(connection, table, rows)
    else:
        names = [column.name for column in table.columns]
        connection.execute(table.insert(), [dict(zip(names, row, strict=True)) for row in rows])


def _copy(connection: Connection, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
    name = connection.dialect.identifier_preparer.format_table(table)
    driver_connection: Any = connection.connection.driver_connection
    with (
        driver_connection.cursor() as cursor,
        cursor.copy(f"COPY {name} ({_names(connection, table)}) FROM STDIN") as copy,
    ):
        for row in rows:
            copy.write_row(row)


def _names(connection: Connection, table: Table) -> str:
    quote = connection.dialect.identifier_preparer.quote
    return ", ".join(quote(column.name) for column in table.columns)


def _execute_many(connection: Connection, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
    """The driver's own executemany: SQLAlchemy's would make a dict of every row."""
    dialect = connection.dialect
    processors = [column.type.dialect_impl(dialect).bind_processor(dialect) for column in table.columns]
    converted = zip(
        *(
            values if processor is None else map(processor, values)
            for processor, values in zip(processors, zip(*rows, strict=True), strict=True)
        ),
        strict=True,
    )
    marks = ", ".join("?" * len(processors))
    name = dialect.identifier_preparer.format_table(table)
    statement = f"INSERT INTO {name} ({_names(connection, table)}) VALUES ({marks})"  # noqa: S608 - quoted names only
    connection.exec_driver_sql(statement, list(converted))


def parse_url(sqlalchemy_url: str) -> URL:
    """A SQLAlchemy URL; a bare `postgresql://` means the driver of this project's extra.

    Raises:
        SettingError: the text is not a URL. It isn't repeated: it may hold a password.
    """
    try:
        url = make_url(sqlalchemy_url)
    except (ArgumentError, ValueError):
        raise SettingError("sqlalchemy_url: not a SQLAlchemy URL, expected e.g. sqlite:///crm.db") from None
    if "@" in f"{url.host}{url.database if url.host else ''}":
        raise SettingError("sqlalchemy_url: has more than one @; percent-encode the password (@ is %40, / is %2F)")
    return url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))


def _create_engine(url: URL) -> Engine:
    try:
        engine = create_engine(url, hide_parameters=True, pool_pre_ping=True)
    except NoSuchModuleError:
        raise SettingError(
            f"no engine is called {url.drivername!r} (sqlalchemy_url or dialect); is its extra installed?"
        ) from None
    except ImportError as error:
        raise SettingError(
            f"the driver of {url.drivername!r} is missing ({error.name}); "
            "install an extra, e.g. pip install 'pepper-crm[postgres]'"
        ) from None
    if engine.dialect.name == "sqlite":
        _make_sqlite_transactional(engine)
    return engine


def _make_sqlite_transactional(engine: Engine) -> None:
    """Let BEGIN be ours: the driver's own begins late, and a writer that reads first could never wait its turn."""

    def on_connect(driver_connection: Any, _record: object) -> None:
        driver_connection.isolation_level = None
        driver_connection.execute(f"PRAGMA busy_timeout = {LOCK_WAIT_SECONDS * 1000}")
        driver_connection.execute("PRAGMA journal_mode = WAL")

    def on_begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("crm_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "begin", on_begin)


def _lock(connection: Connection, schema: str | None) -> None:
    """Wait until no other loader writes to this schema. SQLite's BEGIN IMMEDIATE has done so already."""
    if connection.dialect.name == "postgresql":
        connection.execute(
            text("SELECT pg_advisory_xact_lock(:class, hashtext(coalesce(:schema, current_schema(), '')))"),
            {"class": _LOCK_CLASS, "schema": schema},
        )
