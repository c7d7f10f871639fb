"""Check that the stress tests can fail: break target-crm on purpose, and see which tests notice it.

`python -m tests.stress.seeded_faults [NAME …]` runs some stress tests in short form with each fault, and prints which
of them failed. A fault replaces one function or constant in every process that the tests start (see `fault_site`).
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from sqlalchemy import case, func, literal_column, true

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PROJECT = Path(__file__).parents[2]
RUN_SECONDS_MAX = 900


@dataclass(frozen=True)
class Fault:
    """A fault that breaks a promise.

    Attributes:
        promise: the number of the promise in docs/reliability.md.
        caught_by: the test modules to run, without `test_`. Other tests may notice the fault as well.
        target: what to replace, as `module:attribute`.
        replace: returns the faulty replacement of the original.
    """

    promise: int
    caught_by: tuple[str, ...]
    target: str
    replace: Callable[[Any], Any]


def locate(target: str) -> tuple[Any, str]:
    """Return the module or class that has the attribute, and the attribute's name."""
    module, _, path = target.partition(":")
    *owners, name = path.split(".")
    owner: Any = import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    return owner, name


def apply(fault: Fault) -> None:
    """Replace the fault's target in this process."""
    owner, name = locate(fault.target)
    setattr(owner, name, fault.replace(getattr(owner, name)))


def emit_state_before_commit(run: Any) -> Any:
    def _run(self: Any, batch: Any) -> None:
        if batch.state is not None:
            self._emit_state(batch.state)
        run(self, batch)

    return _run


def emit_state_on_signal(handle_termination: Any) -> Any:
    def _handle_termination(self: Any, signum: int, frame: Any) -> None:
        if self._batcher._batch and self._batcher._batch.state:
            self._emit_state(self._batcher._batch.state)
        handle_termination(self, signum, frame)

    return _handle_termination


def ignore_failed_batch(wait: Any) -> Any:
    def _wait(self: Any) -> None:
        with suppress(Exception):
            wait(self)

    return _wait


def insert_repeated(insert_absent: Any) -> Any:
    def _insert_absent(adapter: Any, connection: Any, table: Any, staged: Any, *arguments: Any) -> Any:
        count, _ = insert_absent(adapter, connection, table, staged, *arguments)
        return count, staged.table

    return _insert_absent


def commit_ledger_first(insert_absent: Any) -> Any:
    def _insert_absent(adapter: Any, connection: Any, *arguments: Any) -> Any:
        result = insert_absent(adapter, connection, *arguments)
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("BEGIN")
        return result

    return _insert_absent


def last_arrival_wins(union: Any) -> Any:
    def _union(one: Any, other: Any) -> Any:
        columns = union(one, other)
        for by, names in (("as_of", ("points", "as_of", "as_of_source")), ("last_action_at", ("last_action_id",))):
            for name in names:
                columns[name] = case((one[by].is_not(None), one[name]), else_=other[name])
        return columns

    return _union


def ignore_ids_between_batches(union: Any) -> Any:
    def _union(one: Any, other: Any) -> Any:
        least = literal_column("''", other["last_action_id"].type)
        columns = union(one, {**dict(other.items()), "last_action_id": least})
        columns["last_action_id"] = func.coalesce(
            func.nullif(columns["last_action_id"], least), other["last_action_id"]
        )
        return columns

    return _union


def ignore_ids_in_a_batch(partials_from_actions: Any) -> Any:
    def _partials_from_actions(actions: Any, *which: Any, **options: Any) -> Any:
        with mock.patch.object(actions.c.action_id, "desc", lambda: literal_column("1"), create=True):
            return partials_from_actions(actions, *which, **options)

    return _partials_from_actions


def prefer_snapshots(union: Any) -> Any:
    def _union(one: Any, other: Any) -> Any:
        balances = import_module("target_crm.sql.balances")
        with mock.patch.multiple(balances, _AWARD=balances._ACTION, _ACTION=balances._AWARD):
            return union(one, other)

    return _union


