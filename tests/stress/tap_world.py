"""The tap and a simulated Pepper in one process, without sockets and without waiting."""

from __future__ import annotations

import io
import json
import threading
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPResponse
from urllib3.exceptions import ProtocolError

from pepper_sandbox.api import APPLICATION_ID, TOKEN, Request, Response, respond
from pepper_sandbox.faults import with_faults
from tap_pepper.api.client import PepperClient
from tap_pepper.tap import TapPepper
from tests.helpers.tap import Run, selection

if TYPE_CHECKING:
    from pepper_sandbox.faults import Fault
    from pepper_sandbox.world import World

SETTLE = timedelta(seconds=5)


class Killed(BaseException):
    """Raised to end the tap, as SIGKILL would."""


class _Adapter(HTTPAdapter):
    """Sends requests to the simulated Pepper by a function call. The HTTP library still decodes the responses."""

    def __init__(self, pepper: Pepper) -> None:
        super().__init__()
        self._pepper = pepper

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        target = request.path_url
        answer = self._pepper.answer(Request.parse("GET", target, dict(request.headers)))
        if answer.hangs_up == "at once":
            raise requests.ConnectionError(ProtocolError("aborted", ConnectionResetError(104, "Connection reset")))
        headers = {**answer.headers, "Content-Length": str(len(answer.body))}
        body = answer.body[: len(answer.body) // 2] if answer.hangs_up else answer.body
        raw = HTTPResponse(io.BytesIO(body), headers=headers, status=answer.status, preload_content=False)
        return self.build_response(request, raw)


@dataclass
class Pepper:
    """A world with faults. Each request advances the time by `tick`. Request number `kill_at` kills the tap."""

    world: World
    faults: tuple[Fault, ...] = ()
    tick: timedelta = timedelta(0)
    kill_at: int | None = None
    requests: int = 0
    _seen: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin_run(self, *, kill_at: int | None = None) -> None:
        self.kill_at = None if kill_at is None else self.requests + kill_at
        self._seen.clear()

    def answer(self, request: Request) -> Response:
        with self._lock:
            self.requests += 1
            if self.kill_at is not None and self.requests >= self.kill_at:
                raise Killed
            self.world.advance(self.tick)
            self._seen[request.path] += 1
            return with_faults(lambda asked: respond(self.world, asked), self.faults, self._seen)(request)

    def session(self) -> requests.Session:
        session = requests.Session()
        session.mount("https://", _Adapter(self))
        return session


@dataclass
class SimulatedClock:
    """A local clock that is wrong by `skew`. Waits take no time."""

    world: World
    skew: timedelta = timedelta(0)
    waited: float = 0.0

    def now(self) -> datetime:
        return self.world.now + self.skew

    def monotonic(self) -> float:
        return self.waited

    def sleep(self, seconds: float, cancel: threading.Event) -> None:  # noqa: ARG002
        self.waited += seconds


class SimulatedTap(TapPepper):
    """The tap, connected to a simulated Pepper."""

    pepper: Pepper
    clock: SimulatedClock

    @cached_property
    def client(self) -> PepperClient:
        return PepperClient(self.settings, clock=self.clock, session=self.pepper.session, jitter=lambda: 0.5)


CATALOG = {streams: selection(*streams) for streams in [("actions", "awards"), ("perks",)]}


def run_simulated(
    pepper: Pepper,
    clock: SimulatedClock,
    *streams: str,
    state: dict[str, Any],
    kill_at: int | None = None,
    output: io.BytesIO | None = None,
    **settings: object,
) -> Run:
    """Run the tap once. Return its messages, and the error or kill that ended it. `output` also gets the messages."""
    pepper.begin_run(kill_at=kill_at)
    config = {"auth_token": TOKEN, "application_id": APPLICATION_ID, **settings}
    tap = SimulatedTap(config=config, catalog=CATALOG[streams], state=json.loads(json.dumps(state)))
    tap.pepper, tap.clock = pepper, clock
    stdout = io.TextIOWrapper(io.BytesIO() if output is None else output, encoding="utf-8")
    error: BaseException | None = None
    with redirect_stdout(stdout):
        try:
            tap.sync_all()
        except (Exception, Killed) as caught:  # noqa: BLE001
            error = caught
        finally:
            tap.client.close()
    stdout.seek(0)
    return Run([json.loads(line, parse_float=Decimal) for line in stdout], error)  # type: ignore[arg-type]


class Ledger:
    """What a target has committed: the records before the last STATE that it saw.

    A record counts as repeated if it comes again unchanged after a STATE of its stream has covered it, and this STATE
    does not ask for a second read. A STATE of another stream does not cover the rows of an incomplete window.
    """

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}
        self.actions: set[str] = set()
        self.awards: dict[str, Decimal] = {}
        self.repeated: list[str] = []
        self.went_back: list[str] = []
        self._covered: set[str] = set()
        self._open: dict[str, set[str]] = {}

    def load(self, run: Run) -> None:
        held: list[dict[str, Any]] = []
        self._open.clear()
        for message in run.messages:
            if message["type"] == "RECORD":
                held.append(message)
            elif message["type"] == "STATE":
                self._commit(held, message["value"])
                held.clear()

    def _commit(self, held: list[dict[str, Any]], state: dict[str, Any]) -> None:
        for message in held:
            stream, record = message["stream"], message["record"]
            if stream == "actions":
                self.actions.add(record["_id"])
            elif stream == "awards":
                self.awards[record["_id"]] = Decimal(record["points"])
            else:
                continue
            mark = json.dumps([stream, record], sort_keys=True, default=str)
            if mark in self._covered and not self.state["bookmarks"].get(stream, {}).get("read_again"):
                self.repeated.append(mark)
            self._open.setdefault(stream, set()).add(mark)
        for stream, bookmark in state.get("bookmarks", {}).items():
            before = self.state.get("bookmarks", {}).get(stream, {})
            if bookmark.get("replication_key_value", "") < before.get("replication_key_value", ""):
                self.went_back.append(f"{stream}: {before} → {bookmark}")
            if bookmark != before:
                self._covered |= self._open.pop(stream, set())
        self.state = state


def due(world: World) -> set[str]:
    """Return the actions that must be emitted at the end of a run that starts now."""
    return {row["_id"] for row in world.actions(until=world.now - SETTLE)}
