"""PgBouncer for tests, from Debian's package. Either the machine has the package, or `./dev test` unpacks it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from tests.helpers.postgres import free_port
from tests.helpers.servers import START_SECONDS, wait_until_ready

if TYPE_CHECKING:
    from collections.abc import Iterator

UNPACKED = Path(__file__).parents[2] / ".dev" / "pgbouncer"


def find_pgbouncer() -> str | None:
    """Return the path of the program; None if it is not installed."""
    unpacked = UNPACKED / "usr/sbin/pgbouncer"
    return str(unpacked) if unpacked.exists() else shutil.which("pgbouncer", path=f"{os.defpath}:/usr/sbin")


@contextmanager
def pgbouncer(binary: str, database_url: str) -> Iterator[str]:
    """Pool the connections to a database in transaction mode, and yield the URL of the pooler.

    Each transaction gets the session that has been idle for the longest time. So consecutive transactions usually get
    different sessions.
    """
    server, _, database = database_url.rpartition("/")
    host, _, server_port = server.rpartition("@")[2].partition(":")
    port = free_port()
    # If root runs the tests, PgBouncer switches to `nobody`, because it refuses to run as root.
    user = "user = nobody" if os.geteuid() == 0 else ""
    config = f"""\
[databases]
{database} = host={host} port={server_port} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
server_round_robin = 1
{user}
"""
    libraries = {str(path.parent) for path in UNPACKED.glob("usr/lib/*/*.so*")}
    with tempfile.TemporaryDirectory(prefix="pepper-crm-pgbouncer-") as folder:
        settings, log = Path(folder) / "pgbouncer.ini", Path(folder) / "pgbouncer.log"
        settings.write_text(config)
        with log.open("wb") as output:
            pooler = subprocess.Popen(
                [binary, settings], env={"LD_LIBRARY_PATH": ":".join(libraries)}, stdout=output, stderr=output
            )
        url = f"postgresql://postgres@127.0.0.1:{port}/{database}"
        try:
            wait_until_ready(
                "PgBouncer",
                pooler,
                log,
                lambda: psycopg.connect(url, connect_timeout=START_SECONDS).close(),
                psycopg.OperationalError,
            )
            yield url
        finally:
            pooler.kill()
            pooler.wait(START_SECONDS)
