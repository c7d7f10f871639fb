"""Record the SQL that the target would execute on an engine that no test can run. Nothing is executed."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from io import StringIO
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from pyarrow import parquet
from sqlalchemy import Column, Double, MetaData, Table, make_url

from target_crm.balances_cli.verify import rebuild
from target_crm.engines.registry import adapter_for
from target_crm.loader.target import TargetCrm
from target_crm.records.coverage import read_times
from target_crm.records.schemas import FORMER_NAMES
from target_crm.sql import balances
from target_crm.sql.tables import tables_in
from target_crm.warehouse import migrations
from target_crm.warehouse.connection import Warehouse
from tests.helpers.target import ACTIONS, AWARDS, action, record, schema, snapshot, state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Dialect

    from target_crm.sql.staging import Staged
    from target_crm.warehouse.stream_names import StreamTables

URLS = {
    "bigquery": "bigquery://project/loyalty",
    "databricks": "databricks://",
    "mssql": "mssql+pyodbc://",
    "oracle": "oracle+oracledb://",
    "redshift": "redshift+redshift_connector://",
    "snowflake": "snowflake://",
}
TEXT, INTEGER, NUMBER, BOOLEAN = ({"type": [name, "null"]} for name in ("string", "integer", "number", "boolean"))
DAY = {"type": ["string", "null"], "format": "date"}
PERKS = schema(
    "perks",
    {"_id": TEXT, "title": TEXT, "price": NUMBER, "stock": INTEGER, "on": BOOLEAN, "since": DAY, "rules": {}},
    "_id",
)


# A STATE that covers an hour.
COVERED = state(
    {
        "bookmarks": {
            "actions": {
                "covered_from": "2026-10-01T00:00:00.000Z",
                "replication_key_value": "2026-10-01T01:00:00.000Z",
            }
        }
    }
)


class RecordingWarehouse:
    """A warehouse that is its own connection. It records every statement, and returns no rows for any query."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.adapter = adapter_for(dialect.name)
        self.is_in_memory, self.tested, self.name = False, True, dialect.name
        self.limits = self.adapter.limits
        self.tables = tables_in(None)
        self.statements: list[str] = []
        self.rowcount = 0

    def execute(self, statement: Any, *_: Any) -> RecordingWarehouse:
        return self.exec_driver_sql(str(statement.compile(dialect=self.dialect)))

    def exec_driver_sql(self, statement: str) -> RecordingWarehouse:
        self.statements.append(statement.strip())
        return self

    def scalar(self, statement: Any, *_: Any) -> int:
        self.execute(statement)
        return 0

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def all(self) -> list[Any]:
        return list(self)

    def errors(self, _place: str) -> AbstractContextManager[None]:
        return nullcontext()

    def check_schema(self) -> None:
        pass

    def is_atomic(self, connection: Any) -> bool:
        return self.adapter.is_atomic(connection, None)

    def ensure(self, stream: StreamTables) -> None:
        self._create(*stream.own_tables)

    def _create(self, *tables: Table) -> None:
        for table in tables:
            for statement in migrations.creation(table):
                self.execute(statement)
            for comment in self.adapter.comments_on(self.dialect, table):
                self.exec_driver_sql(comment)

    def temporary_if_possible(self, work: Table) -> Table:
        return work

    def with_temporary(self, staged: Staged) -> Staged:
        return staged

    def stage_ahead(self, _table: Table, _rows: object) -> None:
        pass

    def commit_once(self, work: Callable[[Any], Any], _session: None = None) -> Any:
        with self.write() as connection:
            result = work(connection)
            Warehouse._mark_committed(cast("Any", self), cast("Any", connection), "batch")
            return result

    def set_up(self, *, balances: bool = False) -> None:
        of_balances = self.tables.of_balances
        self._create(*(each for each in self.tables.metadata.sorted_tables if (each in of_balances) == balances))
        for name, query in self.tables.views.items() if balances else ():
            for statement in migrations.view(self.adapter, self.dialect, name, query, None, exists=False):
                self.execute(statement)

    @contextmanager
    def write(self) -> Iterator[RecordingWarehouse]:
        connection = cast("Any", self)
        with self.adapter.session_lock(connection, None):
            self.adapter.transaction_lock(connection, None)
            yield self

    @property
    def connection(self) -> Any:
        """The client inside BigQuery's driver, which accepts load jobs."""
        return SimpleNamespace(driver_connection=SimpleNamespace(_client=self))

    def get_table(self, _: Any) -> Any:
        return SimpleNamespace(schema=[])

    def load_table_from_file(self, file: Any, table: Any, job_config: Any) -> Any:
        names = ", ".join(parquet.read_schema(file).names)
        self.statements.append(f"LOAD {job_config.source_format} {job_config.write_disposition} {table} ({names})")
        return SimpleNamespace(result=lambda: None)


def dialect_of(engine: str) -> Dialect:
    """The dialect of an engine, in the state that it has after it has connected.

    Raises:
        ImportError, NoSuchModuleError: the dialect is not installed.
    """
    adapter_for(engine)
    # BigQuery's compiler adds types to parameters. The result is valid SQL only if the parameters are named.
    paramstyle = "named" if engine == "bigquery" else "qmark"
    dialect: Any = make_url(URLS[engine]).get_dialect()(paramstyle=paramstyle)
    if engine == "bigquery":
        dialect.project_id, dialect.dataset_id = "project", "loyalty"
    if engine == "mssql":
        dialect.server_version_info = (16,)
        dialect._setup_version_attributes()
        dialect.default_schema_name = "dbo"
    return dialect


def record_statements(engine: str) -> dict[str, list[str]]:
    """Return the statements of each step, from creating the tables to verifying the balances."""
    warehouse = RecordingWarehouse(dialect_of(engine))
    target = TargetCrm(config={"sqlalchemy_url": "sqlite://"}, warehouse=cast("Any", warehouse))

    def verify() -> None:
        tables = warehouse.tables
        for query in (
            balances.differences(tables.award_balances, warehouse.adapter.all_balances(tables)),
            balances.behind_snapshot(tables),
            balances.gaps(tables, read_times([])),
        ):
            warehouse.execute(query)

    def upgrade() -> None:
        dialect, table = warehouse.dialect, Table("perks", MetaData())
        for former, present in FORMER_NAMES.items():
            warehouse.exec_driver_sql(warehouse.adapter.rename_column(dialect, table, former, present))
        wider = Table("perks", MetaData(), Column("price", Double()))
        if change := warehouse.adapter.widen_column(dialect, wider.c.price):
            warehouse.exec_driver_sql(f"ALTER TABLE {dialect.identifier_preparer.format_table(wider)} {change}")

    parts: dict[str, Callable[[], object]] = {
        "set-up": warehouse.set_up,
        "a batch of actions": lambda: target.load([ACTIONS, action("a1"), COVERED]),
        "a batch of awards": lambda: target.load([AWARDS, snapshot()]),
        "a batch of perks": lambda: target.load([PERKS, record("perks", {"_id": "p1"})]),
        "a version of perks": lambda: target.load(['{"type": "ACTIVATE_VERSION", "stream": "perks", "version": 2}']),
        "the end of a run": target.writer.finish,
        "rebuild": lambda: rebuild(cast("Any", warehouse)),
        "verify": verify,
        "an upgrade": upgrade,
    }
    statements = {}
    for title, work in parts.items():
        warehouse.statements.clear()
        # The target prints the STATE.
        with redirect_stdout(StringIO()):
            work()
        statements[title] = list(warehouse.statements)
    return statements
