"""Helpers for the tap's tests: a server with scripted replies, and runs of the tap in this process."""

from __future__ import annotations

import io
import json
import threading
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from tap_pepper.api.client import PepperClient
from tap_pepper.settings import Settings
from tap_pepper.tap import TapPepper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOW = datetime(2026, 10, 1, 12, tzinfo=UTC)
DATE = "Thu, 01 Oct 2026 12:00:00 GMT"
TOKEN = "s3cret-t0ken"


@dataclass
class Reply:
    """A scripted reply. Bytes are sent unchanged, any other body as JSON. A header whose value is None is omitted."""

    body: object = field(default_factory=lambda: {"items": []})
    status: int = 200
    headers: dict[str, str | None] = field(default_factory=dict)


@dataclass
class Asked:
    """A received request, with decoded query parameters and header names in lower case."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]


class Script:
    """A server on a loopback port that sends its replies in order, and repeats the last one."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.asked: list[Asked] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Script:
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                target = urlsplit(self.path)
                headers = {name.lower(): value for name, value in self.headers.items()}
                script.asked.append(Asked(target.path, dict(parse_qsl(target.query, keep_blank_values=True)), headers))
                reply = script.replies.pop(0) if len(script.replies) > 1 else script.replies[0]
                body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                sent = {"Date": DATE, "Content-Length": str(len(body)), **reply.headers}
                self.send_response_only(reply.status)
                for name, value in sent.items():
                    if value is not None:
                        self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def listing(*rows: object, next_key: object = None, key: str = "items") -> Reply:
    """A page of a list endpoint."""
    page = {"count": len(rows)} if next_key is None else {"count": len(rows), "nextKey": next_key}
    return Reply({key: list(rows), "page": page})


def config(url: str, **settings: object) -> dict[str, Any]:
    """A config for a scripted server."""
    return {"auth_token": TOKEN, "application_id": "the-grill", "api_url": url, **settings}


class Waits(list[float]):
    """A clock whose time of day stands still. It records waits, which take no time."""

    def __init__(self, now: datetime = NOW) -> None:
        super().__init__()
        self.time_of_day = now
        self._seconds = 0.0

    def now(self) -> datetime:
        return self.time_of_day

    def monotonic(self) -> float:
        return self._seconds

    def sleep(self, seconds: float, cancel: threading.Event) -> None:  # noqa: ARG002
        self.append(seconds)
        self._seconds += seconds


@contextmanager
def client_of(url: str, *, jitter: float = 1.0, **settings: object) -> Iterator[tuple[PepperClient, Waits]]:
    """A client that records its waits instead of waiting. `jitter` is the fraction of each backoff that it waits."""
    waits = Waits()
    client = PepperClient(Settings.from_config(config(url, **settings)), clock=waits, jitter=lambda: jitter)
    try:
        yield client, waits
    finally:
        client.close()


class PatientTap(TapPepper):
    """The tap with a clock that stands still and does not wait."""

    local_clock = NOW

    @cached_property
    def client(self) -> PepperClient:
        return PepperClient(self.settings, clock=Waits(self.local_clock))


@dataclass
class Run:
    """The messages of one run, in order."""

    messages: list[dict[str, Any]]
    error: Exception | None = None

    def records(self, stream: str) -> list[dict[str, Any]]:
        return [m["record"] for m in self.messages if m["type"] == "RECORD" and m["stream"] == stream]

    def ids(self, stream: str) -> list[str]:
        return [record["_id"] for record in self.records(stream)]

    @property
    def states(self) -> list[dict[str, Any]]:
        return [m["value"] for m in self.messages if m["type"] == "STATE"]

    @property
    def state(self) -> dict[str, Any]:
        return self.states[-1]

    def bookmarks(self, stream: str) -> list[str]:
        """The stream's bookmark in each STATE that contains one."""
        found = (state["bookmarks"].get(stream, {}).get("replication_key_value") for state in self.states)
        return [value for value in found if value is not None]

    def schema(self, stream: str) -> dict[str, Any]:
        return next(m for m in self.messages if m["type"] == "SCHEMA" and m["stream"] == stream)


def selection(*streams: str, change: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
    """Return the catalog with only these streams selected. `change` may edit the entry of each stream."""
    catalog = TapPepper(config={"include_users": True}, validate_config=False).catalog_dict
    for entry in catalog["streams"]:
        root = next(item["metadata"] for item in entry["metadata"] if not item["breadcrumb"])
        root["selected"] = entry["tap_stream_id"] in streams
        if change and root["selected"]:
            change(entry)
    return json.loads(json.dumps(catalog))


def select_fields(entry: dict[str, Any], *paths: str, selected: bool = True) -> None:
    """Select or deselect fields by their dotted names."""
    for path in paths:
        breadcrumb = [crumb for name in path.split(".") for crumb in ("properties", name)]
        item = next((item for item in entry["metadata"] if item["breadcrumb"] == breadcrumb), None)
        if item is None:
            item = {"breadcrumb": breadcrumb, "metadata": {}}
            entry["metadata"].append(item)
        item["metadata"]["selected"] = selected


def run_tap(
    settings: dict[str, Any],
    *streams: str,
    state: dict[str, Any] | None = None,
    catalog: dict[str, Any] | None = None,
    local_clock: datetime = NOW,
    may_fail: bool = False,
) -> Run:
    """Run the tap in this process. Decimals in the messages stay Decimal."""
    chosen = catalog if catalog is not None else selection(*streams) if streams else None
    if "users" in streams:
        settings = {"include_users": True, **settings}
    tap = PatientTap(config=dict(settings), catalog=chosen, state=json.loads(json.dumps(state or {})))
    tap.local_clock = local_clock
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    error = None
    with redirect_stdout(stdout):
        try:
            tap.sync_all()
        except Exception as caught:
            if not may_fail:
                raise
            error = caught
        finally:
            tap.client.close()
    stdout.seek(0)
    return Run([json.loads(line, parse_float=Decimal) for line in stdout], error)
