"""Databricks, and what it shares with Oracle: MERGE in the place of UPDATE … FROM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Update
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateTable
from sqlalchemy.sql import operators, visitors

from target_crm.engines.base import EngineAdapter, laid_out

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import ColumnElement, Connection
    from sqlalchemy.sql.compiler import SQLCompiler


class DatabricksAdapter(EngineAdapter):
    """Each statement is a transaction of its own."""

    def is_atomic(self, connection: Connection, schema: str | None) -> bool:  # noqa: ARG002
        """No: each statement is done by itself."""
        return False


class OracleAdapter(EngineAdapter):
    """Like any other, but for how it changes rows."""


@compiles(Update, "databricks")
@compiles(Update, "oracle")
def _merge(update: Update, compiler: SQLCompiler, **kw: Any) -> str:
    """UPDATE … FROM, which these lack, as MERGE. What is set may not be in Oracle's ON, hence the second condition."""
    table: Any = update.table
    values: dict[Any, ColumnElement[Any]] = update._values or {}  # noqa: SLF001 - what no public name gives
    conditions = list(_conjuncts(update.whereclause))
    others = [each for each in {f: None for each in conditions for f in each._from_objects} if each is not table]  # noqa: SLF001
    if not others:
        return compiler.visit_update(update, **kw)
    (other,) = others
    set_columns = {column for column in table.c if column in values or column.name in values}
    late = [each for each in conditions if set_columns.intersection(visitors.iterate(each))]
    compiler.stack.append({"correlate_froms": {table}, "asfrom_froms": {table, other}, "selectable": update})
    try:
        words = {
            "source": compiler.process(other, asfrom=True, **kw),
            "on": " AND ".join(compiler.process(each, **kw) for each in conditions if each not in late),
            "late": " AND ".join(f"({compiler.process(each, **kw)})" for each in late),
            "set": ", ".join(
                f"{compiler.preparer.quote(getattr(column, 'name', column))} = {compiler.process(value, **kw)}"
                for column, value in values.items()
            ),
        }
    finally:
        compiler.stack.pop()
    oracle = compiler.dialect.name == "oracle"
    if_late = f" AND {words['late']}" if late and not oracle else ""
    where_late = f" WHERE {words['late']}" if late and oracle else ""
    return (
        f"MERGE INTO {compiler.preparer.format_table(table)} USING {words['source']} ON ({words['on']}) "
        f"WHEN MATCHED{if_late} THEN UPDATE SET {words['set']}{where_late}"
    )


def _conjuncts(condition: Any) -> Iterator[ColumnElement[bool]]:
    if getattr(condition, "operator", None) is operators.and_:
        for each in condition.clauses:
            yield from _conjuncts(each)
    else:
        yield condition


@compiles(CreateTable, "databricks")
def _create(create: CreateTable, compiler: Any, **kw: Any) -> str:
    return laid_out(create, compiler, "CLUSTER BY (award_id)", **kw)
