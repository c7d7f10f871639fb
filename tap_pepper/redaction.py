"""Keeping secrets out of the log, whichever library writes it."""

from __future__ import annotations

import logging
from typing import Final
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
        return True

    def _redacted(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, REDACTED)
        return text


_redactor: Final = Redactor()


def keep_out_of_logs(secret: str) -> None:
    """Hide a secret in every log record of this process, before any handler sees it."""
    _redactor.hide(secret)
    if getattr(logging.getLogRecordFactory(), "redactor", None) is _redactor:
        return
    make = logging.getLogRecordFactory()

    def make_redacted(*args: object, **kwargs: object) -> logging.LogRecord:
        record = make(*args, **kwargs)
        _redactor.filter(record)
        return record

    make_redacted.redactor = _redactor  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_redacted)
