"""The only code that talks to Pepper: headers, pages, retries, limits.

A list endpoint answers with a page:

    {"items": [{"_id": "5f…", …}, …], "page": {"count": 100, "limit": 100, "nextKey": "eyJfaWQi…"}}

The rows are under `items` or under the resource's own name, or are the whole body. Only a `nextKey` says that there is
more. Keys are opaque. A page may be empty although more follow.
"""

from __future__ import annotations

import json
import logging
import random
import re
import threading
from dataclasses import dataclass
from decimal import Decimal
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import msgspec
import requests
import urllib3.exceptions
from requests.auth import AuthBase

from pepper_runtime import telemetry
from tap_pepper.api.rate_limit import Limiter, LocalClock, always
from tap_pepper.api.raw_json import JsonText, Row, text_of, value_of
from tap_pepper.errors import OutOfTime, StopEverything, StopRun, TryAgain
from tap_pepper.settings import is_loopback
from tap_pepper.windows import UTC

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime
    from threading import Event

    from pepper_runtime.telemetry import Attributes
    from tap_pepper.api.rate_limit import Clock, MayWait
    from tap_pepper.settings import Settings

logger = logging.getLogger("tap-pepper.client")

BACKOFF_SECONDS_FIRST: Final = 1.0
BACKOFF_SECONDS_MAX: Final = 60.0
RETRY_AFTER_SECONDS_MAX: Final = 300.0
PAGES_MAX: Final = 1_000_000
"""Pages in one walk; each page's key is remembered, to notice a walk that goes in circles."""
REQUEST_SECONDS_MAX: Final = 900.0
"""The longest that one request may take, all tries and waits together."""
COMPRESSED_BYTES_MAX: Final = 64 * 1024 * 1024
BODY_BYTES_MAX: Final = 256 * 1024 * 1024
ERROR_BODY_BYTES_MAX: Final = 64 * 1024
CHUNK_BYTES: Final = 64 * 1024
SKEW_SECONDS_QUIET: Final = 60.0
YEARS: Final = range(2000, 9999)
"""A clock that shows another year was never set."""

RETRY: Final = "retry"
CHECK_ADDRESS: Final = "check api_url and the network, or try later"

WHAT_TO_DO: Final[dict[int, str]] = {
    **dict.fromkeys((408, 425, 429, *range(500, 600)), RETRY),
    400: "check api_version, page_size and action_types",
    401: "check auth_token, and that it belongs to application_id",
    403: "check that the role of auth_token may read this, and that it belongs to application_id",
    404: "check api_url, and that application_id is the merchant's code",
    422: "check application_id, api_version, page_size and action_types",
    **dict.fromkeys(
        range(300, 400),
        "redirects are not followed, the token stays with its host: set api_url to Pepper's own address",
    ),
}
"""A status to what to do: `RETRY`, or advice to a person. Any status that is not here stops the stream, too."""

SETTING_OF_PARAMETER: Final = {
    "limit": "page_size",
    "when.timestamp": "start_date and window_hours",
    "type.in": "action_types",
    "updatedat": "lookback_seconds",
    "updatedafter": "lookback_seconds",
    "include": "include_credentials",
    "x-api-version": "api_version",
    "x-application-id": "application_id",
}
"""A name that Pepper's refusal may mention to the setting that it is made from."""

_SAFE_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")
_skimmer = msgspec.json.Decoder(Row | list[JsonText] | str | float | bool | None)
_rows_decoder = msgspec.json.Decoder(list[Row])


@dataclass(frozen=True)
class Page:
    """One response of a list endpoint.

    Attributes:
        rows: The rows, their fields as JSON text that holds no line break.
        next_key: What to send as `startKey` for the page after this one; None on the last.
        date: Pepper's clock when it answered, whole seconds; None where it did not say.
    """

    rows: list[Row]
    next_key: str | None
    date: datetime | None


