"""Traces and metrics of a run, by OpenTelemetry, where the environment names a collector; else nothing happens here.

The standard variables decide: `OTEL_EXPORTER_OTLP_ENDPOINT`, or the one of traces or metrics alone. What is sent is
what the log's metrics hold, and spans with names, counts and statuses: no rows, no ids, no secrets.
"""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from pepper_watch.otlp import Run

ENDPOINTS: Final = tuple(f"OTEL_EXPORTER_OTLP_{kind}ENDPOINT" for kind in ("", "TRACES_", "METRICS_"))
_runs: Final[list[Run]] = []


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Whether a collector is named, and the standard switch is not thrown."""
    off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not off and any(environment.get(name) for name in ENDPOINTS)


def begin(name: str) -> None:
    """Begin the trace of a run, if it is wanted; without the extra `otel`, a warning says what to install."""
    if not is_wanted(os.environ):
        return
    try:
        from pepper_watch.otlp import Run  # noqa: PLC0415 - an extra, and it takes a third of a second
    except ImportError:
        told = "OTEL_EXPORTER_OTLP_… names a collector, but nothing is sent: pip install 'pepper-crm[otel]'"
        logging.getLogger(name).warning(told)
        return
    _runs.append(Run(name, os.environ))


@contextmanager
def span(name: str, **attributes: int) -> Iterator[None]:
    """A part of the run. An error in it is told by its kind alone: its text may hold anything."""
    if not _runs:
        yield
        return
    with _runs[-1].span(name, attributes):
        yield


def past(name: str, began_at: datetime, **attributes: int) -> None:
    """A part of the run that has just come to its end."""
    if _runs:
        _runs[-1].past(name, began_at, attributes)


def end(exit_code: object) -> None:
    """Send what is left. How the run ended is told by its exit code."""
    while _runs:
        _runs.pop().end(exit_code)
