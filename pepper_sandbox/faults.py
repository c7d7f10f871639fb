"""Ways in which the real Pepper may differ from its documentation, or fail, each to be switched on for a test.

A fault stands between the client and the API. They read aloud and they combine:

    sandbox.faults = [
        rate_limited(seconds=2).on("/actions").first(3),
        connection_reset().on("/awards").nth(2),
        rows_shuffled(),
    ]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from fnmatch import fnmatchcase
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from zlib import crc32

from pepper_sandbox.api import LIMIT_DEFAULT, LIMIT_MAX, Request, Response, id_of, key_of

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator

    from pepper_sandbox.records import Json

Answer = Callable[[Request], Response]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong: `apply` gets the request and the way to the true answer, and answers instead.

    It strikes at requests for `path` (a pattern such as `/users/*/actions`; None: any), and of these only at the ones
    numbered in `turns`, counted from 1 (None: all).
    """

    name: str
    apply: Callable[[Request, Answer], Response]
    path: str | None = None
    turns: Sequence[int] | None = None

    def on(self, path: str) -> Fault:
        """Strike only at requests for this path."""
        return replace(self, path=path)

    def nth(self, *turns: int) -> Fault:
        """Strike only at these of the requests, counted from 1."""
        return replace(self, turns=turns)

    def first(self, count: int) -> Fault:
        """Strike only at the first so many requests."""
        return replace(self, turns=range(1, count + 1))

    def strikes(self, request: Request, seen: Counter[str]) -> bool:
        """Whether this request is struck; `seen` counts the requests of each path, this one included."""
        if not self._matches(request.path):
            return False
        return self.turns is None or sum(n for path, n in seen.items() if self._matches(path)) in self.turns

    def _matches(self, path: str) -> bool:
        return self.path is None or fnmatchcase(path, self.path)


def with_faults(answer: Answer, faults: Sequence[Fault], seen: Counter[str]) -> Answer:
    """The way to an answer through faults, the first of them nearest to the client."""

    def through(inner: Answer, fault: Fault) -> Answer:
        return lambda request: fault.apply(request, inner) if fault.strikes(request, seen) else inner(request)

    return reduce(through, reversed(faults), answer)


# The kinds of fault: another answer, another question, another page, other rows.


def _answered(name: str, change: Callable[[Response], Response]) -> Fault:
    """The answer is changed as a whole."""
    return Fault(name, lambda request, answer: change(answer(request)))


def _asked(name: str, ask: Callable[[Request], Request]) -> Fault:
    """The server takes the request for another one."""
    return Fault(name, lambda request, answer: answer(ask(request)))


class Listing(NamedTuple):
    """A page of a list: `{"<key>": <rows>, "page": <page>}`."""

    key: str
    rows: list[Json]
    page: Json

    @classmethod
    def of(cls, response: Response) -> Listing | None:
        """What a response lists; None for any other response."""
        payload = response.payload() if "json" in response.headers.get("Content-Type", "") else None
        if isinstance(payload, dict):
            for key, value in payload.items():
                if isinstance(value, list):
                    return cls(key, value, payload.get("page", {}))
        return None

    def body(self) -> Json:
        """The page as Pepper writes it."""
        return {self.key: self.rows, "page": self.page}


def _listed(name: str, change: Callable[[Listing, Request, Answer], object]) -> Fault:
    """A page of a list gets another body. `change` may ask the true server for more."""

    def apply(request: Request, answer: Answer) -> Response:
        response = answer(request)
        listing = Listing.of(response)
        return response.with_payload(change(listing, request, answer)) if listing else response

    return Fault(name, apply)


def _rows(name: str, change: Callable[[Json], Json | None], every: int = 1) -> Fault:
    """Rows are changed one by one, or withheld where `change` gives None: about one in `every`, always the same."""

    def rows(listing: Listing, _request: Request, _answer: Answer) -> object:
        changed = [change(row) if _hash(str(row.get("_id"))) % every == 0 else row for row in listing.rows]
        return listing._replace(rows=[row for row in changed if row is not None]).body()

    return _listed(name, rows)


