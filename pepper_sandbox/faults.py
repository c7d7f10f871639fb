"""Faults that tests can inject: failures that the real Pepper may have, and deviations from its documentation.

A fault sits between the client and the API and changes requests or responses. Faults can be combined:

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
    """A fault that changes requests or responses.

    Attributes:
        name: a few words that say what is wrong, such as `gzip cut`.
        apply: takes the request and the function that answers it correctly, and returns the faulty response.
        path: a pattern for the paths of the affected requests, such as `/users/*/actions`. None means all paths.
        turns: which of these requests are affected, counted from 1. None means all of them.
    """

    name: str
    apply: Callable[[Request, Answer], Response]
    path: str | None = None
    turns: Sequence[int] | None = None

    def on(self, path: str) -> Fault:
        """Affect only requests for this path."""
        return replace(self, path=path)

    def nth(self, *turns: int) -> Fault:
        """Affect only the requests with these numbers, counted from 1."""
        return replace(self, turns=turns)

    def first(self, count: int) -> Fault:
        """Affect only the first `count` requests."""
        return replace(self, turns=range(1, count + 1))

    def affects(self, request: Request, seen: Counter[str]) -> bool:
        """Return whether the fault affects a request. `seen` counts the requests per path, including this one."""
        if not self._matches(request.path):
            return False
        return self.turns is None or sum(n for path, n in seen.items() if self._matches(path)) in self.turns

    def _matches(self, path: str) -> bool:
        return self.path is None or fnmatchcase(path, self.path)


def with_faults(answer: Answer, faults: Sequence[Fault], seen: Counter[str]) -> Answer:
    """Wrap faults around a function that answers requests. The first fault is the outermost."""

    def wrap(inner: Answer, fault: Fault) -> Answer:
        return lambda request: fault.apply(request, inner) if fault.affects(request, seen) else inner(request)

    return reduce(wrap, reversed(faults), answer)


# Building blocks: faults that change the response, the request, a page or its rows.


def _change_response(name: str, change: Callable[[Response], Response]) -> Fault:
    """Return a fault that changes the response."""
    return Fault(name, lambda request, answer: change(answer(request)))


def _change_request(name: str, change: Callable[[Request], Request]) -> Fault:
    """Return a fault that changes the request before the server answers it."""
    return Fault(name, lambda request, answer: answer(change(request)))


class Listing(NamedTuple):
    """A page of a list: `{"<key>": <rows>, "page": <page>}`."""

    key: str
    rows: list[Json]
    page: Json

    @classmethod
    def of(cls, response: Response) -> Listing | None:
        """Parse a response. Return None if it contains no list."""
        payload = response.payload() if "json" in response.headers.get("Content-Type", "") else None
        if isinstance(payload, dict):
            for key, value in payload.items():
                if isinstance(value, list):
                    return cls(key, value, payload.get("page", {}))
        return None

    def body(self) -> Json:
        """Return the body of the response."""
        return {self.key: self.rows, "page": self.page}


def _change_page(name: str, change: Callable[[Listing, Request, Answer], object]) -> Fault:
    """Return a fault that changes the body of each page. `change` may send further requests."""

    def apply(request: Request, answer: Answer) -> Response:
        response = answer(request)
        listing = Listing.of(response)
        return response.with_payload(change(listing, request, answer)) if listing else response

    return Fault(name, apply)


def change_rows(name: str, change: Callable[[Json], Json | None], every: int = 1) -> Fault:
    """Change about one in `every` rows, always the same rows. Drop a row if `change` returns None."""

    def rows(listing: Listing, _request: Request, _answer: Answer) -> object:
        changed = [change(row) if _hash(str(row.get("_id"))) % every == 0 else row for row in listing.rows]
        return listing._replace(rows=[row for row in changed if row is not None]).body()

    return _change_page(name, rows)


def _hash(text: str) -> int:
    return crc32(text.encode())


# Statuses and transport errors.


def error(status: int, code: str, message: str = "Injected by the sandbox") -> Fault:
    """Return an error status with a JSON body like Pepper's."""
    failure = Response.of({"code": code, "message": message}, status)
    return _change_response(f"error {status}", lambda true: _dated(failure, true))


def unauthorized() -> Fault:
    """Return 401, as for a revoked token."""
    return error(401, "Unauthorized")


def forbidden() -> Fault:
    """Return 403, as for a token without the required role."""
    return error(403, "Forbidden")


def not_found() -> Fault:
    """Return 404, as for an unknown path."""
    return error(404, "NotFound")


def invalid() -> Fault:
    """Return 422, as for an invalid value of a parameter."""
    return error(422, "Validation")


