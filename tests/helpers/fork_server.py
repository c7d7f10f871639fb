"""Run console scripts in forks of one process that has already imported the modules of the scripts.

A console script takes most of a second to start, nearly all of it for imports, and the tests start hundreds of scripts.
A fork has its own arguments, environment, working directory and standard streams, and ends like any Python process. If
the environment of a fork sets up Python itself in another way (`PYTHONWARNINGS` …), the fork starts again as the real
script.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import random
import selectors
import signal
import socket
import sys
import time
from contextlib import suppress
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.helpers.fork_client import LENGTH_BYTES, NUMBER_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# The modules that the scripts import, even late. DuckDB is not among them: its threads do not exist in a fork, so the
# fork would never end.
IMPORTS = (
    "psycopg",
    "pyarrow",
    "pendulum",
    "pepper_runtime.otlp",
    "rich.progress",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite",
    "tap_pepper.tap",
    "target_crm.balances_cli.cli",
    "target_crm.balances_cli.replay",
    "target_crm.balances_cli.status",
    "target_crm.balances_cli.verify",
    "target_crm.loader.target",
)
# DuckDB imports these modules if they are installed.
IMPORTS_IF_INSTALLED = ("pandas",)
FORKED_SCRIPTS = ("tap-pepper", "target-crm", "crm-balances")
READY = b"ready"


class Order(NamedTuple):
    """A script to run."""

    folder: bytes
    arguments: list[str]
    variables: dict[bytes, bytes]
    descriptors: list[int]


def serve(listener: socket.socket) -> Order:
    """Fork for each client, and report how the fork ended. In each fork, return the order of the client."""
    clients: dict[int, socket.socket] = {}

    def report_ended(*_: object) -> None:
        while clients and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            process, status = ended
            client = clients.pop(process)
            # If the client was killed, it is already unregistered, or its socket is closed.
            with suppress(KeyError):
                selector.unregister(client)
            with suppress(OSError):
                client.sendall(_number(os.waitstatus_to_exitcode(status)))
            client.close()

    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    signal.signal(signal.SIGCHLD, report_ended)
    while True:
        for key, _ in selector.select():
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
            if key.fileobj is listener:
                client, _ = listener.accept()
                order = _receive(client)
                process = os.fork()
                if not process:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
                    for connection in (listener, client, *clients.values()):
                        connection.close()
                    selector.close()
                    return order
                for descriptor in order.descriptors:
                    os.close(descriptor)
                client.sendall(_number(process))
                clients[process] = client
                selector.register(client, selectors.EVENT_READ, process)
            elif key.data in clients:
                # A client sends nothing after its order, so this means that the client was killed.
                os.kill(key.data, signal.SIGKILL)
                selector.unregister(key.fileobj)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def _number(number: int) -> bytes:
    return number.to_bytes(NUMBER_BYTES, "big", signed=True)


def _receive(client: socket.socket) -> Order:
    length, descriptors, _, _ = socket.recv_fds(client, LENGTH_BYTES, 3)
    order = client.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL)
    folder, count, *parts = order.split(b"\0")
    arguments, variables = parts[: int(count)], parts[int(count) :]
    pairs = (variable.partition(b"=") for variable in variables)
    return Order(folder, list(map(os.fsdecode, arguments)), {name: value for name, _, value in pairs}, descriptors)


def become(order: Order) -> None:
    """Take over the order's streams, folder, arguments and variables, as a new process gets them from its parent."""
    take_streams(order.descriptors)
    os.chdir(order.folder)
    set_up_of_python = _set_up_of_python(os.environb)
    os.environb.clear()
    os.environb.update(order.variables)
    if _set_up_of_python(os.environb) != set_up_of_python:
        script = Path(sys.executable).parent / order.arguments[0]
        os.execv(script, [str(script), *order.arguments[1:]])
    time.tzset()
    random.seed()
    sys.argv = order.arguments


def take_streams(descriptors: Sequence[int]) -> None:
    """Make these descriptors the standard streams of this process."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115


def _set_up_of_python(variables: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return the variables that Python reads at its start. Empty variables count as unset."""
    return {name: value for name, value in variables.items() if name.startswith(b"PYTHON") and value}


def main(address: str) -> None:
    """Serve at a socket until the process is killed. In a fork, run the script."""
    scripts = {
        script.name: script.load()
        for script in distribution("pepper-crm").entry_points
        if script.name in FORKED_SCRIPTS
    }
    for name in (*IMPORTS, *filter(importlib.util.find_spec, IMPORTS_IF_INSTALLED)):
        importlib.import_module(name)
    # A garbage collection in a fork would copy the memory that the forks share.
    gc.collect()
    gc.freeze()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(address)
        listener.listen()
        print(READY.decode(), flush=True)
        order = serve(listener)
    become(order)
    sys.exit(scripts[order.arguments[0]]())


if __name__ == "__main__":
    main(sys.argv[1])
