"""Draw the progress line. Import this module only to draw, because importing rich takes a tenth of a second."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.progress_bar import ProgressBar
from rich.table import Column
from rich.text import Text

from pepper_runtime import logs
from pepper_runtime.wording import counted

if TYPE_CHECKING:
    from typing import TextIO

BAR_CHARS = 12
RATE_SECONDS = 10.0
"""The rate is the average over this many seconds."""


class ProgressLine:
    """One line at the bottom of the terminal, with the log lines above it."""

    def __init__(self, title: str, stderr: TextIO) -> None:
        self._stderr = stderr
        counts = _Counts()
        # The last column takes the remaining width, so it is cut off on a narrow terminal.
        where = TextColumn(
            "{task.fields[where]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
        )
        name = TextColumn("{task.description}", markup=False)
        self._columns = (name, counts, where)
        self._columns_with_bar = (name, _Bar(bar_width=BAR_CHARS), TextColumn("{task.fields[percent]}"), counts, where)
        self._progress = Progress(
            *self._columns,
            console=Console(stderr=True),
            auto_refresh=False,
            speed_estimate_period=RATE_SECONDS,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            expand=True,
        )
        self._task = self._progress.add_task(title, total=None, where="", percent="", fraction=None, seconds=0)

    def start(self) -> None:
        """Begin to draw, or continue after `stop`."""
        for handler in logs.console_handlers():
            handler.setStream(_LogStream(self._progress.console))
        self._progress.start()

    def stop(self) -> None:
        """Erase the line."""
        self._progress.stop()
        for handler in logs.console_handlers():
            handler.setStream(self._stderr)

    def draw(self, rows: int, where: str, fraction: float | None, seconds: float) -> None:
        """Draw the line with the current numbers of the run."""
        self._progress.columns = self._columns if fraction is None else self._columns_with_bar
        percent = "" if fraction is None else f"{fraction:.0%}"
        self._progress.update(
            self._task,
            completed=rows,
            where=where,
            fraction=fraction,
            percent=percent,
            seconds=int(seconds),
            refresh=True,
        )


class _Counts(ProgressColumn):
    """Shows rows, rate and time: `412,300 rows 9,876/s 0:41`. Before the first row, it shows only the time."""

    def render(self, task: Task) -> Text:
        minutes, seconds = divmod(task.fields["seconds"], 60)
        rows = f"{counted(int(task.completed), 'row')} {task.speed or 0:,.0f}/s " if task.completed else ""
        return Text(f"{rows}{minutes}:{seconds:02}", no_wrap=True)


class _Bar(BarColumn):
    """Shows the fraction that is done. rich's own column would need the total number of rows, which is unknown."""

    def render(self, task: Task) -> ProgressBar:
        return ProgressBar(total=1, completed=task.fields["fraction"], width=self.bar_width)


class _LogStream:
    """Prints log lines above the progress line."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def write(self, text: str) -> None:
        self._console.print(Text(text.rstrip("\n")), soft_wrap=True)

    def flush(self) -> None:
        """Do nothing: the console flushes after each line."""