def forget_rows(write: Any) -> Any:
    def _write(self: Any, batch: Any, connection: Any) -> Any:
        result = write(self, batch, connection)
        for part in batch.parts.values():
            part.rows.clear()
        return result

    return _write


def record_run_as_done(record_run: Any) -> Any:
    return lambda self, connection, tallies, exit_state="done": record_run(self, connection, tallies, exit_state)


def exit_with_0(run_cli: Any) -> Any:
    return lambda *arguments, **options: run_cli(*arguments, **{**options, "error_exit_code": 0})


def let_numbers_overflow(points: Any) -> Any:
    def _points(value: Any) -> Any:
        abs(value if isinstance(value, Decimal) else 0)
        return points(value)

    return _points


def repeat_value(points: Any) -> Any:
    def _points(value: Any) -> Any:
        try:
            return points(value)
        except ValueError as error:
            raise type(error)(f"is {value}, expected points") from None

    return _points


def rebuild_without_snapshots(rebuild: Any) -> Any:
    def _rebuild(warehouse: Any) -> Any:
        balances = import_module("target_crm.sql.balances")
        only_actions = lambda _, partials, *__: partials  # noqa: E731
        with mock.patch.object(balances, "all_balances", only_actions):
            return rebuild(warehouse)

    return _rebuild


def activate_too_much(activate: Any) -> Any:
    return lambda table, version, *, hard: activate(table, version + 1, hard=hard)


def replay_without_commit(_: Any) -> Any:
    return lambda self, lines: self.process_lines(io.StringIO("".join(f"{line}\n" for line in lines)))


def show_password(init: Any) -> Any:
    def __init__(self: Any, sqlalchemy_url: str, *arguments: Any) -> None:  # noqa: N807
        init(self, sqlalchemy_url, *arguments)
        self.name = sqlalchemy_url

    return __init__


def cover_before_commit(write: Any) -> Any:
    def _write(self: Any, batch: Any) -> None:
        with self._warehouse.write() as connection:
            self._record_coverage(connection, batch.coverage)
        write(self, batch)

    return _write


def fill_holes(union: Any) -> Any:
    def _union(intervals: Any) -> Any:
        found = union(intervals)
        return [type(found[0])(found[0].after, found[-1].until)] if found else []

    return _union


def drop_filter(claims_of: Any) -> Any:
    coverage = import_module("target_crm.records.coverage")
    return lambda state: {coverage.Scope(scope.merchant): found for scope, found in claims_of(state).items()}


