"""Decide what a failed request means, and repeat the request if a retry can help."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from http import HTTPStatus
from itertools import count
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import urlsplit

import requests
import urllib3.exceptions

from pepper_runtime.wording import counted
from tap_pepper.api.rate_limit import always
from tap_pepper.api.response import decode_fields, parse_http_date, read_body
from tap_pepper.errors import FatalAPIError, FatalRunError, RetriableAPIError, TimeLimitReached
from tap_pepper.raw_json import from_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime
    from threading import Event

    from tap_pepper.api.rate_limit import CanWait, Clock, RateLimiter

T = TypeVar("T")

logger = logging.getLogger("tap-pepper.client")

BACKOFF_SECONDS_FIRST: Final = 1.0
BACKOFF_SECONDS_MAX: Final = 60.0
RETRY_AFTER_SECONDS_MAX: Final = 300.0
REQUEST_SECONDS_MAX: Final = 900.0
"""The longest time that one request may take, with all attempts and waits."""
ERROR_BODY_BYTES_MAX: Final = 64 * 1024
CHECK_ADDRESS: Final = "check api_url and the network, or try later"


@dataclass(frozen=True)
class StatusRule:
    """What an HTTP status means: the error to raise, and what a person can do about it."""

    error: type[RetriableAPIError | FatalAPIError]
    advice: str


_REDIRECT: Final = "redirects are not followed, to keep the token on its host: set api_url to Pepper's own address"

STATUS_RULES: Final[dict[int, StatusRule]] = {
    **dict.fromkeys(range(300, 400), StatusRule(FatalAPIError, _REDIRECT)),
    **dict.fromkeys((301, 302, 303, 307, 308), StatusRule(FatalRunError, _REDIRECT)),
    400: StatusRule(FatalAPIError, "check api_version, page_size and action_types"),
    401: StatusRule(FatalRunError, "check auth_token, and that it belongs to application_id"),
    403: StatusRule(FatalAPIError, "check that auth_token belongs to application_id, and that its role may read this"),
    404: StatusRule(FatalAPIError, "check api_url, and that application_id is the merchant's code"),
    422: StatusRule(FatalAPIError, "check application_id, api_version, page_size and action_types"),
    **dict.fromkeys((408, 425, *range(500, 600)), StatusRule(RetriableAPIError, "try later")),
    429: StatusRule(RetriableAPIError, "run less often, or ask Pepper for a higher limit"),
}
"""The rule for each status other than 200. `OTHER_STATUS` applies to a status that is not listed."""
OTHER_STATUS: Final = StatusRule(FatalAPIError, f"Pepper's API does not use this status: {CHECK_ADDRESS}")

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
"""Parameters that the message in a 422 response may name, and the settings that they come from."""

_SAFE_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")


class Retrier:
    """Sends requests within the rate limit, and repeats them after temporary failures.

    Args:
        limiter: The rate limiter, which all requests of a run share.
        clock: Measures how long all attempts take together.
        jitter: Returns a random number, at least 0 and less than 1.
        max_retries: How many times to repeat a request.
    """

    def __init__(self, limiter: RateLimiter, clock: Clock, jitter: Callable[[], float], max_retries: int) -> None:
        self._limiter = limiter
        self._clock = clock
        self._jitter = jitter
        self._attempts_max = max_retries + 1

    def call(self, attempt: Callable[[int, float], T], *, where: str, cancel: Event, can_wait: CanWait = always) -> T:
        """Call `attempt` until it succeeds.

        Args:
            attempt: Sends the request once. Takes the number of the attempt, from 1, and the time on the monotonic
                clock at which to give up.
            where: Names the request in messages, such as `actions page 7`.
            cancel: Once this is set, waits end at once.
            can_wait: Called before each wait. If it returns False, the request ends.

        Raises:
            FatalAPIError: `attempt` raised this error.
            RetriableAPIError: The last attempt failed, or the next one would begin after `REQUEST_SECONDS_MAX`.
            TimeLimitReached: `can_wait` returned False.
            Cancelled: `cancel` was set.
        """
        started_seconds = self._clock.monotonic()
        deadline_seconds = started_seconds + REQUEST_SECONDS_MAX
        for number in count(1):
            with self._limiter.slot(cancel, can_wait) as throttles_before:
                try:
                    result = attempt(number, deadline_seconds)
                except RetriableAPIError as failure:
                    error = failure
                else:
                    self._limiter.record_success()
                    return result
                wait_seconds = self._wait_seconds(number, error.wait_seconds)
                if error.slow_down:
                    self._limiter.record_throttle(throttles_before)
                    self._limiter.pause(wait_seconds)
            attempts = None
            if number == self._attempts_max:
                attempts = counted(number, "attempt")
            elif self._clock.monotonic() + wait_seconds > deadline_seconds:
                attempts = f"{counted(number, 'attempt')} in {self._clock.monotonic() - started_seconds:,.0f} s"
            if attempts:
                msg = f"{where}: {error} ({attempts}); {error.advice}"
                raise RetriableAPIError(msg, advice=error.advice) from error
            if not can_wait(wait_seconds):
                msg = f"{where}: {error}, and max_run_seconds leaves no time for a retry"
                raise TimeLimitReached(msg) from error
            logger.warning(
                "%s: %s; attempt %d of %d in %.1f s", where, error, number + 1, self._attempts_max, wait_seconds
            )
            if not error.slow_down:
                self._limiter.sleep(wait_seconds, cancel)
        raise AssertionError  # pragma: no cover - the loop has no end

    def _wait_seconds(self, failures: int, requested_seconds: float | None) -> float:
        """Return the wait before the next attempt, in seconds.

        If Pepper requests a wait, return that wait, but at most `RETRY_AFTER_SECONDS_MAX`. Otherwise return a random
        fraction of the backoff, which doubles with each failure up to `BACKOFF_SECONDS_MAX`.
        """
        if requested_seconds is not None:
            return min(requested_seconds, RETRY_AFTER_SECONDS_MAX)
        return self._jitter() * min(BACKOFF_SECONDS_FIRST * 2.0 ** (failures - 1), BACKOFF_SECONDS_MAX)


def error_for_status(
    response: requests.Response, where: str, now: datetime, timed_out: Callable[[], bool]
) -> FatalAPIError | RetriableAPIError:
    """Return the error to raise for a status other than 200.

    Args:
        response: The response. This function reads the body only if the status is 422.
        where: Names the request in error messages.
        now: The current time according to the local clock.
        timed_out: Returns whether to stop reading the body.
    """
    status = response.status_code
    problem = f"Pepper answered {status}"
    rule = STATUS_RULES.get(status, OTHER_STATUS)
    if issubclass(rule.error, RetriableAPIError):
        wait_seconds = parse_retry_after(response.headers, now)
        slow_down = status == HTTPStatus.TOO_MANY_REQUESTS or wait_seconds is not None
        return rule.error(problem, advice=rule.advice, wait_seconds=wait_seconds, slow_down=slow_down)
    advice = rule.advice
    if status == HTTPStatus.UNPROCESSABLE_ENTITY:
        code, settings = _read_validation_error(response, where, timed_out)
        problem += f" {code}" if code else ""
        advice = f"check {settings}" if settings else advice
    if response.is_redirect:
        host = _host_of(response.headers.get("Location", ""))
        problem += f", a redirect to {host}" if host else ", a redirect"
    return rule.error(f"{where}: {problem}; {advice}")


def error_for_exception(
    error: Exception, where: str, api_url: str, timeout_seconds: int
) -> FatalAPIError | RetriableAPIError:
    """Return the error to raise if the HTTP library failed with an exception before the response was complete."""
    host = urlsplit(api_url).netloc
    if isinstance(error, requests.exceptions.SSLError) and "certificate" in str(error).lower():
        return FatalRunError(
            f"{where}: the certificate of {host} is not trusted; check api_url, or set REQUESTS_CA_BUNDLE to a file "
            "with the certificate authority of your network"
        )
    if isinstance(error, requests.exceptions.InvalidURL):
        return FatalRunError(f"{where}: {host} is not a valid host; check api_url")
    if type(error) is OSError and error.strerror is None:
        # The requests library raises such an OSError if the file with the CA certificates is missing.
        return FatalRunError(f"{where}: no CA certificates found; check REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE")
    causes = _causes(error)
    if any(isinstance(cause, (requests.Timeout, urllib3.exceptions.ReadTimeoutError)) for cause in causes):
        problem = f"{host} did not answer within {timeout_seconds} s"
        return RetriableAPIError(problem, advice="raise request_timeout_seconds, or try later")
    if isinstance(error, (urllib3.exceptions.DecodeError, urllib3.exceptions.ProtocolError)):
        return RetriableAPIError("the response was cut off", advice="try later")
    reason = next((cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror), None)
    if isinstance(error, requests.exceptions.ProxyError):
        host, advice = "the proxy", "check the proxy in https_proxy or all_proxy, or try later"
    else:
        advice = CHECK_ADDRESS
    return RetriableAPIError(f"no connection to {host}: {reason or 'it was cut off'}", advice=advice)


def parse_retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Parse `Retry-After`, a number of seconds or a date.

    Returns:
        The wait in seconds; None if the header is missing or invalid, or if the wait is not positive.
    """
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?", text):
        seconds = float(text)
    elif until := parse_http_date(text):
        # Compare with the server's clock where possible, because the local clock may be wrong.
        seconds = (until - (parse_http_date(headers.get("Date")) or now)).total_seconds()
    else:
        return None
    # A wait of 0 s would repeat the request without any pause; use the backoff instead.
    return seconds if seconds > 0 else None


def _read_validation_error(
    response: requests.Response, where: str, timed_out: Callable[[], bool]
) -> tuple[str | None, str]:
    """Read the body of a 422 response: `{"code": "Validation", "message": "…"}`.

    Returns:
        The code, if it is a single word, and the settings that the message is about. The message itself may quote
        personal data, so it is not returned.
    """
    try:
        body = decode_fields(read_body(response, ERROR_BODY_BYTES_MAX, where, timed_out))
        code, message = from_json(body.get("code")), str(from_json(body.get("message"))).lower()
    except (ValueError, RecursionError, FatalAPIError, RetriableAPIError, urllib3.exceptions.HTTPError):
        return None, ""
    settings = dict.fromkeys(setting for name, setting in SETTING_OF_PARAMETER.items() if name in message)
    return code if isinstance(code, str) and _SAFE_CODE.fullmatch(code) else None, ", ".join(settings)


def _host_of(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and all its causes. The HTTP libraries may pass a cause as an argument of an error."""
    chain = [error]
    for link in chain:
        linked = (link.__cause__, link.__context__, getattr(link, "reason", None), *link.args)
        chain.extend(other for other in linked if isinstance(other, BaseException) and other not in chain)
    return chain
