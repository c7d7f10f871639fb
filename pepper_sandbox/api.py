"""Pepper's HTTP API as a pure function: `respond(world, request) -> response`."""

from __future__ import annotations

import base64
import gzip
import json
import re
from dataclasses import dataclass, field, replace
from datetime import datetime
from email.utils import format_datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import parse_qsl, urlencode

from pepper_sandbox.records import MILLISECOND

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from pepper_sandbox.records import Json
    from pepper_sandbox.world import World

TOKEN = "sandbox-token"  # noqa: S105 - gives access to a sandbox only
APPLICATION_ID = "pepper-mill"
LIMIT_DEFAULT = 100
LIMIT_MAX = 1000
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3}|\.\d{6})?(Z|[+-]\d\d:\d\d)")


@dataclass(frozen=True, slots=True)
class Request:
    """A request. `query` contains decoded (name, value) pairs. Header names are case-insensitive."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, method: str, target: str, headers: Mapping[str, str]) -> Request:
        """Parse a request target such as `/awards?limit=3`."""
        path, _, query = target.partition("?")
        return cls(method, path, tuple(parse_qsl(query, keep_blank_values=True)), headers)

    @property
    def target(self) -> str:
        """The path with the encoded query."""
        return f"{self.path}?{urlencode(self.query)}" if self.query else self.path

    def parameter(self, name: str) -> str | None:
        """Return the value of a query parameter. If the parameter is repeated, return its last value."""
        return dict(self.query).get(name)

    def header(self, name: str) -> str | None:
        """Return the value of a header, or None if the request lacks it."""
        return {key.lower(): value for key, value in self.headers.items()}.get(name.lower())

    def with_parameter(self, name: str, value: str | None) -> Request:
        """Return the request with another value for a parameter. None removes the parameter."""
        others = tuple(pair for pair in self.query if pair[0] != name)
        return replace(self, query=others if value is None else (*others, (name, value)))


@dataclass(frozen=True, slots=True)
class Response:
    """A response.

    If `hangs_up` is set, the server resets the connection without a response, or closes it midway through the body.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    hangs_up: Literal["at once", "midway"] | None = None

    @classmethod
    def of(cls, payload: object, status: int = 200) -> Response:
        """Create a JSON response."""
        body = json.dumps(payload, separators=(",", ":")).encode()
        return cls(status, {"Content-Type": "application/json; charset=utf-8"}, body)

    def payload(self) -> Any:
        """Return the decoded JSON of the body."""
        return json.loads(gzip.decompress(self.body) if self.headers.get("Content-Encoding") == "gzip" else self.body)

    def with_payload(self, payload: object) -> Response:
        """Return the response with another payload, which is gzipped if the old payload was."""
        plain = Response.of(payload).body
        body = gzip.compress(plain, 1, mtime=0) if self.headers.get("Content-Encoding") == "gzip" else plain
        return replace(self, body=body)

    def with_header(self, name: str, value: str | None) -> Response:
        """Return the response with another value for a header. None removes the header."""
        others = {key: kept for key, kept in self.headers.items() if key != name}
        return replace(self, headers=others if value is None else {**others, name: value})


