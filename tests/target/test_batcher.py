"""The Batcher alone: when it commits a batch, and when it emits a STATE."""

from __future__ import annotations

import time
from threading import Event
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest

from target_crm.loader.batcher import Batch, Batcher
from target_crm.loader.sinks import Part

if TYPE_CHECKING:
    from collections.abc import Callable

# A commit waits this long for a Batcher that goes on too early. With a correct Batcher, it waits in vain.
BLOCKED_SECONDS = 0.2
DEADLINE_SECONDS = 30


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class Writes:
    """Records the calls of a Batcher: commits with their number of records, and STATEs."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.error: Exception | None = None
        self.during_commit: Callable[[], Any] = lambda: None
        self.during_stage: Callable[[Batch], Any] = lambda _batch: None

    def stage(self, batch: Batch) -> None:
        self.during_stage(batch)

    def commit(self, batch: Batch) -> None:
        self.during_commit()
        if self.error:
            raise self.error
        self.calls.append(batch.records)

    def emit_state(self, state: str) -> None:
        self.calls.append(state)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def writes() -> Writes:
    return Writes()


@pytest.fixture
def new_batcher(writes: Writes, clock: Clock) -> Callable[..., Batcher]:
    """Makes a Batcher with limits that are out of reach unless a test sets them."""

    def new(records_max: int = 1000, bytes_max: int = 1_000_000, wait_seconds: float = 60) -> Batcher:
        return Batcher(
            writes.stage,
            writes.commit,
            writes.emit_state,
            records_max=records_max,
            bytes_max=bytes_max,
            wait_seconds=wait_seconds,
            clock=clock,
        )

    return new


def add_record(batcher: Batcher, line_bytes: int = 10) -> None:
    batcher.batch.count_record(line_bytes)
    batcher.commit_if_due()


def add_state(batcher: Batcher, state: str) -> None:
    batcher.batch.state = state
    batcher.commit_if_due()


def test_a_batch_is_committed_at_its_maximum_of_records(new_batcher: Callable[..., Batcher], writes: Writes) -> None:
    batcher = new_batcher(records_max=3)

    for _ in range(2):
        add_record(batcher)
    batcher.wait()
    assert writes.calls == []

    add_record(batcher)
    batcher.wait()
    assert writes.calls == [3]


def test_a_batch_is_committed_at_its_maximum_of_bytes(new_batcher: Callable[..., Batcher], writes: Writes) -> None:
    batcher = new_batcher(bytes_max=100)

    for _ in range(2):
        add_record(batcher, line_bytes=49)
    batcher.wait()
    assert writes.calls == []

    add_record(batcher, line_bytes=2)
    batcher.wait()
    assert writes.calls == [3]


def test_a_batch_is_committed_a_set_time_after_its_first_record(
    new_batcher: Callable[..., Batcher], writes: Writes, clock: Clock
) -> None:
    batcher = new_batcher(wait_seconds=10)

    add_record(batcher)
    clock.seconds += 9
    add_record(batcher)
    batcher.wait()
    assert writes.calls == []

    clock.seconds += 1
    batcher.commit_if_due()
    batcher.wait()
    assert writes.calls == [2]


def test_the_wait_of_a_batch_begins_with_its_own_first_record(
    new_batcher: Callable[..., Batcher], writes: Writes, clock: Clock
) -> None:
    batcher = new_batcher(wait_seconds=10)
    add_record(batcher)
    clock.seconds += 10
    batcher.commit_if_due()

    add_record(batcher)
    clock.seconds += 9
    batcher.commit_if_due()
    batcher.wait()

    assert writes.calls == [1]


def test_while_no_input_arrives_poll_commits_a_batch_that_is_due(
    new_batcher: Callable[..., Batcher], writes: Writes, clock: Clock
) -> None:
    batcher = new_batcher(wait_seconds=10)
    batcher.poll()
    add_record(batcher)
    add_state(batcher, "1")

    clock.seconds += 9
    batcher.poll()
    batcher.wait()
    assert writes.calls == []

    clock.seconds += 1
    batcher.poll()
    batcher.wait()
    assert writes.calls == [1, "1"]


@pytest.mark.parametrize(
    "commit_next",
    [
        pytest.param(Batcher.commit_if_due, id="commit_if_due"),
        pytest.param(Batcher.poll, id="poll"),
        pytest.param(Batcher.flush, id="flush"),
    ],
)
def test_the_next_batch_is_committed_only_when_no_batch_is_in_flight(
    new_batcher: Callable[..., Batcher], writes: Writes, commit_next: Callable[[Batcher], None]
) -> None:
    batcher = new_batcher(records_max=1)
    next_began = Event()
    began_early: list[bool] = []
    writes.during_commit = lambda: began_early.append(next_began.wait(BLOCKED_SECONDS if not began_early else 0))
    add_record(batcher)

    batcher.batch.count_record(10)
    commit_next(batcher)
    next_began.set()
    batcher.wait()

    assert began_early[0] is False
    assert writes.calls == [1, 1]


def test_the_next_batch_is_staged_while_a_batch_is_committed(
    new_batcher: Callable[..., Batcher], writes: Writes
) -> None:
    batcher = new_batcher(records_max=1)
    staged: list[Batch] = []
    second = Event()

    def stage(batch: Batch) -> None:
        staged.append(batch)
        if len(staged) > 1:
            second.set()

    writes.during_stage = stage
    writes.during_commit = lambda: writes.calls.append(second.wait(DEADLINE_SECONDS))

    add_record(batcher)
    add_record(batcher)
    batcher.wait()

    assert writes.calls == [True, 1, True, 1]


def test_if_a_commit_fails_the_session_of_the_next_batch_is_closed(
    new_batcher: Callable[..., Batcher], writes: Writes
) -> None:
    batcher = new_batcher(records_max=1)
    session: Any = Mock(closed=False)
    writes.error = RuntimeError("cannot reach the warehouse")
    add_record(batcher)
    writes.during_stage = lambda batch: batch.parts.update({Mock(): Part(session=session)})

    with pytest.raises(RuntimeError, match="cannot reach the warehouse"):
        add_record(batcher)

    session.close.assert_called_once_with()


def test_records_can_be_added_while_a_batch_is_in_flight(new_batcher: Callable[..., Batcher], writes: Writes) -> None:
    batcher = new_batcher(records_max=2)
    may_commit = Event()
    writes.during_commit = lambda: may_commit.wait(DEADLINE_SECONDS)
    for _ in range(3):
        add_record(batcher)
    assert writes.calls == []

    may_commit.set()
    batcher.flush()
    assert writes.calls == [2, 1]


@pytest.mark.parametrize(
    "wait",
    [
        pytest.param(Batcher.commit_if_due, id="commit_if_due"),
        pytest.param(Batcher.poll, id="poll"),
        pytest.param(Batcher.flush, id="flush"),
        pytest.param(Batcher.wait, id="wait"),
    ],
)
def test_the_error_of_a_commit_is_raised_before_a_later_batch_is_committed(
    new_batcher: Callable[..., Batcher], writes: Writes, wait: Callable[[Batcher], None]
) -> None:
    batcher = new_batcher(records_max=1)
    failed = Event()

    def fail_once() -> None:
        if not failed.is_set():
            failed.set()
            raise LookupError("the first commit failed")

    writes.during_commit = fail_once
    add_record(batcher)

    batcher.batch.count_record(10)
    batcher.batch.state = "2"
    with pytest.raises(LookupError, match="the first commit failed"):
        wait(batcher)

    batcher.wait()
    assert writes.calls == []


def test_while_no_input_arrives_poll_raises_the_error_of_a_commit(
    new_batcher: Callable[..., Batcher], writes: Writes
) -> None:
    batcher = new_batcher(records_max=1)
    writes.error = LookupError("the commit failed")
    add_record(batcher)

    def poll_until_the_deadline() -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            batcher.poll()

    with pytest.raises(LookupError, match="the commit failed"):
        poll_until_the_deadline()


def test_state_follows_the_commit_of_its_batch_and_of_every_earlier_batch(
    new_batcher: Callable[..., Batcher], writes: Writes
) -> None:
    batcher = new_batcher(records_max=2)

    add_record(batcher)
    add_state(batcher, "1")
    add_record(batcher)
    add_record(batcher)
    add_record(batcher)
    add_state(batcher, "2")
    batcher.flush()

    assert writes.calls == [2, "1", 2, "2"]


def test_only_the_last_state_of_a_batch_is_emitted(new_batcher: Callable[..., Batcher], writes: Writes) -> None:
    batcher = new_batcher()

    add_state(batcher, "1")
    add_record(batcher)
    add_state(batcher, "2")
    batcher.flush()

    assert writes.calls == [1, "2"]


def test_no_state_is_emitted_after_a_failed_commit(new_batcher: Callable[..., Batcher], writes: Writes) -> None:
    batcher = new_batcher()
    writes.error = LookupError("the commit failed")
    add_record(batcher)
    add_state(batcher, "1")

    with pytest.raises(LookupError, match="the commit failed"):
        batcher.flush()

    assert writes.calls == []


def test_the_same_state_is_emitted_once(new_batcher: Callable[..., Batcher], writes: Writes) -> None:
    batcher = new_batcher()

    for state in ("1", "1", "2", "2", "1"):
        add_state(batcher, state)
        batcher.flush()

    assert writes.calls == ["1", "2", "1"]


def test_a_batch_with_only_a_state_emits_it_without_a_commit(
    new_batcher: Callable[..., Batcher], writes: Writes, clock: Clock
) -> None:
    batcher = new_batcher(wait_seconds=10)

    add_state(batcher, "1")
    clock.seconds += 10
    batcher.poll()
    batcher.wait()

    assert writes.calls == ["1"]


def test_flush_returns_after_everything_is_committed(new_batcher: Callable[..., Batcher], writes: Writes) -> None:
    batcher = new_batcher(records_max=1)
    returned = Event()
    returned_early: list[bool] = []
    writes.during_commit = lambda: returned_early.append(returned.wait(BLOCKED_SECONDS))
    add_record(batcher)
    batcher.batch.count_record(10)
    batcher.batch.state = "1"

    batcher.flush()
    returned.set()

    assert writes.calls == [1, 1, "1"]
    assert returned_early == [False, False]


def test_an_empty_batcher_commits_and_emits_nothing(
    new_batcher: Callable[..., Batcher], writes: Writes, clock: Clock
) -> None:
    batcher = new_batcher(wait_seconds=0)

    clock.seconds += 1
    batcher.commit_if_due()
    batcher.poll()
    batcher.flush()

    assert writes.calls == []
