"""BigQuery's emulator, run by the Python of its own environment, without what keeps it from doing as BigQuery does."""

import re

from bqemulator.cli import main
from bqemulator.jobs import executor
from bqemulator.sql.translator import SQLTranslator
from bqemulator.storage.engine import DuckDBEngine

translate = SQLTranslator.translate


def load_parquet(path, table, context):
    """By the names of columns; the emulator goes by their places."""
    context.engine.execute(f"INSERT INTO {table} BY NAME SELECT * FROM read_parquet(?)", [path])


def translate_numeric(translator, sql, **more):
    """NUMERIC has nine places; the emulator casts to three."""
    return translate(translator, re.sub(r"\bAS NUMERIC\)", "AS NUMERIC(38, 9))", sql), **more)


def load_no_extension(_engine):
    """Nobody asks for geography; the emulator would look for its extension on the network, and not start without."""


executor._LOAD_FORMAT_HANDLERS["PARQUET"] = load_parquet
SQLTranslator.translate = translate_numeric
DuckDBEngine._load_spatial = load_no_extension
main()
