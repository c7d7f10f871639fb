"""Serve a simulated Pepper on a loopback port while a `with` block runs."""

from __future__ import annotations

import socket
import socketserver
import struct
import threading
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from pepper_sandbox.api import APPLICATION_ID, TOKEN, Request, Response, respond, to_moment
from pepper_sandbox.faults import Fault, with_faults
from pepper_sandbox.records import to_iso, to_ms, to_number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from pepper_sandbox.world import World

HOST = "127.0.0.1"
CONTROL_PATH = "/_sandbox/"
CLOSE_POLL_SECONDS = 0.01
ADVANCE_SECONDS_MAX = 366 * 24 * 3600


class Sandbox:
    """Serves a world over HTTP/1.1 while a `with` block runs.

    Args:
        world: the data to serve.
        port: the port to listen on; 0 selects a free port.
        faults: the faults to inject. The first one is the outermost.
        token: the only token that the API accepts; a control request can replace it.
        application_id: the only merchant that the API knows.
        clock: returns monotonic seconds; the world's time advances with this clock. Without a clock, only `advance`
            and the control request of that name advance the time.

    The attribute `requests` lists all requests that the server has received, except control requests.
    """

    def __init__(
        self,
        world: World,
        *,
        port: int = 0,
        faults: Sequence[Fault] = (),
        token: str = TOKEN,
        application_id: str = APPLICATION_ID,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.world = world
        self.token = token
        self.application_id = application_id
        self.requests: list[Request] = []
        self._port = port
        self._faults = tuple(faults)
        self._seen: Counter[str] = Counter()
        self._clock = clock
        self._lock = threading.RLock()

    @property
    def url(self) -> str:
        """The base URL, without a trailing slash: `http://127.0.0.1:8765`."""
        return f"http://{HOST}:{self._port}"

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The active faults, the outermost first. Setting new faults restarts the count of requests."""
        return self._faults

    @faults.setter
    def faults(self, faults: Sequence[Fault]) -> None:
        with self._lock:
            self._faults = tuple(faults)
            self._seen.clear()

    def __enter__(self) -> Sandbox:
        self._server = _Server(self._port, self.answer)
        self._port = self._server.server_address[1]
        self._synced_ms = self._clock_ms()
        self._thread = threading.Thread(target=self._server.serve_forever, args=(CLOSE_POLL_SECONDS,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.close()

    def advance(self, period: timedelta) -> None:
        """Advance the simulated time. Safe to call while the server runs, because it waits for the current request."""
        with self._lock:
            self.world.advance(period)

    def answer(self, request: Request) -> Response:
        """Answer a request. Requests from several threads are answered one at a time."""
        with self._lock:
            self._sync_time()
            if request.path.startswith(CONTROL_PATH):
                return self._control(request)
            self.requests.append(request)
            self._seen[request.path] += 1
            return with_faults(self._pepper, self._faults, self._seen)(request)

    def _control(self, request: Request) -> Response:
        """Answer a request to the sandbox's own endpoints, which need no token.

        `GET /_sandbox/balances[?at=…]` returns the true points: `{"at": "…", "balances": {"<award id>": 2.25}}`.
        `POST /_sandbox/advance?seconds=60` advances the time and returns `{"now": "…"}`.
        `POST /_sandbox/token?value=…` replaces the token and returns `{"token": "…"}`.
        """
        try:
            match request.method, request.path.removeprefix(CONTROL_PATH):
                case "GET", "balances":
                    at = request.parameter("at")
                    moment = to_moment(at) if at else self.world.now
                    balances = {award_id: to_number(points) for award_id, points in self.world.balances(moment).items()}
                    return Response.of({"at": to_iso(to_ms(moment)), "balances": balances})
                case "POST", "advance":
                    seconds = float(request.parameter("seconds") or "")
                    if not 0 <= seconds <= ADVANCE_SECONDS_MAX:
                        raise ValueError(f"seconds must be from 0 to {ADVANCE_SECONDS_MAX:,}")
                    self.world.advance(timedelta(seconds=seconds))
                    return Response.of({"now": to_iso(to_ms(self.world.now))})
                case "POST", "token":
                    token = request.parameter("value")
                    if not token:
                        raise ValueError("value must be the new token")
                    self.token = token
                    return Response.of({"token": token})
        except ValueError as error:
            return Response.of({"code": "Validation", "message": str(error)}, 422)
        message = "Use GET /_sandbox/balances, POST /_sandbox/advance or POST /_sandbox/token"
        return Response.of({"code": "NotFound", "message": message}, 404)

    def _pepper(self, request: Request) -> Response:
        return respond(self.world, request, token=self.token, application_id=self.application_id)

    def _clock_ms(self) -> int:
        return int(self._clock() * 1000) if self._clock else 0

    def _sync_time(self) -> None:
        now_ms = self._clock_ms()
        self.world.advance(timedelta(milliseconds=now_ms - self._synced_ms))
        self._synced_ms = now_ms


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int, answer: Callable[[Request], Response]) -> None:
        self.answer = answer
        self._connections: set[socket.socket] = set()
        super().__init__((HOST, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def close_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().close_request(request)

    def close(self) -> None:
        """Close the port and the connections that clients keep alive."""
        self.server_close()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    wbufsize = -1
    disable_nagle_algorithm = True

    def handle(self) -> None:
        """Handle requests until the client disconnects, which may happen at any time."""
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True

    def do_GET(self) -> None:
        length = self.headers.get("Content-Length") or "0"
        if not length.isdecimal():
            self.send_error(HTTPStatus.BAD_REQUEST)
            return
        self.rfile.read(int(length))
        self._send(self.server.answer(Request.parse(self.command, self.path, dict(self.headers.items()))))

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 - named by the base class

    def _send(self, response: Response) -> None:
        if response.hangs_up == "at once":
            self._reset()
            return
        self.send_response_only(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if response.hangs_up == "midway":
            self.wfile.write(response.body[: len(response.body) // 2])
            self.close_connection = True
        else:
            self.wfile.write(response.body)

    def _reset(self) -> None:
        """Close the connection with RST: drop unsent data, and do not flush the buffered files."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.close(self.connection.detach())

    def log_message(self, *_: object) -> None:
        """Log nothing, unlike the base class."""
