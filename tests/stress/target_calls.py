"""Database calls, watched where SQLAlchemy hands them to a driver: each has a number, a moment before and one after."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import psycopg
from sqlalchemy.engine.default import DefaultDialect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Watcher = Callable[["Call"], None]

BEFORE, AFTER = "before", "after"
# The dialect's methods through which all statements, and both ends of a transaction, go to the driver.
_METHODS = ("connect", "do_execute", "do_executemany", "do_execute_no_params", "do_commit", "do_rollback")


@dataclass(frozen=True)
class Call:
    """A moment of a database call; `connection` is the driver's own, None before there is one."""

    number: int
    what: str
    moment: str
    connection: Any
    error: type[Exception]
    """What the driver raises when a connection is lost."""


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Have every call of this process told to the watcher, which may raise, or kill the process."""
    numbers = iter(range(1, 1 << 31))
    originals = {name: getattr(DefaultDialect, name) for name in _METHODS}
    original_copy = psycopg.Cursor.copy

    def wrapped(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def call(dialect: Any, *arguments: Any, **options: Any) -> Any:
            number = next(numbers)
            error = dialect.loaded_dbapi.OperationalError
            connection = None if name == "connect" else _driver_connection(arguments[0])
            watcher(Call(number, name, BEFORE, connection, error))
            result = original(dialect, *arguments, **options)
            watcher(Call(number, name, AFTER, connection or _driver_connection(result), error))
            return result

        return call

    @contextmanager
    def copy(cursor: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
        number = next(numbers)
        watcher(Call(number, "copy", BEFORE, cursor.connection, psycopg.OperationalError))
        with original_copy(cursor, *arguments, **options) as writer:
            yield writer
        watcher(Call(number, "copy", AFTER, cursor.connection, psycopg.OperationalError))

    for name, original in originals.items():
        setattr(DefaultDialect, name, wrapped(name, original))
    psycopg.Cursor.copy = copy  # type: ignore[method-assign]
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(DefaultDialect, name, original)
        psycopg.Cursor.copy = original_copy  # type: ignore[method-assign]


def _driver_connection(thing: Any) -> Any:
    """Of a cursor or of what the pool made of a connection."""
    return getattr(thing, "driver_connection", None) or getattr(thing, "connection", None) or thing
