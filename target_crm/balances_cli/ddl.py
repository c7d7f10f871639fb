"""What a target would create in a warehouse, told and not done."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from target_crm.errors import InputError
from target_crm.records import values
from target_crm.warehouse.connection import Warehouse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Table

    from target_crm.loader.target import TargetCrm


class Plan(Warehouse):
    """A warehouse that notes what a target would need in it, and changes nothing."""

    def __init__(self, sqlalchemy_url: str, schema: str | None = None) -> None:
        super().__init__(sqlalchemy_url, schema)
        self._needed: list[Table] = []

    @classmethod
    def of(cls, target: TargetCrm, messages: Iterable[str]) -> Plan:
        """What a target needs for the streams that messages announce; only SCHEMA messages are looked at."""
        target.warehouse = plan = cls(target.settings.sqlalchemy_url, target.settings.default_target_schema)
        lines = list(messages)
        schemas = [line for line in lines if _is_schema(line)]
        if lines and not schemas:
            raise InputError("--schemas: no SCHEMA message in it; tap-pepper --test=schema prints them")
        target.process_lines(io.StringIO("".join(schemas)))
        return plan

    def ensure(self, *tables: Table) -> None:
        """Note the tables."""
        self._needed += tables

    def statements(self) -> list[str]:
        """What to execute, so that a loader has nothing to create or to change any more."""
        return self.lacks(*self._needed)


def _is_schema(line: str) -> bool:
    try:
        message = values.from_json(line)
    except ValueError:
        return False
    return isinstance(message, dict) and message.get("type") == "SCHEMA"
