"""A run is killed at any byte, moment or database call. The next run completes the tables of an undisturbed run."""

from __future__ import annotations

import array
import fcntl
import select
import signal
import termios
from typing import TYPE_CHECKING

from tests.stress import run_cases, size
from tests.stress.fork_server import PAUSE
from tests.stress.recovery import SETTINGS, check, finish, rehearse, stopped_at_call
from tests.stress.runs import Ended, Forks, Place, pipe

if TYPE_CHECKING:
    from random import Random


KILLS = {"sqlite": size(4, 700), "postgresql": size(4, 300)}


def test_a_run_killed_anywhere_ends_like_an_undisturbed_run(forks: Forks, place: Place, shard: int) -> None:
    rehearsal = rehearse(forks, place)

    def case(random: Random, _: int) -> None:
        place.clear()
        resumed_from = 0
        for _ in range(random.choice([1, 1, 2, 3])):
            how = random.choice(["byte", "moment", "call"])
            stdin = rehearsal.scenario.input(resumed_from)
            if how == "byte":
                ended = killed_at_byte(forks, place, stdin, random.randrange(len(stdin)))
            elif how == "moment":
                ended = killed_after(forks, place, stdin, random.uniform(0, rehearsal.seconds))
            else:
                at = {
                    "how": PAUSE,
                    "at": random.randint(1, rehearsal.calls),
                    "moment": random.choice(["before", "after"]),
                }
                ended = stopped_at_call(forks, place, stdin, at, signal.SIGKILL)
            assert ended.exit_code in {-signal.SIGKILL, 0}, ended.log
            resumed_from = check(place, rehearsal.scenario, ended, resumed_from)
        finish(forks, place, rehearsal, resumed_from)

    run_cases(f"SIGKILL, {place.engine}", range(KILLS[place.engine]), case, shard)


def test_a_run_stopped_by_a_signal_during_a_batch_acknowledges_only_committed_rows(
    forks: Forks, place: Place, shard: int
) -> None:
    rehearsal = rehearse(forks, place)

    def case(random: Random, number: int) -> None:
        place.clear()
        at = {"how": PAUSE, "at": random.randint(1, rehearsal.calls), "moment": random.choice(["before", "after"])}
        ended = stopped_at_call(forks, place, rehearsal.scenario.input(), at, number)
        assert ended.exit_code in {128 + number, 0}, ended
        finish(forks, place, rehearsal, check(place, rehearsal.scenario, ended))

    signals = [signal.SIGTERM, signal.SIGTERM, signal.SIGINT] * size(1, 17)
    run_cases(f"SIGTERM and SIGINT, {place.engine}", signals, case, shard)


def killed_after(forks: Forks, place: Place, stdin: bytes, seconds: float) -> Ended:
    """Kill a run after some seconds."""
    run = forks.start(place.url, stdin, **SETTINGS)
    # The control socket closes when the run ends, so there is nothing left to wait for.
    select.select([run.control], [], [], seconds)
    run.kill()
    return run.wait()


def killed_at_byte(forks: Forks, place: Place, stdin: bytes, byte: int) -> Ended:
    """Kill a run that has read a part of its input and waits for more."""
    with pipe() as (reader, writer):
        run = forks.start(place.url, reader.fileno(), **SETTINGS)
        writer.write(stdin[:byte])
        unread = array.array("i", [byte])
        while unread[0]:
            assert not select.select([run.control], [], [], 0.001)[0], "the run ended before its input"
            fcntl.ioctl(reader.fileno(), termios.FIONREAD, unread)
        run.kill()
        return run.wait()
