"""How the tap slows down on HTTP 429, and recovers."""

from __future__ import annotations

import threading
import time

import pytest

from tap_pepper.api.rate_limit import RECOVERY_RESPONSES, Cancelled, RateLimiter, SystemClock
from tap_pepper.api.retry import REQUEST_SECONDS_MAX
from tap_pepper.errors import RetriableAPIError, TimeLimitReached
from tests.helpers.tap import Reply, Script, Waits, client_of, listing


def test_several_429s_of_concurrent_requests_halve_concurrency_once() -> None:
    limiter, cancel = RateLimiter(8, Waits()), threading.Event()
    with limiter.slot(cancel) as first, limiter.slot(cancel) as second:
        limiter.record_throttle(first)
        limiter.record_throttle(second)
    assert limiter.allowed == 4
    with limiter.slot(cancel) as third:
        limiter.record_throttle(third)
    assert limiter.allowed == 2


def test_concurrency_never_falls_below_one() -> None:
    limiter, cancel = RateLimiter(1, Waits()), threading.Event()
    with limiter.slot(cancel) as throttles:
        limiter.record_throttle(throttles)
    assert limiter.allowed == 1


def test_concurrency_recovers_one_request_at_a_time_up_to_the_setting() -> None:
    limiter, cancel = RateLimiter(4, Waits()), threading.Event()
    with limiter.slot(cancel) as throttles:
        limiter.record_throttle(throttles)
    allowed = []
    for _ in range(4 * RECOVERY_RESPONSES):
        limiter.record_success()
        allowed.append(limiter.allowed)
    assert [allowed.count(number) for number in (2, 3)] == [RECOVERY_RESPONSES - 1, RECOVERY_RESPONSES]
    assert max(allowed) == 4


def test_a_pause_holds_back_every_request() -> None:
    clock, cancel = Waits(), threading.Event()
    limiter = RateLimiter(4, clock)
    limiter.pause(7)
    limiter.pause(3)
    for _ in range(3):
        with limiter.slot(cancel):
            pass
    assert clock == [7]


def test_a_request_waits_for_a_slot_until_it_is_cancelled() -> None:
    limiter, cancel, outcome = RateLimiter(1, SystemClock()), threading.Event(), []

    def send() -> None:
        try:
            with limiter.slot(cancel):
                outcome.append("sent")
        except Cancelled:
            outcome.append("cancelled")

    with limiter.slot(threading.Event()):
        sender = threading.Thread(target=send)
        sender.start()
        sender.join(0.05)
        assert outcome == []
        cancel.set()
        limiter.notify()
        sender.join(5)
    assert outcome == ["cancelled"]


def test_cancelling_cuts_a_pause_short() -> None:
    limiter, cancel = RateLimiter(1, SystemClock()), threading.Event()
    limiter.pause(60)
    threading.Timer(0.02, cancel.set).start()
    started = time.monotonic()
    with pytest.raises(Cancelled), limiter.slot(cancel):
        pass
    assert time.monotonic() - started < 5


def test_a_pause_that_the_caller_cannot_wait_for_raises_at_once() -> None:
    limiter = RateLimiter(4, SystemClock())
    limiter.pause(60)
    asked: list[float] = []
    with pytest.raises(TimeLimitReached), limiter.slot(threading.Event(), lambda seconds: bool(asked.append(seconds))):
        pass
    assert asked == [pytest.approx(60, abs=1)]


def test_a_throttled_client_slows_down_at_once_and_recovers_slowly() -> None:
    with (
        Script(Reply(status=429), *[listing({"_id": "a"})] * (RECOVERY_RESPONSES + 1)) as script,
        client_of(script.url, concurrency=4) as (client, waits),
    ):
        list(client.pages("/awards"))
        assert client.limiter.allowed == 2
        for _ in range(RECOVERY_RESPONSES):
            list(client.pages("/awards"))
        assert client.limiter.allowed == 3
    assert waits == [1]


def test_all_attempts_of_a_request_share_one_deadline() -> None:
    with (
        Script(Reply(status=429, headers={"Retry-After": "280"})) as script,
        client_of(script.url, max_retries=20) as (client, waits),
        pytest.raises(
            RetriableAPIError, match=r"awards page 1: Pepper answered 429 \(4 attempts in 840 s\); run less often"
        ),
    ):
        list(client.pages("/awards"))
    assert sum(waits) <= REQUEST_SECONDS_MAX


def test_a_slow_body_does_not_outlast_the_deadline() -> None:
    with Script(Reply(b'{"items": ' + b" " * 200_000 + b"[]}")) as script, client_of(script.url) as (client, waits):
        ticking = iter(range(0, 10**9, 600))
        waits.monotonic = lambda: float(next(ticking))  # type: ignore[method-assign]
        with pytest.raises(RetriableAPIError, match="the response took too long"):
            list(client.pages("/awards"))
