"""Read Singer messages from standard input in chunks. Fractional numbers become exact decimals."""

from __future__ import annotations

import codecs
import os
import select
import sys
from collections import Counter
from typing import IO, TYPE_CHECKING, Any

from singer_sdk.io_base import GenericSingerReader, SingerMessageType

from target_crm.errors import InputError
from target_crm.loader.malformed import why_malformed
from target_crm.records import values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

CHUNK_BYTES = 1 << 18
LINE_BYTES_MAX = 1 << 24
# If a line is too long, the quarantine keeps only its first bytes, up to this number.
HEAD_BYTES = 1 << 10
IDLE_SECONDS = 1.0
# The first bytes of the input → its encoding.
_SIGNATURES = {b"\x1f\x8b": "gzip", codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


class MessageReader(GenericSingerReader[str]):
    """Reads messages, and passes each one to a callback.

    Args:
        reading: Returns a context manager that is active while messages are read.
        on_idle: Called whenever `IDLE_SECONDS` have passed without input.
        on_malformed: Called for each line that is not a message, with the line and the reason.
        take_record: Called with each line before the reader decodes it. Returns whether it has processed the line.
    """

    def __init__(
        self,
        reading: Callable[[], AbstractContextManager[None]],
        on_idle: Callable[[], None],
        on_malformed: Callable[[str, str], None],
        take_record: Callable[[bytes], bool] = lambda _line: False,
    ) -> None:
        super().__init__()
        self._reading = reading
        self._on_idle = on_idle
        self._on_malformed = on_malformed
        self._take_record = take_record
        self.line_number = 0
        self.line_bytes = 0

    @property
    def default_input(self) -> IO[str]:
        """Return standard input. Raise `InputError` if standard input is closed."""
        if sys.stdin is None:
            raise InputError("standard input is closed: nothing can be read")
        return sys.stdin

    def deserialize_json(self, line: str | bytes) -> dict[str, Any]:
        """Decode a line. Raise `ValueError` if the line is not a message."""
        message = values.from_json(line)
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            raise ValueError("not an object with a type")
        return message

    def process_lines(
        self, file_input: IO[str] | None, callbacks: dict[str, Callable[[dict[str, Any]], None]]
    ) -> Counter[str]:
        """Pass every message of the input to the callback for its type. Return the number of messages of each type."""
        with self._reading():
            return self._process_lines(file_input, callbacks)

    def _process_lines(
        self, file_input: IO[str] | None, callbacks: dict[str, Callable[[dict[str, Any]], None]]
    ) -> Counter[str]:
        counter: Counter[str] = Counter()
        handlers = {SingerMessageType(name).value: callback for name, callback in callbacks.items()}
        for line in _lines(file_input or self.default_input):
            if line is None:
                self._on_idle()
                continue
            self.line_number += 1
            if self.line_number == 1:
                _check_encoding(line)
            # Every line may begin with a byte-order mark, because someone may have concatenated files.
            line = line.removeprefix(codecs.BOM_UTF8)  # noqa: PLW2901 - the line without its byte-order mark
            self.line_bytes = len(line)
            if not line or line.isspace():
                continue
            if len(line) > LINE_BYTES_MAX:
                self._on_malformed(_as_text(line[:HEAD_BYTES]), f"the line is longer than {LINE_BYTES_MAX:,} bytes")
                continue
            if self._take_record(line):
                counter["RECORD"] += 1
                continue
            try:
                message = self.deserialize_json(line)
                handler = handlers[message["type"]]
            except ValueError:
                self._on_malformed(_as_text(line), why_malformed(line))
                continue
            except KeyError:
                self._on_malformed(_as_text(line), "the message is of an unknown type")
                continue
            handler(message)
            counter[message["type"]] += 1
        return counter


def _lines(source: IO[str]) -> Iterator[bytes | None]:
    try:
        descriptor = source.fileno()
    except OSError:
        yield from (line.encode() for line in source)
    else:
        yield from lines(descriptor)


def lines(descriptor: int, idle_seconds: float = IDLE_SECONDS) -> Iterator[bytes | None]:
    """Yield the lines of a file descriptor without their ends, and None whenever `idle_seconds` pass without input.

    A line longer than `LINE_BYTES_MAX` is truncated. The truncated line may still exceed this limit by about one chunk.
    """
    pending: list[bytes] = []
    pending_bytes = 0
    while True:
        if not select.select([descriptor], [], [], idle_seconds)[0]:
            yield None
            continue
        chunk = os.read(descriptor, CHUNK_BYTES)
        if not chunk:
            break
        first, *rest = chunk.split(b"\n")
        if pending_bytes <= LINE_BYTES_MAX:
            pending.append(first)
            pending_bytes += len(first)
        if rest:
            yield b"".join(pending)
            yield from rest[:-1]
            pending, pending_bytes = [rest[-1]], len(rest[-1])
    if pending_bytes:
        yield b"".join(pending)


def _check_encoding(line: bytes) -> None:
    """Raise `InputError` if the input begins with the signature of another encoding."""
    for signature, name in _SIGNATURES.items():
        if line.startswith(signature):
            raise InputError(f"the input looks like {name}, expected Singer messages in UTF-8")


def _as_text(line: bytes) -> str:
    return values.without_nul(line.decode(errors="replace")).rstrip("\n")
