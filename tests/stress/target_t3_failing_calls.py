"""T3: whichever database call fails, once or for good, no STATE is false, and the next run heals what is left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.stress import FULL, run_cases
from tests.stress.target_forks import DROP
from tests.stress.target_recovery import SETTINGS, check, finish, rehearse

if TYPE_CHECKING:
    from random import Random

    from tests.stress.target_runs import Forks, Place

SHORT_STEP = 61


def test_whichever_database_call_fails_nothing_false_is_said_and_the_next_run_heals(
    forks: Forks, place: Place, shard: int
) -> None:
    rehearsal = rehearse(forks, place, rows=12)
    faults: list[dict[str, Any]] = [
        {"how": DROP, "at": at, "moment": moment, "for_good": for_good}
        for at in range(1, rehearsal.calls + 1)
        # To fail for good after a call is to fail for good before the next.
        for moment, for_good in (("before", False), ("after", False), ("before", True))
    ]

    def case(_: Random, fault: dict[str, Any]) -> None:
        place.clear()
        ended = forks.run(place.url, rehearsal.told.input(), fault=fault, **SETTINGS)
        finish(forks, place, rehearsal, check(place, rehearsal.told, ended))

    run_cases(f"T3 a call fails, {place.engine}", faults if FULL else faults[::SHORT_STEP], case, shard)
