"""DuckDB: a file that one connection opens at a time, tables without indexes, batches with few resources."""

from __future__ import annotations

import resource
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from hashlib import md5
from pathlib import Path
from random import Random
from threading import Event
from typing import TYPE_CHECKING, Any

import duckdb
import pytest
from sqlalchemy import func, select

from target_crm.balances_cli.verify import rebuild, verify
from target_crm.engines import duckdb as duckdb_adapter
from target_crm.engines.duckdb import ARROW_ROWS_MIN, ROW_GROUP_ROWS
from target_crm.errors import SettingError
from target_crm.warehouse import connection as connection_module
from target_crm.warehouse.connection import Warehouse
from tests.helpers.commands import RUN_SECONDS_MAX, environment, real_command, run_script
from tests.helpers.target import ACTIONS, AWARDS, action, execute, load, query, record, schema, snapshot, state

if TYPE_CHECKING:
    from sqlalchemy import Connection

# The smallest possible row group.
GROUP_ROWS = 2_048


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"duckdb:///{tmp_path / 'crm.db'}"


def scalar(connection: Connection, sql: str) -> Any:
    return connection.exec_driver_sql(sql).scalar()


def set_up(url: str, *, exists: bool) -> Warehouse:
    """Set up a warehouse in a new file, or in one that DuckDB itself has created."""
    if exists:
        duckdb.connect(url.removeprefix("duckdb:///")).close()
    crm = Warehouse(url)
    crm.set_up(balances=True)
    return crm


def fill_balances(warehouse: Warehouse, groups: int) -> None:
    """Set up a warehouse, and fill this many row groups of `award_balances`."""
    warehouse.set_up(balances=True)
    with warehouse.write() as connection:
        columns = "award_id, points, as_of, as_of_source, opening, updated_at"
        row = "'w' || lpad(i::VARCHAR, 8, '0'), 0, '2026-01-01', 'award', 0, '2026-01-01'"
        rows = f"SELECT {row} FROM range({groups * GROUP_ROWS}) r(i)"
        connection.exec_driver_sql(f"INSERT INTO award_balances ({columns}) {rows}")


def in_a_batch(warehouse: Warehouse, sql: str) -> Any:
    results: list[Any] = []
    warehouse.commit_once(lambda connection: results.append(scalar(connection, sql)))
    return results[0]