def _hash(text: str) -> int:
    return crc32(text.encode())


# Statuses and broken transport.


def error(status: int, code: str, message: str = "Scripted by the sandbox") -> Fault:
    """An error with Pepper's JSON body."""
    failure = Response.of({"code": code, "message": message}, status)
    return _answered(f"error {status}", lambda true: _dated(failure, true))


def unauthorized() -> Fault:
    """401, as for a token that was withdrawn."""
    return error(401, "Unauthorized")


def forbidden() -> Fault:
    """403, as for a token without the privilege."""
    return error(403, "Forbidden")


def not_found() -> Fault:
    """404."""
    return error(404, "NotFound")


def invalid() -> Fault:
    """422, as for a value that Pepper refuses."""
    return error(422, "Validation")


def server_error(status: int = 503) -> Fault:
    """A gateway's 5xx with an HTML body."""
    return _answered(f"server error {status}", lambda true: _html(true, status))


def html_page() -> Fault:
    """200 with HTML, as from a maintenance page."""
    return _answered("html page", lambda true: _html(true, 200))


def rate_limited(seconds: int) -> Fault:
    """429 with Retry-After in seconds."""
    return _rate_limited(lambda _: str(seconds))


def rate_limited_until(seconds: int) -> Fault:
    """429 with Retry-After as an HTTP date, so many seconds after the response's Date."""
    return _rate_limited(lambda true: _later(true.headers["Date"], seconds))


def rate_limited_without_hint() -> Fault:
    """429 without Retry-After."""
    return _rate_limited(lambda _: None)


def _rate_limited(retry_after: Callable[[Response], str | None]) -> Fault:
    refusal = Response.of({"code": "TooManyRequests", "message": "Slow down"}, 429)
    return _answered("rate limited", lambda true: _dated(refusal, true).with_header("Retry-After", retry_after(true)))


def redirected(to: str) -> Fault:
    """307 to another host: `to` is its address, such as `http://localhost:9`."""

    def apply(request: Request, answer: Answer) -> Response:
        return _dated(Response(307, {"Location": to + request.target}, b""), answer(request))

    return Fault("redirected", apply)


def connection_reset() -> Fault:
    """The connection is reset before any answer."""
    return _answered("connection reset", lambda true: replace(true, hangs_up="at once"))


def connection_cut() -> Fault:
    """The connection ends in the middle of the body."""
    return _answered("connection cut", lambda true: replace(true, hangs_up="midway"))


