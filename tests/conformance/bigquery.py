"""BigQuery emulated on DuckDB. The cases show nothing about quotas, speed or cost."""

from __future__ import annotations

import os
import subprocess
import tempfile
import urllib.request
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from tests.conformance import Unavailable
from tests.helpers.postgres import free_port
from tests.helpers.servers import wait_until_ready
from tests.helpers.target import execute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

START_SECONDS = 60
INSTALLED = Path(__file__).parent.parent.parent / ".dev" / "bigquery" / "bin"
EMULATOR = Path(__file__).with_name("bigquery_emulator.py")
LOOPBACK = "127.0.0.1"


@contextmanager
def bigquery() -> Iterator[Callable[[], str]]:
    """Start an emulator for the driver's client; yield a function that returns the URL of a new dataset."""
    if not (INSTALLED / "bqemulator").exists():
        raise Unavailable("the emulator is not installed; ./dev warehouses installs it")
    try:
        from google.auth.credentials import AnonymousCredentials  # noqa: PLC0415 - an extra of the tests
    except ImportError as error:
        raise Unavailable(f"{error.name} is not installed") from None
    port, numbers = free_port(), count()
    # With a priority, the client uses the API in which the emulator supports a default dataset and reports errors.
    url = "bigquery://project/?priority=INTERACTIVE"

    def new() -> str:
        name = f"crm_{next(numbers)}"
        execute(url, f"CREATE SCHEMA {name}")
        return url.replace("/?", f"/{name}?")

    with tempfile.TemporaryDirectory(prefix="pepper-crm-bigquery-") as folder, Path(folder, "log").open("wb") as log:
        server = subprocess.Popen(
            [INSTALLED / "python", EMULATOR, "start", "--rest-port", str(port), "--grpc-port", "0"],
            env={**os.environ, "BQEMU_ENABLE_FORMAT_EXTENSIONS": "false"},
            cwd=folder,
            stdout=log,
            stderr=log,
        )
        address = f"http://{LOOPBACK}:{port}"
        try:
            wait_until_ready(
                "BigQuery's emulator",
                server,
                Path(log.name),
                lambda: urllib.request.urlopen(f"{address}/healthz", timeout=START_SECONDS).close(),
                OSError,
                seconds=START_SECONDS,
            )
            with (
                mock.patch.dict(os.environ, BIGQUERY_EMULATOR_HOST=address),
                mock.patch("google.auth.default", return_value=(AnonymousCredentials(), None)),
            ):
                yield new
        finally:
            server.kill()
            server.wait(START_SECONDS)
