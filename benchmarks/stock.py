"""The stock path: a SQL target as the SDK's template makes it, on SQLite."""

from __future__ import annotations

import json
import sqlite3
from functools import partial

from singer_sdk import typing as th
from singer_sdk.sql import SQLConnector, SQLSink, SQLTarget

# What targets for SQLite add: objects and arrays are stored as JSON text.
for kind in (dict, list):
    sqlite3.register_adapter(kind, partial(json.dumps, default=float))


class StockConnector(SQLConnector):
    """SQLite allows no two writers, and no change of a column's type."""

    allow_temp_tables = False
    allow_column_alter = False


class StockSink(SQLSink[StockConnector]):
    """Inserts rows as they come."""

    connector_class = StockConnector


class StockTarget(SQLTarget):
    """The SDK's defaults throughout."""

    name = "target-stock"
    config_jsonschema = th.PropertiesList(th.Property("sqlalchemy_url", th.StringType)).to_dict()
    default_sink_class = StockSink


if __name__ == "__main__":
    StockTarget.cli()
