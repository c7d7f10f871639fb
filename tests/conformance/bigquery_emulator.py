"""Run BigQuery's emulator in its own Python environment. Patches make it behave like BigQuery where it differs."""

import re

import sqlglot
from bqemulator.api.routes import tables
from bqemulator.catalog import ddl_sync
from bqemulator.cli import main
from bqemulator.jobs import executor
from bqemulator.sql.translator import SQLTranslator
from bqemulator.storage.engine import DuckDBEngine

translate = SQLTranslator.translate
created_table = ddl_sync._detect_plain_create_table
table_to_rest = tables._table_to_rest


def load_parquet(path, table, context):
    """Match the columns by name. The emulator itself would match them by position."""
    context.engine.execute(f"INSERT INTO {table} BY NAME SELECT * FROM read_parquet(?)", [path])


def translate_numeric(translator, sql, **more):
    """Give NUMERIC nine decimal places. The emulator itself would cast to three."""
    return translate(translator, re.sub(r"\bAS NUMERIC\)", "AS NUMERIC(38, 9))", sql), **more)


def load_no_extension(_engine):
    """Load no extension for geography. The emulator would download it, and would not start without it."""


def created_or_altered_table(sql):
    """Return the table whose columns have changed. The emulator itself does not notice ALTER TABLE."""
    if sql.lstrip().upper().startswith("ALTER TABLE"):
        return sqlglot.parse_one(sql, read="bigquery").find(sqlglot.exp.Table)
    return created_table(sql)


def table_with_view_to_rest(table):
    """Return the metadata of a table. Include the SQL of a view, as BigQuery does."""
    view = {"view": {"query": table.view_query}} if table.view_query else {}
    return {**table_to_rest(table), **view}


executor._LOAD_FORMAT_HANDLERS["PARQUET"] = load_parquet
SQLTranslator.translate = translate_numeric
DuckDBEngine._load_spatial = load_no_extension
ddl_sync._detect_plain_create_table = created_or_altered_table
tables._table_to_rest = table_with_view_to_rest
main()
