"""The log lines of the loader while it waits for a lock."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class _OnWait(logging.Handler):
    """Calls back when the loader logs that it waits."""

    def __init__(self, react: Callable[[], object]) -> None:
        super().__init__()
        self._react = react
        self.lines: list[str] = []

    def emit(self, line: logging.LogRecord) -> None:
        """Keep the line and call back."""
        self.lines.append(line.getMessage())
        self._react()


def logged_waits(react: Callable[[], object], load_it: Callable[[], object]) -> list[str]:
    """The lines that the loader logs about its waits. Each line calls `react`, which may end the wait."""
    handler = _OnWait(react)
    logger = logging.getLogger("target-crm.warehouse")
    logger.addHandler(handler)
    try:
        load_it()
    finally:
        logger.removeHandler(handler)
    return handler.lines
