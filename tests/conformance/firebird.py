"""A Firebird server from the unpacked Debian packages (see `./dev`): an engine that target-crm has no adapter for."""

from __future__ import annotations

import ctypes
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.conformance import Unavailable
from tests.helpers.postgres import fast_folder, free_port
from tests.helpers.servers import START_SECONDS, wait_until_ready

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UNPACKED = Path(__file__).parent.parent.parent / ".dev" / "firebird"
PLUGINS = {"Engine12": "libEngine12.so", "Srp": "libSrp.so"}
USER, PASSWORD = "SYSDBA", "masterkey"
# A separate process creates the database of users without a server, because the client reads its settings only once.
CREATE_USERS = """
import sys
from firebird.driver import create_database, driver_config
driver_config.fb_client_library.value = sys.argv[1]
with create_database(sys.argv[2], user="SYSDBA", charset="UTF8") as connection:
    connection.execute_immediate(f"CREATE USER {sys.argv[3]} PASSWORD '{sys.argv[4]}'")
    connection.commit()
"""


@contextmanager
def firebird() -> Iterator[Callable[[], str]]:
    """Start a server; yield a function that returns the URL of a new database for all of Unicode."""
    root = UNPACKED if (UNPACKED / "usr/sbin/firebird").exists() else Path("/")
    if not (root / "usr/sbin/firebird").exists():
        raise Unavailable("firebird is not installed; ./dev warehouses fetches it where it can")
    if not find_spec("sqlalchemy_firebird"):
        raise Unavailable("sqlalchemy-firebird is not installed; ./dev warehouses installs it")
    client = next(root.glob("usr/lib/*/libfbclient.so.2"))
    libraries = client.parent
    for name in ("libtommath.so.1", "libib_util.so"):
        if (libraries / name).exists():
            ctypes.CDLL(str(libraries / name), ctypes.RTLD_GLOBAL)
    with tempfile.TemporaryDirectory(prefix="pepper-crm-firebird-", dir=fast_folder()) as name:
        folder = Path(name)
        installed = libraries / "firebird/3.0"
        (folder / "firebird.msg").symlink_to(installed / "firebird.msg")
        (folder / "databases.conf").touch()
        plugins = (f"Plugin = {name} {{\nModule = {installed}/plugins/{file}\n}}\n" for name, file in PLUGINS.items())
        (folder / "plugins.conf").write_text("".join(plugins))
        users = folder / "users.fdb"
        (folder / "firebird.conf").write_text(
            f"SecurityDatabase = {users}\nRemoteBindAddress = 127.0.0.1\nAuthServer = Srp\nUserManager = Srp\n"
        )
        folders = dict.fromkeys(("FIREBIRD", "FIREBIRD_LOCK", "FIREBIRD_TMP"), name)
        environment = {**folders, "LD_LIBRARY_PATH": str(libraries)}
        subprocess.run([sys.executable, "-c", CREATE_USERS, client, users, USER, PASSWORD], env=environment, check=True)
        port, log = free_port(), folder / "server.log"
        with log.open("wb") as output:
            command = [root / "usr/sbin/firebird", "-p", str(port)]
            server = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
        numbers = count()

        def new() -> str:
            path = folder / f"crm_{next(numbers)}.fdb"
            _create(client, port, path)
            options = f"charset=UTF8&fb_client_library={client}"
            return f"firebird://{USER}:{PASSWORD}@127.0.0.1:{port}/{path}?{options}"

        try:
            wait_until_ready(
                "Firebird", server, log, lambda: socket.create_connection(("127.0.0.1", port)).close(), OSError
            )
            yield new
        finally:
            server.kill()
            server.wait(START_SECONDS)


def _create(client: Path, port: int, path: Path) -> None:
    driver: Any = import_module("firebird.driver")
    driver.driver_config.fb_client_library.value = str(client)
    defaults = driver.driver_config.db_defaults
    defaults.db_charset.value, defaults.forced_writes.value = "UTF8", False
    driver.create_database(f"127.0.0.1/{port}:{path}", user=USER, password=PASSWORD, charset="UTF8").close()
