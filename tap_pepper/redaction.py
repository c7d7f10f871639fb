"""Keeping secrets out of the log, whichever library writes it."""

from __future__ import annotations

import logging
from functools import wraps
from typing import Any, Final
from urllib.parse import quote

REDACTED: Final = "***"
_formatter: Final = logging.Formatter()


class Redactor(logging.Filter):
    """Replaces secrets in all that a log record shows: message, arguments and trace. It lets every record pass."""

    def __init__(self) -> None:
        super().__init__()
        self._secrets: tuple[str, ...] = ()

    def hide(self, secret: str) -> None:
        """Hide a secret from now on, as it is and as a URL would hold it."""
        forms = {*self._secrets, secret, quote(secret, safe="")} - {""}
        # The longest first: one may hold another.
        self._secrets = tuple(sorted(forms, key=lambda form: (-len(form), form)))

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact a record in place."""
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            message = f"{record.msg} {record.args}"
        shown = self._redacted(message)
        if shown != message:
            record.msg, record.args = shown, None
        if record.exc_info and self._secrets:
            trace = _formatter.formatException(record.exc_info)
            shown = self._redacted(trace)
            if shown != trace:
                record.exc_info, record.exc_text = None, shown
        for name, value in vars(record).items():
            # The stack, and what a library adds by `extra`.
            if name not in {"msg", "args", "exc_info"} and (shown := self._redacted(str(value))) != str(value):
                setattr(record, name, shown)
        return True

    def _redacted(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, REDACTED)
        return text


_redactor: Final = Redactor()
_make_record: Final = logging.Logger.makeRecord


@wraps(_make_record)
def _make_redacted(*args: Any, **kwargs: Any) -> logging.LogRecord:
    record = _make_record(*args, **kwargs)
    _redactor.filter(record)
    return record


def keep_out_of_logs(secret: str) -> None:
    """Hide a secret in every log record of this process, before any handler sees it."""
    _redactor.hide(secret)
    # A filter sees one logger's records, or one handler's; a record factory doesn't see what `extra` adds.
    logging.Logger.makeRecord = _make_redacted  # type: ignore[method-assign]
