"""Show the progress of a long run on the last line of the terminal: rows, rate, time and position."""

from __future__ import annotations

import os
import stat
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from pepper_runtime import logs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pepper_runtime.progress_line import ProgressLine

SWITCH: Final = "PEPPER_PROGRESS"
QUIET_SECONDS: Final = 1.0
"""A run that is shorter than this shows no progress and does not import rich."""
DRAWN_PER_SECOND: Final = 4
ERASE: Final = b"\r\x1b[2K\x1b[?25h"
"""Empty the line and show the cursor again."""


def is_wanted(environment: Mapping[str, str], *, with_stdout_on_terminal: bool) -> bool:
    """Return True if stderr is a capable terminal, unless `PEPPER_PROGRESS=off` is set or log lines are JSON.

    In a pipeline only the last program draws: the one whose stdout is not a pipe.

    Args:
        environment: The environment variables. The function reads `PEPPER_PROGRESS` and `TERM`.
        with_stdout_on_terminal: Whether to draw even if stdout is also a terminal.
    """
    if environment.get(SWITCH, "").lower() in {"0", "off", "no", "false"} or logs.is_structured():
        return False
    if environment.get("TERM", "dumb") == "dumb" or not (sys.stderr and sys.stderr.isatty()):
        return False
    try:
        mode = os.fstat(1).st_mode
    except OSError:
        return True
    return not stat.S_ISFIFO(mode) and (with_stdout_on_terminal or not os.isatty(1))


class Display:
    """Shows the progress of this process. It draws nothing before `start`, or if `is_wanted` returns False."""

    def __init__(self) -> None:
        self._rows = 0
        self._where = ""
        self._fraction: float | None = None
        self._line: ProgressLine | None = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def start(self, title: str, *, with_stdout_on_terminal: bool = True) -> None:
        """Begin to draw the line after `QUIET_SECONDS`, if `is_wanted` returns True."""
        if is_wanted(os.environ, with_stdout_on_terminal=with_stdout_on_terminal):
            threading.Thread(target=self._draw, args=(title, time.monotonic()), name="progress", daemon=True).start()

    def advance(self, rows: int) -> None:
        """Add `rows` to the number of rows that the line shows."""
        self._rows += rows

    def update(self, where: str, fraction: float | None = None) -> None:
        """Set the position that the line shows, and the fraction of the run that is done, if it is known."""
        self._where, self._fraction = where, fraction

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Erase the line while the caller writes to the terminal."""
        with self._lock:
            if self._line is None:
                yield
                return
            self._line.stop()
            try:
                yield
            finally:
                self._line.start()

    def stop(self) -> None:
        """Erase the line, and stop drawing."""
        self._stopped.set()
        with self._lock:
            if self._line:
                self._line.stop()
                self._line = None

    def clear_in_signal_handler(self) -> None:
        """Erase the line right before the process exits, without the lock that the interrupted code may hold."""
        if self._line:
            with suppress(OSError):
                os.write(2, ERASE)

    def _draw(self, title: str, started_seconds: float) -> None:
        if self._stopped.wait(QUIET_SECONDS):
            return
        from pepper_runtime.progress_line import ProgressLine  # noqa: PLC0415 - imports rich

        line = ProgressLine(title, sys.stderr)
        with self._lock:
            if self._stopped.is_set():
                return
            line.start()
            self._line = line
        while not self._stopped.wait(1 / DRAWN_PER_SECOND):
            with self._lock:
                if self._line:
                    line.draw(self._rows, self._where, self._fraction, time.monotonic() - started_seconds)


display: Final = Display()
"""The only display of this process, because there is only one terminal."""
