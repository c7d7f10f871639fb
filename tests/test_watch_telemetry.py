"""Traces and metrics, as a collector receives them over HTTP."""

from __future__ import annotations

import gzip
import socket
import subprocess
import sys
import threading
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from pepper_sandbox.server import Sandbox
from pepper_sandbox.world import World
from pepper_watch import otlp, telemetry
from tests.commands import RUN_SECONDS_MAX, command, environment, pepper_settings
from tests.tap_fixtures import TOKEN, Reply, Script, config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.proto.trace.v1.trace_pb2 import Span

NOW = datetime(2026, 3, 29, tzinfo=timezone.utc)
THREE_LINES = (Path(__file__).parent / "snapshots" / "three_lines.jsonl").read_bytes()
TRACE = "0af7651916cd43dd8448eb211c80319c"


class Collector:
    """An OTLP receiver on this machine."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.spans: list[Span] = []
        self.metrics: dict[tuple[str, str], float] = {}
        self.services: set[str] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.take(self.path, gzip.decompress(body) if self.headers.get("Content-Encoding") else body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self, path: str, body: bytes) -> None:
        self.bodies.append(body)
        if path == "/v1/traces":
            for traced in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.services |= {
                    each.value.string_value for each in traced.resource.attributes if each.key == "service.name"
                }
                self.spans += [span for scope in traced.scope_spans for span in scope.spans]
        elif path == "/v1/metrics":
            for measured in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                for metric in (metric for scope in measured.scope_metrics for metric in scope.metrics):
                    for point in (*metric.sum.data_points, *metric.gauge.data_points):
                        stream = next(
                            (each.value.string_value for each in point.attributes if each.key == "stream"), ""
                        )
                        self.metrics[metric.name, stream] = point.as_int or point.as_double
                    for histogram in metric.histogram.data_points:
                        self.metrics[metric.name, ""] = histogram.count


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.server.shutdown()
    running.server.server_close()


def run(name: str, stdin: bytes = b"", **variables: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command(name, "--config", "ENV"),
        env=environment(**variables),
        input=stdin,
        capture_output=True,
        timeout=RUN_SECONDS_MAX,
        check=False,
    )


def test_a_run_of_the_tap_is_one_trace_with_a_span_for_each_request_and_tells_nothing_secret(
    collector: Collector,
) -> None:
    with Sandbox(World(seed=3, users=5, days=2, now=NOW)) as sandbox:
        settings = {**pepper_settings(sandbox), "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        ran = run("tap-pepper", TRACEPARENT=f"00-{TRACE}-b7ad6b7169203331-01", **settings)
        told = b"".join(collector.bodies)
        assert ran.returncode == 0, ran.stderr
        assert sandbox.token.encode() not in told
        assert sandbox.application_id.encode() not in told
    assert collector.services == {"tap-pepper"}
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    (root,) = [span for span in collector.spans if span.name == "tap-pepper run"]
    requests = [span for span in collector.spans if span is not root]
    assert {span.name for span in requests} == {"GET /actions", "GET /awards", "GET /perks"}
    assert {span.parent_span_id for span in requests} == {root.span_id}
    assert collector.metrics["pepper.record_count", "perks"] == 4
    assert collector.metrics["pepper.page_count", "perks"] == 1


def test_a_run_of_the_target_tells_its_batches_and_counts(collector: Collector, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'crm.db'}"
    ran = run("target-crm", THREE_LINES, TARGET_CRM_SQLALCHEMY_URL=url, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    assert ran.returncode == 0, ran.stderr
    assert {span.name for span in collector.spans} == {"target-crm run", "decode", "commit"}
    assert collector.metrics["pepper.records_applied", "actions"] == 1
    assert collector.metrics["pepper.records_duplicate", "actions"] == 0
    assert collector.metrics["pepper.batch_processing_time", ""] == 1
    assert collector.metrics["pepper.lag_seconds", "actions"] > 0
    assert str(tmp_path).encode() not in b"".join(collector.bodies)


def test_a_run_that_fails_says_so_in_its_trace(collector: Collector) -> None:
    ran = run("target-crm", TARGET_CRM_DIALECT="nosql", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    (root,) = collector.spans
    assert ran.returncode == 1
    assert root.status.code == root.status.STATUS_CODE_ERROR


def test_a_request_tells_what_pepper_answered(collector: Collector) -> None:
    with Script(Reply(status=403)) as pepper:
        given = {f"TAP_PEPPER_{name.upper()}": str(value) for name, value in config(pepper.url).items()}
        ran = run("tap-pepper", **given, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    assert ran.returncode == 1
    (request,) = [span for span in collector.spans if span.name == "GET /actions"]
    assert {each.key: each.value.int_value for each in request.attributes}["status"] == 403
    assert request.status.code == request.status.STATUS_CODE_ERROR
    assert not request.events
    assert TOKEN.encode() not in b"".join(collector.bodies)


def test_a_trace_has_an_end_however_many_requests_a_backfill_takes(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setattr(otlp, "SPANS_MAX", 3)
    telemetry.begin("tap-pepper")
    for _ in range(9):
        with telemetry.span("GET /actions"):
            telemetry.note(status=200)
    telemetry.end("tap-pepper", 0)
    assert sorted(span.name for span in collector.spans) == [*["GET /actions"] * 3, "tap-pepper run"]


@pytest.fixture
def silent() -> Iterator[str]:
    """A collector that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("is_away", [True, False], ids=["nobody-listens", "nobody-answers"])
