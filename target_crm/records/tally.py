"""The outcome of a run's records: counts per stream, and each quarantined record with the reason."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True)
class Tally:
    """How many records of one stream had each outcome. `read` is the sum of the other counts."""

    read: int = 0
    applied: int = 0
    duplicate: int = 0
    superseded: int = 0
    quarantined: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def __str__(self) -> str:
        parts = " + ".join(f"{getattr(self, field.name):,} {field.name}" for field in fields(self)[1:])
        return f"{self.read:,} read = {parts}"


@dataclass(frozen=True)
class Rejection:
    """A record that goes to the quarantine, and the reason."""

    stream: str
    reason: str
    input_line: int
    payload: str
    extracted_at: datetime | None = None

    @property
    def rejected_id(self) -> str:
        """A hash of stream, reason and payload. A record that fails again for the same reason keeps a single row."""
        identity = "\x1f".join((self.stream, self.reason, self.payload))
        return hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()

    @property
    def where(self) -> str:
        """Stream, line and reason, for an error message."""
        return f"{self.stream or 'input'} line {self.input_line}: {self.reason}"

    def row(self, rejected_at: datetime, run_id: str) -> tuple[Any, ...]:
        """Convert the rejection to a row of `rejected_records`."""
        return (
            self.rejected_id,
            self.stream,
            self.reason,
            self.input_line,
            self.payload,
            rejected_at,
            run_id,
            self.extracted_at,
        )
