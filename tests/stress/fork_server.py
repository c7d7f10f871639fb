"""A server that forks target-crm and crm-balances, so that a child does not spend a second on imports.

The parent sends an order and four descriptors (the child's stdin, stdout, stderr and a control socket) and receives the
child's process id. Later it asks for the exit code. Orders and replies are JSON packets on a Unix socket.

To save time, children inherit the compiled statements of earlier loads, and their retries do not wait.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import socket
import sys
import traceback
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import psycopg

from target_crm import __main__ as console_scripts
from target_crm.balances_cli import cli  # noqa: F401 - children inherit the import
from target_crm.loader import target
from target_crm.warehouse import connection
from tests.helpers.fork_server import take_streams
from tests.helpers.target import ACTIONS, AWARDS, action, load, snapshot
from tests.stress.database_calls import AFTER, Call, observed

ORDER_BYTES_MAX = 1 << 16
# A fault makes a database call wait for the parent, or lose the connection (on SQLite: raise an error).
PAUSE, DROP = "pause", "drop"
# A child that ends with a traceback exits with this code. The real command would exit with 1.
CRASHED = 70


def serve(orders: socket.socket) -> None:
    """Fork a child for each order until the parent closes the socket."""
    target.Warehouse = cache(connection.Warehouse)  # type: ignore[misc]
    connection.RETRY_SECONDS = (0.0,) * len(connection.RETRY_SECONDS)
    load("sqlite://", [AWARDS, snapshot(), ACTIONS, action("warm")])
    gc.freeze()
    while True:
        packet, descriptors, _, _ = socket.recv_fds(orders, ORDER_BYTES_MAX, 4)
        if not packet:
            return
        order = json.loads(packet)
        if "warm_up" in order:
            load(order["warm_up"], Path(order["messages"]).read_text().splitlines())
            reply = 0
        elif "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            reply = os.waitstatus_to_exitcode(status)
        else:
            reply = os.fork()
            if reply == 0:
                orders.close()
                _run(order, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        orders.send(json.dumps(reply).encode())


def _run(order: dict[str, Any], descriptors: list[int]) -> NoReturn:
    take_streams(descriptors[:3])
    control = socket.socket(fileno=descriptors[3])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    os.environ.update(order["environment"])
    sys.argv = order["argv"]
    if order.get("memory_bytes"):
        limit = _address_space_bytes() + order["memory_bytes"]
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    main = console_scripts.balances if order["argv"][0] == "crm-balances" else console_scripts.main
    calls = [0]
    try:
        with observed(Fault(order["fault"], control, calls)) if order.get("fault") else nullcontext():
            main()
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - a child must not continue as the server
        traceback.print_exc()
        code = CRASHED
    try:
        sys.stdout.flush()
    except OSError:
        code = code or 120
    sys.stderr.flush()
    if order.get("fault"):
        control.send(json.dumps({"calls": calls[0]}).encode())
    os._exit(code)


class Fault:
    """What fails, and at which call: `{"how": "drop", "at": 7, "moment": "after", "permanent": false}`."""

    def __init__(self, fault: dict[str, Any], control: socket.socket, calls: list[int]) -> None:
        self._fault = fault
        self._control = control
        self._calls = calls

    def __call__(self, call: Call) -> None:
        self._calls[0] = call.number
        at, moment = self._fault.get("at", 0), self._fault.get("moment")
        later = self._fault.get("permanent") and call.number > at > 0
        if not later and (call.number, call.moment) != (at, moment):
            return
        if self._fault["how"] == PAUSE:
            backend = getattr(getattr(call.connection, "info", None), "backend_pid", None)
            self._control.send(json.dumps({"at": call.number, "what": call.what, "backend": backend}).encode())
            self._control.recv(1)
        elif self._fault["how"] == DROP and isinstance(call.connection, psycopg.Connection):
            call.connection.pgconn.finish()
            if call.moment == AFTER:
                raise call.error("server closed the connection unexpectedly")
        else:
            raise call.error("the connection is lost")


def _address_space_bytes() -> int:
    with open("/proc/self/statm") as statm:  # noqa: PTH123
        return int(statm.read().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