def server_error(status: int = 503) -> Fault:
    """Return a 5xx with an HTML body, as a gateway does."""
    return _change_response(f"server error {status}", lambda true: _html(true, status))


def html_page() -> Fault:
    """Return 200 with HTML, like a maintenance page."""
    return _change_response("html page", lambda true: _html(true, 200))


def rate_limited(seconds: int) -> Fault:
    """Return 429 with Retry-After in seconds."""
    return _rate_limited(lambda _: str(seconds))


def rate_limited_until(seconds: int) -> Fault:
    """Return 429 with Retry-After as an HTTP date, this many seconds after the response's Date."""
    return _rate_limited(lambda true: _later(true.headers["Date"], seconds))


def rate_limited_without_hint() -> Fault:
    """Return 429 without Retry-After."""
    return _rate_limited(lambda _: None)


def _rate_limited(retry_after: Callable[[Response], str | None]) -> Fault:
    rejection = Response.of({"code": "TooManyRequests", "message": "Slow down"}, 429)
    return _change_response(
        "rate limited", lambda true: _dated(rejection, true).with_header("Retry-After", retry_after(true))
    )


def redirected(to: str) -> Fault:
    """Redirect (307) to another host: `to` is its base URL, such as `http://localhost:9`."""

    def apply(request: Request, answer: Answer) -> Response:
        return _dated(Response(307, {"Location": to + request.target}, b""), answer(request))

    return Fault("redirected", apply)


def connection_reset() -> Fault:
    """Reset the connection before the response."""
    return _change_response("connection reset", lambda true: replace(true, hangs_up="at once"))


def connection_cut() -> Fault:
    """Close the connection in the middle of the body."""
    return _change_response("connection cut", lambda true: replace(true, hangs_up="midway"))