def gzip_cut() -> Fault:
    """The body is a gzip stream that ends too early, though its Content-Length is right."""
    return _answered("gzip cut", lambda true: replace(true, body=true.body[: len(true.body) // 2]))


def _html(true: Response, status: int) -> Response:
    page = Response(status, {"Content-Type": "text/html"}, b"<html><body><h1>Back soon</h1></body></html>")
    return _dated(page, true)


def _dated(response: Response, true: Response) -> Response:
    """The response with the true one's Date."""
    return response.with_header("Date", true.headers.get("Date"))


# The clock.


def clock_skewed(seconds: float) -> Fault:
    """The Date header is so many seconds ahead of the true one."""
    return _answered("clock skewed", lambda true: true.with_header("Date", _later(true.headers["Date"], seconds)))


def clock_missing() -> Fault:
    """There is no Date header."""
    return _answered("clock missing", lambda true: true.with_header("Date", None))


def _later(http_date: str, seconds: float) -> str:
    return format_datetime(parsedate_to_datetime(http_date) + timedelta(seconds=seconds), usegmt=True)


# What the server makes of the request.


def filters_ignored(*names: str) -> Fault:
    """Filters have no effect: names such as `when.timestamp`, `type` or `updatedAt`, with whatever operator."""

    def ask(request: Request) -> Request:
        ignored = tuple(f"{name}." for name in names)
        kept = (pair for pair in request.query if not f"{pair[0]}.".startswith(ignored))
        return replace(request, query=tuple(kept))

    return _asked("filters ignored", ask)


def updated_at_exclusive() -> Fault:
    """`updatedAt` leaves out what changed at that very moment."""
    return _renamed("updatedAt", "updatedAt.gt")


def updated_at_inclusive() -> Fault:
    """`updatedAt.gt` includes what changed at that very moment."""
    return _renamed("updatedAt.gt", "updatedAt")


def limit_capped(rows: int) -> Fault:
    """Pages are never longer than this, whatever the client asks for."""

    def ask(request: Request) -> Request:
        limit = int(request.parameter("limit") or LIMIT_DEFAULT)
        return request.with_parameter("limit", str(min(limit, rows)))

    return _asked("limit capped", ask)


def limit_ignored() -> Fault:
    """Pages have the default length, whatever the client asks for."""
    return _asked("limit ignored", lambda request: request.with_parameter("limit", None))


def _renamed(name: str, other_name: str) -> Fault:
    def ask(request: Request) -> Request:
        value = request.parameter(name)
        return request if value is None else request.with_parameter(name, None).with_parameter(other_name, value)

    return _asked(f"{name} taken for {other_name}", ask)


# The envelope and the pages.


def listed_as(key: str) -> Fault:
    """The rows stand under another key, such as `items` or `awards`."""
    return _listed(f"listed as {key}", lambda listing, _request, _answer: listing._replace(key=key).body())


def bare_array() -> Fault:
    """The body is the array of all rows: the list is not paged."""
    return _listed("bare array", lambda _listing, request, answer: list(_all_rows(request, answer)))


def list_missing() -> Fault:
    """The body is a JSON object without any list."""
    return _listed("list missing", lambda _listing, _request, _answer: {"status": "OK"})


def page_missing() -> Fault:
    """There is no `page`, and all rows come at once: the list is not paged."""
    return _listed("page missing", lambda listing, request, answer: {listing.key: list(_all_rows(request, answer))})


def last_next_key(value: str | None) -> Fault:
    """The last page has a `nextKey` that says nothing: null or an empty text."""

    def change(listing: Listing, _request: Request, _answer: Answer) -> object:
        return listing._replace(page={"nextKey": value, **listing.page}).body()

    return _listed(f"last nextKey is {value!r}", change)


def last_row_repeated() -> Fault:
    """The last row of a page comes again as the first of the next. Pages must have two rows or more."""

    def next_key(listing: Listing, _request: Request, _answer: Answer) -> str | None:
        return key_of(listing.rows[-1]["_id"]) if "nextKey" in listing.page else None

    return _paged("last row repeated", next_key)


def next_key_repeated() -> Fault:
    """From the second on, every page names itself as the next."""

    def next_key(listing: Listing, request: Request, _answer: Answer) -> str | None:
        return request.parameter("startKey") or listing.page.get("nextKey")

    return _paged("nextKey repeated", next_key)


def pages_in_a_circle() -> Fault:
    """The last page names the first as the next."""

    def next_key(listing: Listing, request: Request, answer: Answer) -> str | None:
        if "nextKey" in listing.page:
            return str(listing.page["nextKey"])
        first = Listing.of(answer(request.with_parameter("startKey", None)))
        return key_of(first.rows[0]["_id"]) if first and first.rows else None

    return _paged("pages in a circle", next_key)


def _paged(name: str, next_key: Callable[[Listing, Request, Answer], str | None]) -> Fault:
    """Pages name another page as the next."""

    def change(listing: Listing, request: Request, answer: Answer) -> object:
        key = next_key(listing, request, answer)
        return listing._replace(page={**listing.page, "nextKey": key}).body() if key else listing.body()

    return _listed(name, change)


def pages_by_position() -> Fault:
    """A `nextKey` counts rows instead of naming one: rows that come or go while pages are read shift the others."""

    def apply(request: Request, answer: Answer) -> Response:
        key = request.parameter("startKey")
        first = request.with_parameter("startKey", None)
        response = answer(first)
        listing = Listing.of(response)
        if listing is None:
            return response
        rows = list(_all_rows(first, answer))
        start = int(id_of(key)) if key else 0
        end = start + listing.page["limit"]
        page = {"count": len(rows[start:end]), "limit": listing.page["limit"]}
        if end < len(rows):
            page["nextKey"] = key_of(str(end))
        return response.with_payload(listing._replace(rows=rows[start:end], page=page).body())

    return Fault("pages by position", apply)


def empty_page_between() -> Fault:
    """An empty page, which has a `nextKey`, comes before each further page."""
    mark = "after an empty page: "

    def apply(request: Request, answer: Answer) -> Response:
        key = request.parameter("startKey")
        if key is None:
            return answer(request)
        record_id = id_of(key)
        if record_id.startswith(mark):
            return answer(request.with_parameter("startKey", key_of(record_id.removeprefix(mark))))
        response = answer(request)
        listing = Listing.of(response)
        page = {"count": 0, "startKey": key, "nextKey": key_of(mark + record_id)}
        return response.with_payload(listing._replace(rows=[], page=page).body()) if listing else response

    return Fault("empty page between", apply)


def rows_shuffled() -> Fault:
    """Rows come in no order at all, over all pages."""
    return _ordered("rows shuffled", lambda row: _hash(row["_id"]))


def newest_first() -> Fault:
    """Rows come in the order of their time, over all pages, the newest first."""
    return _ordered("newest first", lambda row: row["when"]["timestamp"] if "when" in row else row["updatedAt"], -1)


def _ordered(name: str, order: Callable[[Json], Any], step: Literal[1, -1] = 1) -> Fault:
    """All rows are put in another order and then divided into pages."""

    def change(listing: Listing, request: Request, answer: Answer) -> object:
        rows = sorted(_all_rows(request, answer), key=order)[::step]
        ids = [row["_id"] for row in rows]
        key = request.parameter("startKey")
        start = ids.index(id_of(key)) if key else 0
        end = start + listing.page["limit"]
        page = {"count": len(rows[start:end]), "limit": listing.page["limit"]}
        if end < len(rows):
            page["nextKey"] = key_of(ids[end])
        return listing._replace(rows=rows[start:end], page=page).body()

    return _listed(name, change)


def _all_rows(request: Request, answer: Answer) -> Iterator[Json]:
    """The rows of all pages."""
    whole = request.with_parameter("limit", str(LIMIT_MAX))
    key = None
    while listing := Listing.of(answer(whole.with_parameter("startKey", key))):
        yield from listing.rows
        key = listing.page.get("nextKey")
        if not key:
            return


# The rows.


def field_missing(name: str, *, every: int = 1) -> Fault:
    """Rows lack a field: a dotted name such as `context.user`."""
    return _field(f"{name} missing", name, lambda holder, leaf: holder.pop(leaf, None), every)


def field_set(name: str, value: object, *, every: int = 1) -> Fault:
    """Rows have a field of the test's own making: `field_set("metadata", None)`, `field_set("type", "NEW")`."""
    return _field(f"{name} set to {value!r}", name, lambda holder, leaf: holder.update({leaf: value}), every)


def _field(label: str, name: str, change: Callable[[Json, str], object], every: int) -> Fault:
    *parents, leaf = name.split(".")

    def change_row(row: Json) -> Json:
        holder: Any = row
        for parent in parents:
            holder = holder.get(parent) if isinstance(holder, dict) else None
        if isinstance(holder, dict):
            change(holder, leaf)
        return row

    return _rows(label, change_row, every)


def fields_unknown() -> Fault:
    """Rows have a field that nobody has heard of."""
    return field_set("sparkle", {"colours": ["red", "green"], "strength": 0.5})


def points_as_strings() -> Fault:
    """Points are texts: `"2.25"`."""

    def change(row: Json) -> Json:
        for holder in (row, row.get("metadata") or {}):
            for name in holder:
                if name.startswith("points"):
                    holder[name] = str(holder[name])
        return row

    return _rows("points as strings", change)


def rows_withheld(*, every: int) -> Fault:
    """A list is short by about one row in `every`, as for a token with too little privilege."""
    return _rows("rows withheld", lambda _: None, every)
