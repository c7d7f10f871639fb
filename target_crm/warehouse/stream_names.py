"""Read the recorded table and column names, and assign names to new streams and properties."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import inspect, select

from target_crm.records.names import NAME_BYTES_MAX, assign_table, from_text, to_text
from target_crm.sql.tables import WORK_PREFIX
from target_crm.warehouse.migrations import adapter_of, columns_in_ddl, joined, stored_columns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection, Dialect, Table

    from target_crm.records.schemas import Stored
    from target_crm.sql.tables import Tables


class StreamTables(Protocol):
    """A stream and its own tables."""

    @property
    def stream(self) -> str:
        """The name of the stream."""

    @property
    def fixed_table(self) -> str | None:
        """The name of the stream's table, if it does not depend on other names in the warehouse."""

    @property
    def columns(self) -> Mapping[str, str]:
        """The column of each property."""

    @property
    def allow_key_change(self) -> bool:
        """Whether to rebuild the table in the warehouse if its key differs from the key in the SCHEMA message."""

    @property
    def own_tables(self) -> Sequence[Table]:
        """The stream's own tables, with the names from the last call of `place`."""

    def place(self, table: str, recorded: Mapping[str, str], stored: Mapping[str, Stored]) -> None:
        """Set the table and the columns of the stream.

        Args:
            table: The name of the table.
            recorded: Property → column, for the properties whose column is recorded.
            stored: Column → the kind and size of its values, for the columns that exist.
        """


class StreamNames:
    """The recorded names that one transaction sees, and the names that it assigns.

    Attributes:
        added: Internal table → the rows to insert there, to record the new names.
        needed: Name → table, for all tables that the placed streams need.
    """

    def __init__(self, connection: Connection, tables: Tables) -> None:
        self._connection = connection
        self._tables = tables
        self._exist = inspect(connection).has_table(tables.streams.name, schema=tables.metadata.schema)
        self._table_of = tables_of_streams(connection, tables) if self._exist else {}
        self.added: dict[Table, list[tuple[Any, ...]]] = {tables.streams: [], tables.columns: []}
        self.needed: dict[str, Table] = {}

    def place(self, stream: StreamTables) -> None:
        """Set the table and the columns of a stream. Use the recorded names, and assign names that are missing."""
        name = stream.stream
        stream_id = _digest(name)
        if name not in self._table_of:
            self._table_of[name] = stream.fixed_table or self._new_table(name)
            self.added[self._tables.streams].append((stream_id, to_text(name), self._table_of[name]))
        recorded = self._columns(stream_id)
        table = self._table_of[name]
        stored = stored_columns(self._connection, table, self._tables.metadata.schema)
        if table in self.needed:
            # A stream that was placed earlier uses the same table.
            stored |= columns_in_ddl(self.needed[table], self._connection.dialect)
        stream.place(table, recorded, stored)
        for own in stream.own_tables:
            former = self.needed.get(own.name)
            self.needed[own.name] = (
                own
                if former is None
                else joined(self._connection, former, own, allow_key_change=stream.allow_key_change)
            )
        self.added[self._tables.columns] += [
            (_digest(name, each), stream_id, to_text(each), column)
            for each, column in stream.columns.items()
            if each not in recorded
        ]

    def _new_table(self, stream: str) -> str:
        connection, schema = self._connection, self._tables.metadata.schema
        existing = inspect(connection).get_table_names(schema=schema)
        stored = {each for each in existing if not each.startswith(WORK_PREFIX)}
        adapter = adapter_of(connection)
        reserved = {
            *self._tables.reserved_names,
            *adapter.view_names(connection, schema),
            *adapter.system_tables(connection),
        }
        return assign_table(
            stream,
            self._table_of.values(),
            stored,
            reserved,
            name_bytes_max(connection.dialect),
            reserved_prefix=adapter.limits.reserved_prefix,
            fold=adapter.limits.fold,
        )

    def _columns(self, stream_id: str) -> dict[str, str]:
        columns = self._tables.columns
        added = {from_text(name): column for _, owner, name, column in self.added[columns] if owner == stream_id}
        if not self._exist:
            return added
        query = select(columns.c.property, columns.c.column_name).where(columns.c.stream_id == stream_id)
        return {from_text(name): column for name, column in self._connection.execute(query)} | added


def name_bytes_max(dialect: Dialect) -> int:
    """Return how many bytes the name of a table or column may have."""
    return min(NAME_BYTES_MAX, dialect.max_identifier_length)


def tables_of_streams(connection: Connection, tables: Tables) -> dict[str, str]:
    """Return the recorded table of each stream."""
    query = select(tables.streams.c.stream, tables.streams.c.table_name)
    return {from_text(stream): table for stream, table in connection.execute(query)}


def _digest(*names: str) -> str:
    return hashlib.blake2b("\0".join(map(to_text, names)).encode(), digest_size=16).hexdigest()
