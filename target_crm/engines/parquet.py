"""Write rows to Parquet files, for warehouses that load files."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Numeric

from target_crm.engines.base import to_floats
from target_crm.records.column_types import POINTS_DIGITS, POINTS_PLACES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sqlalchemy import Column

    from target_crm.engines.base import Rows


def write_parquet(path: Path, columns: Mapping[str, Column[Any]], rows: Rows) -> None:
    """Write rows to a Parquet file, with the names and types of the columns. Times are in UTC."""
    import pyarrow  # noqa: PLC0415 - installed only with the extras of engines that need it
    from pyarrow import parquet  # noqa: PLC0415

    types = {
        str: pyarrow.string(),
        int: pyarrow.int64(),
        bool: pyarrow.bool_(),
        float: pyarrow.float64(),
        Decimal: pyarrow.decimal128(POINTS_DIGITS, POINTS_PLACES),
        datetime: pyarrow.timestamp("us", tz="UTC"),
        date: pyarrow.date32(),
    }
    arrays, fields = [], []
    for (name, column), values in zip(columns.items(), zip(*rows, strict=True), strict=True):
        kind = getattr(column.type, "impl_instance", column.type).python_type
        column_values = to_floats(values) if kind is float else values
        type_ = types[kind]
        if type(column.type) is Numeric:
            type_ = pyarrow.decimal128(column.type.precision, column.type.scale)
        arrays.append(pyarrow.array(column_values, type_))
        fields.append(pyarrow.field(name, type_, nullable=bool(column.nullable)))
    parquet.write_table(pyarrow.table(arrays, schema=pyarrow.schema(fields)), path)
