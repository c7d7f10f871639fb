"""List the SQL statements that a loader would need to create or change its tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from target_crm.errors import InputError
from target_crm.loader.sinks import TableSink
from target_crm.records import values

if TYPE_CHECKING:
    from collections.abc import Iterable

    from target_crm.loader.target import TargetCrm


def missing_statements(target: TargetCrm, messages: Iterable[str]) -> list[str]:
    """Return the statements that a target still needs to create or change its tables.

    This function does not execute the statements.

    Args:
        target: A target that has not loaded anything.
        messages: Singer messages with the SCHEMA of each stream to load. Without messages, assume Pepper's streams.
    """
    lines = list(messages)
    schemas = [schema for line in lines if (schema := _schema_message(line))]
    if lines and not schemas:
        raise InputError("--schemas: the file has no SCHEMA message; tap-pepper --test=schema prints SCHEMA messages")
    sinks = [route.sink for number, message in enumerate(schemas, 1) for route in target.router.add(message, number)]
    target.warehouse.check_schema()
    return target.warehouse.lacks(
        *(sink for sink in sinks if isinstance(sink, TableSink)),
        balances=not sinks or any(sink.changes_balances for sink in sinks),
    )


def _schema_message(line: str) -> dict[str, Any] | None:
    try:
        message = values.from_json(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) and message.get("type") == "SCHEMA" else None
