"""Traces and metrics of a run, by OpenTelemetry, where the environment asks for them; else nothing happens here.

What is sent is what the log's metrics hold, and spans with names, counts and statuses: no rows, no ids, no secrets, and
not the words of an error, which may quote a record. No failure of it is a failure of the run.
"""

from __future__ import annotations

import logging
import os
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from typing import TypeAlias

    from pepper_runtime.otlp import Run

    Attributes: TypeAlias = Mapping[str, str | int | float]

SIGNALS: Final = ("TRACES", "METRICS")
PROTOCOL: Final = "http/protobuf"
_NOTHING: Final = nullcontext()
_runs: Final[list[Run]] = []


def requested_signals(environment: Mapping[str, str]) -> list[str]:
    """Which of `SIGNALS` the environment asks for.

    `OTEL_TRACES_EXPORTER` says `otlp` or `none`; where it says nothing, an endpoint for OTLP asks for the signal. An
    empty variable says nothing. Source: OpenTelemetry's "Environment Variable Specification".
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []

    def exporters(signal: str) -> str:
        addressed = (environment.get(f"OTEL_EXPORTER_OTLP_{infix}ENDPOINT") for infix in ("", f"{signal}_"))
        return environment.get(f"OTEL_{signal}_EXPORTER") or ("otlp" if any(addressed) else "none")

    return [signal for signal in SIGNALS if "otlp" in map(str.strip, exporters(signal).split(","))]


def requested_protocol(signal: str, environment: Mapping[str, str]) -> str:
    """How a signal is to be sent; `PROTOCOL` is the only way that the extra has."""
    names = (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    return next(filter(None, map(environment.get, names)), PROTOCOL)


def start(name: str) -> None:
    """Begin the trace of a run, if it is wanted; what keeps it from being told is one line."""
    logger = logging.getLogger(name)
    signals = requested_signals(os.environ)
    for signal in list(signals):
        protocol = requested_protocol(signal, os.environ)
        if protocol != PROTOCOL:
            logger.warning("OpenTelemetry: %s are not sent by %s, only by %s", signal.lower(), protocol, PROTOCOL)
            signals.remove(signal)
    if not signals:
        return
    try:
        from pepper_runtime.otlp import Run  # noqa: PLC0415 - an extra, and it takes a third of a second

        _runs.append(Run(name, signals, os.environ))
    except ImportError:
        logger.warning("OpenTelemetry is asked for, but not installed: pip install 'pepper-crm[otel]'")
    except Exception as error:  # noqa: BLE001 - a variable that OpenTelemetry can't read is no reason to load nothing
        logger.warning("OpenTelemetry does not start (%s): check the OTEL_… variables", type(error).__name__)


def span(
    name: str, attributes: Attributes | None = None, *, is_client: bool = False, parents_threads: bool = False
) -> AbstractContextManager[None]:
    """A part of the run: how long it takes, and the kind of the error that ended it, if one did.

    Args:
        name: What it is; few names, for they are grouped by.
        attributes: What is known of it.
        is_client: Whether it it calls another service and waits for it.
        parents_threads: Whether what other threads do meanwhile is a part of it.
    """
    return (
        _runs[-1].span(name, attributes or {}, is_client=is_client, parents_threads=parents_threads)
        if _runs
        else _NOTHING
    )


def set_attributes(attributes: Attributes) -> None:
    """Add to what the innermost span of this thread tells."""
    if _runs:
        _runs[-1].set_attributes(attributes)


def record_error(error: BaseException) -> None:
    """Let this thread's innermost span tell that an error ended it, though it goes no further."""
    if _runs:
        _runs[-1].record_error(error)


def record_span(name: str, began_at: datetime, attributes: Attributes) -> None:
    """A part of the run that has just come to its end."""
    if _runs:
        _runs[-1].record_span(name, began_at, attributes)


def stop(name: str, exit_code: object) -> None:
    """Send what is left. How the run ended is told by its exit code."""
    while _runs:
        if not _runs.pop().stop(exit_code):
            told = "OpenTelemetry: the collector did not take everything; the run is none the worse for it"
            logging.getLogger(name).warning(told)
