"""Find the adapter of an engine."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from target_crm.engines.base import EngineAdapter
from target_crm.errors import SettingError

# SQLAlchemy's name for an engine → the engine's module, with its adapter, column types and SQL.
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
# Module → the extra of this project, if its name differs from the module's.
_EXTRAS = {"postgresql": "postgres"}


@cache
def adapter_for(backend_name: str) -> EngineAdapter:
    """Return the adapter of an engine, given SQLAlchemy's name for it. An unknown engine gets the default adapter.

    Call this function before compiling SQL for the engine, because it imports the engine's module. No other code
    imports the engines' modules, because some of them import a driver.

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
    """Return an error that names the missing package, and the extra of this project that installs it.

    Args:
        backend_name: SQLAlchemy's name for the engine.
        package: The Python package that cannot be imported, if that is known.
    """
    missing = f"the Python package {package} is missing" if package else "its SQLAlchemy dialect is missing"
    module = _MODULES.get(backend_name)
    if module:
        advice = f"pip install 'pepper-crm[{_EXTRAS.get(module, module)}]'"
    else:
        advice = "install it" if package else "check the name, or install it"
    return SettingError(f"{backend_name} (sqlalchemy_url or dialect): {missing}; {advice}")
