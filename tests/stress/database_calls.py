"""Call an observer before and after each database call that SQLAlchemy passes to a driver."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import psycopg
from sqlalchemy.engine.default import DefaultDialect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Observer = Callable[["Call"], None]

BEFORE, AFTER = "before", "after"
# All statements, commits and rollbacks go through these methods of the dialect.
_METHODS = ("connect", "do_execute", "do_executemany", "do_execute_no_params", "do_commit", "do_rollback")


@dataclass(frozen=True)
class Call:
    """The moment before or after a database call."""

    number: int
    what: str
    moment: str
    connection: Any
    """The driver's connection; None before there is one."""
    error: type[Exception]
    """What the driver raises when it loses a connection."""


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Report each database call of this process to the observer, which may raise or kill the process."""
    numbers = iter(range(1, 1 << 31))
    originals = {name: getattr(DefaultDialect, name) for name in _METHODS}
    original_copy = psycopg.Cursor.copy

    def wrapped(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def call(dialect: Any, *arguments: Any, **options: Any) -> Any:
            number = next(numbers)
            error = dialect.loaded_dbapi.OperationalError
            connection = None if name == "connect" else _driver_connection(arguments[0])
            observer(Call(number, name, BEFORE, connection, error))
            result = original(dialect, *arguments, **options)
            observer(Call(number, name, AFTER, connection or _driver_connection(result), error))
            return result

        return call

    @contextmanager
    def copy(cursor: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
        number = next(numbers)
        observer(Call(number, "copy", BEFORE, cursor.connection, psycopg.OperationalError))
        with original_copy(cursor, *arguments, **options) as writer:
            yield writer
        observer(Call(number, "copy", AFTER, cursor.connection, psycopg.OperationalError))

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
    """Return the driver's connection of a cursor or of a pooled connection."""
    return getattr(thing, "driver_connection", None) or getattr(thing, "connection", None) or thing
