"""Proof that the campaign can fail: faults are put into a copy of target_crm, and each has to be caught.

`python -m tests.campaign.seeded_faults` runs, for each fault, the short form of the parts that are to catch it,
and prints which of them did.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent.parent
COPIED = ("target_crm", "tap_pepper", "pepper_sandbox", "tests", "pyproject.toml", "README.md")
RUN_SECONDS_MAX = 900


@dataclass(frozen=True)
class Fault:
    """An edit of one file that breaks a promise."""

    promise: str
    parts: str
    """The parts of the campaign, `t1` to `t7`, that are to catch it. Others may as well; they are not run."""
    file: str
    right: str
    wrong: str


FAULTS = {
    "STATE goes out before the commit": Fault(
        "3",
        "t3 t4",
        "target.py",
        "        if batch.rejections or batch.read:",
        "        batch.state is None or self._emit(batch.state)\n        if batch.rejections or batch.read:",
    ),
    "a signal acknowledges what is held": Fault(
        "3",
        "t4",
        "target.py",
        "        os._exit(SIGNAL_EXIT_CODE + signum)",
        "        self._state is None or self._emit(self._state)\n        os._exit(SIGNAL_EXIT_CODE + signum)",
    ),
    "a batch that failed does not stop the next": Fault(
        "3", "t3", "target.py", "            under_way.result()", "            under_way.exception()"
    ),
    "sums over all actions, also repeated ones": Fault(
        "5", "t1 t4", "sinks.py", "partials_from_actions(news)", "partials_from_actions(staged.table)"
    ),
    "the last arrival wins, not the newest": Fault(
        "5",
        "t1 t2",
        "balances.py",
        "or_(other[by].is_(None), one[by] > other[by]",
        "or_(one[by].is_not(None), one[by] > other[by]",
    ),
    "no tie-break by action id": Fault(
        "1",
        "t1",
        "balances.py",
        'one["last_action_id"] > other["last_action_id"]',
        'one["last_action_id"].is_not(None)',
    ),
    "no tie-break by action id within a batch": Fault(
        "1",
        "t1",
        "balances.py",
        "actions.c.occurred_at.desc(), actions.c.action_id.desc()",
        "actions.c.occurred_at.desc()",
    ),
    "at a tie the snapshot wins": Fault(
        "1",
        "t1",
        "balances.py",
        'is_snapshot, is_action = other["as_of_source"] == _AWARD',
        'is_snapshot, is_action = one["as_of_source"] == _AWARD',
    ),
    "an older snapshot replaces a newer one": Fault(
        "5",
        "t1",
        "staging.py",
        "and_(_not_older(ages(ranked), ages(table)), not_(",
        "and_(not_(",
    ),
    "the ledger is committed before the balances": Fault(
        "2",
        "t2 t5",
        "sinks.py",
        "            engines.merge(connection, balances.merge(self.tables, balances.partials_from_actions(news)))",
        '            connection.exec_driver_sql("COMMIT")\n            connection.exec_driver_sql("BEGIN")\n'
        "            engines.merge(connection, balances.merge(self.tables, balances.partials_from_actions(news)))",
    ),
    "rows are forgotten before the commit": Fault(
        "2",
        "t3 t5",
        "sinks.py",
        "        written = self.write(connection, held)\n",
        "        written = self.write(connection, held)\n        held.rows.clear()\n",
    ),
    "no lock between loaders": Fault(
        "7",
        "t5",
        "warehouse.py",
        "                self.adapter.transaction_lock(writer, self.tables.metadata.schema)\n",
        "",
    ),
    "no second try after a lost connection": Fault(
        "2",
        "t5",
        "warehouse.py",
        "                if not self._was_reached:",
        "                if error:",
    ),
    "a second try doesn't look for the first one's commit": Fault(
        "2",
        "t5",
        "warehouse.py",
        "if number == 0 or not self._is_committed(connection, batch_id):",
        "if batch_id:",
    ),
    "what is refused is not kept": Fault(
        "4", "t4 t6", "target.py", "[*batch.rejections, *contradictions]", "contradictions"
    ),
    "a run says that it is done before it is": Fault(
        "2",
        "t3 t4",
        "target.py",
        "self._tell(connection, tallies)\n        return",
        "self._tell(connection, tallies, DONE)\n        return",
    ),
    "a failed run exits with 0": Fault("8", "t3 t7", "target.py", "status: Any = 1", "status: Any = 0"),
    "a line may be of any length": Fault("4", "t6", "messages.py", "MAX = 1 << 24", "MAX = 1 << 40"),
    "a number may overflow": Fault("4", "t6", "values.py", "number.copy_abs() >=", "abs(number) >="),
    "a rebuild leaves the snapshots out": Fault(
        "1",
        "t2",
        "verify.py",
        "balances.all_balances(tables)",
        "balances.partials_from_actions(tables.actions)",
    ),
    "an activated version takes its own rows for gone": Fault(
        "1", "t2 t4", "staging.py", "table.c[TABLE_VERSION] < version)", "table.c[TABLE_VERSION] <= version)"
    ),
    "a replay forgets what it has not loaded": Fault("2", "t2", "replay.py", "            self._drain()\n", ""),
    "errors show the URL's password": Fault(
        "8",
        "t5 t7",
        "warehouse.py",
        "URL.create(url.drivername, host=url.host, port=url.port, database=url.database).render_as_string()",
        "url.render_as_string(hide_password=False)",
    ),
    "a refusal repeats the value": Fault(
        "8", "t7", "values.py", 'Invalid("is text, expected points")', 'Invalid(f"is {value}, expected points")'
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_seeded_fault_fits_the_source_as_it_is(name: str) -> None:
    fault = FAULTS[name]
    assert fault.right in (PROJECT / "target_crm" / fault.file).read_text()


def caught_by(fault: Fault) -> list[str]:
    """The parts that fail with the fault in place."""
    with tempfile.TemporaryDirectory(prefix="pepper-crm-fault-") as folder:
        copy = Path(folder)
        for name in COPIED:
            source = PROJECT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
        path = copy / "target_crm" / fault.file
        path.write_text(path.read_text().replace(fault.right, fault.wrong))
        tests = [str(test) for part in fault.parts.split() for test in copy.glob(f"tests/campaign/target_{part}_*.py")]
        result = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider", *tests],
            cwd=copy,
            env={**os.environ, "CAMPAIGN_SHRINK": "no"},
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS_MAX,
            check=False,
        )
    return sorted(set(re.findall(r"^(?:FAILED|ERROR) \S+target_t(\d)_", result.stdout, re.MULTILINE)))


def main(names: list[str]) -> int:
    """Print the table; returns how many faults went unnoticed."""
    unnoticed = 0
    print("| seeded fault | promise | caught by |\n|---|---|---|", flush=True)
    for name in names or FAULTS:
        caught = ", ".join(f"T{number}" for number in caught_by(FAULTS[name]))
        unnoticed += not caught
        print(f"| {name} | {FAULTS[name].promise} | {caught or '**nothing**'} |", flush=True)
    return unnoticed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
