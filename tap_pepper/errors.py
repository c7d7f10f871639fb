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
    """Pepper's answer is one that no further try will mend. Other streams may have better answers."""


class StopEverything(StopRun):
    """No stream will get another answer."""


class StreamsFailed(PepperError):
    """Several streams ended by an error, the others did not.

    Attributes:
        failures: Each stream's name, and what ended it.
    """

    def __init__(self, failures: list[tuple[str, Exception]]) -> None:
        super().__init__("; ".join(str(error) or type(error).__name__ for _, error in failures))
        self.failures = failures


class TryAgain(PepperError):
    """A passing failure: the same request may succeed later.

    Attributes:
        wait_seconds: How long Pepper asked to be left alone; None where it did not say.
        advice: What a person can do if every try fails.
        for_everyone: Whether Pepper asked the tap as a whole to slow down, not this request alone.
    """

    def __init__(
        self, problem: str, *, advice: str, wait_seconds: float | None = None, for_everyone: bool = False
    ) -> None:
        super().__init__(problem)
        self.advice = advice
        self.for_everyone = for_everyone
        self.wait_seconds = wait_seconds


class OutOfTime(PepperError):
    """Pepper asks to be left alone for longer than the run may last."""
