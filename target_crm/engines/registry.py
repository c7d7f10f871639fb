"""Which adapter serves which engine."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from target_crm.engines.base import EngineAdapter

# SQLAlchemy's name of an engine → its module, which registers column types and SQL, and has an adapter.
_MODULES = {
    "bigquery": "bigquery",
    "clickhousedb": "clickhouse",
    "databricks": "databricks",
    "duckdb": "duckdb",
    "mariadb": "mysql",
    "mssql": "mssql",
    "mysql": "mysql",
    "oracle": "oracle",
    "postgresql": "postgresql",
    "redshift": "redshift",
    "snowflake": "snowflake",
    "spark": "spark",
    "sqlite": "sqlite",
}


@cache
def adapter_for(backend_name: str) -> EngineAdapter:
    """The adapter of an engine, by SQLAlchemy's name of it; the default one for an unknown engine.

    Call it before anything is compiled for the engine's dialect: it imports the engine's module. No other module does,
    because some import a driver.
    """
    if backend_name not in _MODULES:
        return EngineAdapter()
    adapters: dict[str, EngineAdapter] = import_module(f"target_crm.engines.{_MODULES[backend_name]}").ADAPTERS
    return adapters[backend_name]
