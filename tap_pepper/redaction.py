"""Redact secrets in the log records of all libraries."""

from __future__ import annotations

import logging
from functools import wraps
from typing import Any, Final
from urllib.parse import quote

REDACTED: Final = "***"
_formatter: Final = logging.Formatter()


class Redactor(logging.Filter):
    """Replaces secrets in the message, arguments, traceback and extra fields of a log record. It drops no record."""

    def __init__(self) -> None:
        super().__init__()
        self._secrets: tuple[str, ...] = ()

    def add(self, secret: str) -> None:
        """Redact a secret from now on, in its plain and in its URL-encoded form."""
        forms = {*self._secrets, secret, quote(secret, safe="")} - {""}
        # Replace the longest secret first, because one secret may contain another.
        self._secrets = tuple(sorted(forms, key=lambda form: (-len(form), form)))

    def filter(self, record: logging.LogRecord) -> bool:
        """Remove the secrets from a log record, and return True, because the record must be logged."""
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            message = f"{record.msg} {record.args}"
        redacted = self._redacted(message)
        if redacted != message:
            record.msg, record.args = redacted, None
        if record.exc_info and self._secrets:
            traceback = _formatter.formatException(record.exc_info)
            redacted = self._redacted(traceback)
            if redacted != traceback:
                record.exc_info, record.exc_text = None, redacted
        for name, value in vars(record).items():
            # This loop covers the stack, and fields that a library adds with `extra`.
            if name not in {"msg", "args", "exc_info"} and (redacted := self._redacted(str(value))) != str(value):
                setattr(record, name, redacted)
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


def redact_in_logs(secret: str) -> None:
    """Redact a secret in every log record of this process, before any handler sees it."""
    _redactor.add(secret)
    # A filter would see only the records of one logger or handler. A record factory would run before `extra` is added.
    logging.Logger.makeRecord = _make_redacted  # type: ignore[method-assign]
