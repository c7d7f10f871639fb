"""How the tap slows down, and comes back."""

from __future__ import annotations

import threading
import time

import pytest

from tap_pepper.api.client import REQUEST_SECONDS_MAX
from tap_pepper.api.rate_limit import RECOVERY_ANSWERS, Halted, Limiter, LocalClock
from tap_pepper.errors import OutOfTime, TryAgain
from tests.helpers.tap import Reply, Script, Waits, client_of, listing


def test_refusals_of_requests_that_were_under_way_together_halve_the_number_once() -> None:
    limiter, go_on = Limiter(8, Waits()), threading.Event()
    with limiter.slot(go_on) as first, limiter.slot(go_on) as second:
        limiter.refused(first)
        limiter.refused(second)
    assert limiter.allowed == 4
    with limiter.slot(go_on) as third:
        limiter.refused(third)
    assert limiter.allowed == 2


def test_the_number_never_falls_below_one() -> None:
    limiter, go_on = Limiter(1, Waits()), threading.Event()
    with limiter.slot(go_on) as refusals:
        limiter.refused(refusals)
    assert limiter.allowed == 1


def test_good_answers_give_back_one_request_at_a_time_up_to_the_setting() -> None:
    limiter, go_on = Limiter(4, Waits()), threading.Event()
    with limiter.slot(go_on) as refusals:
        limiter.refused(refusals)
    allowed = []
    for _ in range(4 * RECOVERY_ANSWERS):
        limiter.answered()
        allowed.append(limiter.allowed)
    assert [allowed.count(number) for number in (2, 3)] == [RECOVERY_ANSWERS - 1, RECOVERY_ANSWERS]
    assert max(allowed) == 4


def test_a_pause_holds_back_every_request() -> None:
    clock, go_on = Waits(), threading.Event()
    limiter = Limiter(4, clock)
    limiter.pause(7)
    limiter.pause(3)
    for _ in range(3):
        with limiter.slot(go_on):
            pass
    assert clock == [7]


def test_no_more_requests_are_under_way_than_allowed_and_a_halt_ends_the_waiting() -> None:
    limiter, halt, outcome = Limiter(1, LocalClock()), threading.Event(), []

    def ask() -> None:
        try:
            with limiter.slot(halt):
                outcome.append("went out")
        except Halted:
            outcome.append("halted")

    with limiter.slot(threading.Event()):
        asking = threading.Thread(target=ask)
        asking.start()
        asking.join(0.05)
        assert outcome == []
        halt.set()
        limiter.wake()
        asking.join(5)
    assert outcome == ["halted"]


def test_a_halt_cuts_a_pause_short() -> None:
    limiter, halt = Limiter(1, LocalClock()), threading.Event()
    limiter.pause(60)
    threading.Timer(0.02, halt.set).start()
    began = time.monotonic()
    with pytest.raises(Halted), limiter.slot(halt):
        pass
    assert time.monotonic() - began < 5


def test_a_pause_is_not_waited_for_where_nobody_wants_the_answer_after_it() -> None:
    limiter = Limiter(4, LocalClock())
    limiter.pause(60)
    asked: list[float] = []
    with pytest.raises(OutOfTime), limiter.slot(threading.Event(), lambda seconds: bool(asked.append(seconds))):
        pass
    assert asked == [pytest.approx(60, abs=1)]


def test_a_refused_client_asks_for_less_at_once_and_slowly_for_more() -> None:
    with (
        Script(Reply(status=429), *[listing({"_id": "a"})] * (RECOVERY_ANSWERS + 1)) as script,
        client_of(script.url, concurrency=4) as (client, waits),
    ):
        list(client.pages("/awards"))
        assert client.limiter.allowed == 2
        for _ in range(RECOVERY_ANSWERS):
            list(client.pages("/awards"))
        assert client.limiter.allowed == 3
    assert waits == [1]


def test_a_request_has_a_deadline_over_all_its_tries() -> None:
    with (
        Script(Reply(status=429, headers={"Retry-After": "280"})) as script,
        client_of(script.url, max_retries=20) as (client, waits),
        pytest.raises(TryAgain, match=r"awards page 1: Pepper answered 429 \(tried 4x in 840 s\); run less often"),
    ):
        list(client.pages("/awards"))
    assert sum(waits) <= REQUEST_SECONDS_MAX


def test_a_body_that_trickles_in_does_not_outlast_the_deadline() -> None:
    with Script(Reply(b'{"items": ' + b" " * 200_000 + b"[]}")) as script, client_of(script.url) as (client, waits):
        ticking = iter(range(0, 10**9, 600))
        waits.seconds = lambda: float(next(ticking))  # type: ignore[method-assign]
        with pytest.raises(TryAgain, match="the response took too long"):
            list(client.pages("/awards"))
