"""Helpers for tests of failing and killed runs: a rehearsal, a check after each run, and an undisturbed last run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from tests.stress.fork_server import PAUSE
from tests.stress.runs import Ended, Forks, Place, digest
from tests.stress.scenario import FINAL_PERKS, Scenario, as_input, covered_lines, make_scenario

if TYPE_CHECKING:
    from collections.abc import Mapping

# The fraction is 1, because a run that resumes may read only malformed records, and must not fail for that.
SETTINGS = {"batch_size_rows": 6, "max_rejected_fraction": 1}


@dataclass(frozen=True)
class Rehearsal:
    """A scenario, and the tables, the seconds and the number of calls of an undisturbed run that loads it."""

    scenario: Scenario
    expected: Mapping[str, Any]
    seconds: float
    calls: int
    setup_calls: int
    """Calls that create the tables, before the first row."""

    def pause_at_rows(self, random: Random) -> dict[str, Any]:
        """Pause at a random call that loads rows."""
        at = random.randint(self.setup_calls + 1, self.calls - 1)
        return {"how": PAUSE, "at": at, "moment": random.choice(["before", "after"])}


def rehearse(forks: Forks, place: Place, rows: int = 30, **options: Any) -> Rehearsal:
    """Load a scenario in one undisturbed run, compare the tables with the oracle, and empty the warehouse."""
    scenario = make_scenario(Random(f"rehearsal {rows}"), rows, **options)
    # There must be enough STATEs, because each one is a chance to acknowledge a row that was not committed.
    assert sum('"STATE"' in line for line in scenario.lines) >= rows / 6
    place.clear()
    forks.warm_up(place.url, scenario.input())
    place.clear()
    setup_calls, _ = count_calls(forks, place, as_input(scenario.schemas))
    place.clear()
    calls, seconds = count_calls(forks, place, scenario.input())
    expected = place.contents()
    assert expected["award_balances"] == scenario.balances()
    assert expected["coverage"] == scenario.coverage()
    assert expected["perks"] == [perk for perk in FINAL_PERKS if options.get("ordered", True) or perk[0] != "p0"]
    place.assert_contains(scenario, len(scenario.lines))
    place.clear()
    return Rehearsal(scenario, expected, seconds, calls, setup_calls)


def count_calls(forks: Forks, place: Place, stdin: bytes) -> tuple[int, float]:
    """Return the database calls and the seconds of an undisturbed run."""
    began = time.perf_counter()
    run = forks.start(place.url, stdin, fault={"how": "count"}, **SETTINGS)
    calls = int(run.next_report()["calls"])
    ended = run.wait()
    assert ended.exit_code == 0, ended.log
    return calls, time.perf_counter() - began


def check(place: Place, scenario: Scenario, ended: Ended, resumed_from: int = 0) -> int:
    """Fail unless all acknowledged and covered rows exist, and the tables agree. Return the line to resume from."""
    acknowledged = covered_lines(ended.states[-1]) if ended.states else resumed_from
    place.assert_contains(scenario, acknowledged)
    # The target records the coverage in the transaction of the rows: before it emits the STATE, but not before the
    # commit.
    assert place.covered_lines() >= acknowledged
    place.assert_contains(scenario, place.covered_lines())
    place.assert_consistent()
    # A run that exits 0 or is recorded as done must have loaded everything.
    assert (ended.exit_code and not place.is_recorded_as_done()) or acknowledged == len(scenario.lines) - 1, ended
    return acknowledged


def finish(forks: Forks, place: Place, rehearsal: Rehearsal, resumed_from: int) -> None:
    """Load the rest in an undisturbed run. Fail unless the tables then equal the tables of the rehearsal."""
    ended = forks.run(place.url, rehearsal.scenario.input(resumed_from), **SETTINGS)
    assert ended.exit_code == 0, ended.log
    found = place.contents()
    assert found == rehearsal.expected
    assert digest(found) == digest(rehearsal.expected)


def stopped_at_call(forks: Forks, place: Place, stdin: bytes, fault: dict[str, Any], number: int) -> Ended:
    """Send a signal to a run that is paused before or after a database call."""
    run = forks.start(place.url, stdin, fault=fault, **SETTINGS)
    if "at" in run.next_report():
        run.kill(number)
        run.resume()
    return run.wait()