def test_two_writers_of_one_process_exclude_each_other(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Warehouse(url), Warehouse(url)
    first.set_up(balances=True)
    waits = Event()
    monkeypatch.setattr(time, "sleep", lambda _seconds: waits.set())

    def count() -> Any:
        with second.write() as connection:
            return scalar(connection, "SELECT count(*) FROM _crm_commits")

    with ThreadPoolExecutor() as pool:
        with first.write() as connection:
            counted = pool.submit(count)
            assert waits.wait(timeout=30)
            connection.exec_driver_sql("INSERT INTO _crm_commits VALUES ('b1', '2026-10-01 10:00:00')")

        assert counted.result() == 1


def test_a_batch_uses_one_thread_and_a_reader_all_of_them(url: str) -> None:
    crm, threads = Warehouse(url), "SELECT current_setting('threads')"
    crm.set_up(balances=True)

    assert in_a_batch(crm, threads) == 1
    with crm.read() as connection:
        assert (scalar(connection, threads),) == duckdb.connect().execute(threads).fetchone()


def test_the_url_sets_the_resources_of_a_batch(url: str) -> None:
    crm = Warehouse(f"{url}?threads=3&memory_limit=1GB")
    crm.set_up(balances=True)

    assert in_a_batch(crm, "SELECT current_setting('threads')") == 3
    assert in_a_batch(crm, "SELECT current_setting('memory_limit')") == "953.6 MiB"


def test_the_url_may_use_any_name_of_a_setting(url: str) -> None:
    crm = Warehouse(f"{url}?worker_threads=3&max_memory=1GB")
    crm.set_up(balances=True)

    assert in_a_batch(crm, "SELECT current_setting('threads')") == 3
    assert in_a_batch(crm, "SELECT current_setting('memory_limit')") == "953.6 MiB"


def test_a_batch_that_runs_out_of_memory_is_retried_without_the_limit(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duckdb_adapter, "MEMORY_LIMIT_BYTES", 8_000_000)
    waits: list[float] = []
    monkeypatch.setattr(connection_module.time, "sleep", waits.append)
    # Random text can hardly be compressed.
    messages = [
        action(f"a{place}", award=f"w{place}", note=Random(place).randbytes(100_000).hex()) for place in range(100)
    ]

    loaded = load(url, [ACTIONS, *messages, *messages], batch_size_rows=50)

    assert loaded.tallies == {"actions": "200 read = 100 applied + 100 duplicate + 0 superseded + 0 quarantined"}
    assert len(waits) == 1
    assert not verify(Warehouse(url)).drifted


def test_a_batch_may_change_a_row_in_every_row_group(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    groups = 500
    monkeypatch.setattr(duckdb_adapter, "ROW_GROUP_ROWS", GROUP_ROWS)
    fill_balances(Warehouse(url), groups)

    load(url, [ACTIONS, *(action(f"a{place}", award=f"w{place * GROUP_ROWS:08}") for place in range(groups))])

    assert query(url, "SELECT count(*) FROM award_balances WHERE action_count = 1") == [(groups,)]
    assert "Out of Memory" not in caplog.text


@pytest.mark.parametrize(("query_string", "raised"), [("", "105.3 MiB"), ("?Max_Memory=1GB", "953.6 MiB")])
def test_deletes_raise_the_memory_limit_once_unless_the_url_sets_it(
    url: str, monkeypatch: pytest.MonkeyPatch, query_string: str, raised: str
) -> None:
    monkeypatch.setattr(duckdb_adapter, "ROW_GROUP_ROWS", GROUP_ROWS)
    crm = Warehouse(f"{url}{query_string}")
    fill_balances(crm, 50)
    balances = crm.tables.award_balances

    def delete_twice(connection: Connection) -> Any:
        for award in ("w00000001", "w00000002"):
            crm.adapter.execute(connection, balances.delete().where(balances.c.award_id == award))
        return scalar(connection, "SELECT current_setting('memory_limit')")

    assert crm.commit_once(delete_twice) == raised


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_error_in_the_conversion_to_arrow_is_not_reported_as_an_error_of_duckdb(
    url: str, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def to_floats(_values: object) -> None:
        raise error

    crm = Warehouse(url)
    crm.set_up()
    monkeypatch.setattr(duckdb_adapter, "to_floats", to_floats)
    table = crm.tables.load_runs
    rows = [tuple(None for _ in table.columns) for _ in range(ARROW_ROWS_MIN)]

    with pytest.raises(error), crm.write() as connection:
        crm.adapter.load(connection, table, rows)


def test_a_file_that_another_process_has_just_created_is_opened_when_it_is_complete(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path(url.removeprefix("duckdb:///"))
    file.write_bytes(b"DUCK")
    monkeypatch.setattr(time, "sleep", lambda _seconds: file.unlink(missing_ok=True))

    Warehouse(url).set_up(balances=True)

    assert query(url, "SELECT count(*) FROM actions") == [(0,)]


def test_another_process_can_open_the_file_between_two_transactions(url: str) -> None:
    crm, file = Warehouse(url), url.removeprefix("duckdb:///")
    crm.set_up(balances=True)
    staged = crm.with_temporary(crm.tables.staged_actions).table

    for _ in range(2):
        session = crm.stage_ahead(staged, [(1, *(None for _ in crm.tables.actions.columns))])
        with duckdb.connect(file) as other:
            assert other.execute("SELECT count(*) FROM actions").fetchone() == (0,)
        crm.commit_once(lambda connection: crm.adapter.clear(connection, staged), session)


@pytest.mark.parametrize("chosen", [False, True], ids=["default", "chosen"])
def test_two_sessions_that_run_out_of_memory_spill_into_different_files(
    url: str, tmp_path: Path, *, chosen: bool
) -> None:
    crm = Warehouse(f"{url}?memory_limit=32MB{f'&temp_directory={tmp_path}' if chosen else ''}")
    crm.set_up(balances=True)
    staged = crm.with_temporary(crm.tables.staged_actions).table
    empty = [None for _ in crm.tables.actions.columns][2:]

    def rows(kind: str) -> list[tuple[Any, ...]]:
        payloads = (Random(f"{kind} {place}").randbytes(2_000).hex() for place in range(12_000))
        return [(place, f"{kind}{place}", payload, *empty) for place, payload in enumerate(payloads)]

    both = rows("a"), rows("b")
    sessions = [crm.stage_ahead(staged, each) for each in both]

    for session, sent in zip(sessions, both, strict=True):
        assert session
        with crm.write(session) as connection:
            digests = set(connection.scalars(select(func.md5(staged.c.type))))
        assert digests == {md5(row[2].encode(), usedforsecurity=False).hexdigest() for row in sent}


def test_a_batch_is_twice_as_large_as_on_other_engines(url: str, tmp_path: Path) -> None:
    *rows, last = (record("things", {"id": str(place)}) for place in range(10_000))
    messages = [schema("things", {"id": {"type": "string"}}, "id"), *rows, state({"n": 1}), last, state({"n": 2})]

    assert len(load(f"sqlite:///{tmp_path / 'other.db'}", messages).states) == 2
    assert len(load(url, messages).states) == 1


def test_a_number_becomes_the_nearest_double_whatever_is_loaded_with_it(url: str) -> None:
    numbers = ["1e300", "1e-300", "-0.5338310994848547", "12345678901234567890", "1e20", "1e-20"]
    messages = [record("things", {"id": str(place), "x": "@"}) for place in range(len(numbers))]
    lines = [line.replace('"@"', number) for line, number in zip(messages, numbers, strict=True)]

    load(url, [schema("things", {"id": {"type": "string"}, "x": {"type": "number"}}, "id"), *lines])

    assert query(url, "SELECT x FROM things ORDER BY id") == [(float(number),) for number in numbers]


def test_points_with_many_trailing_zeros_are_exact(url: str) -> None:
    messages = [action("a1", delta="@", available=7).replace('"@"', f"7.{'0' * zeros}") for zeros in (40, 43, 108)]

    for message in messages:
        loaded = load(url, [ACTIONS, message])
    assert loaded.tallies == {"actions": "1 read = 0 applied + 1 duplicate + 0 superseded + 0 quarantined"}
    assert query(url, "SELECT earned_total FROM award_balances") == [(Decimal(7),)]


def test_a_file_that_could_not_be_created_does_not_stop_the_next_run(tmp_path: Path) -> None:
    def run(bytes_max: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            real_command("target-crm", "--config", "ENV"),
            env=environment(TARGET_CRM_SQLALCHEMY_URL="duckdb:///crm.duckdb"),
            input=f"{ACTIONS}\n{action('a1')}\n",
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS_MAX,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_max, resource.RLIM_INFINITY)),
        )

    assert run(0).returncode == 1
    assert run(resource.RLIM_INFINITY).returncode == 0


@pytest.mark.parametrize("in_memory_url", ["duckdb://", "duckdb:///:memory:", "duckdb:///:memory:shared"])
def test_a_warehouse_in_memory_is_refused(in_memory_url: str) -> None:
    with pytest.raises(SettingError, match="duckdb: an in-memory database is not supported; name a file"):
        Warehouse(in_memory_url)


def test_memory_is_not_limited_if_a_table_has_an_index(url: str) -> None:
    crm, limit = Warehouse(url), "SELECT current_setting('memory_limit')"
    crm.set_up(balances=True)
    limited = in_a_batch(crm, limit)
    with crm.write() as connection:
        connection.exec_driver_sql("CREATE TABLE plans (name VARCHAR PRIMARY KEY)")

    assert limited == "91.5 MiB"
    assert in_a_batch(crm, limit) != limited


def test_row_groups_are_small_so_that_a_poll_rewrites_little(url: str) -> None:
    crm = Warehouse(url)
    crm.set_up(balances=True)
    with crm.write() as connection:
        rows = f"SELECT i::VARCHAR, TIMESTAMP '2026-10-01' FROM range({3 * ROW_GROUP_ROWS}) r(i)"
        connection.exec_driver_sql(f"INSERT INTO _crm_commits {rows}")

    with crm.read() as connection:
        parts = scalar(connection, "SELECT count(DISTINCT row_group_id) FROM pragma_storage_info('_crm_commits')")

    assert parts == 3


@pytest.mark.parametrize(("exists", "compression"), [(False, "ZSTD"), (True, "FSST")])
def test_payloads_are_compressed_as_the_file_supports_and_ids_are_not(
    url: str, *, exists: bool, compression: str
) -> None:
    crm = set_up(url, exists=exists)
    with crm.write() as connection:
        row = "i::VARCHAR, md5(i::VARCHAR), '{\"the number of this action\": ' || i || '}', TIMESTAMP '2026-10-01'"
        columns = "action_id, award_id, payload, loaded_at"
        connection.exec_driver_sql(f"INSERT INTO actions ({columns}) SELECT {row} FROM range({ROW_GROUP_ROWS}) r(i)")

    with crm.read() as connection:
        segments = connection.exec_driver_sql("FROM pragma_storage_info('actions')").mappings().all()

    compressions = {
        (each["column_name"], each["compression"]) for each in segments if each["segment_type"] == "VARCHAR"
    }
    assert {("payload", compression), ("action_id", "Uncompressed"), ("award_id", "Uncompressed")} <= compressions


@pytest.mark.parametrize(("exists", "readers"), [(False, "v1.2.0+"), (True, "v1.0.0+")])
def test_an_existing_file_keeps_its_storage_version(url: str, *, exists: bool, readers: str) -> None:
    crm = set_up(url, exists=exists)

    with crm.read() as connection:
        version = scalar(
            connection, "SELECT tags['storage_version'] FROM duckdb_databases() WHERE NOT internal AND path IS NOT NULL"
        )

    assert version == readers


def test_no_table_of_the_target_has_an_index(url: str) -> None:
    crm = Warehouse(url)
    crm.set_up(balances=True)

    with crm.read() as connection:
        indexed = scalar(connection, "SELECT count(*) FROM duckdb_constraints() WHERE constraint_type = 'PRIMARY KEY'")

    assert indexed == 0


@pytest.mark.parametrize(("ledger", "expected"), [("actions", "5.0000"), ("actions WHERE award_id = 'w2'", None)])
def test_verify_finds_a_balance_that_is_stored_twice(url: str, ledger: str, expected: str | None) -> None:
    """No key prevents a second row. `verify` must not take it for the expected row if the ledger has no action."""
    load(url, [ACTIONS, action("a1", award="w1", available=5), action("a2", award="w2")])
    crm = Warehouse(url)
    with crm.write() as connection:
        connection.exec_driver_sql(f"CREATE TEMP TABLE kept AS SELECT * FROM {ledger}")
        connection.exec_driver_sql("DELETE FROM actions WHERE action_id NOT IN (SELECT action_id FROM kept)")
        connection.exec_driver_sql("INSERT INTO award_balances SELECT * FROM award_balances WHERE award_id = 'w1'")

    (fold, *_) = verify(crm).checks

    assert fold.examples == [{"award_id": "w1", "points": "5.0000", "expected_points": expected}]


def test_a_snapshot_that_is_stored_twice_gives_one_balance(url: str) -> None:
    load(url, [ACTIONS, action("a1"), AWARDS, snapshot("w1", 5), snapshot("w2", 3)])
    execute(url, "INSERT INTO awards SELECT * FROM awards")
    crm = Warehouse(url)

    drifted, balances = verify(crm).drifted, rebuild(crm)

    crm.dispose()
    assert (drifted, balances) == (False, 2)


def run_in(schema_name: str, url: str, name: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    settings = {"TARGET_CRM_SQLALCHEMY_URL": url, "TARGET_CRM_DEFAULT_TARGET_SCHEMA": schema_name}
    return run_script(name, *arguments, stdin=stdin, **settings)


@pytest.mark.parametrize("file", ["crm.duckdb", "CRM.v2.db", "crm", ".crm.db"])
def test_a_schema_with_the_name_of_the_database_is_refused_before_anything_is_created(
    tmp_path: Path, file: str
) -> None:
    other = tmp_path / "other" / file
    other.parent.mkdir()
    with duckdb.connect(str(other)) as connection:
        assert connection.execute("SELECT lower(current_database())").fetchone() == ("crm",)
    url = f"duckdb:///{tmp_path / file}"

    loaded = run_in("crm", url, "target-crm", "--config", "ENV", stdin=f"{ACTIONS}\n{action('a1')}\n")
    read = [run_in("crm", url, "crm-balances", command) for command in ("verify", "ddl")]

    assert [loaded.returncode, *(each.returncode for each in read)] == [1, 2, 2]
    for refused in (loaded, *read):
        assert refused.stderr.splitlines()[-1].endswith(
            f"default_target_schema: DuckDB gives the database in {file} the name crm, so a schema crm makes names "
            "such as crm.award_balances ambiguous: choose another schema, or rename the file"
        )
    assert not (tmp_path / file).exists()


@pytest.mark.parametrize("name", ["temp", "system", "memory", "_crm"])
def test_a_schema_with_the_name_of_a_database_of_every_connection_is_refused(url: str, name: str) -> None:
    with pytest.raises(SettingError, match=f"DuckDB has a database {name}, .*: choose another schema"):
        load(url, [ACTIONS], default_target_schema=name)


def test_a_warehouse_whose_file_got_the_name_of_its_schema_is_still_loaded_and_read(tmp_path: Path) -> None:
    load(f"duckdb:///{tmp_path / 'other.duckdb'}", [ACTIONS, action("a1")], default_target_schema="crm")
    (tmp_path / "other.duckdb").rename(tmp_path / "crm.duckdb")
    url = f"duckdb:///{tmp_path / 'crm.duckdb'}"

    loaded = run_in("crm", url, "target-crm", "--config", "ENV", stdin=f"{ACTIONS}\n{action('a2')}\n")
    verified = run_in("crm", url, "crm-balances", "verify")

    assert "1 applied" in loaded.stderr
    assert "Verified 1 balance against 2 actions: OK" in verified.stdout
    for warned in (loaded, verified):
        assert warned.returncode == 0
        assert "ambiguous: choose another schema, or rename the file" in warned.stderr
