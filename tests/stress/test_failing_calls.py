"""Any database call may fail, once or permanently. No STATE is wrong, and the next run loads the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.stress import FULL, run_cases
from tests.stress.fork_server import DROP
from tests.stress.recovery import SETTINGS, check, finish, rehearse

if TYPE_CHECKING:
    from random import Random

    from tests.stress.runs import Forks, Place

SHORT_STEP = 61


def test_after_any_failing_database_call_no_state_is_wrong_and_the_next_run_loads_the_rest(
    forks: Forks, place: Place, shard: int
) -> None:
    rehearsal = rehearse(forks, place, rows=12)
    faults: list[dict[str, Any]] = [
        {"how": DROP, "at": at, "moment": moment, "permanent": permanent}
        for at in range(1, rehearsal.calls + 1)
        # A permanent failure after a call is the same as a permanent failure before the next call.
        for moment, permanent in (("before", False), ("after", False), ("before", True))
    ]

    def case(_: Random, fault: dict[str, Any]) -> None:
        place.clear()
        ended = forks.run(place.url, rehearsal.scenario.input(), fault=fault, **SETTINGS)
        finish(forks, place, rehearsal, check(place, rehearsal.scenario, ended))

    run_cases(f"failing calls, {place.engine}", faults if FULL else faults[::SHORT_STEP], case, shard)
