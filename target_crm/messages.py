"""Standard input → Singer messages: lines by the chunk, JSON by msgspec, decimals exact."""

from __future__ import annotations

import os
import select
import sys
from collections import Counter
from decimal import Decimal
from typing import IO, TYPE_CHECKING, Any

import msgspec
from singer_sdk.io_base import GenericSingerReader, SingerMessageType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHUNK_BYTES = 1 << 18
IDLE_SECONDS = 1.0

_decoder = msgspec.json.Decoder(float_hook=Decimal)


class MessageReader(GenericSingerReader[str]):
    """Reads messages and calls back; also whenever nothing comes, so that a clock can be looked at.

    Args:
        on_idle: called when `IDLE_SECONDS` pass without input.
        on_malformed: called with a line that is not a message, and the reason.
    """

    def __init__(self, on_idle: Callable[[], None], on_malformed: Callable[[str, str], None]) -> None:
        super().__init__()
        self._on_idle = on_idle
        self._on_malformed = on_malformed
        self.line_number = 0

    @property
    def default_input(self) -> IO[str]:
        """Standard input."""
        return sys.stdin

    def deserialize_json(self, line: str | bytes) -> dict[str, Any]:
        """One line as a message; `msgspec.DecodeError` or `ValueError` where it isn't one."""
        message = _decoder.decode(line)
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            raise ValueError("not an object with a type")
        return message

    def process_lines(
        self, file_input: IO[str] | None, callbacks: dict[str, Callable[[dict[str, Any]], None]]
    ) -> Counter[str]:
        """Hand every message of the input to the callback of its type, and count them by type."""
        counter: Counter[str] = Counter()
        handlers = {SingerMessageType(name).value: callback for name, callback in callbacks.items()}
        for line in _lines(file_input or self.default_input):
            if line is None:
                self._on_idle()
                continue
            self.line_number += 1
            if not line or line.isspace():
                continue
            try:
                message = self.deserialize_json(line)
                handler = handlers[message["type"]]
            except (msgspec.DecodeError, ValueError, ArithmeticError, RecursionError):
                self._on_malformed(_as_text(line), "the line is not a Singer message")
                continue
            except KeyError:
                self._on_malformed(_as_text(line), "the message is of an unknown type")
                continue
            handler(message)
            counter[message["type"]] += 1
        return counter


def _lines(source: IO[str]) -> Iterator[str | bytes | None]:
    try:
        descriptor = source.fileno()
    except OSError:
        yield from source
    else:
        yield from lines(descriptor)


def lines(descriptor: int, idle_seconds: float = IDLE_SECONDS) -> Iterator[bytes | None]:
    """The lines of a file descriptor, without their ends; None whenever `idle_seconds` pass with nothing to read."""
    pending: list[bytes] = []
    while True:
        if not select.select([descriptor], [], [], idle_seconds)[0]:
            yield None
            continue
        chunk = os.read(descriptor, CHUNK_BYTES)
        if not chunk:
            break
        first, *rest = chunk.split(b"\n")
        pending.append(first)
        if rest:
            yield b"".join(pending)
            yield from rest[:-1]
            pending = [rest[-1]]
    if any(pending):
        yield b"".join(pending)


def _as_text(line: str | bytes) -> str:
    text = line if isinstance(line, str) else line.decode(errors="replace")
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").rstrip("\n")
