"""What a collector receives from runs of the console scripts, and runs without a collector."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from pepper_runtime import otlp, telemetry
from pepper_sandbox import faults
from pepper_sandbox.server import Sandbox
from pepper_sandbox.world import World
from tests.helpers.commands import RUN_SECONDS_MAX, SCRIPTS, Pipeline, command, environment
from tests.helpers.tap import TOKEN, Reply, Script, config
from tests.helpers.target import ACTIONS, action, state

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from opentelemetry.proto.common.v1.common_pb2 import KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

# A run waits far less than this for a collector. The exporters' own retries would take far longer.
DELAYED_SECONDS_MAX = 30
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"
RECEIVED_KINDS = {"/v1/traces": ExportTraceServiceRequest, "/v1/metrics": ExportMetricsServiceRequest}


class Collector:
    """An OTLP receiver on a loopback port that keeps what it receives."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []
        """Spans with the name of the service that sent them."""
        self.values: dict[tuple[str, ...], float] = {}
        """The last value, or the count of a histogram, by metric name and attribute values."""
        self.bodies: list[bytes] = []
        received = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                received.bodies.append(body)
                received.take(RECEIVED_KINDS[self.path].FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Collector:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, request: Any) -> None:
        for resource in getattr(request, "resource_spans", ()):
            service = attributes(resource.resource.attributes)["service.name"]
            self.spans += [(service, span) for scope in resource.scope_spans for span in scope.spans]
        for resource in getattr(request, "resource_metrics", ()):
            for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
                for point in getattr(metric, metric.WhichOneof("data")).data_points:
                    value = point.count if metric.HasField("histogram") else point.as_int or point.as_double
                    self.values[(metric.name, *map(str, attributes(point.attributes).values()))] = value

    def named(self, service: str, name: str) -> list[Span]:
        return [span for of, span in self.spans if (of, span.name) == (service, name)]


def attributes(pairs: Iterator[KeyValue]) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


