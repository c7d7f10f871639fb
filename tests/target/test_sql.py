"""What is said to engines that nobody has on a machine: their tables, and a batch, word for word."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from pyarrow import parquet
from sqlalchemy import TIMESTAMP, Column, Date, MetaData, Numeric, String, Table, make_url
from sqlalchemy.exc import NoSuchModuleError

from target_crm.balances_cli.verify import rebuild
from target_crm.engines.registry import adapter_for
from target_crm.errors import ConnectionLost
from target_crm.loader.target import TargetCrm
from target_crm.records.column_types import Identifier, Instant, JsonText, LongText, Points
from target_crm.sql import balances
from target_crm.sql.tables import tables_in
from target_crm.warehouse import migrations
from target_crm.warehouse.connection import Warehouse
from tests.helpers.commands import environment
from tests.helpers.target import ACTIONS, AWARDS, action, record, schema, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Dialect

TEXT, INTEGER, NUMBER, BOOLEAN = ({"type": [name, "null"]} for name in ("string", "integer", "number", "boolean"))
DAY = {"type": ["string", "null"], "format": "date"}
SNAPSHOTS = Path(__file__).parents[1] / "snapshots" / "sql"
URLS = {
    "bigquery": "bigquery://project/loyalty",
    "databricks": "databricks://",
    "mssql": "mssql+pyodbc://",
    "oracle": "oracle+oracledb://",
    "redshift": "redshift+redshift_connector://",
    "snowflake": "snowflake://",
}


class Paper:
    """A connection and its warehouse, of an engine that is not there: statements are noted, and give nothing back."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.adapter = adapter_for(dialect.name)
        self.is_in_memory, self.tested, self.name = False, True, dialect.name
        self.tables = tables_in(None)
        self.lines: list[str] = []
        self.rowcount = 0

    def execute(self, statement: Any, *_: Any) -> Paper:
        self.lines.append(f"{str(statement.compile(dialect=self.dialect)).strip()};")
        return self

    def exec_driver_sql(self, statement: str) -> Paper:
        self.lines.append(f"{statement};")
        return self

    def scalar(self, statement: Any, *_: Any) -> int:
        self.execute(statement)
        return 0

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def is_atomic(self, connection: Any) -> bool:
        return self.adapter.is_atomic(connection, None)

    def ensure(self, *tables: Table) -> None:
        for table in tables:
            self.lines += [f"{str(each.compile(dialect=self.dialect)).strip()};" for each in migrations.creation(table)]

    def commit_once(self, work: Callable[[Any], Any]) -> Any:
        return work(self)

    def set_up(self) -> None:
        """Tables are created by the test."""

    @contextmanager
    def write(self) -> Iterator[Paper]:
        yield self

    @property
    def connection(self) -> Any:
        """What BigQuery's driver has inside, for its load jobs."""
        return SimpleNamespace(driver_connection=SimpleNamespace(_client=self))

    def get_table(self, _: Any) -> Any:
        return SimpleNamespace(schema=[])

    def load_table_from_file(self, file: Any, table: Any, job_config: Any) -> Any:
        names = ", ".join(parquet.read_schema(file).names)
        self.lines.append(f"LOAD {job_config.source_format} {job_config.write_disposition} {table} ({names});")
        return SimpleNamespace(result=lambda: None)


def dialect_of(engine: str) -> Dialect:
    try:
        dialect: Any = make_url(URLS[engine]).get_dialect()()
    except (ImportError, NoSuchModuleError) as error:
        pytest.skip(f"{engine}: {error}")
    # What a connection would tell.
    if engine == "bigquery":
        dialect.project_id, dialect.dataset_id = "project", "loyalty"
    if engine == "mssql":
        dialect.server_version_info = (16,)
        dialect._setup_version_attributes()
    return dialect


def told(dialect: Dialect) -> str:
    """All that is said, from the tables' creation to the proof of the balances."""
    paper = Paper(dialect)
    parts: list[str] = []

    def part(title: str, work: Callable[[], object]) -> None:
        paper.lines.clear()
        work()
        # A file of rows is in a folder of its own, here and there.
        said = re.sub(r"'file://[^']*/|(?<=/)[0-9a-f]{32}", "…", "\n".join(paper.lines))
        parts.append(f"-- {title}\n\n{said}\n")

    def create() -> None:
        paper.ensure(*paper.tables.metadata.sorted_tables)
        for name, query in paper.tables.views.items():
            paper.lines += [f"{each};" for each in migrations.view(dialect, name, query, None)]

    def load(*messages: str) -> None:
        target = TargetCrm(config={"sqlalchemy_url": "sqlite://"}, warehouse=cast("Any", paper))
        target.load(messages)

    def each(*statements: Any) -> None:
        for statement in statements:
            paper.execute(statement)

    properties = {
        "_id": TEXT,
        "title": TEXT,
        "price": NUMBER,
        "stock": INTEGER,
        "on": BOOLEAN,
        "since": DAY,
        "rules": {},
    }
    part("the tables and views", create)
    part("a batch of actions", lambda: load(ACTIONS, action("a1")))
    part("a batch of awards", lambda: load(AWARDS, snapshot()))
    part("a batch of another stream", lambda: load(schema("perks", properties, "_id"), record("perks", {"_id": "p1"})))
    part("crm-balances rebuild", lambda: rebuild(cast("Any", paper)))
    proofs = (balances.differences(paper.tables, 20), balances.behind_snapshot(paper.tables))
    part("crm-balances verify", lambda: each(*proofs))
    return "\n".join(parts)


