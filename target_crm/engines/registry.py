"""Which adapter serves which engine."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from target_crm.engines.base import EngineAdapter

# SQLAlchemy's name of an engine → the module and class of its adapter.
_ADAPTERS = {
    "sqlite": ("sqlite", "SQLiteAdapter"),
    "postgresql": ("postgresql", "PostgreSQLAdapter"),
    "duckdb": ("duckdb", "DuckDBAdapter"),
    "mysql": ("mysql", "MySQLAdapter"),
    "mariadb": ("mysql", "MariaDBAdapter"),
    "snowflake": ("snowflake", "SnowflakeAdapter"),
    "bigquery": ("bigquery", "BigQueryAdapter"),
    "databricks": ("databricks", "DatabricksAdapter"),
    "oracle": ("databricks", "OracleAdapter"),
    "mssql": ("mssql", "SQLServerAdapter"),
    "clickhousedb": ("clickhouse", "ClickHouseAdapter"),
    "spark": ("spark", "SparkAdapter"),
}


@cache
def adapter_for(backend_name: str) -> EngineAdapter:
    """The adapter of an engine, by SQLAlchemy's name of it; the default one for an unknown engine.

    An engine's module is imported only when it is needed: some import a driver.
    """
    if backend_name not in _ADAPTERS:
        return EngineAdapter()
    module, name = _ADAPTERS[backend_name]
    adapter: type[EngineAdapter] = getattr(import_module(f"target_crm.engines.{module}"), name)
    return adapter()
