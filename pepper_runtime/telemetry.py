"""Traces and metrics of a run by OpenTelemetry, if the environment asks for them.

Spans hold names, counts and statuses; metrics are those of the log. No rows, ids, secrets or error texts are sent: an
error text may quote a record. A failure to send never fails the run.

The functions here do nothing unless `start` has set up an exporter. They are used instead of the no-op tracer of
opentelemetry-api because importing that package costs 25 to 40 ms of CPU in each process, and a run that finds nothing
new takes about 500 ms.
"""

from __future__ import annotations

import logging
import os
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from pepper_runtime.otlp import Attributes, Run

SIGNALS: Final = ("TRACES", "METRICS")
PROTOCOL: Final = "http/protobuf"
"""The only protocol whose exporter the extra installs."""
_NO_SPAN: Final = nullcontext()
_runs: Final[list[Run]] = []
"""The run that is being exported, if any."""


def requested_signals(environment: Mapping[str, str]) -> list[str]:
    """Return those of `SIGNALS` that the environment asks for.

    `OTEL_TRACES_EXPORTER` is `otlp` or `none`. If it is unset or empty, an OTLP endpoint asks for the signal. Source:
    OpenTelemetry's "Environment Variable Specification".
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []

    def exporters(signal: str) -> str:
        endpoints = (environment.get(f"OTEL_EXPORTER_OTLP_{infix}ENDPOINT") for infix in ("", f"{signal}_"))
        return environment.get(f"OTEL_{signal}_EXPORTER") or ("otlp" if any(endpoints) else "none")

    return [signal for signal in SIGNALS if "otlp" in map(str.strip, exporters(signal).split(","))]


def requested_protocol(signal: str, environment: Mapping[str, str]) -> str:
    """Return the protocol that the environment asks for."""
    names = (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    return next(filter(None, map(environment.get, names)), PROTOCOL)


def start(name: str) -> None:
    """Start to export the run, if the environment asks for it. Log one warning if that is impossible."""
    logger = logging.getLogger(name)
    signals = requested_signals(os.environ)
    for signal in list(signals):
        protocol = requested_protocol(signal, os.environ)
        if protocol != PROTOCOL:
            logger.warning(
                "OpenTelemetry: %s are not sent: the protocol %s is not supported; use %s",
                signal.lower(),
                protocol,
                PROTOCOL,
            )
            signals.remove(signal)
    if not signals:
        return
    try:
        from pepper_runtime.otlp import Run  # noqa: PLC0415 - an extra, and it takes a third of a second

        _runs.append(Run(name, signals, os.environ))
    except ImportError:
        logger.warning("OpenTelemetry is requested but not installed: pip install 'pepper-crm[otel]'")
    except Exception as error:  # noqa: BLE001 - a variable that OpenTelemetry can't parse must not stop the run
        logger.warning("OpenTelemetry does not start (%s): check the OTEL_… variables", type(error).__name__)


def span(
    name: str, attributes: Attributes | None = None, *, is_client: bool = False, parents_threads: bool = False
) -> AbstractContextManager[None]:
    """Record a part of the run: its duration, and the type of the error that ends it, if any.

    Args:
        name: Spans are grouped by name, so use few names.
        attributes: What is known at the start.
        is_client: Whether the part is a call to another service.
        parents_threads: Whether spans of other threads meanwhile are children of this one.
    """
    if not _runs:
        return _NO_SPAN
    return _runs[-1].span(name, attributes or {}, is_client=is_client, parents_threads=parents_threads)


def set_attributes(attributes: Attributes) -> None:
    """Add attributes to the innermost span of this thread."""
    if _runs:
        _runs[-1].set_attributes(attributes)


def record_error(error: BaseException) -> None:
    """Mark the innermost span of this thread as failed, for an error that is handled inside of it."""
    if _runs:
        _runs[-1].record_error(error)


def record_span(name: str, started_at: datetime, attributes: Attributes) -> None:
    """Record a part of the run that ends now."""
    if _runs:
        _runs[-1].record_span(name, started_at, attributes)


def stop(name: str, exit_code: object) -> None:
    """Send what is left, with the run's exit code."""
    while _runs:
        if not _runs.pop().stop(exit_code):
            logging.getLogger(name).warning("OpenTelemetry: some telemetry was not delivered; the run is unaffected")