FAULTS = {
    "STATE is emitted before the commit": Fault(
        3, ("failing_calls", "kills"), "target_crm.loader.batcher:Batcher._run", emit_state_before_commit
    ),
    "a signal emits the STATE of an open batch": Fault(
        3, ("kills",), "target_crm.loader.target:TargetCrm._handle_termination", emit_state_on_signal
    ),
    "a failed batch does not stop the next": Fault(
        3, ("failing_calls",), "target_crm.loader.batcher:Batcher.wait", ignore_failed_batch
    ),
    "totals include repeated actions": Fault(
        5, ("deliveries", "kills"), "target_crm.loader.sinks:insert_absent", insert_repeated
    ),
    "the last arrival wins, not the newest observation": Fault(
        5, ("deliveries", "lifecycle"), "target_crm.sql.balances:union", last_arrival_wins
    ),
    "no tie-break by action id": Fault(1, ("deliveries",), "target_crm.sql.balances:union", ignore_ids_between_batches),
    "no tie-break by action id within a batch": Fault(
        1, ("deliveries",), "target_crm.sql.balances:partials_from_actions", ignore_ids_in_a_batch
    ),
    "a snapshot wins a tie": Fault(1, ("deliveries",), "target_crm.sql.balances:union", prefer_snapshots),
    "an older snapshot replaces a newer one": Fault(
        5, ("deliveries",), "target_crm.sql.staging:_not_older", lambda _: lambda *_: true()
    ),
    "the ledger is committed before the balances": Fault(
        2, ("lifecycle", "server_faults"), "target_crm.loader.sinks:insert_absent", commit_ledger_first
    ),
    "rows are dropped before the commit": Fault(
        2, ("failing_calls", "server_faults"), "target_crm.loader.writer:BatchWriter._write", forget_rows
    ),
    "no lock between loaders": Fault(
        7,
        ("server_faults",),
        "target_crm.engines.postgresql:PostgreSQLAdapter.transaction_lock",
        lambda _: lambda *_: None,
    ),
    "no retry after a lost connection": Fault(
        2, ("server_faults",), "target_crm.warehouse.connection:RETRY_SECONDS", lambda _: ()
    ),
    "a retry does not look for a commit whose reply was lost": Fault(
        2, ("server_faults",), "target_crm.warehouse.connection:Warehouse._is_committed", lambda _: lambda *_: False
    ),
    "rejected records are not stored": Fault(
        4, ("kills", "hostile_input"), "target_crm.loader.writer:BatchWriter._quarantine", lambda _: lambda *_: None
    ),
    "a run is recorded as done too early": Fault(
        2, ("failing_calls", "kills"), "target_crm.loader.writer:BatchWriter._record_run", record_run_as_done
    ),
    "a failed run exits with 0": Fault(
        8, ("failing_calls", "secrets"), "target_crm.loader.target:run_cli", exit_with_0
    ),
    "lines have no maximum length": Fault(
        4, ("hostile_input",), "target_crm.loader.reader:LINE_BYTES_MAX", lambda _: 1 << 40
    ),
    "a number may overflow": Fault(4, ("hostile_input",), "target_crm.records.values:points", let_numbers_overflow),
    "a rebuild ignores snapshots": Fault(
        1, ("lifecycle",), "target_crm.balances_cli.verify:rebuild", rebuild_without_snapshots
    ),
    "an activated version deletes its own rows": Fault(
        1, ("lifecycle", "kills"), "target_crm.sql.staging:activate", activate_too_much
    ),
    "a replay deletes records before they are loaded": Fault(
        2, ("lifecycle",), "target_crm.loader.target:TargetCrm.load", replay_without_commit
    ),
    "errors show the URL's password": Fault(
        8, ("server_faults", "secrets"), "target_crm.warehouse.connection:Warehouse.__init__", show_password
    ),
    "coverage is recorded before the commit": Fault(
        9, ("coverage",), "target_crm.loader.writer:BatchWriter.write", cover_before_commit
    ),
    "intervals of coverage are merged across a hole": Fault(
        9, ("coverage",), "target_crm.sql.coverage:union", fill_holes
    ),
    "coverage of a filtered run counts as full": Fault(
        9, ("coverage",), "target_crm.loader.target:claims_of", drop_filter
    ),
    "a rejection repeats the value": Fault(8, ("secrets",), "target_crm.records.values:points", repeat_value),
}


def tests_fail(arguments: Sequence[str], timeout_seconds: float, **variables: str) -> bool:
    """Run pytest until the first failure, with `fault_site` in all its processes. Return whether a test failed."""
    paths = [str(Path(__file__).parent / "fault_site"), str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider", *arguments],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CAMPAIGN_SHRINK": "no", **variables},
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )
    # Exit code 2 means that a module cannot be imported.
    if result.returncode not in {0, 1, 2}:
        sys.exit(result.stdout + result.stderr)
    return result.returncode != 0


def is_caught(name: str, test: str) -> bool:
    """Run a test module with the fault."""
    return tests_fail([f"tests/stress/test_{test}.py"], RUN_SECONDS_MAX, SEEDED_FAULT=name)


def main(names: list[str]) -> int:
    """Print a table, and return the number of faults that no test caught."""
    uncaught = 0
    print("| fault | promise | caught by |\n|---|---|---|", flush=True)
    for name in names or FAULTS:
        caught = ", ".join(f"`{test}`" for test in FAULTS[name].caught_by if is_caught(name, test))
        uncaught += not caught
        print(f"| {name} | {FAULTS[name].promise} | {caught or '**nothing**'} |", flush=True)
    return uncaught


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
