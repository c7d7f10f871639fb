"""The target quarantines hostile input lines and loads the lines around them, even with little spare memory."""

from __future__ import annotations

import json
from contextlib import suppress
from itertools import chain
from random import Random
from typing import TYPE_CHECKING

from tests.helpers.target import ACTIONS, AWARDS, action, record, schema, snapshot, state, table
from tests.stress import FULL, run_cases, size
from tests.stress.runs import pipe
from tests.stress.scenario import PERSON

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import FileIO

    from tests.stress.runs import Forks, Place

# The memory that a run may use beyond what it has at its start. In the full form, a huge line is longer than that.
MEMORY_BYTES = 192 << 20
HUGE_BYTES = size(96 << 20, 512 << 20)
CHUNK = b"x" * (1 << 16)


def huge(head: bytes, chunk: bytes = CHUNK, tail: bytes = b"\n") -> Callable[[], Iterator[bytes]]:
    """Return a very long line, in chunks."""

    def chunks() -> Iterator[bytes]:
        yield head
        for _ in range(HUGE_BYTES // len(chunk)):
            yield chunk
        yield tail

    return chunks


def lines(*parts: bytes | str) -> Callable[[], Iterator[bytes]]:
    """Return lines unchanged."""

    def chunks() -> Iterator[bytes]:
        for part in parts:
            yield (part if isinstance(part, bytes) else part.encode()) + b"\n"

    return chunks


def points(literal: str) -> str:
    """Return an action whose points are a hostile literal."""
    return action("hostile", delta="@", note=PERSON).replace('"@"', literal)


DEEP = 100_000
INJECTION = 'x"; DROP TABLE actions; --'
HOSTILE: dict[str, Callable[[], Iterator[bytes]]] = {
    "a-huge-line": huge(b""),
    "a-huge-text-in-a-record": huge(b'{"type": "RECORD", "stream": "actions", "record": {"_id": "', tail=b'"}}\n'),
    "a-huge-line-of-spaces": huge(b"", b" " * (1 << 16)),
    "a-huge-line-of-NUL": huge(b"", b"\0" * (1 << 16)),
    "a-huge-list": huge(b'{"type": "STATE", "value": {"a": [', b"1," * (1 << 15), b"1]}}\n"),
    "deep-lists": lines("[" * DEEP),
    "deep-lists-that-close": lines("[" * DEEP + "]" * DEEP),
    "deep-objects": lines('{"a":' * DEEP + "1" + "}" * DEEP),
    "deep-in-a-record": lines(action("hostile", note="@").replace('"@"', "[" * DEEP + "]" * DEEP)),
    "deep-in-a-state": lines('{"type": "STATE", "value": {"a": ' + "[" * DEEP + "]" * DEEP + "}}"),
    "deep-in-a-schema": lines(
        '{"type": "SCHEMA", "stream": "deep", "schema": ' + '{"a":' * DEEP + "1" + "}" * DEEP + "}"
    ),
    "fairly-deep-in-a-record": lines(action("hostile", note="@", delta="x").replace('"@"', "[" * 900 + "]" * 900)),
    "5000-digits": lines(points("9" * 5000)),
    "5000-decimal-places": lines(points("0." + "1" * 5000)),
    "5000-digits-in-text": lines(points('"' + "9" * 5000 + '"')),
    "5000-digits-in-a-snapshot": lines(snapshot("hostile", "@").replace('"@"', "9" * 5000)),
    "5000-digits-for-an-id": lines(action("hostile", delta="x").replace('"hostile"', "9" * 5000)),
    "a-million-digits": lines(points("9" * 1_000_000)),
    "a-huge-exponent": lines(points("1e999999999")),
    "a-tiny-exponent": lines(points("1e-999999999")),
    "not-a-number": lines(points("NaN"), points("Infinity"), points("-Infinity")),
    "a-bare-1": lines("1"),
    "bare-values": lines('"text"', "null", "true", "[]", "{}", "-0.0", "1e5"),
    "binary": lines(Random("binary").randbytes(4096).replace(b"\n", b"")),
    "invalid-utf-8": lines(b'{"type": "RECORD", "stream": "actions", "record": {"_id": "\xff\xfe"}}'),
    "a-lone-surrogate": lines('{"type": "RECORD", "stream": "actions", "record": {"_id": "\\ud800"}}'),
    "NUL": lines(action("hostile\0"), points('"1\\u0000"'), "\0"),
    "unknown-messages": lines(
        '{"type": "DROP TABLE actions"}', '{"type": null}', '{"type": ["RECORD"]}', '{"type": {}}', '{"record": 1}'
    ),
    "messages-without-parts": lines('{"type": "RECORD"}', '{"type": "STATE"}', '{"type": "ACTIVATE_VERSION"}'),
    "records-that-are-no-objects": lines(
        *(json.dumps({"type": "RECORD", "stream": "actions", "record": value}) for value in (1, "x", None, [], {}))
    ),
    "records-of-unknown-streams": lines(action("hostile").replace('"stream": "actions"', '"stream": "x; DROP TABLE"')),
    "impossible-times": lines(
        *(action("hostile", at=at) for at in ("2026-13-45", "0000-00-00T00:00:00Z", "99999-01-01", "", "tomorrow"))
    ),
    "carriage-returns-and-blank-lines": lines(b"\r", b"", b"   ", b"\xef\xbb\xbf"),
    "duplicate-keys": lines('{"type": "RECORD", "type": "NONE", "stream": "actions", "record": {"_id": "hostile"}}'),
    "zero-with-a-huge-exponent": lines(
        points("0e999999999").replace("hostile", "zero"),
        schema("sizes", {"_id": {"type": "string"}, "size": {"type": "number"}, "count": {"type": "integer"}}, "_id"),
        '{"type": "RECORD", "stream": "sizes", "record": {"_id": "zero", "size": 0e999999999, "count": 0e-999999999}}',
        '{"type": "RECORD", "stream": "sizes", "record": {"_id": "huge", "size": 1, "count": 1e999999999}}',
    ),
    "invalid-versions": lines(
        *(
            json.dumps({"type": "ACTIVATE_VERSION", "stream": "awards", "version": version})
            for version in (10**30, -(10**30), True, "2", 0.5, None, [], {})
        ),
        '{"type": "ACTIVATE_VERSION", "stream": "awards", "version": 1e999999999}',
        '{"type": "RECORD", "stream": "awards", "record": {"_id": "hostile"}, "version": 1e999999999}',
    ),
    "a-generic-table-of-hostile-names": lines(
        schema(INJECTION, {'a"; --': {"type": "string"}, "select": {"type": "string"}}, 'a"; --'),
        record(INJECTION, {'a"; --': "'", "select": "''"}),
    ),
}
# With these lines the run fails, because a stream is not loaded. A line in STOPPING stops the run immediately.
STOPPING = {"deep-in-a-schema"}
FAILING = {*STOPPING, "records-of-unknown-streams"}
# These lines are valid input, so they are not quarantined.
HARMLESS = {"a-huge-line-of-spaces", "a-generic-table-of-hostile-names", "carriage-returns-and-blank-lines"}


def test_hostile_lines_are_quarantined_and_the_lines_around_them_are_loaded(forks: Forks, place: Place) -> None:
    # The short form takes every fourth line, and different lines on each engine.
    names = list(HOSTILE) if FULL else list(HOSTILE)[len(place.engine) % 4 :: 4]

    def case(random: Random, name: str) -> None:
        before, after = [[f"{when}-{n}" for n in range(random.randrange(1, 9))] for when in ("before", "after")]
        place.clear()
        with pipe() as (reader, writer):
            run = forks.start(place.url, reader.fileno(), memory_bytes=MEMORY_BYTES, batch_size_rows=4)
            reader.close()
            # A run that dies early closes the pipe. Its exit code is checked below.
            with suppress(BrokenPipeError):
                for chunk in chain(
                    lines(AWARDS, snapshot(), ACTIONS, *map(action, before))(),
                    HOSTILE[name](),
                    lines(*map(action, after), state({"seen": name}))(),
                ):
                    write(writer, chunk)
            writer.close()
            ended = run.wait()
        assert ended.exit_code == (name in FAILING), ended.log[-2000:]
        ledger = {row["action_id"] for row in table(place.warehouse, "actions", "action_id")}
        assert {*before} <= ledger
        assert "hostile" not in ledger
        if name not in STOPPING:
            assert json.loads(ended.states[-1]) == {"seen": name}
            assert {*after} <= ledger
            assert table(place.warehouse, "rejected_records") or name in HARMLESS

    run_cases(f"hostile lines, {place.engine}", names, case)


def write(writer: FileIO, chunk: bytes) -> None:
    """Write a chunk completely."""
    while chunk:
        chunk = chunk[writer.write(chunk) :]
