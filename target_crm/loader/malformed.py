"""Find out why a line is not a Singer message, and which streams it names."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

from target_crm.records import values

_STREAM_NAME = re.compile(r'"stream"\s*:\s*("(?:[^"\\]|\\.)+")')
# Matches a stream's name that has only simple values before it. A name inside a record would come after `"record": {`.
_STREAM_FIRST = re.compile(r'\s*\{(?:\s*"[^"\\]*"\s*:\s*(?:"[^"\\]*"|[\w.+-]+)\s*,)*?\s*' + _STREAM_NAME.pattern)
# Matches a member that shows the type of a message: `type` itself, or a member that only some messages have. The types
# in a JSON Schema do not match, because they are lower-case.
_MEMBER = re.compile(r'"(record|value|schema|key_properties)"\s*:|"type"\s*:\s*"([A-Z_]+)')
# Matches the beginning of a second message in the same line: a `{` where no value can begin, and a quotation mark. If
# the `{` were inside a string, the quotation mark would be escaped.
_NEXT_MESSAGE = re.compile(r'[^\s:,\[]\s*\{\s*"')
_NEXT_SCHEMA = re.compile(_NEXT_MESSAGE.pattern + r'type"\s*:\s*"SCHEMA')


def why_malformed(line: bytes) -> str:
    """Return the reason for quarantining a line that is not a Singer message."""
    constants: list[str] = []
    found = ""
    try:
        line.decode()
    except UnicodeDecodeError:
        found = ": it is not UTF-8"
    with suppress(ValueError, RecursionError):
        message = json.loads(line, parse_constant=constants.append)
        if constants:
            found = f": it has {constants[0]}, which is not a JSON number"
        elif re.search("[\ud800-\udfff]", json.dumps(message, ensure_ascii=False)):
            found = ": a string in it has half of a surrogate pair"
    return f"the line is not a Singer message{found}"


def decode_leniently(line: str) -> dict[str, Any]:
    """Decode a JSON object that may contain NaN, Infinity or lone surrogates. Return {} for any other line."""
    with suppress(ValueError, RecursionError):
        message = json.loads(line, parse_int=str, parse_float=str)
        return message if isinstance(message, dict) else {}
    return {}


def is_schema(line: str, message: dict[str, Any]) -> bool:
    """Return whether a malformed line is a SCHEMA message, or contains one."""
    if message:
        return message.get("type") == "SCHEMA"
    first = _MEMBER.search(line) if line.lstrip().startswith("{") else None
    if first and (first[1] in ("schema", "key_properties") or first[2] == "SCHEMA"):
        return True
    return bool(_NEXT_SCHEMA.search(line))


def stream_names(line: str, message: dict[str, Any]) -> list[str]:
    """Return the names of the streams that occur in a malformed line."""
    if message:
        stream = message.get("stream")
        return [stream] if isinstance(stream, str) and stream else []
    with suppress(ValueError):
        return [str(values.from_json(name)) for name in _STREAM_NAME.findall(line)]
    return []


def names_its_stream_first(line: str) -> bool:
    """Return whether a malformed line belongs to the streams that it names.

    This is true if the first name is not inside a record, and if the line contains only one message.
    """
    return bool(_STREAM_FIRST.match(line)) and not _NEXT_MESSAGE.search(line)
