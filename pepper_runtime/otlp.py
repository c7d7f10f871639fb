"""Send a run's trace and metrics by OTLP over HTTP. Only this module imports OpenTelemetry."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from itertools import count
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from singer_sdk.metrics import get_metrics_logger

from pepper_runtime.logs import metric_point

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime
    from typing import TypeAlias

    from opentelemetry.metrics import Meter

    Attributes: TypeAlias = Mapping[str, str | int | float]

NANOSECONDS = 1_000_000_000
END_SECONDS_MAX = 2.0
"""At the end, a run waits at most this long for the remaining data to be sent."""
SPANS_MAX = 10_000
"""A run sends about this many spans at most, because a collector may reject larger traces.

The metrics still count all requests.
"""
BOUNDARIES_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
TAGS = ("stream", "status")
"""A run sends only these tags of a metric."""


class Run:
    """Exports a trace whose root span is the run, and the metrics from the log.

    If an orchestrator sets `TRACEPARENT`, the run becomes a part of the orchestrator's trace.
    """

    def __init__(self, name: str, signals: Sequence[str], environment: Mapping[str, str]) -> None:
        self._problems = _ExportProblems()
        logs = logging.getLogger("opentelemetry")
        logs.addHandler(self._problems)
        # Keep OpenTelemetry's messages out of the log. If the collector is down, there are many of them, and they may
        # show the collector's full URL.
        logs.propagate = False
        resource = _resource(name)
        self._tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
        if "TRACES" in signals:
            self._tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        readers = [PeriodicExportingMetricReader(OTLPMetricExporter())] if "METRICS" in signals else []
        self._meters = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
        self._points = _MetricsHandler(self._meters.get_meter(name))
        get_metrics_logger().addHandler(self._points)
        self._tracer = self._tracers.get_tracer(name)
        self._span_numbers = count()
        carrier = {name: environment.get(name.upper(), "") for name in ("traceparent", "tracestate")}
        remote = TraceContextTextMapPropagator().extract(carrier, Context())
        self._root = self._tracer.start_span("run", context=remote)
        self._parent = trace.set_span_in_context(self._root, Context())

    @contextmanager
    def span(self, name: str, attributes: Attributes, *, is_client: bool, parents_threads: bool) -> Iterator[None]:
        """Record a span below this thread's innermost span.

        If this thread has none, the parent is the innermost span with `parents_threads`.
        """
        if next(self._span_numbers) >= SPANS_MAX and not parents_threads:
            # Without this invalid span, attributes that are set meanwhile would go to the enclosing span.
            with trace.use_span(trace.INVALID_SPAN):
                yield
            return
        is_inner = trace.get_current_span().get_span_context().is_valid
        parent = self._parent
        with self._tracer.start_as_current_span(
            name,
            context=None if is_inner else parent,
            kind=trace.SpanKind.CLIENT if is_client else trace.SpanKind.INTERNAL,
            attributes=dict(attributes),
            # Each of these two options would send the error's text.
            record_exception=False,
            set_status_on_exception=False,
        ):
            if parents_threads:
                self._parent = get_current()
            try:
                yield
            except BaseException as error:
                self.record_error(error)
                raise
            finally:
                if parents_threads:
                    self._parent = parent

    def set_attributes(self, attributes: Attributes) -> None:
        """Add attributes to the innermost span of this thread, if there is one."""
        trace.get_current_span().set_attributes(dict(attributes))

    def record_error(self, error: BaseException) -> None:
        """Mark the innermost span of this thread as failed, with the type of the error."""
        span = trace.get_current_span()
        span.set_status(trace.StatusCode.ERROR)
        span.set_attribute("error.type", type(error).__name__)

    def record_span(self, name: str, started_at: datetime, attributes: Attributes) -> None:
        """Record a span that started at `started_at` and ends now."""
        if next(self._span_numbers) < SPANS_MAX:
            start_time = int(started_at.timestamp() * NANOSECONDS)
            self._tracer.start_span(
                name, context=self._parent, attributes=dict(attributes), start_time=start_time
            ).end()

    def stop(self, exit_code: object) -> bool:
        """Send the remaining data. Stop after `END_SECONDS_MAX`, or at the first failure.

        Returns:
            Whether the collector accepted everything, including earlier exports.
        """
        self._root.set_attribute("process.exit.code", exit_code if isinstance(exit_code, int) else int(bool(exit_code)))
        if exit_code:
            self._root.set_status(trace.StatusCode.ERROR)
        self._root.end()
        get_metrics_logger().removeHandler(self._points)
        self._problems.outcomes = outcomes = SimpleQueue[bool]()
        shutdowns = [self._tracers.shutdown, self._meters.shutdown]
        for each in shutdowns:
            Thread(target=lambda shutdown=each: outcomes.put(shutdown() is None), daemon=True).start()
        give_up_seconds = time.monotonic() + END_SECONDS_MAX
        try:
            is_sent = all(outcomes.get(timeout=max(0.0, give_up_seconds - time.monotonic())) for _ in shutdowns)
        except Empty:
            return False
        return is_sent and not self._problems.data_lost


def _resource(name: str) -> Resource:
    """Describe the service. `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` override its name and version."""
    configured = Resource.create()
    is_named = not str(configured.attributes[SERVICE_NAME]).startswith("unknown_service")
    named = {} if is_named else {SERVICE_NAME: name}
    return Resource({SERVICE_VERSION: version("pepper-crm")}).merge(configured).merge(Resource(named))


class _ExportProblems(logging.Handler):
    """Swallows OpenTelemetry's log records, and learns from them whether exports failed."""

    data_lost = False
    """Whether OpenTelemetry gave up on some data. It logs a warning before a retry, and an error when it gives up."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.outcomes = SimpleQueue[bool]()

    def emit(self, record: logging.LogRecord) -> None:
        """Note whether data was lost, and wake up `Run.stop`."""
        self.data_lost = self.data_lost or record.levelno >= logging.ERROR
        self.outcomes.put(False)


class _MetricsHandler(logging.Handler):
    """Sends the measurements in the SDK's metrics log."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self._meter = meter
        self._instruments: dict[str, Any] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Record a measurement and its `TAGS`."""
        point = metric_point(record)
        if point is None:
            return
        name, tags = f"pepper.{point.metric.value}", {key: str(point.tags[key]) for key in TAGS if key in point.tags}
        if name not in self._instruments:
            make = {
                "counter": self._meter.create_counter,
                "gauge": self._meter.create_gauge,
                "timer": partial(self._meter.create_histogram, explicit_bucket_boundaries_advisory=BOUNDARIES_SECONDS),
            }[point.metric_type]
            is_seconds = point.metric_type == "timer" or name.endswith("_seconds")
            self._instruments[name] = make(name, unit="s" if is_seconds else "")
        instrument = self._instruments[name]
        method = {"counter": "add", "gauge": "set", "timer": "record"}[point.metric_type]
        getattr(instrument, method)(point.value, tags)
