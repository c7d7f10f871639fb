"""MariaDB's limits for packets, rows and keys, and columns that are widened although DDL commits immediately."""

from __future__ import annotations

import re
from contextlib import ExitStack, suppress
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event, make_url

from target_crm.engines.mysql import MySQLAdapter
from target_crm.errors import WarehouseError
from target_crm.sql.tables import DESCRIPTION, Tables
from target_crm.warehouse.connection import Warehouse
from tests.conformance import Unavailable
from tests.conformance.mariadb import mariadb
from tests.helpers.target import ACTIONS, INTEGER, NUMBER, TEXT, action, execute, load, query, record, schema, state
from tests.helpers.waits import logged_waits
from tests.target.test_widening import MICROS, TIME, UNSIGNED, check_widening

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.warehouse, pytest.mark.xdist_group("mariadb")]
PACKET_BYTES = 2**20


@pytest.fixture(scope="module")
def new_url() -> Iterator[Callable[[], str]]:
    """A function that returns the URL of a new database on a server that accepts statements of at most one megabyte."""
    try:
        with mariadb() as new:
            execute(new(), f"SET GLOBAL max_allowed_packet = {PACKET_BYTES}")
            yield new
    except Unavailable as reason:
        pytest.skip(f"MariaDB: {reason}")


@pytest.fixture(params=["pymysql", "mysqlconnector"])
def url(request: pytest.FixtureRequest, new_url: Callable[[], str]) -> str:
    """A new database, by each driver."""
    return new_url().replace("mariadb://", f"mariadb+{request.param}://")


def test_a_batch_is_sent_in_statements_that_the_server_accepts(url: str) -> None:
    texts = ["'\\\n" * 1_000 * (1 + number % 50) if number % 2 else "яé" * 50_000 for number in range(100)]
    keyed = schema("p", {"id": INTEGER, "v": TEXT}, "id")

    load(url, [keyed, *(record("p", {"id": number, "v": text}) for number, text in enumerate(texts))])
    load(url, [keyed, record("p", {"id": 1_000, "v": "x" * (PACKET_BYTES - 50_000)})])

    assert query(url, "SELECT count(*), sum(length(v)) FROM p WHERE id < 1000") == [
        (100, sum(len(text.encode()) for text in texts))
    ]
    assert query(url, "SELECT length(v) FROM p WHERE id = 1000") == [(PACKET_BYTES - 50_000,)]