def gzip_cut() -> Fault:
    """Truncate the gzip stream, and send a Content-Length that matches the truncated body."""
    return _change_response("gzip cut", lambda true: replace(true, body=true.body[: len(true.body) // 2]))


def _html(true: Response, status: int) -> Response:
    page = Response(status, {"Content-Type": "text/html"}, b"<html><body><h1>Back soon</h1></body></html>")
    return _dated(page, true)


def _dated(response: Response, true: Response) -> Response:
    """Copy the Date header of the correct response to another response."""
    return response.with_header("Date", true.headers.get("Date"))


# The clock.


def clock_skewed(seconds: float) -> Fault:
    """Move the time in the Date header this many seconds into the future."""
    return _change_response(
        "clock skewed", lambda true: true.with_header("Date", _later(true.headers["Date"], seconds))
    )


def clock_missing() -> Fault:
    """Omit the Date header."""
    return _change_response("clock missing", lambda true: true.with_header("Date", None))


def _later(http_date: str, seconds: float) -> str:
    return format_datetime(parsedate_to_datetime(http_date) + timedelta(seconds=seconds), usegmt=True)


# Requests that the server misinterprets.


def filters_ignored(*names: str) -> Fault:
    """Ignore the filters with these names, such as `when.timestamp`, `type` or `updatedAt`, with any operator."""

    def change(request: Request) -> Request:
        ignored = tuple(f"{name}." for name in names)
        kept = (pair for pair in request.query if not f"{pair[0]}.".startswith(ignored))
        return replace(request, query=tuple(kept))

    return _change_request("filters ignored", change)


def updated_at_exclusive() -> Fault:
    """Exclude rows that changed exactly at `updatedAt`."""
    return _renamed("updatedAt", "updatedAt.gt")


def updated_at_inclusive() -> Fault:
    """Include rows that changed exactly at `updatedAt.gt`."""
    return _renamed("updatedAt.gt", "updatedAt")


def limit_capped(rows: int) -> Fault:
    """Return at most this many rows per page, whatever the client requests."""

    def change(request: Request) -> Request:
        limit = int(request.parameter("limit") or LIMIT_DEFAULT)
        return request.with_parameter("limit", str(min(limit, rows)))

    return _change_request("limit capped", change)


def limit_ignored() -> Fault:
    """Return pages of the default length, whatever the client requests."""
    return _change_request("limit ignored", lambda request: request.with_parameter("limit", None))


def _renamed(name: str, other_name: str) -> Fault:
    def change(request: Request) -> Request:
        value = request.parameter(name)
        return request if value is None else request.with_parameter(name, None).with_parameter(other_name, value)

    return _change_request(f"{name} treated as {other_name}", change)


# The envelope and the pages.


def listed_as(key: str) -> Fault:
    """Return the rows under another key, such as `items` or `awards`."""
    return _change_page(f"listed as {key}", lambda listing, _request, _answer: listing._replace(key=key).body())


def bare_array() -> Fault:
    """Return a bare array of all rows, without pages."""
    return _change_page("bare array", lambda _listing, request, answer: list(_all_rows(request, answer)))


def list_missing() -> Fault:
    """Return a JSON object without a list."""
    return _change_page("list missing", lambda _listing, _request, _answer: {"status": "OK"})


def page_missing() -> Fault:
    """Return all rows at once, without `page`."""
    return _change_page(
        "page missing", lambda listing, request, answer: {listing.key: list(_all_rows(request, answer))}
    )


def last_next_key(value: str | None) -> Fault:
    """Give the last page a `nextKey` that is null or an empty string."""

    def change(listing: Listing, _request: Request, _answer: Answer) -> object:
        return listing._replace(page={"nextKey": value, **listing.page}).body()

    return _change_page(f"last nextKey is {value!r}", change)


def last_row_repeated() -> Fault:
    """Repeat the last row of a page as the first row of the next page. Pages must have at least two rows."""

    def next_key(listing: Listing, _request: Request, _answer: Answer) -> str | None:
        return key_of(listing.rows[-1]["_id"]) if "nextKey" in listing.page else None

    return _paged("last row repeated", next_key)


def next_key_repeated() -> Fault:
    """From the second page on, make the `nextKey` of each page refer to the page itself."""

    def next_key(listing: Listing, request: Request, _answer: Answer) -> str | None:
        return request.parameter("startKey") or listing.page.get("nextKey")

    return _paged("nextKey repeated", next_key)


def pages_in_a_circle() -> Fault:
    """Make the `nextKey` of the last page refer to the first page."""

    def next_key(listing: Listing, request: Request, answer: Answer) -> str | None:
        if "nextKey" in listing.page:
            return str(listing.page["nextKey"])
        first = Listing.of(answer(request.with_parameter("startKey", None)))
        return key_of(first.rows[0]["_id"]) if first and first.rows else None

    return _paged("pages in a circle", next_key)


def _paged(name: str, next_key: Callable[[Listing, Request, Answer], str | None]) -> Fault:
    """Set the `nextKey` of each page to the result of `next_key`. None leaves the page unchanged."""

    def change(listing: Listing, request: Request, answer: Answer) -> object:
        key = next_key(listing, request, answer)
        return listing._replace(page={**listing.page, "nextKey": key}).body() if key else listing.body()

    return _change_page(name, change)


def pages_by_position() -> Fault:
    """Use row numbers as page keys, so that a row that is inserted or deleted during a read shifts all later rows."""

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
    """Insert an empty page with a `nextKey` before each page except the first."""
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
    """Shuffle the rows of all pages."""
    return _ordered("rows shuffled", lambda row: _hash(row["_id"]))


def newest_first() -> Fault:
    """Sort the rows of all pages by time, newest first."""
    return _ordered("newest first", lambda row: row["when"]["timestamp"] if "when" in row else row["updatedAt"], -1)


def _ordered(name: str, order: Callable[[Json], Any], step: Literal[1, -1] = 1) -> Fault:
    """Sort all rows before dividing them into pages."""

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

    return _change_page(name, change)


def _all_rows(request: Request, answer: Answer) -> Iterator[Json]:
    """Yield the rows of all pages."""
    whole = request.with_parameter("limit", str(LIMIT_MAX))
    key = None
    while listing := Listing.of(answer(whole.with_parameter("startKey", key))):
        yield from listing.rows
        key = listing.page.get("nextKey")
        if not key:
            return


# Rows.


def field_missing(name: str, *, every: int = 1) -> Fault:
    """Remove a field. The name of a nested field has dots: `context.user`."""
    return _field(f"{name} missing", name, lambda holder, leaf: holder.pop(leaf, None), every)


def field_set(name: str, value: object, *, every: int = 1) -> Fault:
    """Set a field to a value, as in `field_set("metadata", None)` or `field_set("type", "NEW")`."""
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

    return change_rows(label, change_row, every)


def fields_unknown() -> Fault:
    """Add an undocumented field."""
    return field_set("sparkle", {"colours": ["red", "green"], "strength": 0.5})


def points_as_strings() -> Fault:
    """Return points as text: `"2.25"`."""

    def change(row: Json) -> Json:
        for holder in (row, row.get("metadata") or {}):
            for name in holder:
                if name.startswith("points"):
                    holder[name] = str(holder[name])
        return row

    return change_rows("points as strings", change)


def rows_withheld(*, every: int) -> Fault:
    """Omit about one row in `every`, as for a token with too few rights."""
    return change_rows("rows withheld", lambda _: None, every)
