"""Write Singer messages to stdout as JSON lines that keep every digit of a decimal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import msgspec
from singer_sdk.singerlib import RecordMessage
from singer_sdk.singerlib.encoding.base import GenericSingerWriter, SingerMessageType
from singer_sdk.singerlib.encoding.simple import Message

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from tap_pepper.raw_json import Row

_encoder = msgspec.json.Encoder(decimal_format="number", enc_hook=str)


class MessageWriter(GenericSingerWriter[bytes, Message]):
    """Writes one line per message.

    RECORD messages stay in stdout's buffer until it is full. Every other message flushes the buffer, so that the target
    receives a STATE, and the records before it, without delay.
    """

    def serialize_message(self, message: Message) -> bytes:
        """Encode a message as one line; leave empty bookmarks out of a STATE."""
        content = message.to_dict()
        if message.type == SingerMessageType.STATE:
            # The SDK adds an empty bookmark for a stream that has not written one. If all bookmarks were empty, the
            # next run would reject the STATE.
            bookmarks = {
                stream: bookmark for stream, bookmark in content["value"].get("bookmarks", {}).items() if bookmark
            }
            content["value"] = {**content["value"], "bookmarks": bookmarks}
        return _encoder.encode(content) + b"\n"

    def write_message(self, message: Message) -> None:
        """Write a message, and flush stdout unless it is a RECORD."""
        sys.stdout.buffer.write(self.serialize_message(message))
        if message.type != SingerMessageType.RECORD:
            sys.stdout.flush()

    def write_records(self, stream: str, rows: Iterable[Row], version: int | None, extracted_at: datetime) -> None:
        """Write a RECORD message for each row. All messages have the same extraction time."""
        message = RecordMessage(stream=stream, record={}, version=version, time_extracted=extracted_at).to_dict()
        lines = _encoder.encode_lines([{**message, "record": row} for row in rows])
        # Write line by line, because a signal during a longer write could leave half a line.
        sys.stdout.buffer.writelines(lines.splitlines(keepends=True))