@pytest.mark.parametrize("text", ["x" * PACKET_BYTES, "'" * (PACKET_BYTES - 50_000)], ids=["plain", "escaped"])
def test_a_record_above_the_packet_limit_stops_the_run_and_names_the_limit(
    url: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [schema("p", {"id": INTEGER, "v": TEXT}, "id"), record("p", {"id": 1, "v": text}), state({"n": 1})]

    with pytest.raises(WarehouseError, match=r"table 'p': a record of .* max_allowed_packet, 1,048,576 bytes"):
        load(url, lines)

    assert "trying again" not in caplog.text


def test_a_stream_whose_rows_would_be_too_long_stops_without_the_others(url: str) -> None:
    wide = schema("w", {"id": INTEGER} | {f"c{number}": TEXT for number in range(500)}, "id")

    with pytest.raises(WarehouseError, match=r"stream 'w': .* table w: .*Row size too large.*506 columns"):
        load(url, [wide, record("w", {"id": 1}), schema("o", {"id": TEXT}, "id"), record("o", {"id": "1"})])

    assert query(url, "SELECT id FROM o") == [("1",)]


def test_the_catalog_describes_the_targets_tables_and_columns(url: str) -> None:
    load(url, [ACTIONS, action("a1", delta=2, available=7)])

    own = [each for each in Tables().metadata.tables.values() if DESCRIPTION in each.info]
    described = (
        "SELECT table_name, table_comment FROM information_schema.tables "
        "WHERE table_schema = database() AND table_type = 'BASE TABLE' AND table_comment <> ''"
    )
    assert dict(query(url, described)) == {each.name: each.info[DESCRIPTION] for each in own}
    described = (
        "SELECT table_name, column_name, column_comment FROM information_schema.columns "
        "WHERE table_schema = database() AND column_comment <> ''"
    )
    # A view's columns have the comments of the table columns that it selects.
    assert {(each.name, column.name, column.doc) for each in own for column in each.columns} <= {*query(url, described)}


def test_the_texts_of_a_key_share_its_length(url: str) -> None:
    keys = [f"k{number}" for number in range(8)]
    rows = [dict.fromkeys(keys, "é" * 96), dict.fromkeys(keys, "é" * 95 + "ê"), dict.fromkeys(keys, "é" * 97)]
    keyed = schema("k", dict.fromkeys(keys, TEXT), *keys)

    for _ in range(2):
        load(url, [keyed, *(record("k", row) for row in rows)])

    assert query(url, "SELECT count(*) FROM k") == [(2,)]
    assert query(url, "SELECT reason FROM rejected_records") == [
        ("k0 has 97 characters, expected at most 96 in a key",)
    ]


def test_columns_are_widened_and_keep_their_values(new_url: Callable[[], str]) -> None:
    check_widening(new_url())


@pytest.mark.parametrize("statements", range(1, 7))
def test_booleans_become_words_even_if_the_run_is_interrupted(new_url: Callable[[], str], statements: int) -> None:
    url = new_url()
    booleans = {"id": INTEGER, "v": {"type": ["null", "boolean"]}}
    rows = [record("b", {"id": number, "v": value}) for number, value in enumerate((True, False, None))]
    load(url, [schema("b", booleans, "id"), *rows])
    texts = [schema("b", {"id": INTEGER, "v": {"type": ["null", "string"]}}, "id"), record("b", {"id": 3, "v": "0"})]

    crm = Warehouse(url)
    executed = 0

    def interrupt(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        nonlocal executed
        executed += statement.lstrip().startswith(
            ("CREATE", "INSERT INTO `_crm_rebuilt", "DROP", "ALTER", "UPDATE `b`")
        )
        if executed == statements:
            raise KeyboardInterrupt

    event.listen(crm._engine, "after_cursor_execute", interrupt)
    with suppress(KeyboardInterrupt):
        load(crm, texts)
    crm.dispose()
    load(url, texts)

    assert query(url, "SELECT id, v FROM b ORDER BY id") == [(0, "true"), (1, "false"), (2, None), (3, "0")]


def test_a_stream_never_takes_a_view_for_its_table(new_url: Callable[[], str]) -> None:
    url = new_url()
    load(url, [schema("people", {"id": TEXT}, "id"), record("people", {"id": "1"})])
    execute(url, "CREATE VIEW report AS SELECT id FROM people")

    for _ in range(2):
        load(url, [schema("Report", {"id": TEXT}, "id"), record("Report", {"id": "2"})])

    assert query(url, "SELECT id FROM report_2") == [("2",)]


def test_numbers_are_exact(new_url: Callable[[], str]) -> None:
    url = new_url()
    line = '{"type": "RECORD", "stream": "x", "record": {"id": 18446744073709551615, "d": 12345678901234.123456}}'

    for _ in range(2):
        load(url, [schema("x", {"id": UNSIGNED, "d": MICROS}, "id"), line])

    assert query(url, "SELECT id, d FROM x") == [(2**64 - 1, Decimal("12345678901234.123456"))]


def test_a_key_is_changed_even_if_the_copy_was_interrupted(new_url: Callable[[], str]) -> None:
    url = new_url()
    old = schema("r", {"id": INTEGER, "v": {"type": "boolean"}, "w": TEXT}, "id")
    load(url, [old, *(record("r", {"id": number, "v": True, "w": "x"}) for number in (1, 2))])
    changed = [schema("r", {"id": INTEGER, "v": TEXT, "w": TEXT}, "id", "v", "w")]
    changed.append(record("r", {"id": 1, "v": "b", "w": "x"}))
    execute(url, "CREATE TABLE _crm_rebuilt_r (id BIGINT)")

    load(url, changed, allow_key_change=True)
    assert query(url, "SELECT id, v FROM r ORDER BY id, v") == [(1, "b"), (1, "true"), (2, "true")]

    execute(url, "RENAME TABLE r TO _crm_rebuilt_r")
    load(url, changed)
    assert query(url, "SELECT id, v FROM r ORDER BY id, v") == [(1, "b"), (1, "true"), (2, "true")]


def test_a_value_that_exceeds_a_column_is_quarantined_with_the_limit(url: str) -> None:
    execute(
        url,
        "CREATE TABLE t (id BIGINT PRIMARY KEY, n MEDIUMINT, u INTEGER UNSIGNED, v VARCHAR(3), f FLOAT, "
        "tiny TINYTEXT CHARACTER SET utf8mb4, at TIMESTAMP NULL)",
    )
    largest = {"n": 2**23 - 1, "u": 2**32 - 1, "v": "abc", "f": 3.4e38, "tiny": "é" * 127, "at": "2038-01-19T03:14:07Z"}
    exceeding = {"n": 2**23, "u": -1, "v": "abcd", "f": 3.5e38, "tiny": "é" * 128, "at": "2038-01-19T03:14:08Z"}
    rows = [{"id": 1} | largest, *({"id": 2, name: value} for name, value in exceeding.items())]
    optional = {"type": ["string", "null"]}
    properties = {"id": INTEGER, "n": INTEGER, "u": INTEGER, "v": optional, "f": NUMBER, "tiny": optional, "at": TIME}

    load(url, [schema("t", properties, "id"), *(record("t", row) for row in rows)])

    assert query(url, "SELECT id FROM t") == [(1,)]
    assert query(url, "SELECT reason FROM rejected_records ORDER BY reason") == [
        ("at is out of range: its column takes times from 1970 to 2038-01-19",),
        ("f is out of the range of its column, a 32-bit float: expected a magnitude of 1.4e-45 to 3.4e38",),
        ("n is out of the range of its column, a signed 24-bit integer",),
        ("tiny has 256 bytes, but its column takes at most 255",),
        ("u is out of the range of its column, an unsigned 32-bit integer",),
        ("v has 4 characters, but its column takes at most 3",),
    ]


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        pytest.param("NOT NULL", None, "'v' cannot be null", id="null"),
        pytest.param(
            "CHARACTER SET latin1", "\N{CYRILLIC SMALL LETTER YA}", "Incorrect string value for column", id="charset"
        ),
        pytest.param(", CONSTRAINT short CHECK (v <> 'D1')", "D1", "CONSTRAINT `short` failed", id="check"),
        pytest.param(", UNIQUE KEY once (v)", "D0", "Duplicate entry for key 'once'", id="unique"),
    ],
)
def test_a_record_that_the_table_refuses_is_quarantined_with_the_reason_but_no_value(
    url: str, column: str, value: str | None, reason: str
) -> None:
    execute(url, f"CREATE TABLE t (id BIGINT PRIMARY KEY, v VARCHAR(3) {column})")
    keyed = schema("t", {"id": INTEGER, "v": {"type": ["string", "null"]}}, "id")
    load(url, [keyed, record("t", {"id": 1, "v": "D0"})])

    load(url, [keyed, record("t", {"id": 2, "v": value}), record("t", {"id": 3, "v": "D3"})])

    assert query(url, "SELECT id FROM t ORDER BY id") == [(1,), (3,)]
    ((found,),) = query(url, "SELECT reason FROM rejected_records")
    assert found.startswith("table t: ")
    assert reason in found
    assert not {"D0", "D1"} & set(re.findall(r"\w+", found))


