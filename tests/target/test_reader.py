"""The reader: splits a pipe into lines, and passes messages and malformed lines to their callbacks."""

from __future__ import annotations

import io
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from singer_sdk.io_base import SingerMessageType

from target_crm.loader import reader
from target_crm.loader.reader import MessageReader, lines

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The file descriptors of a pipe: first the one to read from."""
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    with suppress(OSError):  # closed by the test
        os.close(writing)


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 4, 5, 8, 1000])
@pytest.mark.parametrize(
    ("written", "expected"),
    [
        pytest.param(b"", [], id="nothing"),
        pytest.param(b"one\ntwo\n", [b"one", b"two"], id="whole-lines"),
        pytest.param(b"one\ntwo", [b"one", b"two"], id="last-line-without-newline"),
        pytest.param(b"\none\n\n\ntwo\n", [b"", b"one", b"", b"", b"two"], id="empty-lines"),
        pytest.param("größe\n🎁\n".encode(), ["größe".encode(), "🎁".encode()], id="multibyte-characters"),
        pytest.param(b"one\r\ntwo\r\n", [b"one\r", b"two\r"], id="carriage-returns"),
        pytest.param(b"x" * 50 + b"\ny", [b"x" * 50, b"y"], id="line-of-many-chunks"),
    ],
)
def test_lines_do_not_depend_on_the_sizes_of_chunks(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, written: bytes, expected: list[bytes]
) -> None:
    monkeypatch.setattr(reader, "CHUNK_BYTES", chunk_bytes)
    reading, writing = pipe
    os.write(writing, written)
    os.close(writing)

    assert list(lines(reading)) == expected


def test_none_is_yielded_while_no_input_arrives(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    incoming = lines(reading, idle_seconds=0)

    assert next(incoming) is None
    os.write(writing, b"one\ntw")
    assert next(incoming) == b"one"
    assert next(incoming) is None
    os.write(writing, b"o\n")
    assert next(incoming) == b"two"
    assert next(incoming) is None
    os.close(writing)
    assert list(incoming) == []


class Callbacks:
    """A reader whose callbacks record their arguments."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.malformed: list[tuple[int, str, str]] = []
        self.entered = self.left = 0
        self.reader = MessageReader(self._reading, lambda: None, self._on_malformed)

    def read(self, source: io.TextIOBase) -> dict[str, int]:
        return dict(self.reader.process_lines(source, dict.fromkeys(SingerMessageType, self.messages.append)))  # type: ignore[arg-type]

    @contextmanager
    def _reading(self) -> Iterator[None]:
        self.entered += 1
        try:
            yield
        finally:
            self.left += 1

    def _on_malformed(self, line: str, reason: str) -> None:
        self.malformed.append((self.reader.line_number, line, reason))


def test_the_reading_context_is_left_if_a_callback_fails() -> None:
    calls = Callbacks()

    def fail(_: object) -> None:
        assert (calls.entered, calls.left) == (1, 0)
        raise LookupError

    with pytest.raises(LookupError):
        calls.reader.process_lines(io.StringIO('{"type":"STATE"}'), {SingerMessageType.STATE: fail})

    assert (calls.entered, calls.left) == (1, 1)


def test_messages_are_passed_on_in_order_and_counted() -> None:
    calls = Callbacks()

    counted = calls.read(
        io.StringIO('{"type":"SCHEMA"}\n\n  \n{"type":"RECORD","n":1.50}\r\n{"type":"RECORD"}\n{"type":"STATE"}')
    )

    assert [message["type"] for message in calls.messages] == ["SCHEMA", "RECORD", "RECORD", "STATE"]
    assert repr(calls.messages[1]["n"]) == "Decimal('1.50')"
    assert counted == {"SCHEMA": 1, "RECORD": 2, "STATE": 1}
    assert calls.malformed == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        pytest.param("not JSON", "the line is not a Singer message", id="not-json"),
        pytest.param('{"type":"RECORD"', "the line is not a Singer message", id="truncated"),
        pytest.param("1", "the line is not a Singer message", id="a-number"),
        pytest.param("null", "the line is not a Singer message", id="null"),
        pytest.param('["RECORD"]', "the line is not a Singer message", id="a-list"),
        pytest.param('{"kind":"RECORD"}', "the line is not a Singer message", id="no-type"),
        pytest.param('{"type":["RECORD"]}', "the line is not a Singer message", id="type-is-not-text"),
        pytest.param(
            '{"type":"RECORD","n":NaN}',
            "the line is not a Singer message: it has NaN, which is not a JSON number",
            id="NaN",
        ),
        pytest.param(
            '{"type":"RECORD","n":[1,-Infinity]}',
            "the line is not a Singer message: it has -Infinity, which is not a JSON number",
            id="infinity",
        ),
        pytest.param(
            '{"type":"RECORD","s":"\\ud800"}',
            "the line is not a Singer message: a string in it has half of a surrogate pair",
            id="unpaired-surrogate",
        ),
        pytest.param('{"kind":"RECORD","s":"\\ud83d\\ude00"}', "the line is not a Singer message", id="surrogates"),
        pytest.param(
            '{"type":"RECORD","n":1e99999999999999999999}', "the line is not a Singer message", id="huge-exponent"
        ),
        pytest.param('{"type":"RECORD","n":' + "1" * 5000 + "}", "the line is not a Singer message", id="5000-digits"),
        pytest.param(
            '{"type":"RECORD","n":' + "[" * 100_000 + "]" * 100_000 + "}",
            "the line is not a Singer message",
            id="nested-too-deeply",
        ),
        pytest.param('{"type":"GREETING"}', "the message is of an unknown type", id="unknown-type"),
        pytest.param('{"type":"record"}', "the message is of an unknown type", id="lower-case"),
    ],
)
def test_a_malformed_line_is_reported_and_reading_goes_on(line: str, reason: str) -> None:
    calls = Callbacks()

    counted = calls.read(io.StringIO(f'{{"type":"STATE","value":1}}\n{line}\n{{"type":"STATE","value":2}}\n'))

    assert calls.malformed == [(2, line, reason)]
    assert [message["value"] for message in calls.messages] == [1, 2]
    assert counted == {"STATE": 2}


def test_invalid_utf_8_and_nul_are_replaced_in_a_malformed_line(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.write(writing, b'{"type":"STATE","value":"\xff\x00"}\n{"type":"STATE","value":2}')
    os.close(writing)
    calls = Callbacks()

    with os.fdopen(reading, closefd=False) as source:
        calls.read(source)

    assert calls.malformed == [
        (1, '{"type":"STATE","value":"��"}', "the line is not a Singer message: it is not UTF-8")
    ]
    assert [message["value"] for message in calls.messages] == [2]
