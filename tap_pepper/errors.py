"""The tap's errors. The tap reacts to each class in a different way.

Each message is one line for an operator. It says where the error happened, what is wrong, and what the tap expected or
what the operator can do. A message never contains a token, a record or a response body.
"""

from __future__ import annotations


class PepperError(Exception):
    """Base class of all errors that the tap raises itself."""


class ConfigError(PepperError):
    """A setting, catalog or state is invalid; a person has to change it."""


class FatalAPIError(PepperError):
    """A retry cannot succeed. Other streams may still work."""


class FatalRunError(FatalAPIError):
    """A retry cannot succeed, and all other streams would fail as well."""


class StreamsFailed(PepperError):
    """Several streams failed.

    Attributes:
        failures: The name and the error of each failed stream.
    """

    def __init__(self, failures: list[tuple[str, Exception]]) -> None:
        super().__init__("; ".join(str(error) or type(error).__name__ for _, error in failures))
        self.failures = failures


class RetriableAPIError(PepperError):
    """A temporary failure: the same request may succeed later.

    Attributes:
        advice: What a person can do if all retries fail.
        wait_seconds: The wait that Pepper asked for; None if it did not ask.
        slow_down: Whether Pepper asked the whole tap to slow down, not only this request.
    """

    def __init__(
        self, problem: str, *, advice: str, wait_seconds: float | None = None, slow_down: bool = False
    ) -> None:
        super().__init__(problem)
        self.advice = advice
        self.wait_seconds = wait_seconds
        self.slow_down = slow_down


class TimeLimitReached(PepperError):
    """`max_run_seconds` leaves no time for a wait that Pepper requests, or for a wait before a retry."""
