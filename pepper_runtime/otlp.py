"""The only code that knows OpenTelemetry: a run as a trace and as metrics, sent by OTLP over HTTP."""

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

    from opentelemetry.metrics import Meter

    from pepper_runtime.telemetry import Attributes

NANOSECONDS = 1_000_000_000
END_SECONDS_MAX = 2.0
"""How long the end of a run waits for what is left to be sent."""
SPANS_MAX = 10_000
"""Spans in one run: a backfill has more requests than a collector wants in one trace. Metrics count them all."""
BOUNDARIES_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
TAGS = ("stream", "status")
"""The tags of a metric that are passed on."""


class Run:
    """A trace with one span around all others, and the metrics of the log.

    Where `TRACEPARENT` is set, as some orchestrators do, the run is a part of that trace.
    """

    def __init__(self, name: str, signals: Sequence[str], environment: Mapping[str, str]) -> None:
        self._troubles = _Troubles()
        logs = logging.getLogger("opentelemetry")
        logs.addHandler(self._troubles)
        # Where a collector is away there are many, and they may show its whole address.
        logs.propagate = False
        resource = _resource(name)
        self._tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
        if "TRACES" in signals:
            self._tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        readers = [PeriodicExportingMetricReader(OTLPMetricExporter())] if "METRICS" in signals else []
        self._meters = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
        self._points = _Points(self._meters.get_meter(name))
        get_metrics_logger().addHandler(self._points)
        self._tracer = self._tracers.get_tracer(name)
        self._spans = count()
        carrier = {name: environment.get(name.upper(), "") for name in ("traceparent", "tracestate")}
        around = TraceContextTextMapPropagator().extract(carrier, Context())
        self._root = self._tracer.start_span("run", context=around)
        self._around = trace.set_span_in_context(self._root, Context())

    @contextmanager
    def span(self, name: str, attributes: Attributes, *, is_client: bool, parents_threads: bool) -> Iterator[None]:
        """A span; its parent is this thread's innermost one, else the innermost one that holds others."""
        if next(self._spans) >= SPANS_MAX and not parents_threads:
            # What is noted now is not of the span around it.
            with trace.use_span(trace.INVALID_SPAN):
                yield
            return
        is_inner = trace.get_current_span().get_span_context().is_valid
        around = self._around
        with self._tracer.start_as_current_span(
            name,
            context=None if is_inner else around,
            kind=trace.SpanKind.CLIENT if is_client else trace.SpanKind.INTERNAL,
            attributes=dict(attributes),
            # They would tell the words of an error.
            record_exception=False,
            set_status_on_exception=False,
        ):
            if parents_threads:
                self._around = get_current()
            try:
                yield
            except BaseException as error:
                self.record_error(error)
                raise
            finally:
                if parents_threads:
                    self._around = around

    def set_attributes(self, attributes: Attributes) -> None:
        """Add to the innermost span of this thread, if it is in one."""
        trace.get_current_span().set_attributes(dict(attributes))

    def record_error(self, error: BaseException) -> None:
        """Give the innermost span of this thread the kind of an error."""
        span = trace.get_current_span()
        span.set_status(trace.StatusCode.ERROR)
        span.set_attribute("error.type", type(error).__name__)

    def record_span(self, name: str, began_at: datetime, attributes: Attributes) -> None:
        """A span that began then and ends now."""
        if next(self._spans) < SPANS_MAX:
            began = int(began_at.timestamp() * NANOSECONDS)
            self._tracer.start_span(name, context=self._around, attributes=dict(attributes), start_time=began).end()

    def stop(self, exit_code: object) -> bool:
        """Send what is left, for at most `END_SECONDS_MAX`, and only until the first try that fails.

        Returns:
            Whether the collector took all of it, and all before.
        """
        self._root.set_attribute("process.exit.code", exit_code if isinstance(exit_code, int) else int(bool(exit_code)))
        if exit_code:
            self._root.set_status(trace.StatusCode.ERROR)
        self._root.end()
        get_metrics_logger().removeHandler(self._points)
        self._troubles.news = news = SimpleQueue[bool]()
        ends = [self._tracers.shutdown, self._meters.shutdown]
        for each in ends:
            Thread(target=lambda end=each: news.put(end() is None), daemon=True).start()
        give_up_seconds = time.monotonic() + END_SECONDS_MAX
        try:
            ended_well = all(news.get(timeout=max(0.0, give_up_seconds - time.monotonic())) for _ in ends)
        except Empty:
            return False
        return ended_well and not self._troubles.lost


def _resource(name: str) -> Resource:
    """What the environment says goes before: `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`."""
    told = Resource.create()
    is_named = not str(told.attributes[SERVICE_NAME]).startswith("unknown_service")
    named = {} if is_named else {SERVICE_NAME: name}
    return Resource({SERVICE_VERSION: version("pepper-crm")}).merge(told).merge(Resource(named))


class _Troubles(logging.Handler):
    """Notes what OpenTelemetry would warn of, and keeps its words to itself."""

    lost = False
    """Whether anything was given up. After a warning alone, it is tried again."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.news = SimpleQueue[bool]()

    def emit(self, record: logging.LogRecord) -> None:
        """Let the end of the run know."""
        self.lost = self.lost or record.levelno >= logging.ERROR
        self.news.put(False)


class _Points(logging.Handler):
    """Takes the measurements out of the SDK's metrics log."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self._meter = meter
        self._instruments: dict[str, Any] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a measurement on, with the name of its stream."""
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
        act = {"counter": "add", "gauge": "set", "timer": "record"}[point.metric_type]
        getattr(instrument, act)(point.value, tags)
