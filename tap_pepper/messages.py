"""How Singer messages leave the tap: JSON lines on stdout, decimals digit for digit."""

from __future__ import annotations

import sys

import msgspec
from singer_sdk.singerlib.encoding.base import GenericSingerWriter, SingerMessageType
from singer_sdk.singerlib.encoding.simple import Message

_encoder = msgspec.json.Encoder(decimal_format="number", enc_hook=str)


class MessageWriter(GenericSingerWriter[bytes, Message]):
    """Writes a line a message.

    Records are left to the buffer of stdout; any other message pushes them out with it, so that a STATE that is seen
    has all of its records before it.
    """

    def serialize_message(self, message: Message) -> bytes:
        """Encode a message as one line."""
        return _encoder.encode(message.to_dict()) + b"\n"

    def write_message(self, message: Message) -> None:
        """Write a message to stdout."""
        sys.stdout.buffer.write(self.serialize_message(message))
        if message.type != SingerMessageType.RECORD:
            sys.stdout.flush()
