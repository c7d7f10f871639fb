"""Send traces and metrics of a run with OpenTelemetry, if the environment asks for them.

Spans contain names, counts and statuses. The metrics are the same as in the log. No rows, ids or secrets are sent, and
no error texts, because an error text may quote a record. If sending fails, the run still succeeds.

The functions here do nothing unless `start` has set up an exporter. opentelemetry-api has a no-op tracer for this
purpose, but importing that package costs 25 to 40 ms of CPU time in each process. A whole run that finds nothing new
takes about 500 ms.
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
"""The only protocol for which the extra `otel` installs an exporter."""
_NO_SPAN: Final = nullcontext()
_runs: Final[list[Run]] = []
"""The run that is being exported, if there is one."""


def requested_signals(environment: Mapping[str, str]) -> list[str]:
    """Return the `SIGNALS` that the environment asks for.

    `OTEL_TRACES_EXPORTER` may be `otlp` or `none`. If it is unset or empty, traces are sent only if an OTLP endpoint
    is set. `OTEL_METRICS_EXPORTER` does the same for metrics. Source: OpenTelemetry's "Environment Variable
    Specification".
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []

    def exporters(signal: str) -> str:
        endpoints = (environment.get(f"OTEL_EXPORTER_OTLP_{infix}ENDPOINT") for infix in ("", f"{signal}_"))
        return environment.get(f"OTEL_{signal}_EXPORTER") or ("otlp" if any(endpoints) else "none")

    return [signal for signal in SIGNALS if "otlp" in map(str.strip, exporters(signal).split(","))]


def requested_protocol(signal: str, environment: Mapping[str, str]) -> str:
    """Return the protocol that the environment requests for a signal; by default `PROTOCOL`."""
    names = (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    return next(filter(None, map(environment.get, names)), PROTOCOL)


def start(name: str) -> None:
    """Start to export the run, if the environment asks for it. Log a warning if the export cannot start."""
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
        from pepper_runtime.otlp import Run  # noqa: PLC0415 - an extra whose import takes a third of a second

        _runs.append(Run(name, signals, os.environ))
    except ImportError:
        logger.warning("OpenTelemetry is requested but not installed: pip install 'pepper-crm[otel]'")
    except Exception as error:  # noqa: BLE001 - a variable that OpenTelemetry can't parse must not stop the run
        logger.warning("OpenTelemetry does not start (%s): check the OTEL_… variables", type(error).__name__)


def span(
    name: str, attributes: Attributes | None = None, *, is_client: bool = False, parents_threads: bool = False
) -> AbstractContextManager[None]:
    """Record a part of the run: its duration, and the type of the error that ends it, if there is one.

    Args:
        name: Spans are grouped by name, so use few names.
        attributes: The attributes that are known at the start.
        is_client: Whether the part is a call to another service.
        parents_threads: Whether the spans that other threads record meanwhile become children of this span.
    """
    if not _runs:
        return _NO_SPAN
    return _runs[-1].span(name, attributes or {}, is_client=is_client, parents_threads=parents_threads)


def set_attributes(attributes: Attributes) -> None:
    """Add attributes to the innermost span of this thread."""
    if _runs:
        _runs[-1].set_attributes(attributes)


def record_error(error: BaseException) -> None:
    """Mark the innermost span of this thread as failed. Call this for an error that does not leave the span."""
    if _runs:
        _runs[-1].record_error(error)


def record_span(name: str, started_at: datetime, attributes: Attributes) -> None:
    """Record a part of the run that started at `started_at` and ends now."""
    if _runs:
        _runs[-1].record_span(name, started_at, attributes)


def stop(name: str, exit_code: object) -> None:
    """Send the remaining data, with the run's exit code."""
    while _runs:
        if not _runs.pop().stop(exit_code):
            logging.getLogger(name).warning("OpenTelemetry: some telemetry was not delivered; the run is unaffected")
