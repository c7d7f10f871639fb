"""Load quarantined records again. A record leaves the quarantine once it is loaded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from target_crm.balances_cli.verify import count_rows
from target_crm.loader.target import TargetCrm
from target_crm.records import values

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Row

    from target_crm.records.tally import Rejection
    from target_crm.warehouse.connection import Warehouse

# Keep only this many records in memory at a time, because each may be a line of several megabytes.
REPLAY_ROWS = 100


def replay(config: Mapping[str, Any], warehouse: Warehouse) -> dict[str, int]:
    """Replay quarantined actions and awards, with target-crm's settings.

    Records from other streams stay in the quarantine, because their columns are unknown without a SCHEMA message.

    Returns:
        How many records were tried and loaded, and how many records from all streams are left in the quarantine.
    """
    mapped = {**config, "on_invalid_record": "quarantine"}
    # A record that was quarantined under its stream has already passed the stream maps. A message that was quarantined
    # as a whole has not.
    unmapped = {name: value for name, value in mapped.items() if not name.startswith("stream_map")}
    replayed = _Replay(unmapped, warehouse).run(*_STREAMS), _Replay(mapped, warehouse).run("")
    with warehouse.read() as connection:
        left = count_rows(connection, warehouse.tables.rejected_records)
    tried, loaded = (sum(counts) for counts in zip(*replayed, strict=True))
    return {"tried": tried, "loaded": loaded, "rejected": left}


class _Replay:
    """Loads quarantined records with its own instance of the target."""

    def __init__(self, config: Mapping[str, Any], warehouse: Warehouse) -> None:
        self._warehouse = warehouse
        self._target = TargetCrm(config=dict(config), warehouse=warehouse, records_run=False, on_quarantine=self._note)
        self._rejected_ids: dict[int, str] = {}

    def run(self, *streams: str) -> tuple[int, int]:
        """Replay the records of some streams. `""` stands for messages that were quarantined as a whole.

        A record leaves the quarantine after it is committed. So if a replay is killed, just start it again.

        Returns:
            How many records were tried, and how many of them were loaded.
        """
        tried = loaded = 0
        last_id = ""
        while rows := self._rows_after(last_id, streams):
            last_id = rows[-1].rejected_id
            messages = {row.rejected_id: message for row in rows if (message := _as_message(row))}
            if not messages:
                continue
            self._rejected_ids.clear()
            first_line = self._target.input_line + len(_SCHEMAS) + 1
            self._target.load([*_SCHEMAS, *messages.values()])
            # Delete the rows of loaded records, and the old row of a record that was quarantined again for another
            # reason.
            self._delete(messages.keys() - self._rejected_ids.values())
            lines = range(first_line, self._target.input_line + 1)
            tried += len(messages)
            loaded += len(messages) - sum(line in self._rejected_ids for line in lines)
        return tried, loaded

    def _note(self, rejections: Sequence[Rejection]) -> None:
        self._rejected_ids.update((rejection.input_line, rejection.rejected_id) for rejection in rejections)

    def _rows_after(self, rejected_id: str, streams: Sequence[str]) -> Sequence[Row[Any]]:
        """Fetch the next rows of the quarantine, without the rows that this replay has added."""
        rejected = self._warehouse.tables.rejected_records
        query = (
            select(rejected)
            .where(
                rejected.c.rejected_id > rejected_id,
                rejected.c.stream.in_(streams),
                rejected.c.run_id != self._target.writer.run_id,
            )
            .order_by(rejected.c.rejected_id)
            .limit(REPLAY_ROWS)
        )
        with self._warehouse.read() as connection:
            return connection.execute(query).all()

    def _delete(self, rejected_ids: set[str]) -> None:
        rejected = self._warehouse.tables.rejected_records
        delete = rejected.delete().where(rejected.c.rejected_id.in_(rejected_ids))
        self._warehouse.commit_once(lambda connection: self._warehouse.adapter.execute(connection, delete))


_STREAMS = ("actions", "awards")
_SCHEMA = {"properties": {"_id": {"type": "string"}}}
_SCHEMAS = [
    json.dumps({"type": "SCHEMA", "stream": stream, "schema": _SCHEMA, "key_properties": ["_id"]})
    for stream in _STREAMS
]


def _as_message(row: Row[Any]) -> str | None:
    """Convert a quarantined record back to its RECORD message. Return None if the record cannot be replayed."""
    try:
        payload = values.from_json(row.payload)
    except ValueError:
        return None
    if not isinstance(payload, dict):
        return None
    # A record without a time must not become newer than the records that were loaded since.
    extracted_at = (row.extracted_at or row.rejected_at).isoformat()
    if row.stream:
        payload = {"stream": row.stream, "record": payload, "time_extracted": extracted_at}
    elif not values.optional(payload.get("time_extracted"), values.instant):
        payload = {**payload, "time_extracted": extracted_at}
    replayable = payload.get("stream") in _STREAMS and "record" in payload
    return values.json_text({**payload, "type": "RECORD"}) if replayable else None