class _Token(AuthBase):
    """Puts the token into its header. Given as `auth`, it also keeps requests from taking another out of ~/.netrc."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Token {self._token}"
        return request


@dataclass
class Traffic:
    """What went to and fro for one endpoint."""

    pages: int = 0
    retries: int = 0


class PepperClient:
    """Reads Pepper's list endpoints; any thread may use it.

    Each thread has a session of its own, and all share one limiter. Every walk through pages carries its own state.

    Args:
        settings: Where Pepper is, who asks, and how patiently.
        local: This machine's clock, and how to wait.
        jitter: Draws a number from [0, 1).
        session: Makes a session of requests.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        local: Clock | None = None,
        jitter: Callable[[], float] = random.random,
        session: Callable[[], requests.Session] = requests.Session,
    ) -> None:
        self._settings = settings
        self.local: Clock = LocalClock() if local is None else local
        self._jitter = jitter
        self._new_session = session
        self._own = threading.local()
        self._sessions: list[requests.Session] = []
        self._lock = threading.Lock()
        self._traffic: dict[str, Traffic] = {}
        self._never = threading.Event()
        self.limiter = Limiter(settings.concurrency, self.local)

    @property
    def _session(self) -> requests.Session:
        """This thread's session."""
        session: requests.Session | None = getattr(self._own, "session", None)
        if session is None:
            session = self._own.session = self._new_session()
            session.auth = _Token(self._settings.auth_token)
            # Even told not to follow redirects, requests looks where they lead and reads their bodies to the end.
            session.get_redirect_target = lambda _: None  # type: ignore[assignment, method-assign]
            # A proxy from the environment would carry plain http, and with it the token, off this machine.
            session.trust_env = not is_loopback(urlsplit(self._settings.api_url).hostname or "")
            session.headers.update(
                {
                    "x-application-id": self._settings.application_id,
                    "x-api-version": str(self._settings.api_version),
                    "Accept": "application/json",
                    "Accept-Encoding": "gzip, deflate",
                    "User-Agent": self._settings.user_agent,
                }
            )
            with self._lock:
                self._sessions.append(session)
        return session

    def close(self) -> None:
        """Close the pooled connections."""
        with self._lock:
            for session in self._sessions:
                session.close()

    def traffic(self, path: str) -> Traffic:
        """What went to and fro for an endpoint so far."""
        with self._lock:
            return self._traffic.setdefault(_resource(path), Traffic())

    def clock(self, path: str, params: Mapping[str, str] | None = None) -> datetime:
        """Ask for one row of an endpoint, and take the time from the response's `Date`; else the local clock.

        Raises:
            PepperError: As `pages`.
        """
        where = f"{_resource(path)} first request"
        date = self._page(path, {**(params or {}), "limit": "1"}, where=where, halt=self._never).date
        here = self.local.now()
        if date is None:
            logger.warning("Pepper's responses carry no Date: the local clock decides what is settled")
            return here
        skew_seconds = (here - date).total_seconds()
        if abs(skew_seconds) > SKEW_SECONDS_QUIET:
            logger.warning("the local clock is %+.0f s off Pepper's; Pepper's decides", skew_seconds)
        return date

    def pages(
        self,
        path: str,
        params: Mapping[str, str] | None = None,
        halt: Event | None = None,
        may_wait: MayWait = always,
    ) -> Iterator[Page]:
        """Walk through all pages of an endpoint.

        Args:
            path: `/actions`.
            params: Query parameters besides those of paging.
            halt: Ends the walk between two requests, and any wait, once it is set.
            may_wait: Asked before each pause that Pepper wants, and before each new try.

        Yields:
            Each page as it arrives. A row that only repeats the last one of the page before is left out.

        Raises:
            StopRun: Pepper's answer is of no use, and will not become so.
            TryAgain: The failures did not pass within `max_retries`, or within `REQUEST_SECONDS_MAX`.
            Halted: `halt` was set.
            OutOfTime: `may_wait` said no.
        """
        asked = {**(params or {}), "limit": str(self._settings.page_size)}
        resource = _resource(path)
        seen: set[str] = set()
        last: Row | None = None
        for number in range(1, PAGES_MAX + 1):
            page = self._page(
                path, asked, where=f"{resource} page {number}", halt=halt or self._never, may_wait=may_wait
            )
            next_last = dict(page.rows[-1]) if page.rows else last
            rows = page.rows if last is None else [row for row in page.rows if row != last]
            yield Page(rows, page.next_key, page.date)
            last = next_last
            if page.next_key is None:
                return
            if page.next_key in seen:
                msg = f"{resource} page {number}: Pepper sent a nextKey for the second time; the pages go in circles"
                raise StopRun(msg)
            seen.add(page.next_key)
            asked["startKey"] = page.next_key
        msg = f"{resource}: more than {PAGES_MAX:,} pages; shorten window_hours or raise page_size"
        raise StopRun(msg)

    def _page(
        self, path: str, params: Mapping[str, str], *, where: str, halt: Event, may_wait: MayWait = always
    ) -> Page:
        """Get one page, as often as it takes and `max_retries` allows."""
        traffic = self.traffic(path)
        tries = self._settings.max_retries + 1
        began_seconds = self.local.seconds()
        give_up_seconds = began_seconds + REQUEST_SECONDS_MAX
        for number in range(1, tries + 1):
            with self.limiter.slot(halt, may_wait) as refusals_before:
                told: Attributes = {
                    "http.request.method": "GET",
                    "http.request.resend_count": number - 1,
                    "pepper.where": where,
                }
                try:
                    with telemetry.span(f"GET {_resource(path)}", told, is_client=True):
                        page = self._request(path, params, where=where, give_up_seconds=give_up_seconds)
                except TryAgain as failed:
                    error = failed
                else:
                    self.limiter.answered()
                    with self._lock:
                        traffic.pages += 1
                    return page
                wait_seconds = self._wait_seconds(number, error.wait_seconds)
                if error.for_everyone:
                    self.limiter.refused(refusals_before)
                    self.limiter.pause(wait_seconds)
            if number == tries:
                msg = f"{where}: {error} (tried {tries}x); {error.advice}"
                raise TryAgain(msg, advice=error.advice) from error
            if self.local.seconds() + wait_seconds > give_up_seconds:
                took_seconds = self.local.seconds() - began_seconds
                msg = f"{where}: {error} (tried {number}x in {took_seconds:,.0f} s); {error.advice}"
                raise TryAgain(msg, advice=error.advice) from error
            if not may_wait(wait_seconds):
                msg = f"{where}: {error}, and max_run_seconds leaves no time to try again"
                raise OutOfTime(msg) from error
            with self._lock:
                traffic.retries += 1
            logger.warning("%s: %s; try %d of %d in %.1f s", where, error, number + 1, tries, wait_seconds)
            if not error.for_everyone:
                self.limiter.sleep(wait_seconds, halt)
        raise AssertionError  # pragma: no cover - the loop returns or raises

    def _wait_seconds(self, failures: int, asked_seconds: float | None) -> float:
        """Wait before the next try, in seconds: as long as Pepper asks, at most `RETRY_AFTER_SECONDS_MAX`.

        Where it does not ask: a random part of a time that doubles with each failure, at most `BACKOFF_SECONDS_MAX`.
        """
        if asked_seconds is not None:
            return min(asked_seconds, RETRY_AFTER_SECONDS_MAX)
        return self._jitter() * min(BACKOFF_SECONDS_FIRST * 2.0 ** (failures - 1), BACKOFF_SECONDS_MAX)

    def _request(self, path: str, params: Mapping[str, str], *, where: str, give_up_seconds: float) -> Page:
        """One request, one response."""
        try:
            with self._session.get(
                self._settings.api_url + path,
                params=dict(params),
                timeout=self._settings.request_timeout_seconds,
                allow_redirects=False,
                stream=True,
            ) as response:
                telemetry.set_attributes({"http.response.status_code": response.status_code})
                if response.status_code != HTTPStatus.OK:
                    raise self._refusal(response, where)
                body = self._read(response, BODY_BYTES_MAX, where, give_up_seconds)
                date = _http_date(response.headers.get("Date"))
        except (OSError, urllib3.exceptions.HTTPError) as error:
            raise self._failure(error, where) from error
        try:
            fields = _skimmed(body)
        except (ValueError, RecursionError) as error:
            problem = "Pepper answered 200 with a body that is cut short or not JSON"
            raise TryAgain(problem, advice="check that api_url is Pepper's API, or try later") from error
        return Page(_rows(fields, _resource(path), where), _next_key(fields, where), date)

    def _read(self, response: requests.Response, bytes_max: int, where: str, give_up_seconds: float) -> bytes:
        """Read a response's body, decompressed, and stop at the limits of size and time."""
        # What has arrived, without waiting for a whole chunk: a body that trickles in must not outlast the request.
        read = getattr(response.raw, "read1", response.raw.read)
        chunks = []
        size_bytes = 0
        while chunk := read(CHUNK_BYTES, decode_content=True):
            size_bytes += len(chunk)
            if size_bytes > bytes_max or response.raw.tell() > COMPRESSED_BYTES_MAX:
                limit_bytes = bytes_max if size_bytes > bytes_max else COMPRESSED_BYTES_MAX
                msg = f"{where}: the response is larger than {limit_bytes:,} bytes; lower page_size"
                raise StopRun(msg)
            if self.local.seconds() > give_up_seconds:
                raise TryAgain("the response took too long", advice="lower page_size, or try later")
            chunks.append(chunk)
        return b"".join(chunks)

    def _refusal(self, response: requests.Response, where: str) -> StopRun | TryAgain:
        """What a status other than 200 means."""
        status = response.status_code
        answered = f"Pepper answered {status}"
        todo = WHAT_TO_DO.get(status, f"no answer of Pepper's API: {CHECK_ADDRESS}")
        if todo == RETRY:
            wait_seconds = _retry_after_seconds(response.headers, self.local.now())
            too_fast = status == HTTPStatus.TOO_MANY_REQUESTS
            advice = "run less often, or ask Pepper for a higher limit" if too_fast else "try later"
            for_everyone = too_fast or wait_seconds is not None
            return TryAgain(answered, advice=advice, wait_seconds=wait_seconds, for_everyone=for_everyone)
        if status == HTTPStatus.UNPROCESSABLE_ENTITY:
            code, settings = self._validation(response, where)
            answered += f" {code}" if code else ""
            todo = f"check {settings}" if settings else todo
        if response.is_redirect:
            target = _host(response.headers.get("Location", ""))
            answered += f", a redirect to {target}" if target else ", a redirect"
        kind = StopEverything if status == HTTPStatus.UNAUTHORIZED or response.is_redirect else StopRun
        return kind(f"{where}: {answered}; {todo}")

    def _validation(self, response: requests.Response, where: str) -> tuple[str | None, str]:
        """Read a 422 `{"code": "Validation", "message": "…"}`.

        Returns:
            The code, where it is no more than a word; and the settings that the message is about. The message itself
            may quote anything, and stays unsaid.
        """
        try:
            give_up_seconds = self.local.seconds() + self._settings.request_timeout_seconds
            body = _skimmed(self._read(response, ERROR_BODY_BYTES_MAX, where, give_up_seconds))
            code, message = value_of(body.get("code")), str(value_of(body.get("message"))).lower()
        except (ValueError, RecursionError, StopRun, TryAgain, urllib3.exceptions.HTTPError):
            return None, ""
        settings = dict.fromkeys(setting for name, setting in SETTING_OF_PARAMETER.items() if name in message)
        return code if isinstance(code, str) and _SAFE_CODE.fullmatch(code) else None, ", ".join(settings)

    def _failure(self, error: Exception, where: str) -> StopRun | TryAgain:
        """What it means that no whole response came."""
        host = urlsplit(self._settings.api_url).netloc
        if isinstance(error, requests.exceptions.SSLError) and "certificate" in str(error).lower():
            return StopEverything(
                f"{where}: the certificate of {host} is not trusted; check api_url, and this machine's CA list"
            )
        if isinstance(error, requests.exceptions.InvalidURL):
            return StopEverything(f"{where}: {host} is no host; check api_url")
        if type(error) is OSError and error.strerror is None:
            # requests' own way to say that a list of certificates is not there.
            return StopEverything(f"{where}: no list of trusted certificates; check REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE")
        causes = _causes(error)
        if any(isinstance(cause, (requests.Timeout, urllib3.exceptions.ReadTimeoutError)) for cause in causes):
            seconds = self._settings.request_timeout_seconds
            return TryAgain(f"{host} was silent for {seconds} s", advice="raise request_timeout_seconds, or try later")
        if isinstance(error, (urllib3.exceptions.DecodeError, urllib3.exceptions.ProtocolError)):
            return TryAgain("the response broke off", advice="try later")
        reason = next((cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror), None)
        if isinstance(error, requests.exceptions.ProxyError):
            host, advice = "the proxy", "check the proxy that https_proxy or all_proxy names, or try later"
        else:
            advice = CHECK_ADDRESS
        return TryAgain(f"no connection to {host}: {reason or 'it broke off'}", advice=advice)


