"""How fast the tap may ask: one limiter for all requests of a run, whichever thread they come from."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Final, Protocol

from tap_pepper.errors import OutOfTime
from tap_pepper.windows import UTC

if TYPE_CHECKING:
    from collections.abc import Iterator
    from threading import Event

RECOVERY_ANSWERS: Final = 20
"""Good answers in a row after which one more request may be under way, up to what the user allows."""


class Halted(Exception):
    """Whoever wanted the answer does so no longer."""


MayWait = Callable[[float], bool]
"""Whether whoever wants an answer still wants it after so many seconds."""


def always(seconds: float) -> bool:  # noqa: ARG001
    """Any answer is worth its wait."""
    return True


class Clock(Protocol):
    """Where time comes from, and how to wait."""

    def now(self) -> datetime:
        """The time of day, aware."""

    def seconds(self) -> float:
        """Seconds that only grow, from an arbitrary zero."""

    def sleep(self, seconds: float, halt: Event) -> None:
        """Wait for so many seconds, or until `halt` is set."""


class LocalClock:
    """This machine's clock."""

    def now(self) -> datetime:
        """The time of day in UTC."""
        return datetime.now(UTC)

    def seconds(self) -> float:
        """Seconds that no change of the time of day touches."""
        return time.monotonic()

    def sleep(self, seconds: float, halt: Event) -> None:
        """Wait for so many seconds, or until `halt` is set."""
        halt.wait(seconds)


class Limiter:
    """Says when the next request may go out.

    At most `concurrency` requests are under way. A refusal for being too fast halves that number, once for all the
    requests that were under way together, and each `RECOVERY_ANSWERS` good answers in a row give one back. A pause
    holds back everyone.
    """

    def __init__(self, concurrency: int, clock: Clock) -> None:
        self._concurrency = concurrency
        self._clock = clock
        self._changed = threading.Condition()
        self._allowed = concurrency
        self._under_way = 0
        self._good_answers = 0
        self._refusals = 0
        self._resume_at_seconds = clock.seconds()
        self.waited_seconds = 0.0

    @property
    def allowed(self) -> int:
        """How many requests may be under way now."""
        return self._allowed

    @contextmanager
    def slot(self, halt: Event, may_wait: MayWait = always) -> Iterator[int]:
        """Hold a place among the requests under way; waits for it. Yields what `refused` wants to know.

        Raises:
            Halted: `halt` was set before there was a place.
            OutOfTime: The wait is not worth it.
        """
        refusals = self._enter(halt, may_wait)
        try:
            yield refusals
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def answered(self) -> None:
        """Note a good answer."""
        with self._changed:
            self._good_answers += 1
            if self._good_answers >= RECOVERY_ANSWERS and self._allowed < self._concurrency:
                self._allowed += 1
                self._good_answers = 0
                self._changed.notify_all()

    def refused(self, refusals_before: int) -> None:
        """Note that a request was too much; `refusals_before` is what its slot yielded."""
        with self._changed:
            self._good_answers = 0
            if refusals_before == self._refusals:
                self._refusals += 1
                self._allowed = max(1, self._allowed // 2)

    def pause(self, seconds: float) -> None:
        """Let no request go out for so many seconds."""
        with self._changed:
            self._resume_at_seconds = max(self._resume_at_seconds, self._clock.seconds() + seconds)

    def sleep(self, seconds: float, halt: Event) -> None:
        """Wait for so many seconds, for one request alone.

        Raises:
            Halted: `halt` is set.
        """
        if seconds > 0:
            self._clock.sleep(seconds, halt)
            with self._changed:
                self.waited_seconds += seconds
        if halt.is_set():
            raise Halted

    def wake(self) -> None:
        """Let whoever waits for a place look at its `halt` again."""
        with self._changed:
            self._changed.notify_all()

    def _enter(self, halt: Event, may_wait: MayWait) -> int:
        while True:
            with self._changed:
                while self._under_way >= self._allowed and not halt.is_set():
                    self._changed.wait()
                pause_seconds = self._resume_at_seconds - self._clock.seconds()
                if pause_seconds <= 0 and not halt.is_set():
                    self._under_way += 1
                    return self._refusals
            if not may_wait(pause_seconds):
                raise OutOfTime("Pepper asks for a pause that lasts longer than the run may")
            self.sleep(pause_seconds, halt)
