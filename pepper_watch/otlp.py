"""A run as a trace and as metrics, sent by OTLP over HTTP. Imported only where a collector is named."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from singer_sdk.metrics import get_metrics_logger

from pepper_watch.logs import point_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from opentelemetry.metrics import Meter

NANOSECONDS = 1_000_000_000
PATIENCE_SECONDS = 3.0
"""How long a collector that does not answer is waited for, where no `OTEL_EXPORTER_OTLP_…TIMEOUT` says so."""
TAGS = ("stream", "status")
"""The tags of a metric that are passed on."""


class Run:
    """A trace with one span around all others, and the metrics of the log.

    Where `TRACEPARENT` is set, as some orchestrators do, the run is a part of that trace.
    """

    def __init__(self, name: str, environment: Mapping[str, str]) -> None:
        # What the environment says goes before: `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`.
        own = Resource({SERVICE_NAME: name, SERVICE_VERSION: version("pepper-crm")})
        told = Resource.create()
        if str(told.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
            resource = told.merge(own)
        else:
            resource = own.merge(told)
        self._tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
        if environment.get("OTEL_TRACES_EXPORTER") != "none":
            self._tracers.add_span_processor(
                BatchSpanProcessor(OTLPSpanExporter(timeout=_patience(environment, "TRACES")))
            )
        wants_metrics = environment.get("OTEL_METRICS_EXPORTER") != "none"
        readers = (
            [PeriodicExportingMetricReader(OTLPMetricExporter(timeout=_patience(environment, "METRICS")))]
            if wants_metrics
            else []
        )
        self._meters = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
        self._points = _Points(self._meters.get_meter(name))
        get_metrics_logger().addHandler(self._points)
        self._tracer = self._tracers.get_tracer(name)
        parent = {"traceparent": environment.get("TRACEPARENT", "")}
        self._root = self._tracer.start_span(f"{name} run", context=TraceContextTextMapPropagator().extract(parent))
        self._inside = set_span_in_context(self._root)

    @contextmanager
    def span(self, name: str, attributes: Mapping[str, Any]) -> Iterator[None]:
        """A span of the run, in any thread."""
        span = self._tracer.start_span(name, context=self._inside, attributes=attributes)
        try:
            yield
        except BaseException as error:
            span.set_status(StatusCode.ERROR)
            span.set_attribute("error.type", type(error).__name__)
            raise
        finally:
            span.end()

    def past(self, name: str, began_at: datetime, attributes: Mapping[str, Any]) -> None:
        """A span that began then and ends now."""
        began = int(began_at.timestamp() * NANOSECONDS)
        self._tracer.start_span(name, context=self._inside, attributes=attributes, start_time=began).end()

    def end(self, exit_code: object) -> None:
        """Send all that is left."""
        self._root.set_attribute("process.exit.code", exit_code if isinstance(exit_code, int) else int(bool(exit_code)))
        if exit_code:
            self._root.set_status(StatusCode.ERROR)
        self._root.end()
        get_metrics_logger().removeHandler(self._points)
        self._tracers.shutdown()
        self._meters.shutdown()


def _patience(environment: Mapping[str, str], signal: str) -> float | None:
    told = ("OTEL_EXPORTER_OTLP_TIMEOUT", f"OTEL_EXPORTER_OTLP_{signal}_TIMEOUT")
    return None if any(name in environment for name in told) else PATIENCE_SECONDS


class _Points(logging.Handler):
    """Takes the measurements out of the SDK's metrics log."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self._meter = meter
        self._instruments: dict[str, Any] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a measurement on, with the name of its stream."""
        point = point_of(record)
        if point is None:
            return
        name, tags = f"pepper.{point.metric.value}", {key: str(point.tags[key]) for key in TAGS if key in point.tags}
        if name not in self._instruments:
            make = {
                "counter": self._meter.create_counter,
                "gauge": self._meter.create_gauge,
                "timer": self._meter.create_histogram,
            }[point.metric_type]
            self._instruments[name] = make(name, unit="s" if point.metric_type == "timer" else "")
        instrument = self._instruments[name]
        act = {"counter": "add", "gauge": "set", "timer": "record"}[point.metric_type]
        getattr(instrument, act)(point.value, tags)
