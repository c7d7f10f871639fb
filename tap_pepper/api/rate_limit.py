"""Limit the rate of requests. All threads of a run share one limiter."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol

from tap_pepper.errors import TimeLimitReached

if TYPE_CHECKING:
    from collections.abc import Iterator
    from threading import Event

RECOVERY_RESPONSES: Final = 20
"""After this many successful responses in a row, one more request may be in flight, up to the setting `concurrency`."""


class Cancelled(Exception):
    """The caller no longer needs the response."""


CanWait = Callable[[float], bool]
"""Returns whether the caller can wait this many seconds."""


def always(seconds: float) -> bool:  # noqa: ARG001
    """Return True: the caller can wait for any time."""
    return True


class Clock(Protocol):
    """A clock that can also wait."""

    def now(self) -> datetime:
        """Return the current time, with a time zone."""

    def monotonic(self) -> float:
        """Return the seconds since an arbitrary start; this clock never goes back."""

    def sleep(self, seconds: float, cancel: Event) -> None:
        """Wait for `seconds`, or until `cancel` is set."""


class SystemClock:
    """The clock of this machine."""

    def now(self) -> datetime:
        """Return the current time in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return the seconds since an arbitrary start; setting the system time does not change them."""
        return time.monotonic()

    def sleep(self, seconds: float, cancel: Event) -> None:
        """Wait for `seconds`, or until `cancel` is set."""
        cancel.wait(seconds)


class RateLimiter:
    """Decides when the next request may be sent.

    At most `concurrency` requests are in flight. An HTTP 429 halves this limit. If several requests in flight get a
    429, the limit is halved only once. Every `RECOVERY_RESPONSES` successful responses in a row raise the limit by one.
    During a pause, no new request is sent.
    """

    def __init__(self, concurrency: int, clock: Clock) -> None:
        self._concurrency = concurrency
        self._clock = clock
        self._changed = threading.Condition()
        self._allowed = concurrency
        self._in_flight = 0
        self._successes = 0
        self._throttles = 0
        self._resume_at_seconds = clock.monotonic()
        self.waited_seconds = 0.0

    @property
    def allowed(self) -> int:
        """How many requests may be in flight now."""
        return self._allowed

    @contextmanager
    def slot(self, cancel: Event, can_wait: CanWait = always) -> Iterator[int]:
        """Wait for a slot, and hold it during a request.

        Yields:
            How many times concurrency has been halved so far. Pass this number to `record_throttle`.

        Raises:
            Cancelled: `cancel` was set before a slot was free.
            TimeLimitReached: `can_wait` returned False.
        """
        throttles = self._acquire(cancel, can_wait)
        try:
            yield throttles
        finally:
            with self._changed:
                self._in_flight -= 1
                self._changed.notify_all()

    def record_success(self) -> None:
        """Count a successful response. If enough of them came in a row, allow one more request in flight."""
        with self._changed:
            self._successes += 1
            if self._successes >= RECOVERY_RESPONSES and self._allowed < self._concurrency:
                self._allowed += 1
                self._successes = 0
                self._changed.notify_all()

    def record_throttle(self, throttles_before: int) -> None:
        """Halve concurrency, unless another request in flight at the same time has already halved it.

        Args:
            throttles_before: The number that `slot` yielded for the throttled request.
        """
        with self._changed:
            self._successes = 0
            if throttles_before == self._throttles:
                self._throttles += 1
                self._allowed = max(1, self._allowed // 2)

    def pause(self, seconds: float) -> None:
        """Start no request for at least `seconds`."""
        with self._changed:
            self._resume_at_seconds = max(self._resume_at_seconds, self._clock.monotonic() + seconds)

    def sleep(self, seconds: float, cancel: Event) -> None:
        """Wait before one request; other requests continue.

        Raises:
            Cancelled: `cancel` is set.
        """
        if seconds > 0:
            self._clock.sleep(seconds, cancel)
            with self._changed:
                self.waited_seconds += seconds
        if cancel.is_set():
            raise Cancelled

    def notify(self) -> None:
        """Make all threads that wait for a slot check their `cancel` event."""
        with self._changed:
            self._changed.notify_all()

    def _acquire(self, cancel: Event, can_wait: CanWait) -> int:
        while True:
            with self._changed:
                while self._in_flight >= self._allowed and not cancel.is_set():
                    self._changed.wait()
                pause_seconds = self._resume_at_seconds - self._clock.monotonic()
                if pause_seconds <= 0 and not cancel.is_set():
                    self._in_flight += 1
                    return self._throttles
            if not can_wait(pause_seconds):
                raise TimeLimitReached("Pepper asks for a wait that exceeds max_run_seconds")
            self.sleep(pause_seconds, cancel)
