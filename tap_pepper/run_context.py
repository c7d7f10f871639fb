"""The context of a run, which all streams share: connection, settings, time limit, and the upper bound of all reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from tap_pepper.windows import upper_bound

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from tap_pepper.api.client import PepperClient
    from tap_pepper.api.rate_limit import Clock
    from tap_pepper.messages import MessageWriter
    from tap_pepper.settings import Settings

ACTIONS_SHARE = 0.75
"""The part of `max_run_seconds` that actions may use, so that a backfill leaves time for the other streams."""


class TimeLimit:
    """The soft limit `max_run_seconds`. After it, no window or stream starts, and the run ends with exit code 0.

    Args:
        clock: Measures the time since this object was created.
        limit_seconds: The limit; None if there is none.
        actions_share: The fraction of the limit that the stream `actions` may use.
    """

    def __init__(self, clock: Clock, limit_seconds: int | None, actions_share: float) -> None:
        self._clock = clock
        self._started_seconds = clock.monotonic()
        self._limit_seconds = inf if limit_seconds is None else limit_seconds
        self._actions_share = actions_share

    def allows(self, seconds: float) -> bool:
        """Return whether time is left after a wait of `seconds`."""
        return self._limit_seconds - self._elapsed_seconds > seconds

    def allows_actions(self, seconds: float) -> bool:
        """Return whether actions still have time left after a wait of `seconds`."""
        return self._limit_seconds * self._actions_share - self._elapsed_seconds > seconds

    @property
    def _elapsed_seconds(self) -> float:
        return self._clock.monotonic() - self._started_seconds


class UpperBound:
    """How far a run reads: up to Pepper's current time minus `settle_seconds`. All streams share this bound."""

    def __init__(self, client: PepperClient, settle_seconds: int) -> None:
        self._client = client
        self._settle_seconds = settle_seconds
        self._value: str | None = None
        self.agreed: str
        """The upper bound, computed from the earlier of Pepper's time and the local time, because either may be wrong.

        The first call of `get` sets this attribute.
        """

    def get(self, path: str, query: Mapping[str, str] | None = None) -> str:
        """Return the bound. The first call asks Pepper for the time.

        Args:
            path: The endpoint to ask.
            query: Parameters that keep the response small.
        """
        if self._value is None:
            now = self._client.server_time(path, query)
            self._value = upper_bound(now, self._settle_seconds)
            self.agreed = upper_bound(min(now, self._client.clock.now()), self._settle_seconds)
        return self._value


@dataclass(frozen=True)
class RunContext:
    """The objects that the tap passes to its streams.

    Attributes:
        client: The client for Pepper's API.
        settings: The settings of the run.
        writer: Writes the Singer messages.
        merchant: A hash of Pepper's host and the merchant's code. Each STATE contains this hash.
        time_limit: Says whether there is time to read more.
        upper_bound: The time up to which this run reads.
        drops_data: Returns whether a stream map may drop records of a stream, or remove or change the given fields.
        failures: The name and the error of each stream that failed.
        postponed: What this run leaves to the next run because its time is up, as text for the log.
    """

    client: PepperClient
    settings: Settings
    writer: MessageWriter
    merchant: str
    time_limit: TimeLimit
    upper_bound: UpperBound
    drops_data: Callable[[str, Collection[str]], bool]
    failures: list[tuple[str, Exception]] = field(default_factory=list)
    postponed: list[str] = field(default_factory=list)
