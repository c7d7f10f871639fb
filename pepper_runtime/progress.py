"""How far a long run is, on the last line of a terminal: rows, rate, and what else helps a person to wait."""

from __future__ import annotations

import os
import stat
import sys
import threading
import time
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from pepper_runtime import logs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.console import Console, RenderableType
    from rich.live import Live

SWITCH: Final = "PEPPER_PROGRESS"
QUIET_SECONDS: Final = 1.0
"""Runs that are shorter show nothing, and don't import what draws."""
RATE_SECONDS: Final = 10.0
"""The rate is that of so many seconds past."""
DRAWN_PER_SECOND: Final = 4
BAR_CHARS: Final = 12
ERASE: Final = b"\r\x1b[2K\x1b[?25h"
"""Empties the line, and shows the cursor again."""


def is_wanted(environment: Mapping[str, str], *, with_stdout_on_terminal: bool) -> bool:
    """Whether to draw: stderr is a terminal that can, nobody has turned it off, and no other program draws there.

    In a pipeline the last program draws: the one whose standard output is no pipe.

    Args:
        environment: Where `PEPPER_PROGRESS=off` and `TERM` are looked up.
        with_stdout_on_terminal: Whether to draw also where standard output is a terminal.
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


class Progress:
    """The line that is drawn; until `start`, and where nobody wants it, what it is told leads to nothing."""

    def __init__(self) -> None:
        self.title = self.what = ""
        self.rows = 0
        self.fraction: float | None = None
        self._began_seconds = 0.0
        self._marks: deque[tuple[float, int]] = deque()
        self._live: Live | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._drawer: threading.Thread | None = None

    def start(self, title: str, *, with_stdout_on_terminal: bool = True) -> None:
        """Draw after `QUIET_SECONDS`, if it is wanted at all."""
        if is_wanted(os.environ, with_stdout_on_terminal=with_stdout_on_terminal):
            self.title, self._began_seconds = title, time.monotonic()
            self._drawer = threading.Thread(target=self._draw, name="progress", daemon=True)
            self._drawer.start()

    def advance(self, rows: int) -> None:
        """Say that so many more rows are done."""
        self.rows += rows

    def update(self, what: str, fraction: float | None = None) -> None:
        """Say where the run is, and what fraction of the way is behind it, where that is known."""
        self.what, self.fraction = what, fraction

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the terminal to someone else for a moment."""
        with self._lock:
            if self._live is None:
                yield
                return
            self._live.stop()
            try:
                yield
            finally:
                self._live.start()

    def stop(self) -> None:
        """Leave the terminal as it was."""
        self._ended.set()
        with self._lock:
            if self._live:
                self._live.stop()
                for handler in logs.console_handlers():
                    handler.setStream(sys.stderr)
                self._live = None

    def clear_in_signal_handler(self) -> None:
        """The same where no lock may be taken, for the process ends at once."""
        if self._live:
            with suppress(OSError):
                os.write(2, ERASE)

    def _draw(self) -> None:
        if self._ended.wait(QUIET_SECONDS):
            return
        from rich.console import Console  # noqa: PLC0415 - costs a tenth of a second, where it is drawn alone
        from rich.live import Live  # noqa: PLC0415

        console = Console(stderr=True)
        live = Live(
            console=console,
            get_renderable=self._line,
            refresh_per_second=DRAWN_PER_SECOND,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        with self._lock:
            if not self._ended.is_set():
                for handler in logs.console_handlers():
                    handler.setStream(_Above(console))
                self._live = live
                live.start()

    def _line(self) -> RenderableType:
        from rich.progress_bar import ProgressBar  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415

        now_seconds = time.monotonic()
        self._marks.append((now_seconds, self.rows))
        while self._marks[0][0] < now_seconds - RATE_SECONDS:
            self._marks.popleft()
        since_seconds, before = self._marks[0] if len(self._marks) > 1 else (self._began_seconds, 0)
        rate = (self.rows - before) / max(now_seconds - since_seconds, 0.001)
        minutes, seconds = divmod(int(now_seconds - self._began_seconds), 60)
        texts = [f"{self.rows:,} rows", f"{rate:,.0f}/s", f"{minutes}:{seconds:02}"]
        line = Table.grid(padding=(0, 1))
        cells: list[RenderableType] = [self.title]
        line.add_column(min_width=len(self.title))
        if self.fraction is not None:
            texts.insert(0, f"{self.fraction:.0%}")
            cells.append(ProgressBar(total=1, completed=self.fraction, width=BAR_CHARS))
            line.add_column(min_width=BAR_CHARS)
        for text in texts:
            line.add_column(min_width=len(text), no_wrap=True)
        # Where the terminal is narrow, this is what is cut off.
        line.add_column(no_wrap=True, overflow="ellipsis")
        line.add_row(*cells, *texts, self.what)
        return line


class _Above:
    """Where log lines go while the line is drawn: above it."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def write(self, text: str) -> None:
        from rich.text import Text  # noqa: PLC0415

        self._console.print(Text(text.rstrip("\n")), soft_wrap=True)

    def flush(self) -> None:
        """Nothing waits."""


display: Final = Progress()
"""This process's line: there is one terminal."""
