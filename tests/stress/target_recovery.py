"""What tests of failing and killed runs share: a rehearsal, a check after each run, and a quiet last run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from tests.stress.target_forks import PAUSE
from tests.stress.target_runs import Ended, Forks, Place, digest
from tests.stress.target_story import PERKS_IN_THE_END, Story, as_input, covered, story

if TYPE_CHECKING:
    from collections.abc import Mapping

SETTINGS = {"batch_size_rows": 6}


@dataclass(frozen=True)
class Rehearsal:
    """A story, what one quiet run makes of it, and what that run took."""

    told: Story
    expected: Mapping[str, Any]
    seconds: float
    calls: int
    calls_before_rows: int
    """Those that set up the tables."""

    def pause_at_rows(self, random: Random) -> dict[str, Any]:
        """Wait at a random call of those that load rows."""
        at = random.randint(self.calls_before_rows + 1, self.calls - 1)
        return {"how": PAUSE, "at": at, "moment": random.choice(["before", "after"])}


def rehearse(forks: Forks, place: Place, rows: int = 30, **options: Any) -> Rehearsal:
    """Load a story in one quiet run, which gives what the oracle says; the place is empty again afterwards."""
    told = story(Random(f"rehearsal {rows}"), rows, **options)
    place.clear()
    forks.warm(place.url, told.input())
    place.clear()
    calls_before_rows, _ = count_calls(forks, place, as_input(told.schemas))
    place.clear()
    calls, seconds = count_calls(forks, place, told.input())
    expected = place.contents()
    assert expected["award_balances"] == told.balances()
    assert expected["perks"] == [perk for perk in PERKS_IN_THE_END if options.get("ordered", True) or perk[0] != "p0"]
    place.has(told, len(told.lines))
    place.clear()
    return Rehearsal(told, expected, seconds, calls, calls_before_rows)


def count_calls(forks: Forks, place: Place, stdin: bytes) -> tuple[int, float]:
    """The database calls and the seconds of a quiet run."""
    began = time.perf_counter()
    run = forks.start(place.url, stdin, fault={"how": "count"}, **SETTINGS)
    calls = int(run.said()["calls"])
    ended = run.ended()
    assert ended.exit_code == 0, ended.log
    return calls, time.perf_counter() - began


def check(place: Place, told: Story, ended: Ended, resumed_from: int = 0) -> int:
    """What is acknowledged is there, and what is there adds up; returns where to resume."""
    acknowledged = covered(ended.states[-1]) if ended.states else resumed_from
    place.has(told, acknowledged)
    place.is_consistent()
    # All is well, and a run says that it is done, only if all is loaded.
    assert (ended.exit_code and not place.says_done()) or acknowledged == len(told.lines) - 1, ended
    return acknowledged


def finish(forks: Forks, place: Place, rehearsal: Rehearsal, resumed_from: int) -> None:
    """A quiet run for the rest gives what a quiet run has given for all."""
    ended = forks.run(place.url, rehearsal.told.input(resumed_from), **SETTINGS)
    assert ended.exit_code == 0, ended.log
    found = place.contents()
    assert found == rehearsal.expected
    assert digest(found) == digest(rehearsal.expected)


def stopped_at_call(forks: Forks, place: Place, stdin: bytes, fault: dict[str, Any], number: int) -> Ended:
    """A run that gets a signal while it waits before or after a database call."""
    run = forks.start(place.url, stdin, fault=fault, **SETTINGS)
    if "at" in run.said():
        run.kill(number)
        run.go_on()
    return run.ended()
