"""Wait for a lock in PostgreSQL, in short attempts."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from target_crm.engines.base import LOADER_LOCK, LOCK_LOG_SECONDS, LockWait
from target_crm.engines.driver_errors import sqlstate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import Connection

_NOT_AVAILABLE = "55P03"
# A prepared transaction has no session.
_HOLDERS = """\
SELECT CAST(CAST(relation AS regclass) AS text), coalesce(
    'pid ' || locks.pid
        || ' (' || concat_ws(', ', 'user ' || usename, 'application ' || nullif(application_name, '')) || ')',
    'a prepared transaction'
)
FROM pg_locks AS locks LEFT JOIN pg_stat_activity AS sessions ON sessions.pid = locks.pid
WHERE granted AND locks.pid IS DISTINCT FROM pg_backend_pid()"""


def wait_for_lock(
    connection: Connection,
    lock: Callable[[], object],
    held: str,
    parameters: Mapping[str, Any],
    *,
    pause_seconds: float = 0,
) -> None:
    """Take a lock for the current transaction.

    Args:
        connection: A connection in a transaction.
        lock: A function that takes the lock.
        held: A condition on `pg_locks` that finds the holder of the lock.
        parameters: The parameters of the condition.
        pause_seconds: The pause between attempts. Sessions that queued behind an attempt continue during the pause.

    Raises:
        ConnectionLost: Another session held the lock for too long.
    """
    wait = LockWait()
    while not _try(connection, lock):
        holder = connection.execute(text(f"{_HOLDERS} AND {held}"), parameters).first()
        table, session = holder or (None, "another session")
        wait.go_on(f"a lock on table {table}" if table else LOADER_LOCK, session)
        time.sleep(pause_seconds)


def _try(connection: Connection, lock: Callable[[], object]) -> bool:
    """Try to take a lock for `LOCK_LOG_SECONDS`; return whether it was taken."""
    before = connection.scalar(text("SELECT current_setting('lock_timeout')"))
    limit = text("SELECT set_config('lock_timeout', :limit, true)")
    try:
        with connection.begin_nested():
            connection.execute(limit, {"limit": f"{LOCK_LOG_SECONDS}s"})
            lock()
            connection.execute(limit, {"limit": before})
    except DBAPIError as error:
        if not isinstance(error.orig, Exception) or sqlstate(error.orig) != _NOT_AVAILABLE:
            raise
        return False
    return True
