"""The adapter for Amazon Redshift.

On Redshift, TEXT holds only 256 bytes. The lengths of types are in bytes, and a character may take four bytes.
"""

from __future__ import annotations

from sqlalchemy import DateTime, String

from target_crm.engines.base import ExtendedSQLAdapter
from target_crm.records.column_types import ID_CHARS_MAX, ColumnTypes, register


class RedshiftAdapter(ExtendedSQLAdapter):
    """The adapter drops a column that inserts should leave out, because Redshift cannot make a column nullable."""

    leave_out_column = "DROP COLUMN {name}"


ADAPTERS = {"redshift": RedshiftAdapter()}

register(
    "redshift",
    ColumnTypes(
        identifier=String(ID_CHARS_MAX * 4),
        text=String(65_535),
        instant=DateTime(timezone=True),
        keeps_time_zone=True,
    ),
)
