"""Compile UPDATE … FROM as MERGE, for engines without UPDATE … FROM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.sql import operators, visitors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import ColumnElement, Update
    from sqlalchemy.sql.compiler import SQLCompiler


def compile_as_merge(update: Update, compiler: SQLCompiler, matched: str, condition: str, **kw: Any) -> str:
    """Compile an UPDATE to a MERGE, if the UPDATE reads another table.

    Args:
        update: The statement. It stays an UPDATE if it reads no other table.
        compiler: The compiler of the engine's dialect.
        matched: A template for the clause that follows ON. `{set}` stands for the assignments. `{condition}` stands for
            the text from `condition`.
        condition: A template in which `{}` stands for the conditions on columns that the statement sets. Oracle does
            not allow such columns in ON. Without such conditions, `{condition}` becomes an empty string.
        kw: Keyword arguments for the compiler.
    """
    table: Any = update.table
    values: dict[Any, ColumnElement[Any]] = update._values or {}  # noqa: SLF001 - there is no public name
    conditions = list(_conjuncts(update.whereclause))
    others = [each for each in {f: None for each in conditions for f in each._from_objects} if each is not table]  # noqa: SLF001
    if not others:
        return compiler.visit_update(update, **kw)
    (other,) = others
    set_columns = {column for column in table.c if column in values or column.name in values}
    on_set_columns = [each for each in conditions if set_columns.intersection(visitors.iterate(each))]
    compiler.stack.append({"correlate_froms": {table}, "asfrom_froms": {table, other}, "selectable": update})
    try:
        source = compiler.process(other, asfrom=True, **kw)
        on = " AND ".join(compiler.process(each, **kw) for each in conditions if each not in on_set_columns)
        late = " AND ".join(f"({compiler.process(each, **kw)})" for each in on_set_columns)
        assignments = ", ".join(
            f"{compiler.preparer.quote(getattr(column, 'name', column))} = {compiler.process(value, **kw)}"
            for column, value in values.items()
        )
    finally:
        compiler.stack.pop()
    when_matched = matched.format(set=assignments, condition=condition.format(late) if late else "")
    return f"MERGE INTO {compiler.preparer.format_table(table)} USING {source} ON ({on}) {when_matched}"


def _conjuncts(condition: Any) -> Iterator[ColumnElement[bool]]:
    if getattr(condition, "operator", None) is operators.and_:
        for each in condition.clauses:
            yield from _conjuncts(each)
    else:
        yield condition
