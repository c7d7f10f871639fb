"""The documentation's dictionary: the target's own tables and columns, and those of the tap's streams."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from sqlalchemy.dialects import postgresql

import target_crm.engines.postgresql  # noqa: F401 - registers PostgreSQL's column types
from tap_pepper.base_stream import OTHER_FIELDS
from target_crm.records.actions import INVALID_POINTS
from target_crm.records.schemas import Shape
from target_crm.sql.tables import DESCRIPTION, METADATA_DOCS, SOURCE, VIEW_DOCS, WORK, Tables

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import Table
    from sqlalchemy.types import TypeEngine

VIEWS = {
    "user_balances": "View: one row per user and perk, summed over the user's awards that are not deleted.",
    "award_balance_drift": "View: one row per award, with the part of its balance that its actions explain.",
}
HEAD = """\
# Dictionary

This page lists every table and column that target-crm creates for the streams of tap-pepper. It is generated from
`target_crm/sql/tables.py` and `tap_pepper/schemas/`. Types are those of PostgreSQL; other engines have
[their own](columns.md#types). Times are in UTC. The balance tables exist once `actions` or `awards` has been
loaded.

When the target creates one of its own tables, it stores the descriptions as comments, except on SQLite, on Spark and
on engines without an adapter. To see them, use `\\d+ award_balances` in psql, `duckdb_columns()` in DuckDB, or
`SHOW FULL COLUMNS FROM award_balances` in MariaDB.

The tables of other taps' streams have [one column per property](columns.md), and the metadata columns. Work tables,
whose names begin with `_crm_staging_`, `_crm_fresh` or `_crm_merged`, are empty between runs.
"""
COLUMNS = ["| column | type | null | meaning | field in Pepper |", "|---|---|---|---|---|"]


def as_markdown() -> str:
    """The page: the user's tables, the views, the metadata columns, and the internal tables."""
    tables = Tables()
    kept = [table for table in tables.metadata.tables.values() if not WORK.items() <= table.info.items()]
    internal = [table for table in kept if table.name.startswith("_crm_")]
    parts = [HEAD, *(_table(table) for table in kept if table not in internal), *_views(tables)]
    parts += [_stream(name) for name in ("perks", "users")]
    parts += [
        "## Metadata columns\n\nEvery stream's table except `actions` has these columns.\n",
        _metadata_columns(tables.awards),
    ]
    parts += [
        "## Internal tables\n\nDo not change these.\n",
        *(_table(table, "###") for table in internal),
    ]
    return "\n".join(parts)


def _table(table: Table, level: str = "##") -> str:
    rows = [
        _row(column.name, column.type, column.nullable, column.doc, column.info.get(SOURCE), key=column.primary_key)
        for column in table.columns
        if column.name not in METADATA_DOCS
    ]
    if table.name == "awards":
        sources = {column.info.get(SOURCE) for column in table.columns}
        # The target quarantines a record with invalid points, so the property gets no column.
        rows += _properties(_schema("awards"), without={*sources, INVALID_POINTS})
    return "\n".join([f"{level} {table.name}\n", f"{table.info[DESCRIPTION]}\n", *COLUMNS, *rows, ""])


def _stream(name: str) -> str:
    schema = _schema(name)
    return "\n".join([f"## {name}\n", f"{schema['description']}\n", *COLUMNS, *_properties(schema), ""])


def _schema(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((files("tap_pepper") / "schemas" / f"{name}.json").read_bytes())
    return schema


def _properties(schema: dict[str, Any], *, without: Collection[str | None] = ()) -> list[str]:
    properties = schema["properties"]
    return [
        _row(
            field.column,
            field.kind.type,
            True,
            properties[field.property]["description"],
            None if field.property == OTHER_FIELDS else field.property,
            key=field.property == "_id",
        )
        for field in Shape.of(schema, ["_id"]).fields
        if field.property not in without
    ]


def _views(tables: Tables) -> list[str]:
    balances = tables.award_balances.columns
    pages = []
    for name, query in tables.views.items():
        rows = [
            _row(column.name, column.type, None, VIEW_DOCS.get(column.name) or balances[column.name].doc, None)
            for column in query.selected_columns
        ]
        pages.append("\n".join([f"## {name}\n", f"{VIEWS[name]}\n", *COLUMNS, *rows, ""]))
    return pages


def _metadata_columns(table: Table) -> str:
    rows = [_row(name, table.columns[name].type, True, meaning, None) for name, meaning in METADATA_DOCS.items()]
    return "\n".join([*COLUMNS, *rows, ""])


def _row(
    name: str,
    type_: TypeEngine[object],
    nullable: bool | None,
    meaning: str | None,
    source: str | None,
    *,
    key: bool = False,
) -> str:
    if not meaning:
        raise ValueError(f"column {name} has no `doc`")
    null = "key" if key else {True: "yes", False: "no", None: ""}[nullable]
    kind = type_.dialect_impl(postgresql.dialect()).compile(postgresql.dialect()).lower().removesuffix(' collate "c"')
    return f"| `{name}` | `{kind}` | {null} | {meaning} | {f'`{source}`' if source else ''} |"
