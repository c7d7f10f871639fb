"""Read the pages of Pepper's list endpoints."""

from __future__ import annotations

import logging
import random
import threading
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import requests
import urllib3.exceptions
from requests.auth import AuthBase

from pepper_runtime import telemetry
from pepper_runtime.wording import counted, duration
from tap_pepper.api.rate_limit import RateLimiter, SystemClock, always
from tap_pepper.api.response import BODY_BYTES_MAX, Page, parse_http_date, parse_page, read_body
from tap_pepper.api.retry import Retrier, error_for_exception, error_for_status
from tap_pepper.errors import FatalAPIError
from tap_pepper.settings import default_user_agent, is_loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime
    from threading import Event

    from pepper_runtime.otlp import Attributes
    from tap_pepper.api.rate_limit import CanWait, Clock
    from tap_pepper.raw_json import Row
    from tap_pepper.settings import Settings

logger = logging.getLogger("tap-pepper.client")

PAGES_MAX: Final = 1_000_000
"""A query may have at most this many pages. To detect a cycle, the client keeps the key of each page in memory."""
SKEW_QUIET: Final = timedelta(seconds=60)
"""The tap warns only if the local clock differs from Pepper's by more than this."""


class _Token(AuthBase):
    """Adds the token to a request. If a session had no `auth`, the library would send a password from ~/.netrc."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Token {self._token}"
        return request


@dataclass
class Traffic:
    """The number of pages that were read from one endpoint, and the number of retries."""

    pages: int = 0
    retries: int = 0


class PepperClient:
    """Reads Pepper's list endpoints.

    It is thread-safe: each thread has its own session, and all threads share a rate limiter.

    Args:
        settings: The settings of the run.
        clock: The local clock.
        jitter: Returns a random number, at least 0 and less than 1.
        session: Creates an HTTP session. Called once per thread.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        jitter: Callable[[], float] = random.random,
        session: Callable[[], requests.Session] = requests.Session,
    ) -> None:
        self._settings = settings
        self.clock: Clock = SystemClock() if clock is None else clock
        self.limiter = RateLimiter(settings.concurrency, self.clock)
        self._retrier = Retrier(self.limiter, self.clock, jitter, settings.max_retries)
        self._new_session = session
        self._thread = threading.local()
        self._sessions: list[requests.Session] = []
        self._lock = threading.Lock()
        self._traffic: dict[str, Traffic] = {}
        self._never = threading.Event()

    @property
    def _session(self) -> requests.Session:
        """This thread's HTTP session, which is created on first use."""
        session: requests.Session | None = getattr(self._thread, "session", None)
        if session is None:
            session = self._thread.session = self._new_session()
            session.auth = _Token(self._settings.auth_token)
            # Even with `allow_redirects=False`, the library looks for the target of a redirect. If it finds one, it
            # reads the redirect's whole body. So make it find none.
            session.get_redirect_target = lambda _: None  # type: ignore[assignment, method-assign]
            # If Pepper's API runs on this machine, use no proxy from the environment. Otherwise the token would
            # leave this machine unencrypted.
            session.trust_env = not is_loopback(urlsplit(self._settings.api_url).hostname or "")
            session.headers.update(
                {
                    "x-application-id": self._settings.application_id,
                    "x-api-version": str(self._settings.api_version),
                    "Accept": "application/json",
                    "Accept-Encoding": "gzip, deflate",
                    "User-Agent": self._settings.user_agent or default_user_agent(),
                }
            )
            with self._lock:
                self._sessions.append(session)
        return session

    def close(self) -> None:
        """Close the connections of all threads."""
        with self._lock:
            for session in self._sessions:
                session.close()

    def traffic(self, path: str) -> Traffic:
        """Return the counters of an endpoint: its pages, and the retries that were needed to read them."""
        with self._lock:
            return self._traffic.setdefault(_resource_of(path), Traffic())

    def server_time(self, path: str, params: Mapping[str, str] | None = None) -> datetime:
        """Request one row, and return the response's `Date`, or the local time if there is no `Date`.

        Raises:
            PepperError: For the same reasons as in `pages`.
        """
        where = f"{_resource_of(path)} first request"
        date = self._get_page(path, {**(params or {}), "limit": "1"}, where=where, cancel=self._never).date
        now = self.clock.now()
        if date is None:
            logger.warning("Pepper's responses have no Date header; using the local clock")
            return now
        if abs(now - date) > SKEW_QUIET:
            skew = duration(abs(now - date))
            direction = "ahead of" if now > date else "behind"
            logger.warning("local clock is %s %s Pepper's; using Pepper's", skew, direction)
        return date

    def pages(
        self,
        path: str,
        params: Mapping[str, str] | None = None,
        cancel: Event | None = None,
        can_wait: CanWait = always,
    ) -> Iterator[Page]:
        """Read all pages of a query.

        Args:
            path: The endpoint, such as `/actions`.
            params: Query parameters, except those for paging.
            cancel: Once this is set, the read ends before the next request, and waits end at once.
            can_wait: Called before each wait that Pepper requests and before each retry. If it returns False, the read
                ends.

        Yields:
            Each page as it arrives, without rows that repeat the last row of the page before.

        Raises:
            FatalAPIError: The response is unusable, and a retry cannot help.
            RetriableAPIError: The request still failed after `max_retries` retries, or after `REQUEST_SECONDS_MAX`.
            Cancelled: `cancel` was set.
            TimeLimitReached: `can_wait` returned False.
        """
        query = {**(params or {}), "limit": str(self._settings.page_size)}
        resource = _resource_of(path)
        cancel = cancel or self._never
        keys: set[str] = set()
        last: Row | None = None
        for number in range(1, PAGES_MAX + 1):
            where = f"{resource} page {number}"
            page = self._get_page(path, query, where=where, cancel=cancel, can_wait=can_wait)
            if page.count is not None and len(page.rows) < page.count <= self._settings.page_size:
                logger.warning(
                    "%s: Pepper sent %s, but its count is %d; rows may be missing",
                    where,
                    counted(len(page.rows), "row"),
                    page.count,
                )
            next_last = dict(page.rows[-1]) if page.rows else last
            rows = page.rows if last is None else [row for row in page.rows if row != last]
            yield Page(rows, page.next_key, page.date)
            last = next_last
            if page.next_key is None:
                return
            if page.next_key in keys:
                msg = f"{where}: Pepper sent the same nextKey twice, so the pages form a cycle; try later"
                raise FatalAPIError(msg)
            keys.add(page.next_key)
            query["startKey"] = page.next_key
        msg = f"{resource}: more than {PAGES_MAX:,} pages; lower window_hours or raise page_size"
        raise FatalAPIError(msg)

    def _get_page(
        self, path: str, params: Mapping[str, str], *, where: str, cancel: Event, can_wait: CanWait = always
    ) -> Page:
        """Request one page, with retries."""
        resource, traffic = _resource_of(path), self.traffic(path)

        def attempt(number: int, deadline_seconds: float) -> Page:
            if number > 1:
                with self._lock:
                    traffic.retries += 1
            attributes: Attributes = {
                "http.request.method": "GET",
                "http.request.resend_count": number - 1,
                "pepper.where": where,
            }
            with telemetry.span(f"GET {resource}", attributes, is_client=True):
                return self._request(path, params, where=where, deadline_seconds=deadline_seconds)

        page = self._retrier.call(attempt, where=where, cancel=cancel, can_wait=can_wait)
        with self._lock:
            traffic.pages += 1
        return page

    def _request(self, path: str, params: Mapping[str, str], *, where: str, deadline_seconds: float) -> Page:
        """Send one request, and parse its response."""
        api_url, timeout_seconds = self._settings.api_url, self._settings.request_timeout_seconds
        try:
            with self._session.get(
                api_url + path, params=dict(params), timeout=timeout_seconds, allow_redirects=False, stream=True
            ) as response:
                telemetry.set_attributes({"http.response.status_code": response.status_code})
                if response.status_code != HTTPStatus.OK:
                    error_deadline_seconds = self.clock.monotonic() + timeout_seconds
                    raise error_for_status(
                        response, where, self.clock.now(), lambda: self.clock.monotonic() > error_deadline_seconds
                    )
                body = read_body(response, BODY_BYTES_MAX, where, lambda: self.clock.monotonic() > deadline_seconds)
                date = parse_http_date(response.headers.get("Date"))
        except (OSError, urllib3.exceptions.HTTPError) as error:
            raise error_for_exception(error, where, api_url, timeout_seconds) from error
        return parse_page(body, date, resource=_resource_of(path), where=where)


def _resource_of(path: str) -> str:
    """Return the last part of a path, which names its rows: `/users/5f/actions` → `actions`."""
    return path.rsplit("/", 1)[-1]
