"""The tap against hostile responses, simulated days of polls, and kills at any request."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from pepper_sandbox import faults
from pepper_sandbox.api import TOKEN, to_moment
from pepper_sandbox.world import World
from tap_pepper.errors import PepperError
from tests.stress import FULL
from tests.stress.tap_world import Killed, Ledger, Pepper, SimulatedClock, due, run_simulated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pepper_sandbox.api import Request, Response
    from pepper_sandbox.faults import Fault
    from pepper_sandbox.records import Json
    from tests.helpers.tap import Run

NOW = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
HOSTILE_CASES = 200 if FULL else 25
POLLS_A_DAY = 288 if FULL else 48
DAYS = 35 if FULL else 2
PERK_SEEDS = 200 if FULL else 10
MACHINES = 200 if FULL else 8
STEPS = 20

TEMPORARY = [
    faults.server_error(),
    faults.server_error(500),
    faults.html_page(),
    faults.gzip_cut(),
    faults.connection_cut(),
    faults.connection_reset(),
    faults.rate_limited(3),
    faults.rate_limited_until(4),
    faults.rate_limited_without_hint(),
]
"""Temporary faults."""
FATAL = [
    faults.unauthorized(),
    faults.forbidden(),
    faults.not_found(),
    faults.invalid(),
    faults.redirected("https://elsewhere.example"),
    faults.list_missing(),
    faults.next_key_repeated(),
    faults.pages_in_a_circle(),
    *TEMPORARY,
]
"""Faults that may end a run."""
VARIATIONS = [
    faults.filters_ignored("when.timestamp"),
    faults.filters_ignored("type", "updatedAt", "updatedAfter"),
    faults.updated_at_exclusive(),
    faults.limit_capped(3),
    faults.limit_ignored(),
    faults.listed_as("items"),
    faults.bare_array(),
    faults.page_missing(),
    faults.last_next_key(None),
    faults.last_next_key(""),
    faults.last_row_repeated(),
    faults.empty_page_between(),
    faults.rows_shuffled(),
    faults.newest_first().on("/actions"),
    faults.clock_missing(),
    faults.clock_skewed(40),
    faults.clock_skewed(-40),
    faults.field_missing("context"),
    faults.field_missing("context.user", every=3),
    faults.field_missing("when.timezone"),
    faults.field_set("metadata", None).on("/actions"),
    faults.field_set("type", "SOMETHING_NEW", every=4),
    faults.fields_unknown(),
    faults.points_as_strings(),
]
"""Permanent variations of the API."""


def follow(pepper: Pepper, ledger: Ledger, **options: Any) -> BaseException | None:
    """Run the tap once, load its messages, and return its error."""
    clock = options.pop("clock", None) or SimulatedClock(pepper.world)
    run = run_simulated(pepper, clock, "actions", "awards", state=ledger.state, **{"page_size": 20, **options})
    ledger.load(run)
    return run.error


@pytest.mark.parametrize("seed", range(HOSTILE_CASES))
def test_hostile_responses_cause_clear_errors_and_lose_nothing(seed: int) -> None:
    random = Random(seed)
    world = World(seed=seed, users=15, days=3, now=NOW)
    pepper, ledger = Pepper(world), Ledger()
    always = tuple(random.sample(VARIATIONS, random.randrange(3)))
    start = {"start_date": "2026-10-22T00:00:00Z", "concurrency": random.choice([1, 4]), "max_retries": 3}
    for _ in range(4):
        turns = sorted(random.sample(range(1, 12), random.randint(1, 3)))
        passing = random.choice(TEMPORARY).nth(*turns)
        fatal = random.choice(FATAL).on(random.choice(["/actions", "/awards", "*"]))
        chosen = (passing, fatal, *always) if random.random() < 0.5 else (passing, *always)
        # The fault that removes the Date comes last, because other faults read the Date.
        pepper.faults = tuple(sorted(chosen, key=lambda fault: fault.name != "clock missing"))
        error = follow(pepper, ledger, **start)
        assert error is None or isinstance(error, PepperError)
        assert TOKEN not in str(error)
        assert "\n" not in str(error)
        world.advance(timedelta(seconds=random.randrange(20 * 60)))
    pepper.faults = always
    expected = due(world)
    assert follow(pepper, ledger, **start) is None
    assert ledger.actions >= expected
    assert ledger.awards == world.balances()
    assert ledger.went_back == []
    assert ledger.repeated == []


CHANGES = [
    pytest.param(datetime(2026, 10, 24, 22, tzinfo=UTC), 60, 0, id="clocks-go-back"),
    pytest.param(datetime(2026, 3, 28, 22, tzinfo=UTC), 0, 60, id="clocks-go-forward"),
]


@pytest.fixture
def london(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/London")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def local_times(change_at: datetime, before_minutes: int, after_minutes: int) -> Fault:
    """Pepper writes the times of actions as local times. Their offset changes at `change_at`."""

    def rewrite(row: Json) -> Json:
        moment = to_moment(row["when"]["timestamp"])
        minutes = before_minutes if moment < change_at else after_minutes
        local = moment.astimezone(timezone(timedelta(minutes=minutes)))
        row["when"]["timestamp"] = local.isoformat(timespec="milliseconds")
        return row

    return faults.change_rows("local times", rewrite).on("/actions")


@pytest.mark.parametrize("day", range(DAYS))
@pytest.mark.usefixtures("london")
def test_a_day_of_polls_misses_nothing_and_repeats_nothing(day: int) -> None:
    random = Random(day)
    begin, before_minutes, after_minutes = CHANGES[day % 2].values
    world = World(seed=day, users=150, days=1, now=begin, late_fraction=0.3, late_seconds_max=240)
    odd = random.sample(VARIATIONS, 2)
    skew_seconds = random.randrange(-30, 31)
    # These faults would make each poll download a full day, or undo the clock of this test.
    odd = [fault for fault in odd if not fault.name.startswith(("limit capped", "clock"))]
    rewritten = local_times(begin + timedelta(hours=3), before_minutes, after_minutes)
    pepper = Pepper(world, (faults.clock_skewed(skew_seconds), *odd, rewritten), tick=timedelta(milliseconds=200))
    clock = SimulatedClock(world, timedelta(minutes=random.randrange(-90, 91)))
    ledger = Ledger()
    assert follow(pepper, ledger, clock=clock, page_size=1000) is None
    assert ledger.awards.keys() >= set(world.balances(begin))
    for _ in range(POLLS_A_DAY):
        world.advance(timedelta(minutes=5) + timedelta(seconds=random.randrange(-20, 21)))
        assert follow(pepper, ledger, clock=clock, page_size=1000) is None
        assert ledger.went_back == []
        assert ledger.repeated == []
    pepper.tick = timedelta(0)
    world.advance(timedelta(minutes=5))
    expected = due(world) - {row["_id"] for row in world.actions(until=begin)}
    until_skew = timedelta(seconds=min(skew_seconds, 0))
    settled = {row["_id"] for row in world.actions(until=world.now + until_skew - timedelta(seconds=6))}
    assert follow(pepper, ledger, clock=clock, page_size=1000) is None
    assert ledger.actions >= expected & settled
    assert ledger.awards == world.balances()


class ShiftingPepper(Pepper):
    """A Pepper that adds and deletes perks while the tap reads their pages."""

    restless: Random | None = None

    def answer(self, request: Request) -> Response:
        if self.restless is not None and self.restless.random() < 0.3:
            if self.restless.random() < 0.5:
                self.world.open_perk("Lunch")
            else:
                self.world.delete_perk(self.restless.choice(perk_ids(self.world)))
        return super().answer(request)


def perk_ids(world: World) -> list[str]:
    return [perk["_id"] for perk in world.perks()]


def load_perks(table: dict[str, int], run: Run) -> None:
    """Apply records and ACTIVATE_VERSION messages to a table, as a target does."""
    for message in run.messages:
        if message.get("stream") == "perks" and message["type"] == "RECORD":
            table[message["record"]["_id"]] = message["version"]
        elif message["type"] == "ACTIVATE_VERSION":
            for perk_id in [perk_id for perk_id, version in table.items() if version < message["version"]]:
                del table[perk_id]


@pytest.mark.parametrize("seed", range(PERK_SEEDS))
def test_no_existing_perk_is_deleted_when_pages_shift(seed: int) -> None:
    random = Random(seed)
    world = World(seed=seed, users=1, days=1, now=NOW)
    for _ in range(random.randrange(4, 20)):
        world.open_perk("Lunch")
    pepper, table, state = ShiftingPepper(world, (faults.pages_by_position(),)), dict[str, int](), {}
    page_size = random.randrange(1, 5)
    for turn in range(20):
        lived = set(perk_ids(world))
        # A row that two reads in a row miss counts as deleted, so rows shift only in every second read here.
        pepper.restless = random if turn % 2 else None
        world.advance(timedelta(minutes=5))
        run = run_simulated(pepper, SimulatedClock(world), "perks", state=state, page_size=page_size)
        assert run.error is None
        load_perks(table, run)
        state = run.state
        assert table.keys() >= lived & set(perk_ids(world))
    pepper.restless = None
    for _ in range(2):
        run = run_simulated(pepper, SimulatedClock(world), "perks", state=run.state, page_size=page_size)
        load_perks(table, run)
    assert table.keys() == set(perk_ids(world))


class KilledRuns(RuleBasedStateMachine):
    """Runs that may be killed at any request, while the world changes."""

    @initialize(
        seed=st.integers(0, 10_000),
        concurrency=st.sampled_from([1, 4]),
        tick_ms=st.sampled_from([0, 300]),
        reconcile_hours=st.sampled_from([0, 1, 6]),
    )
    def begin(self, seed: int, concurrency: int, tick_ms: int, reconcile_hours: int) -> None:
        self.world = World(seed=seed, users=12, days=2, now=NOW)
        self.pepper = Pepper(self.world, tick=timedelta(milliseconds=tick_ms))
        self.ledger = Ledger()
        self.options = {
            "start_date": "2026-10-23T00:00:00Z",
            "concurrency": concurrency,
            "reconcile_hours": reconcile_hours,
        }

    @rule(seconds=st.integers(1, 12 * 3600))
    def time_passes(self, seconds: int) -> None:
        self.world.advance(timedelta(seconds=seconds))

    @rule(which=st.integers(0, 10_000), seconds=st.integers(1, 200))
    def an_award_changes_and_changes_back(self, which: int, seconds: int) -> None:
        balances = self.world.balances()
        award_id = sorted(balances)[which % len(balances)]
        for points in (balances[award_id] + 1, balances[award_id]):
            self.world.change_points(award_id, points)
            self.world.advance(timedelta(seconds=seconds))
            assert follow(self.pepper, self.ledger, **self.options) is None

    @rule(hours=st.integers(1, 48), whose=st.sampled_from(["Pepper's", "local"]), sign=st.sampled_from([1, -1]))
    def a_run_has_a_wrong_clock(self, hours: int, whose: str, sign: int) -> None:
        off = timedelta(hours=sign * hours)
        self.pepper.faults = (faults.clock_skewed(off.total_seconds()),) if whose == "Pepper's" else ()
        clock = SimulatedClock(self.world, timedelta(0) if whose == "Pepper's" else off)
        assert follow(self.pepper, self.ledger, clock=clock, **self.options) is None
        self.pepper.faults = ()
        if whose == "Pepper's" and sign < 0:
            # The time between the wrong and the right clock is read again, because the tap cannot know which of them is
            # right.
            assert follow(self.pepper, self.ledger, **self.options) is None
            self.ledger.repeated.clear()

    @rule(kill_at=st.integers(1, 25))
    def a_run_is_killed(self, kill_at: int) -> None:
        error = follow(self.pepper, self.ledger, kill_at=kill_at, **self.options)
        assert error is None or isinstance(error, Killed)

    @rule(fault=st.sampled_from(TEMPORARY), turn=st.integers(1, 8))
    def a_run_meets_a_temporary_fault(self, fault: Fault, turn: int) -> None:
        self.pepper.faults = (fault.nth(turn),)
        error = follow(self.pepper, self.ledger, max_retries=0, **self.options)
        self.pepper.faults = ()
        assert error is None or isinstance(error, PepperError)

    @rule(seconds=st.integers(1, 5))
    def a_run_has_little_time(self, seconds: int) -> None:
        assert follow(self.pepper, self.ledger, max_run_seconds=seconds, **self.options) is None

    @invariant()
    def the_bookmark_never_goes_back_and_no_unchanged_row_is_repeated(self) -> None:
        assert self.ledger.went_back == []
        assert self.ledger.repeated == []

    def teardown(self) -> None:
        self.pepper.tick = timedelta(0)
        started = {row["_id"] for row in self.world.actions(after=NOW - timedelta(days=2, minutes=30))}
        expected = started & due(self.world)
        assert follow(self.pepper, self.ledger, **self.options) is None
        assert self.ledger.actions >= expected
        assert self.ledger.awards == self.world.balances()


def test_runs_after_a_kill_emit_everything() -> None:
    run_state_machine_as_test(
        KilledRuns,
        settings=settings(
            max_examples=MACHINES,
            stateful_step_count=STEPS,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
