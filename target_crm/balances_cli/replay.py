"""The quarantine loaded again: what has become loadable since leaves it."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from target_crm.balances_cli.verify import count
from target_crm.loader.target import TargetCrm
from target_crm.records import values

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Connection, Row

    from target_crm.records.tally import Rejection

# Rows of the quarantine that are in memory at a time; each may be a line of some megabytes.
REPLAY_ROWS = 100


class Replay(TargetCrm):
    """Loads quarantined records of `actions` and `awards` as if they came for the first time.

    Records of other streams stay: without their SCHEMA nobody knows their columns.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._refused: dict[int, str] = {}

    @classmethod
    def run(cls, config: Mapping[str, Any]) -> dict[str, int]:
        """Replay into the warehouse of the settings.

        Returns:
            How many records were tried, and loaded, and how many are left in the quarantine, also of other streams.
        """
        # Whatever a loader does, here is where what it refuses belongs.
        mapped = {**config, "on_invalid_record": "quarantine"}
        # A record that was refused as one of its stream has been through the stream maps; a whole message has not.
        unmapped = {name: value for name, value in mapped.items() if not name.startswith("stream_map")}
        records, messages = cls(config=unmapped), cls(config=mapped)
        replayed = records.replay(*_STREAMS), messages.replay("")
        with messages.warehouse.read() as connection:
            left = count(connection, messages.warehouse.tables.rejected_records)
        tried, loaded = (sum(counts) for counts in zip(*replayed, strict=True))
        return {"tried": tried, "loaded": loaded, "rejected": left}

    def replay(self, *streams: str) -> tuple[int, int]:
        """Replay what was refused of some streams; `""` stands for messages that were refused as a whole.

        A record leaves the quarantine after it is committed, so a replay that is killed can simply be repeated.

        Returns:
            How many were tried, and how many of them loaded.
        """
        tried = loaded = 0
        last_id = ""
        while rows := self._rows_after(last_id, streams):
            last_id = rows[-1].rejected_id
            messages = {row.rejected_id: message for row in rows if (message := _as_message(row))}
            self._refused.clear()
            first_line = self.input_line + len(_SCHEMAS) + 1
            self.process_lines(io.StringIO("".join(f"{line}\n" for line in [*_SCHEMAS, *messages.values()])))
            self._drain()
            # What is refused for another reason than before stands in the quarantine a second time.
            self._forget(messages.keys() - self._refused.values())
            tried += len(messages)
            loaded += len(messages) - sum(line in self._refused for line in range(first_line, self.input_line + 1))
        return tried, loaded

    def _rows_after(self, rejected_id: str, streams: Sequence[str]) -> Sequence[Row[Any]]:
        """The next rows of the quarantine, but for those that this replay has put there."""
        rejected = self.warehouse.tables.rejected_records
        query = (
            select(rejected)
            .where(
                rejected.c.rejected_id > rejected_id, rejected.c.stream.in_(streams), rejected.c.run_id != self.run_id
            )
            .order_by(rejected.c.rejected_id)
            .limit(REPLAY_ROWS)
        )
        with self.warehouse.read() as connection:
            return connection.execute(query).all()

    def _forget(self, rejected_ids: Iterable[str]) -> None:
        rejected = self.warehouse.tables.rejected_records
        forget = rejected.delete().where(rejected.c.rejected_id.in_(rejected_ids))
        adapter = self.warehouse.adapter
        self.warehouse.commit_once(lambda connection: adapter.execute(connection, forget))

    def _tell(self, *_: Any) -> None:
        """Nothing: a replay is no run of a tap's messages."""

    def _quarantine(self, connection: Connection, rejections: list[Rejection]) -> None:
        super()._quarantine(connection, rejections)
        self._refused.update((rejection.input_line, rejection.rejected_id) for rejection in rejections)


_STREAMS = ("actions", "awards")
_SCHEMA = {"properties": {"_id": {"type": "string"}}}
_SCHEMAS = [
    json.dumps({"type": "SCHEMA", "stream": stream, "schema": _SCHEMA, "key_properties": ["_id"]})
    for stream in _STREAMS
]


def _as_message(row: Row[Any]) -> str | None:
    """A quarantined record as the RECORD message that it came in; None where it can't be tried."""
    try:
        payload = values.from_json(row.payload)
    except ValueError:
        return None
    if not isinstance(payload, dict):
        return None
    if row.stream:
        extracted_at = row.extracted_at or row.rejected_at
        payload = {"stream": row.stream, "record": payload, "time_extracted": extracted_at.isoformat()}
    replayable = payload.get("stream") in _STREAMS and "record" in payload
    return values.json_text({**payload, "type": "RECORD"}) if replayable else None