class ApiError(Exception):
    """A request that the API rejects."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.response = Response.of({"code": code, "message": message}, status)


def respond(world: World, request: Request, *, token: str = TOKEN, application_id: str = APPLICATION_ID) -> Response:
    """Return Pepper's response at the world's current time."""
    try:
        response = _route(world, request, token, application_id)
    except ApiError as error:
        response = error.response
    if "gzip" in (request.header("Accept-Encoding") or ""):
        compressed = gzip.compress(response.body, 1, mtime=0)
        response = replace(response.with_header("Content-Encoding", "gzip"), body=compressed)
    return response.with_header("Date", format_datetime(world.now, usegmt=True))


def key_of(record_id: str) -> str:
    """Return the opaque key of the page that begins with this record."""
    return base64.urlsafe_b64encode(json.dumps({"_id": record_id}).encode()).decode().rstrip("=")


def id_of(key: str) -> str:
    """Return the id of the record that a key refers to. Raise a ValueError for an invalid key."""
    try:
        return str(json.loads(base64.b64decode(key + "=" * (-len(key) % 4), altchars=b"-_", validate=True))["_id"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{key} is not a page key") from error


def to_moment(text: str) -> datetime:
    """Parse a timestamp such as `2021-02-01T10:00:00.000Z`. Raise a ValueError if it has no time zone."""
    if not TIMESTAMP.fullmatch(text):
        raise ValueError(f"{text} is not a timestamp such as 2021-02-01T10:00:00.000Z")
    return datetime.fromisoformat(text)


class _Endpoint(NamedTuple):
    path: re.Pattern[str]
    version_min: int
    list_key: str
    rows: Callable[..., Iterable[Json]]


def _route(world: World, request: Request, token: str, application_id: str) -> Response:
    if request.header("Authorization") != f"Token {token}":
        raise ApiError(401, "Unauthorized", "The token is missing or unknown")
    if request.header("x-application-id") != application_id:
        raise ApiError(403, "Forbidden", "The token is not valid for this application")
    for endpoint in ENDPOINTS:
        if match := endpoint.path.fullmatch(request.path):
            break
    else:
        raise ApiError(404, "NotFound", f"No such path: {request.path}")
    if request.method != "GET":
        raise ApiError(405, "MethodNotAllowed", f"{request.path} supports GET only")
    version = request.header("x-api-version") or ""
    if not version.isdecimal() or int(version) < endpoint.version_min:
        raise _invalid("x-api-version", f"an integer of at least {endpoint.version_min}")
    return _page(endpoint.list_key, endpoint.rows(world, request, **match.groupdict()), request)


def _page(list_key: str, rows: Iterable[Json], request: Request) -> Response:
    """Return the first `limit` rows: `{"<list key>": […], "page": {"count": 2, "limit": 2, "nextKey": "eyJfaWQi…"}}`.

    `startKey` refers to the first row of the page. `nextKey` refers to the first row of the next page, if there is one.
    """
    limit_text = request.parameter("limit") or str(LIMIT_DEFAULT)
    if not limit_text.isdecimal() or int(limit_text) < 1:
        raise _invalid("limit", "a positive integer")
    limit = min(int(limit_text), LIMIT_MAX)
    found = list(islice(rows, limit + 1))
    shown, following = found[:limit], found[limit:]
    page: Json = {"count": len(shown), "limit": limit}
    if shown:
        page["startKey"] = key_of(shown[0]["_id"])
    if following:
        page["nextKey"] = key_of(following[0]["_id"])
    return Response.of({list_key: shown, "page": page})


def _perks(world: World, request: Request) -> Iterator[Json]:
    start_id = _start_id(request) or ""
    return (perk for perk in world.perks() if perk["_id"] >= start_id)


def _users(world: World, request: Request) -> Iterator[Json]:
    start_id = _start_id(request) or ""
    after = _moments(request, "updatedAfter", ("",)).get("")
    include = (request.parameter("include") or "").split(",")
    users = world.users(after=after, with_credentials="credentials" in include)
    return (user for user in users if user["_id"] >= start_id)


def _awards(world: World, request: Request) -> Iterator[Json]:
    """Yield the awards that changed at or after `updatedAt`, or after `updatedAt.gt`."""
    moments = _moments(request, "updatedAt", ("", ".gt"))
    since = moments.get("")
    if after := moments.get(".gt"):
        since = max(since or after, after + MILLISECOND)
    return world.awards(since=since, start_id=_start_id(request) or "")


def _actions(world: World, request: Request, user_id: str | None = None) -> Iterator[Json]:
    moments = _moments(request, "when.timestamp", ("", ".gt", ".lte", ".eq", ".neq"))
    types = _filters(request, "type", ("", ".in", ".nin"))
    wanted = types.get(".in", types.get(""))
    unwanted = types.get(".nin", "").split(",")
    exactly, never = moments.get(".eq", moments.get("")), moments.get(".neq")
    start_id = _start_id(request)
    try:
        actions = world.actions(after=moments.get(".gt"), until=moments.get(".lte"), user_id=user_id, start_id=start_id)
    except (KeyError, ValueError) as error:
        raise ApiError(404, "NotFound", "No such user or action") from error
    for action in actions:
        occurred = to_moment(action["when"]["timestamp"])
        if (
            (exactly is None or occurred == exactly)
            and occurred != never
            and (wanted is None or action["type"] in wanted.split(","))
            and action["type"] not in unwanted
        ):
            yield action


def _start_id(request: Request) -> str | None:
    key = request.parameter("startKey")
    if key is None:
        return None
    try:
        return id_of(key)
    except ValueError as error:
        raise _invalid("startKey", "a key from an earlier page") from error


def _filters(request: Request, name: str, operators: tuple[str, ...]) -> dict[str, str]:
    """Return the values of a filter by operator, such as `.gt`. The key of a filter without an operator is empty."""
    given = {key[len(name) :]: value for key, value in request.query if f"{key}.".startswith(f"{name}.")}
    for operator in given.keys() - set(operators):
        raise _invalid(name + operator, f"one of {', '.join(name + known for known in operators)}")
    return given


def _moments(request: Request, name: str, operators: tuple[str, ...]) -> dict[str, datetime]:
    try:
        return {operator: to_moment(text) for operator, text in _filters(request, name, operators).items()}
    except ValueError as error:
        raise _invalid(name, "a timestamp such as 2021-02-01T10:00:00.000Z") from error


def _invalid(name: str, expected: str) -> ApiError:
    return ApiError(422, "Validation", f"{name} must be {expected}")


ENDPOINTS = (
    _Endpoint(re.compile("/perks"), 8, "items", _perks),
    _Endpoint(re.compile("/awards"), 8, "items", _awards),
    _Endpoint(re.compile("/users"), 8, "items", _users),
    _Endpoint(re.compile("/actions"), 9, "actions", _actions),
    _Endpoint(re.compile("/users/(?P<user_id>[^/]+)/actions"), 9, "actions", _actions),
)
