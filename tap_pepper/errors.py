"""What can go wrong, named by what to do next.

The text of each error is one line for an operator: where, what, and what was expected or what to do. It never holds a
token, a record or a response's body.
"""

from __future__ import annotations


class PepperError(Exception):
    """The run cannot go on as it is."""


class FixSettings(PepperError):
    """A setting, a catalog or a state is wrong: a person must change it."""


class StopRun(PepperError):
    """Pepper's answer is one that no further try will mend."""


class TryAgain(PepperError):
    """A passing failure: the same request may succeed later.

    Attributes:
        wait_seconds: How long Pepper asked to be left alone; None where it did not say.
        advice: What a person can do if every try fails.
    """

    def __init__(self, problem: str, *, advice: str, wait_seconds: float | None = None) -> None:
        super().__init__(problem)
        self.advice = advice
        self.wait_seconds = wait_seconds
