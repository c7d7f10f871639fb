"""The only code that opens a database: engine, transactions, retries, bulk load."""

from __future__ import annotations

import logging
import time
import uuid
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from target_crm.engines.base import pep_249_names
from target_crm.engines.registry import adapter_for
from target_crm.errors import ConnectionLost, CrmError, SettingError, WarehouseError
from target_crm.sql.tables import tables_in
from target_crm.warehouse import migrations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sqlalchemy import Connection, Engine, Table

    from target_crm.engines.base import EngineAdapter
    from target_crm.warehouse.migrations import Statement

# Waits before work is done again whose connection was lost.
RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)
# How long it is remembered which batches were committed: far longer than all waits together.
MARKS_KEPT = timedelta(days=1)
_DRIVERS = {
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
}

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
        self.adapter = adapter_for(url.get_backend_name())
        self._engine = _create_engine(url, self.adapter)
        self.tested = self.adapter.tested
        self.is_in_memory = self.adapter.is_in_memory(url)
        self._was_reached = False
        self._is_atomic: bool | None = None
        self._is_restrained = True

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads, and sees one state of the warehouse throughout."""
        with self._connect() as connection:
            connection.execution_options(**self.adapter.read_options)
            with connection.begin():
                yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that no other loader's write runs beside; committed at the end, rolled back on an error."""
        with self._connect() as connection:
            writer = connection.execution_options(crm_writes=True)
            with self.adapter.session_lock(writer, self.tables.metadata.schema), writer.begin():
                self.adapter.transaction_lock(writer, self.tables.metadata.schema)
                yield writer

    def dispose(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def set_up(self) -> None:
        """Bring the target's own tables and views to this version; create what is missing."""
        if not self._redone(self._is_up_to_date):
            self._redone(
                lambda: self._change(
                    lambda connection: _execute(connection, migrations.set_up(connection, self.tables))
                )
            )

    def is_set_up(self) -> bool:
        """Whether a loader has been here. Looking leaves no trace, not even an empty file."""
        if self._engine.dialect.name == "sqlite" and not Path(self._engine.url.database or "").exists():
            return False
        with self.read() as connection:
            return migrations.is_set_up(connection, self.tables)

    def is_atomic(self, connection: Connection) -> bool:
        """Whether a transaction is done as a whole or not at all; it is asked but once."""
        if self._is_atomic is None:
            self._is_atomic = self.adapter.is_atomic(connection, self.tables.metadata.schema)
        return self._is_atomic

    def ensure(self, *tables: Table) -> None:
        """Create the tables that are missing, and make room for what the others lack."""

        def work(connection: Connection) -> None:
            for table in tables:
                _execute(connection, migrations.ensure(connection, table))

        self._redone(lambda: self._change(work))

    def lacks(self, *tables: Table) -> list[str]:
        """The statements that `set_up`, and `ensure` for these tables, would execute now, in the engine's own words."""
        with self.read() as connection:
            return [
                str(each.compile(connection)).strip() for each in migrations.set_up(connection, self.tables, *tables)
            ]

    def commit_once(self, work: Callable[[Connection], _T]) -> _T:
        """Do the work in a transaction that is committed once, also where the connection is lost on the way.

        When even the reply to COMMIT is lost, nobody knows whether it was done. So each transaction leaves a mark, and
        a retry looks for it: under the lock, hence after the lost transaction has come to its end.

        Returns:
            The result of the work in the transaction that was committed.

        Raises:
            ConnectionLost: it was lost again after each of the waits in `RETRY_SECONDS`.
        """
        batch_id = uuid.uuid4().hex
        tries = count()
        results: list[_T] = []

        def once(connection: Connection) -> None:
            number = next(tries)
            # A try that failed may have lacked what it was denied.
            self._is_restrained &= number == 0
            if self._is_restrained:
                self.adapter.limit_resources(connection)
            if number == 0 or not self._is_committed(connection, batch_id):
                results.append(work(connection))
                self._mark_committed(connection, batch_id)

        self._redone(lambda: self._change(once))
        return results[-1]

    def _redone(self, work: Callable[[], _T]) -> _T:
        """Do work again whose connection was lost: it looks for itself how far it came.

        A server that has never answered is not waited for: more likely, a setting is wrong.
        """
        for wait_seconds in RETRY_SECONDS:
            try:
                return work()
            except ConnectionLost as error:
                if not self._was_reached:
                    raise
                logger.warning("%s; trying again in %.1f s", error, wait_seconds)
                time.sleep(wait_seconds)
        return work()

    def _is_up_to_date(self) -> bool:
        with self.read() as connection:
            return migrations.version(connection, self.tables) == migrations.VERSION

    def _change(self, work: Callable[[Connection], None]) -> None:
        with self.write() as connection:
            work(connection)

    @contextmanager
    def _connect(self) -> Iterator[Connection]:
        with self._errors(), self._opened() as connection:
            self._was_reached = True
            yield connection

    def _opened(self) -> Connection:
        foreseen: tuple[type[Exception], ...] = (CrmError, *self.adapter.errors(self._engine.dialect))
        try:
            return self._engine.connect()
        except foreseen:
            raise
        # What else a driver raises may repeat what it was given, also the password.
        except (TypeError, ValueError):
            raise _wrong_option(self._engine.dialect.name) from None
        except Exception as error:  # noqa: BLE001 - as many kinds as drivers
            reason = f": {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
            raise WarehouseError(f"{self.name}: {type(error).__name__}{reason}") from None

    def _is_committed(self, connection: Connection, batch_id: str) -> bool:
        commits = self.tables.commits
        return connection.scalar(select(commits.c.batch_id).where(commits.c.batch_id == batch_id)) is not None

    def _mark_committed(self, connection: Connection, batch_id: str) -> None:
        commits, now = self.tables.commits, datetime.now(timezone.utc)
        self.adapter.execute(connection, commits.delete().where(commits.c.committed_at < now - MARKS_KEPT))
        self.adapter.load(connection, commits, [(batch_id, now)])

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self.adapter.errors(self._engine.dialect) as error:
            original = getattr(error, "orig", None) or error
            kind = ConnectionLost if self.adapter.is_retriable(original) else WarehouseError
            raise kind(f"{self.name}: {_reason(error, original)}") from error


def _reason(error: Exception, original: Exception) -> str:
    """The first line of an error; of a refused value only the kind, because that line repeats the value."""
    if "DataError" in pep_249_names(original):
        return type(original).__name__
    first_line = next(iter(str(original).strip().splitlines()), "")
    return f"{type(error).__name__}: {first_line}"


def _execute(connection: Connection, statements: Iterable[Statement]) -> None:
    for statement in statements:
        connection.execute(statement)


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


def _wrong_option(name: str) -> SettingError:
    return SettingError(f"{name} can't take one of the options in sqlalchemy_url or options")


def _create_engine(url: URL, adapter: EngineAdapter) -> Engine:
    try:
        engine = adapter.create_engine(url, hide_parameters=True, pool_pre_ping=True)
    except NoSuchModuleError:
        raise SettingError(
            f"no engine is called {url.drivername!r} (sqlalchemy_url or dialect); is its extra installed?"
        ) from None
    except ImportError as error:
        raise SettingError(
            f"the driver of {url.drivername!r} is missing ({error.name}); "
            "install an extra, e.g. pip install 'pepper-crm[postgres]'"
        ) from None
    except (ArgumentError, TypeError, ValueError):
        raise _wrong_option(url.drivername) from None
    adapter.listen(engine)
    return engine