@pytest.mark.parametrize("engine", URLS)
def test_an_engine_that_is_not_here_is_spoken_to_in_these_words(engine: str) -> None:
    """`GOLDEN=renew` writes them anew: read them then, by the engine's manual."""
    said, golden = told(dialect_of(engine)), SNAPSHOTS / f"{engine}.sql"
    if environment().get("GOLDEN") == "renew":
        golden.write_text(said)
    assert said == golden.read_text()


@pytest.mark.parametrize("engine", URLS)
def test_a_column_is_known_again_whatever_an_engine_calls_its_type(engine: str) -> None:
    """As found, by the types that SQLAlchemy has for all; as wanted, by those that the columns are made of."""
    found = {"at": TIMESTAMP(), "id": String(), "text": String(), "json": String(), "points": Numeric(), "day": Date()}
    wanted = {
        "at": Instant(),
        "id": Identifier(),
        "text": LongText(),
        "json": JsonText(),
        "points": Points(),
        "day": Date(),
    }
    for name, type_ in wanted.items():
        assert migrations._change(dialect_of(engine), Table("t", MetaData()), Column(name, type_), found) is None


def test_snowflake_gets_its_key_file_and_sessions_that_do_not_wait_half_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    connector = pytest.importorskip("snowflake.connector")
    asked: dict[str, Any] = {}

    def refuse(**arguments: Any) -> None:
        asked.update(arguments)
        raise connector.errors.OperationalError("nobody is there")

    monkeypatch.setattr(connector, "connect", refuse)
    with pytest.raises(ConnectionLost, match="nobody is there"):
        Warehouse("snowflake://LOADER@acme-eu/CRM/LOYALTY?role=LOADER&private_key_file=/keys/loader.p8").set_up()

    wanted = {"database": "CRM", "schema": "LOYALTY", "role": "LOADER", "private_key_file": "/keys/loader.p8"}
    assert {name: asked[name] for name in wanted} == wanted
    assert asked["session_parameters"]["LOCK_TIMEOUT"] == 60


@pytest.mark.parametrize(
    ("number", "state", "passing"),
    [
        pytest.param(625, "57014", True, id="a-lock-was-not-to-be-had"),
        pytest.param(390111, "08001", True, id="the-session-is-gone"),
        pytest.param(603, "XX000", True, id="internal-error"),
        pytest.param(2003, "42S02", False, id="no-such-table"),
        pytest.param(100038, "22018", False, id="no-number"),
    ],
)
def test_snowflake_is_asked_again_where_that_may_help(number: int, state: str, passing: bool) -> None:
    errors = pytest.importorskip("snowflake.connector.errors")
    error = errors.ProgrammingError("…", errno=number, sqlstate=state)
    assert adapter_for("snowflake").is_retriable(error) is passing


@pytest.mark.parametrize(
    ("kind", "reason", "message", "passing"),
    [
        pytest.param("TooManyRequests", "rateLimitExceeded", "…", True, id="too-many-jobs"),
        pytest.param("BadRequest", "invalidQuery", "… due to concurrent update", True, id="another-update"),
        pytest.param("ServiceUnavailable", "backendError", "…", False, id="it-may-still-go-on"),
        pytest.param("Forbidden", "quotaExceeded", "…", False, id="used-up-for-today"),
    ],
)
def test_bigquery_is_asked_again_where_nothing_was_begun(kind: str, reason: str, message: str, passing: bool) -> None:
    exceptions, driver = (
        pytest.importorskip("google.api_core.exceptions"),
        pytest.importorskip("google.cloud.bigquery.dbapi"),
    )
    error = getattr(exceptions, kind)(message, errors=[{"reason": reason}])
    for told in (error, driver.DatabaseError(error)):
        assert adapter_for("bigquery").is_retriable(told) is passing