def _host(address: str) -> str | None:
    """The host of an address that Pepper sent; None where it names none."""
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def _resource(path: str) -> str:
    """The last part of a path names what it lists: `/users/5f/actions` → `actions`."""
    return path.rsplit("/", 1)[-1]


def _skimmed(body: bytes) -> Row:
    """Check that a body is JSON, and take it apart no further than to its fields.

    Returns:
        The fields of an object. A list counts as what is under `items`; anything else has no fields.

    Raises:
        ValueError: The body is not JSON, or not all of it.
        RecursionError: It is nested beyond reason.
    """
    try:
        if not body.isascii():
            # What msgspec passes over, it does not check to be UTF-8.
            body.decode()
        of_many_lines = b"\n" in body or b"\r" in body
        skimmed = _skimmer.decode(msgspec.json.format(body, indent=-1) if of_many_lines else body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # A name cut in the middle of an emoji leaves half a surrogate pair, which msgspec refuses and JSON allows.
        skimmed = _skimmer.decode(text_of(_mended(json.loads(body, parse_float=Decimal))))
    if isinstance(skimmed, list):
        return {"items": text_of(skimmed)}
    return skimmed if isinstance(skimmed, dict) else {}


def _mended(value: object) -> object:
    """Replace half surrogate pairs by U+FFFD: no encoder would take them."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_mended(item) for item in value]
    if isinstance(value, dict):
        return {str(_mended(key)): _mended(item) for key, item in value.items()}
    return value


def _rows(fields: Row, resource: str, where: str) -> list[Row]:
    """Find the rows in a response.

    Raises:
        StopRun: There is no list where one can be: silence about it would look like "nothing happened".
    """
    texts = (fields.get(name) for name in ("items", resource))
    rows = next((text for text in texts if text is not None and bytes(text).startswith(b"[")), None)
    if rows is None:
        msg = (
            f"{where}: Pepper answered 200 without a list under 'items' or '{resource}'; check api_url and api_version"
        )
        raise StopRun(msg)
    try:
        return _rows_decoder.decode(rows)
    except msgspec.ValidationError as error:
        kind = next(type(row).__name__ for row in value_of(rows) if not isinstance(row, dict))
        msg = f"{where}: a row is {kind}, expected an object"
        raise StopRun(msg) from error


def _next_key(fields: Row, where: str) -> str | None:
    """Find the key of the next page, if there is one: in `page`, or beside it."""
    page = value_of(fields.get("page")) or {}
    if not isinstance(page, dict):
        msg = f"{where}: page is {type(page).__name__}, expected an object"
        raise StopRun(msg)
    key = page.get("nextKey", value_of(fields.get("nextKey")))
    if key in (None, False, ""):
        return None
    if not isinstance(key, (str, int)) or key is True:
        msg = f"{where}: page.nextKey is {type(key).__name__}, expected text"
        raise StopRun(msg)
    return str(key)


def _http_date(text: str | None) -> datetime | None:
    """Read an HTTP date; None where there is none, or it is none that a running clock shows."""
    if text is None:
        return None
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    if date.year not in YEARS:
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _retry_after_seconds(headers: Mapping[str, str], now: datetime) -> float | None:
    """How long a response asks to be left alone, in seconds. `Retry-After` is a number of seconds or a date."""
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?", text):
        seconds = float(text)
    elif until := _http_date(text):
        # Both dates are by the server's clock; the local one may be off.
        seconds = (until - (_http_date(headers.get("Date")) or now)).total_seconds()
    else:
        return None
    # No time at all, asked for again and again, would be no wait between the tries.
    return seconds if seconds > 0 else None


def _causes(error: BaseException) -> list[BaseException]:
    """An error and all that it came from. requests and urllib3 keep an error's origin in its arguments, too."""
    chain = [error]
    for link in chain:
        linked = (link.__cause__, link.__context__, getattr(link, "reason", None), *link.args)
        chain.extend(other for other in linked if isinstance(other, BaseException) and other not in chain)
    return chain
