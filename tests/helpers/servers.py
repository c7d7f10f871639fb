"""Helpers for all servers that the tests start."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

START_SECONDS = 30
POLL_SECONDS = 0.05


def wait_until_ready(
    name: str,
    server: subprocess.Popen[bytes],
    log: Path,
    connect: Callable[[], object],
    retry_on: type[Exception],
    *,
    seconds: float = START_SECONDS,
) -> None:
    """Try to connect until the server answers.

    Raises:
        RuntimeError: The server has exited, or was not ready in time. The message contains the server's log.
    """
    deadline_seconds = time.monotonic() + seconds
    while True:
        try:
            connect()
        except retry_on as error:
            if server.poll() is not None or time.monotonic() > deadline_seconds:
                raise RuntimeError(f"{name} did not start ({error}):\n{log.read_text()}") from None
            time.sleep(POLL_SECONDS)
        else:
            return
