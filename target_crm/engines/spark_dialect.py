"""A SQLAlchemy dialect for Spark's Thrift server. It is PyHive's dialect for Hive, changed where Spark differs.

Spark has no keys, and cannot change single rows of a Parquet table. So `SparkAdapter` rewrites tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhive.sqlalchemy_hive import HiveCompiler, HiveDialect, HiveTypeCompiler
from sqlalchemy import BigInteger, Boolean, Date, DateTime, Double, Numeric, String, text
from sqlalchemy.sql.compiler import DDLCompiler, SQLCompiler

if TYPE_CHECKING:
    from sqlalchemy import Column, Connection, Delete, Insert
    from sqlalchemy.schema import CreateTable
    from sqlalchemy.types import TypeEngine

_TYPES: dict[str, TypeEngine[Any]] = {
    "bigint": BigInteger(),
    "boolean": Boolean(),
    "date": Date(),
    "double": Double(),
    "string": String(),
    "timestamp": DateTime(),
}


class _Statements(HiveCompiler):  # type: ignore[misc]
    def visit_insert(self, insert_stmt: Insert, *args: Any, **kw: Any) -> str:
        """Name the columns. PyHive's own compiler leaves them out."""
        return str(SQLCompiler.visit_insert(self, insert_stmt, *args, **kw))  # type: ignore[no-untyped-call]

    def visit_delete(self, delete_stmt: Delete, *_: Any, **__: Any) -> str:
        """Use TRUNCATE, because Spark can delete only all rows of a Parquet table."""
        return f"TRUNCATE TABLE {self.preparer.format_table(delete_stmt.table)}"


class _Types(HiveTypeCompiler):  # type: ignore[misc]
    def visit_NUMERIC(self, type_: Numeric[Any], **_: Any) -> str:  # noqa: N802
        return f"DECIMAL({type_.precision}, {type_.scale})"

    def visit_DATE(self, _type: Date, **_: Any) -> str:  # noqa: N802
        return "DATE"


class _Definitions(DDLCompiler):
    def visit_create_table(self, create: CreateTable, **_: Any) -> str:
        """Create a Parquet table, without constraints."""
        columns = ", ".join(map(self.get_column_specification, create.element.columns))
        return f"CREATE TABLE {self.preparer.format_table(create.element)} ({columns}) USING PARQUET"

    def get_column_specification(self, column: Column[Any], **_: Any) -> str:
        """Write only the name and the type of a column, without DEFAULT and NOT NULL."""
        return f"{self.preparer.format_column(column)} {self.dialect.type_compiler_instance.process(column.type)}"


class SparkDialect(HiveDialect):  # type: ignore[misc]
    """The dialect for URLs such as `spark://user@host:10000/database`.

    The query string of the URL may contain more arguments of PyHive's `connect`.
    """

    name = "spark"
    supports_statement_cache = False
    statement_compiler = _Statements
    type_compiler = _Types
    ddl_compiler = _Definitions

    def get_table_names(self, connection: Connection, schema: str | None = None, **_: Any) -> list[str]:
        """Return the names of tables and views."""
        within = f" IN {self.identifier_preparer.quote(schema)}" if schema else ""
        return [row.tableName for row in connection.execute(text(f"SHOW TABLES{within}"))]

    def get_view_names(self, connection: Connection, schema: str | None = None, **_: Any) -> list[str]:
        """Return the names of views."""
        within = f" IN {self.identifier_preparer.quote(schema)}" if schema else ""
        return [row.viewName for row in connection.execute(text(f"SHOW VIEWS{within}"))]

    def has_table(self, connection: Connection, table_name: str, schema: str | None = None, **_: Any) -> bool:
        """Return whether a table or view with this name exists."""
        return table_name in self.get_table_names(connection, schema)

    def get_columns(
        self, connection: Connection, table_name: str, schema: str | None = None, **_: Any
    ) -> list[dict[str, Any]]:
        """Return the columns. All of them are nullable, because the target creates no others on Spark."""
        quote = self.identifier_preparer.quote
        name = ".".join(map(quote, filter(None, (schema, table_name))))
        return [
            {"name": row.col_name, "type": _type(row.data_type), "nullable": True, "default": None}
            for row in connection.execute(text(f"DESCRIBE TABLE {name}"))
        ]


def _type(name: str) -> TypeEngine[Any]:
    if name.startswith("decimal("):
        precision, scale = name.removeprefix("decimal(").removesuffix(")").split(",")
        return Numeric(int(precision), int(scale))
    return _TYPES.get(name, String())