def load(tmp_path: Path, *messages: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run target-crm on messages."""
    return subprocess.run(
        command("target-crm", "--config", "ENV"),
        input="".join(f"{message}\n" for message in messages),
        env=environment(TARGET_CRM_SQLALCHEMY_URL=f"sqlite:///{tmp_path}/crm.db", **variables),
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=False,
    )


def actions(*ids: str) -> list[str]:
    return [ACTIONS, *map(action, ids), state({"bookmarks": {}})]


def test_both_plugins_send_their_run_in_one_trace(collector: Collector, tmp_path: Path) -> None:
    world = World(seed=7, now=datetime(2026, 3, 29, tzinfo=UTC))
    world.advance(timedelta(hours=2))
    with Sandbox(world, faults=[faults.server_error().on("/actions").nth(2)]) as sandbox:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "TRACEPARENT": TRACEPARENT}
        pipeline = Pipeline(sandbox, f"sqlite:///{tmp_path}/crm.db", tmp_path, variables)
        pipeline.run()
        secrets = [sandbox.token, sandbox.application_id, *(user["_id"] for user in world.users())]

    assert {span.trace_id.hex() for _, span in collector.spans} == {TRACE_ID}
    by_id = {span.span_id: span.name for _, span in collector.spans}
    parents = {(service, span.name, by_id.get(span.parent_span_id)) for service, span in collector.spans}
    assert parents >= {
        ("tap-pepper", "run", None),
        ("tap-pepper", "stream actions", "run"),
        ("tap-pepper", "GET actions", "stream actions"),
        ("tap-pepper", "GET awards", "stream awards"),
        ("target-crm", "run", None),
        ("target-crm", "decode", "run"),
        ("target-crm", "commit", "run"),
    }
    tries = Counter(
        (sent["http.response.status_code"], sent["http.request.resend_count"])
        for sent in (attributes(span.attributes) for span in collector.named("tap-pepper", "GET actions"))
    )
    assert (tries[500, 0] or tries[503, 0], tries[200, 1]) == (1, 1)
    rows = sum(attributes(span.attributes)["pepper.rows"] for span in collector.named("target-crm", "commit"))
    stored = {of: value for of, value in collector.values.items() if of[0] == "pepper.records_read"}
    assert rows == sum(stored.values()) > 0
    assert collector.values["pepper.http_request_retry_count", "actions"] == 1
    assert collector.values["pepper.page_count", "perks"] == 1
    assert ("pepper.bookmark_lag_seconds", "actions") in collector.values
    assert collector.values["pepper.lag_seconds", "actions"] > 0
    assert collector.values["pepper.batch_processing_time",] == len(collector.named("target-crm", "commit"))

    sent = b"".join(collector.bodies)
    assert [secret for secret in secrets if secret.encode() in sent] == []
    assert b"when.timestamp" not in sent
    assert "OpenTelemetry" not in (tmp_path / "tap.log").read_text() + (tmp_path / "target.log").read_text()


def test_every_outcome_of_a_record_is_counted(collector: Collector, tmp_path: Path) -> None:
    ran = load(tmp_path, *actions("a1", "a2", "a1"), action("a3", at="then"), OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    assert ran.returncode == 0, ran.stderr
    outcomes = ("read", "applied", "duplicate", "superseded", "quarantined")
    assert [collector.values[f"pepper.records_{outcome}", "actions"] for outcome in outcomes] == [4, 2, 1, 0, 1]


def test_failed_run_sends_its_exit_code_and_no_error_text(collector: Collector, tmp_path: Path) -> None:
    ran = load(
        tmp_path,
        *actions("a1"),
        action("a3", at="PRIVATE"),
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        TARGET_CRM_ON_INVALID_RECORD="fail",
    )
    assert ran.returncode == 1
    (run,) = collector.named("target-crm", "run")
    assert run.status.code == run.status.STATUS_CODE_ERROR
    assert attributes(run.attributes)["process.exit.code"] == 1
    assert "when.timestamp" in ran.stderr
    assert b"when.timestamp" not in b"".join(collector.bodies)


def test_trace_of_a_long_backfill_is_bounded(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setattr(otlp, "SPANS_MAX", 5)
    telemetry.start("tap-pepper")
    with telemetry.span("stream actions", parents_threads=True):
        for _ in range(9):
            with telemetry.span("GET actions"):
                telemetry.set_attributes({"late": True})
    telemetry.stop("tap-pepper", 0)
    assert Counter(span.name for _, span in collector.spans) == {"run": 1, "stream actions": 1, "GET actions": 4}
    (stream,) = collector.named("tap-pepper", "stream actions")
    assert not stream.attributes


def test_failed_stream_sends_the_http_status(collector: Collector) -> None:
    with Script(Reply(status=403)) as pepper:
        given = {f"TAP_PEPPER_{name.upper()}": str(value) for name, value in config(pepper.url).items()}
        variables = environment(**given, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
        ran = subprocess.run(
            command("tap-pepper", "--config", "ENV"), env=variables, capture_output=True, timeout=60, check=False
        )
    assert ran.returncode == 1
    for name in ("run", "stream actions", "GET actions"):
        (span,) = collector.named("tap-pepper", name)
        assert span.status.code == span.status.STATUS_CODE_ERROR
    assert attributes(span.attributes)["http.response.status_code"] == 403
    assert not span.events
    assert TOKEN.encode() not in b"".join(collector.bodies)


def test_run_with_invalid_settings_is_sent(collector: Collector, tmp_path: Path) -> None:
    ran = load(tmp_path, TARGET_CRM_DIALECT="nosql", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    (run,) = collector.named("target-crm", "run")
    assert ran.returncode == 1
    assert run.status.code == run.status.STATUS_CODE_ERROR
    assert str(tmp_path).encode() not in b"".join(collector.bodies)


@pytest.fixture
def silent() -> Iterator[str]:
    """A collector that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("away", [True, False], ids=["connection-refused", "no-answer"])
def test_unreachable_collector_delays_a_run_briefly_and_does_not_fail_it(
    silent: str, tmp_path: Path, *, away: bool
) -> None:
    url = "http://127.0.0.1:9" if away else silent
    load(tmp_path, *actions("a1"))
    usual = load(tmp_path, *actions("a2"))
    began_seconds = time.monotonic()
    ran = load(tmp_path, *actions("a3"), OTEL_EXPORTER_OTLP_ENDPOINT=url)
    took_seconds = time.monotonic() - began_seconds
    assert (ran.returncode, ran.stdout) == (0, usual.stdout)
    assert ran.stderr.count("OpenTelemetry") == 1
    assert "some telemetry was not delivered" in ran.stderr
    assert url not in ran.stderr
    assert took_seconds < DELAYED_SECONDS_MAX


@pytest.mark.parametrize("module", ["tap_pepper.tap", "target_crm.loader.target"])
def test_rich_and_opentelemetry_are_imported_only_when_used(module: str) -> None:
    code = (
        f"import sys, {module} as plugin; sys.argv = ['plugin', '--version']\n"
        "try: plugin.main()\nexcept SystemExit: pass\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('rich', 'opentelemetry')])"
    )
    ran = subprocess.run(
        [SCRIPTS / "python", "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert ran.stdout.splitlines()[-1] == "[]"


def test_missing_extra_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").write_text("raise ImportError('not installed')")
    ran = load(tmp_path, *actions("a1"), OTEL_TRACES_EXPORTER="otlp", PYTHONPATH=str(tmp_path))
    assert ran.returncode == 0
    assert ran.stderr.count("OpenTelemetry") == 1
    assert "pip install 'pepper-crm[otel]'" in ran.stderr


def test_invalid_otel_variable_does_not_fail_the_run(tmp_path: Path) -> None:
    ran = load(
        tmp_path, *actions("a1"), OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", OTEL_EXPORTER_OTLP_TIMEOUT="soon"
    )
    assert (ran.returncode, json.loads(ran.stdout)) == (0, {"bookmarks": {}})
    assert ran.stderr.count("OpenTelemetry") == 1


def test_unsupported_protocol_is_one_warning(tmp_path: Path, collector: Collector) -> None:
    ran = load(
        tmp_path, *actions("a1"), OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_EXPORTER_OTLP_TRACES_PROTOCOL="grpc"
    )
    assert ran.returncode == 0
    assert "traces are not sent: the protocol grpc is not supported; use http/protobuf" in ran.stderr
    assert (collector.spans, collector.values["pepper.records_read", "actions"]) == ([], 1)


@pytest.mark.parametrize(
    ("environ", "asked"),
    [
        pytest.param({}, [], id="unset"),
        pytest.param({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, ["TRACES", "METRICS"], id="endpoint"),
        pytest.param({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, [], id="empty-endpoint"),
        pytest.param({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c"}, ["METRICS"], id="endpoint-of-one-signal"),
        pytest.param({"OTEL_TRACES_EXPORTER": "otlp"}, ["TRACES"], id="exporter-of-one-signal"),
        pytest.param({"OTEL_TRACES_EXPORTER": "console"}, [], id="console-exporter"),
        pytest.param({"OTEL_METRICS_EXPORTER": "console, otlp"}, ["METRICS"], id="list-of-exporters"),
        pytest.param(
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_METRICS_EXPORTER": "none"}, ["TRACES"], id="exporter-none"
        ),
        pytest.param({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "True"}, [], id="sdk-disabled"),
    ],
)
def test_standard_variables_choose_the_signals(environ: dict[str, str], asked: list[str]) -> None:
    assert telemetry.requested_signals(environ) == asked
