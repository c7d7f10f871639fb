"""T2: a programme lives on while it is polled, with crashes, resumed runs, direct edits and rebuilds in between."""

from __future__ import annotations

import io
import json
import tempfile
import time
from contextlib import redirect_stdout
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from random import Random

from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from target_crm import cli
from target_crm.target import TargetCrm
from tests import oracle
from tests.campaign import PHASES, SEED, count, size
from tests.campaign.target_calls import AFTER, BEFORE, Call, watched
from tests.campaign.target_runs import SqlitePlace
from tests.campaign.target_story import AWARD_IDS, START, TYPES, USER_OF, line_of, snapshot_line
from tests.oracle import Action, Snapshot
from tests.target_fixtures import ACTIONS, AWARDS, load, state, table

CRASH_CALL_MAX = 80
STATE_EVERY = 4

awards = st.sampled_from(AWARD_IDS[:4])
seconds = st.sampled_from([0, 0, 1, 60])
lates = st.sampled_from([False, False, True])
points = st.integers(-50, 500).map(lambda units: Decimal(units) / 4)


class Killed(BaseException):
    """The process is gone, in the middle of a database call."""


class Life(RuleBasedStateMachine):
    """What happened in Pepper, how much of it is acknowledged, and a warehouse that follows."""

    def __init__(self) -> None:
        super().__init__()
        self.began = time.perf_counter()
        self.folder = tempfile.TemporaryDirectory(prefix="pepper-crm-life-", dir=_shared_memory())
        self.place = SqlitePlace(Path(self.folder.name))
        load(self.place.url, [AWARDS, ACTIONS])
        self.now = START
        self.points: dict[str, Decimal] = dict.fromkeys(AWARD_IDS, Decimal(0))
        self.happened: list[Action | Snapshot] = []
        self.late: list[Action] = []
        self.acknowledged = 0

    @rule(
        award=awards, effect=st.sampled_from([*TYPES, None]), delta=points.map(abs), after=seconds, late=st.booleans()
    )
    def act(self, award: str, effect: str | None, delta: Decimal, after: int, late: bool) -> None:
        """An action, which may show up only later."""
        self.now += timedelta(seconds=after)
        if effect:
            self.points[award] += -delta if effect == "redeemed" else delta
        number = len(self.happened) + len(self.late)
        action = Action(f"{'aBé'[number % 3]}{number}", award, self.now, effect, delta, self.points[award], "p1")
        (self.late if late else self.happened).append(action)

    @rule()
    def show_late_actions(self) -> None:
        """What was late is to be seen."""
        self.happened += self.late
        self.late = []

    @rule(award=awards, value=points, after=seconds)
    def edit(self, award: str, value: Decimal, after: int) -> None:
        """Someone changes the points by hand: only a snapshot tells."""
        self.now += timedelta(seconds=after)
        self.points[award] = value
        self.look(award)

    @rule(award=awards)
    def look(self, award: str) -> None:
        """A snapshot is taken."""
        read_at = self.now + timedelta(microseconds=len(self.happened))
        self.happened.append(Snapshot(award, self.points[award], self.now, read_at, "p1"))

    @rule(lookback=st.integers(0, 6), batch=st.integers(1, 7), shuffle=st.integers(0, 99))
    def poll(self, lookback: int, batch: int, shuffle: int) -> None:
        """A run from the last STATE on, with some of the past again, ends well: the balances are the oracle's."""
        self.run(lookback, batch, shuffle)
        assert self.acknowledged == len(self.happened)
        assert table(self.place.warehouse, "award_balances") == oracle.balances(self.happened, USER_OF)

    @rule(
        lookback=st.integers(0, 6),
        batch=st.integers(1, 7),
        shuffle=st.integers(0, 99),
        call=st.integers(1, CRASH_CALL_MAX),
        moment=st.sampled_from([BEFORE, AFTER]),
    )
    def crash(self, lookback: int, batch: int, shuffle: int, call: int, moment: str) -> None:
        """A run that is gone in the middle of a database call, unless it is over before."""

        def kill(seen: Call) -> None:
            if (seen.number, seen.moment) == (call, moment):
                raise Killed

        try:
            with watched(kill):
                self.run(lookback, batch, shuffle)
        except Killed:
            count("T2 crashes in a life, sqlite")
        acknowledged = {event.action_id for event in self.happened[: self.acknowledged] if isinstance(event, Action)}
        assert acknowledged <= {row["action_id"] for row in table(self.place.warehouse, "actions", "action_id")}
        self.place.is_consistent()

    @rule()
    def rebuild(self) -> None:
        """All balances are computed afresh, and nothing changes."""
        before = table(self.place.warehouse, "award_balances")
        cli.rebuild(self.place.warehouse)
        assert table(self.place.warehouse, "award_balances") == before

    def run(self, lookback: int, batch: int, shuffle: int) -> None:
        """Deliver what is not acknowledged, with some of what is, in any order between two STATEs."""
        start = max(self.acknowledged - lookback, 0)
        random = Random(shuffle)
        lines = [AWARDS, ACTIONS]
        for first in range(start, len(self.happened), STATE_EVERY):
            events = self.happened[first : first + STATE_EVERY]
            random.shuffle(events)
            lines += [snapshot_line(event) if isinstance(event, Snapshot) else line_of(event) for event in events]
            lines.append(state({"events": first + len(events)}))
        target = TargetCrm(config={"sqlalchemy_url": self.place.url, "batch_size_rows": batch})
        target.warehouse = self.place.warehouse
        output = io.StringIO()
        try:
            with redirect_stdout(output):
                target.listen(io.StringIO("".join(f"{line}\n" for line in lines)))
        finally:
            for line in output.getvalue().splitlines():
                self.acknowledged = json.loads(line)["events"]

    def teardown(self) -> None:
        """No folder is left behind."""
        self.place.close()
        self.folder.cleanup()
        count("T2 lives, sqlite", time.perf_counter() - self.began)


def test_balances_follow_whatever_happens_and_whenever_a_run_dies() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        seed(SEED)(Life),
        settings=settings(
            phases=PHASES,
            max_examples=size(6, 100),
            stateful_step_count=size(25, 50),
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def _shared_memory() -> str | None:
    """A folder where a commit need not wait for a disk; None: the usual one."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