def test_a_collector_that_takes_nothing_fails_no_run(silent: str, tmp_path: Path, *, is_away: bool) -> None:
    address = "http://127.0.0.1:9" if is_away else silent
    url = f"sqlite:///{tmp_path / 'crm.db'}"
    ran = run("target-crm", THREE_LINES, TARGET_CRM_SQLALCHEMY_URL=url, OTEL_EXPORTER_OTLP_ENDPOINT=address)
    assert (ran.returncode, ran.stdout) == (0, b'{"bookmarks":{}}\n')
    assert ran.stderr.count(b"OpenTelemetry") == 1
    assert b"the collector did not take everything" in ran.stderr
    assert address.encode() not in ran.stderr


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        pytest.param({"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}, "OpenTelemetry", id="unreadable"),
        pytest.param({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "not sent by grpc, only by http", id="another-protocol"),
        pytest.param({"PYTHONPATH": "{folder}"}, "pip install 'pepper-crm[otel]'", id="not-installed"),
    ],
)
def test_what_keeps_a_run_from_being_told_is_said_and_stops_no_run(
    tmp_path: Path, variables: dict[str, str], words: str
) -> None:
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").write_text("raise ImportError('not installed')")
    given = {name: value.format(folder=tmp_path) for name, value in variables.items()}
    url = f"sqlite:///{tmp_path / 'crm.db'}"
    asked = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "TARGET_CRM_SQLALCHEMY_URL": url}
    ran = run("target-crm", THREE_LINES, **asked, **given)
    assert (ran.returncode, ran.stdout) == (0, b'{"bookmarks":{}}\n')
    assert words in ran.stderr.decode()


@pytest.mark.parametrize(
    ("environ", "asked"),
    [
        pytest.param({}, [], id="nothing-is-off"),
        pytest.param({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, ["TRACES", "METRICS"], id="an-endpoint-is-on"),
        pytest.param({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, [], id="an-empty-variable-says-nothing"),
        pytest.param({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c"}, ["METRICS"], id="an-endpoint-of-one-signal"),
        pytest.param({"OTEL_TRACES_EXPORTER": "otlp"}, ["TRACES"], id="one-signal-by-name"),
        pytest.param({"OTEL_TRACES_EXPORTER": "console"}, [], id="stdout-belongs-to-the-messages"),
        pytest.param({"OTEL_METRICS_EXPORTER": "console, otlp"}, ["METRICS"], id="a-list"),
        pytest.param(
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_METRICS_EXPORTER": "none"}, ["TRACES"], id="none-is-off"
        ),
        pytest.param(
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "True"}, [], id="disabled-is-off"
        ),
    ],
)
def test_the_standard_variables_decide(environ: dict[str, str], asked: list[str]) -> None:
    assert telemetry.signals_asked(environ) == asked


@pytest.mark.parametrize("module", ["tap_pepper.tap", "target_crm.target"])
def test_where_nothing_is_watched_nothing_is_imported_for_it(module: str) -> None:
    code = (
        f"import sys, {module} as plugin; sys.argv = ['plugin', '--version']\n"
        "try: plugin.main()\nexcept SystemExit: pass\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('rich', 'opentelemetry')])"
    )
    ran = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"
