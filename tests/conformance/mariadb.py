"""A MariaDB server from the unpacked Debian package (see `./dev`)."""

from __future__ import annotations

import subprocess
import tempfile
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pymysql

from tests.conformance import Unavailable
from tests.helpers.postgres import fast_folder, free_port
from tests.helpers.servers import START_SECONDS, wait_until_ready

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UNPACKED = Path(__file__).parent.parent.parent / ".dev" / "mariadb"


@contextmanager
def mariadb(certificate: tuple[Path, Path] | None = None) -> Iterator[Callable[[], str]]:
    """Start a server with the default character set latin1; yield a function that returns the URL of a new database.

    Args:
        certificate: the files with a certificate chain and its private key, for TLS.
    """
    root = UNPACKED if (UNPACKED / "usr/sbin/mariadbd").exists() else Path("/")
    binary, share = root / "usr/sbin/mariadbd", root / "usr/share/mysql"
    if not binary.exists():
        raise Unavailable("mariadbd is not installed; ./dev warehouses fetches it where it can")
    libraries = {str(path.parent) for path in UNPACKED.glob("usr/lib/*/*.so*")}
    environment = {"LD_LIBRARY_PATH": ":".join(libraries)}
    with tempfile.TemporaryDirectory(prefix="pepper-crm-mariadb-", dir=fast_folder()) as folder:
        # A starting server deletes the files in its folder for temporary files, even those of other programs.
        folders = [f"--datadir={folder}", f"--tmpdir={folder}", f"--lc-messages-dir={share}"]
        command = [binary, "--no-defaults", *folders, "--user=root"]
        system_tables = (share / name for name in ("mysql_system_tables.sql", "mysql_system_tables_data.sql"))
        subprocess.run(
            [*command, "--bootstrap", "--skip-networking"],
            input="create database mysql;\nuse mysql;\nSET @auth_root_socket=NULL;\n"
            + "".join(path.read_text() for path in system_tables),
            env=environment,
            text=True,
            capture_output=True,
            check=True,
        )
        port, log = free_port(), Path(folder) / "server.log"
        listening = [f"--port={port}", "--bind-address=127.0.0.1", f"--socket={folder}/socket"]
        if certificate:
            chain, key = certificate
            listening += [f"--ssl-cert={chain}", f"--ssl-key={key}"]
        with log.open("wb") as output:
            server = subprocess.Popen(
                [*command, *listening, "--innodb-flush-log-at-trx-commit=0"],
                env=environment,
                stdout=output,
                stderr=output,
            )
        try:
            wait_until_ready("MariaDB", server, log, lambda: _connect(port).close(), pymysql.OperationalError)
            yield lambda: _new_database(port)
        finally:
            server.kill()
            server.wait(START_SECONDS)


_numbers = count()


def _new_database(port: int) -> str:
    name = f"crm_{next(_numbers)}"
    with _connect(port) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    return f"mariadb://root@127.0.0.1:{port}/{name}"


def _connect(port: int) -> pymysql.Connection[Any]:
    return pymysql.connect(host="127.0.0.1", port=port, user="root")