def test_a_wait_for_another_loader_names_its_connection(url: str) -> None:
    keyed = [schema("t", {"id": INTEGER}, "id")]
    load(url, keyed)
    other = Warehouse(url)
    with ExitStack() as stack:
        number = stack.enter_context(other.write()).exec_driver_sql("SELECT connection_id()").scalar_one()
        lines = logged_waits(stack.close, lambda: load(url, [*keyed, record("t", {"id": 1})]))
    other.dispose()

    assert lines == [f"waiting for the loader's lock, held by connection {number}"]


def test_a_wait_for_a_reader_of_a_table_that_is_altered_names_table_and_reader(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(url, [schema("t", {"id": INTEGER}, "id"), record("t", {"id": 1})])
    monkeypatch.setattr(MySQLAdapter, "_TABLE_LOCK_SECONDS", 1)
    reader = Warehouse(url)
    with ExitStack() as stack:
        connection = stack.enter_context(reader.read())
        number = connection.exec_driver_sql("SELECT connection_id()").scalar_one()
        connection.exec_driver_sql("SELECT * FROM t").all()
        wider = [schema("t", {"id": INTEGER, "n": INTEGER}, "id"), record("t", {"id": 2, "n": 3})]
        (line,) = logged_waits(stack.close, lambda: load(url, wider))
    reader.dispose()

    assert line == (
        f"a lock on table t is still held by another session, perhaps by connection {number} (user root), "
        "the oldest open transaction: wait until the lock is released, or stop its holder; trying again in 0.5 s"
    )
    assert query(url, "SELECT n FROM t WHERE id = 2") == [(3,)]


def test_a_user_who_may_not_create_tables_is_referred_to_the_ddl(url: str) -> None:
    database = make_url(url).database
    execute(url, "CREATE OR REPLACE USER may_not_create@localhost")
    execute(url, f"GRANT SELECT, INSERT, UPDATE, DELETE ON {database}.* TO may_not_create@localhost")

    with pytest.raises(WarehouseError, match=r"as the owner .*`crm-balances ddl --schemas` prints: see Roles in"):
        load(url.replace("//root@", "//may_not_create@"), [ACTIONS, action("a1")])
