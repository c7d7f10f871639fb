"""Which adapter serves which engine."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from target_crm.engines.base import EngineAdapter
from target_crm.errors import SettingError

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
# Engines whose extra has another name than the module.
_EXTRAS = {"postgresql": "postgres"}


@cache
def adapter_for(backend_name: str) -> EngineAdapter:
    """The adapter of an engine, by SQLAlchemy's name of it; the default one for an unknown engine.

    Call it before anything is compiled for the engine's dialect: it imports the engine's module. No other module does,
    because some import a driver.

    Raises:
        SettingError: The engine's driver is not installed.
    """
    if backend_name not in _MODULES:
        return EngineAdapter()
    try:
        adapters: dict[str, EngineAdapter] = import_module(f"target_crm.engines.{_MODULES[backend_name]}").ADAPTERS
    except ImportError as error:
        raise missing_driver(backend_name, error.name) from None
    return adapters[backend_name]


def missing_driver(backend_name: str, package: str | None) -> SettingError:
    """Name the missing package, and the extra of this project that installs it.

    Args:
        backend_name: SQLAlchemy's name of the engine.
        package: The Python package that cannot be imported, if that is known.
    """
    missing = f"the Python package {package} is missing" if package else "its SQLAlchemy dialect is missing"
    module = _MODULES.get(backend_name)
    if module:
        advice = f"pip install 'pepper-crm[{_EXTRAS.get(module, module)}]'"
    else:
        advice = "install it" if package else "check the name, or install it"
    return SettingError(f"{backend_name} (sqlalchemy_url or dialect): {missing}; {advice}")
