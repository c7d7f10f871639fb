"""The client over real HTTP, against a server with scripted replies."""

from __future__ import annotations

import gzip
import json
import logging
import os
import socket
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
import requests
from requests.adapters import HTTPAdapter

from tap_pepper.api import client as client_module
from tap_pepper.api import response as response_module
from tap_pepper.api.client import PepperClient
from tap_pepper.errors import FatalAPIError, PepperError, RetriableAPIError
from tap_pepper.raw_json import decode_row
from tap_pepper.settings import Settings
from tests.helpers.tap import DATE, NOW, TOKEN, Reply, Script, client_of, config, listing

if TYPE_CHECKING:
    from pathlib import Path

A, B, C, D = ({"_id": name} for name in "abcd")


def rows_of(pepper: Script | str, path: str = "/awards", **settings: Any) -> list[dict[str, Any]]:
    with client_of(pepper if isinstance(pepper, str) else pepper.url, **settings) as (client, _):
        return [decode_row(row) for page in client.pages(path) for row in page.rows]


def failure_of(pepper: Script | str, **settings: Any) -> PepperError:
    with pytest.raises(PepperError) as caught:
        rows_of(pepper, **settings)
    return caught.value


# Requests.


def test_requests_carry_query_parameters_and_headers() -> None:
    with Script(listing(A)) as script, client_of(script.url, api_version=11, page_size=7) as (client, _):
        list(client.pages("/actions", {"when.timestamp.gt": "2026-10-01T11:00:00.000Z", "type.in": "A,B"}))
    (asked,) = script.asked
    assert asked.path == "/actions"
    assert asked.query == {"when.timestamp.gt": "2026-10-01T11:00:00.000Z", "type.in": "A,B", "limit": "7"}
    headers = {name: asked.headers[name] for name in ("authorization", "x-application-id", "x-api-version", "accept")}
    assert headers == {
        "authorization": f"Token {TOKEN}",
        "x-application-id": "the-grill",
        "x-api-version": "11",
        "accept": "application/json",
    }
    assert asked.headers["accept-encoding"] == "gzip, deflate"
    assert asked.headers["user-agent"].startswith("pepper-crm/")


def test_a_netrc_file_does_not_replace_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine api.pepperhq.com login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    sent = []

    class Adapter(HTTPAdapter):
        def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
            sent.append(request.headers["Authorization"])
            raise requests.exceptions.InvalidURL

    def session() -> requests.Session:
        session = requests.Session()
        session.mount("https://", Adapter())
        return session

    client = PepperClient(Settings.from_config(config("https://api.pepperhq.com")), session=session)
    with pytest.raises(PepperError):
        list(client.pages("/awards"))
    assert sent == [f"Token {TOKEN}"]


def test_requests_to_this_machine_bypass_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with Script(listing(A)) as script:
        assert rows_of(script) == [A]


def test_the_error_for_an_unreachable_proxy_names_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://somebody:s3cret@127.0.0.1:9")
    assert str(failure_of("https://api.pepperhq.com", max_retries=0)) == (
        "awards page 1: no connection to the proxy: Connection refused (1 attempt); "
        "check the proxy in https_proxy or all_proxy, or try later"
    )


def test_a_missing_file_of_ca_certificates_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere")
    assert str(failure_of("https://api.pepperhq.com")) == (
        "awards page 1: no CA certificates found; check REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE"
    )


# Pages.


def test_paging_follows_only_the_next_key() -> None:
    key = "eyJfaWQiOiJiIn0+/=&"
    pages = [
        Reply({"items": [A], "page": {"count": 1, "limit": 1, "startKey": "own", "nextKey": key}}),
        Reply({"items": [B], "page": {"count": 1, "limit": 1, "startKey": key}}),
    ]
    with Script(*pages) as script:
        assert rows_of(script, page_size=1) == [A, B]
    assert [asked.query.get("startKey") for asked in script.asked] == [None, key]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"items": [A]}, id="no-page"),
        pytest.param({"items": [A], "page": None}, id="page-null"),
        pytest.param({"items": [A], "page": {}}, id="page-empty"),
        pytest.param({"items": [A], "page": {"nextKey": None}}, id="nextKey-null"),
        pytest.param({"items": [A], "page": {"nextKey": ""}}, id="nextKey-empty"),
        pytest.param({"awards": [A], "page": {"count": 1}}, id="list-under-its-own-name"),
        pytest.param([A], id="bare-list"),
    ],
)
def test_the_last_page_is_recognized_in_every_form(body: object) -> None:
    with Script(Reply(body)) as script:
        assert rows_of(script) == [A]
    assert len(script.asked) == 1


def test_rows_may_be_listed_under_the_last_part_of_the_path() -> None:
    with Script(listing(A, key="actions")) as script:
        assert rows_of(script, "/users/5f/actions") == [A]


def test_a_next_key_at_the_top_level_is_followed() -> None:
    with Script(Reply({"items": [A], "nextKey": "1"}), Reply({"items": [B], "nextKey": None})) as script:
        assert rows_of(script) == [A, B]


def test_a_next_key_that_is_null_in_page_may_be_at_the_top_level() -> None:
    with Script(Reply({"items": [A], "page": {"nextKey": None}, "nextKey": "1"}), listing(B)) as script:
        assert rows_of(script) == [A, B]


@pytest.mark.parametrize(
    "lists",
    [
        pytest.param({"items": [], "awards": [A, B]}, id="items-are-empty"),
        pytest.param({"items": [A, B], "awards": []}, id="awards-are-empty"),
        pytest.param({"items": [A, B], "awards": [A, B]}, id="both-are-the-same"),
    ],
)
def test_of_two_lists_the_one_with_rows_counts(lists: dict[str, Any]) -> None:
    with Script(Reply(lists)) as script:
        assert rows_of(script) == [A, B]


@pytest.mark.parametrize(
    ("count", "warned"), [(2, False), (3, True), (5000, False), (None, False), ("3", False), (True, False)]
)
def test_a_page_with_fewer_rows_than_its_count_causes_a_warning(
    count: object, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A count above the page size is the total of all pages."""
    with Script(Reply({"items": [A, B], "page": {"count": count}})) as script:
        assert rows_of(script) == [A, B]
    assert ("rows may be missing" in caplog.text) == warned
    assert ("awards page 1: Pepper sent 2 rows, but its count is 3" in caplog.text) == warned


def test_an_empty_page_in_the_middle_is_not_the_end() -> None:
    with Script(listing(A, next_key="1"), listing(next_key="2"), listing(B)) as script:
        assert rows_of(script) == [A, B]


def test_a_row_repeated_at_the_start_of_the_next_page_is_returned_once() -> None:
    with Script(listing(A, B, next_key="1"), listing(next_key="2"), listing(B, C)) as script:
        assert rows_of(script) == [A, B, C]


def test_a_row_that_changed_between_two_pages_is_returned_twice() -> None:
    older, newer = {"_id": "a", "points": 1}, {"_id": "a", "points": 2}
    with Script(listing(older, next_key="1"), listing(newer)) as script:
        assert rows_of(script) == [older, newer]


@pytest.mark.parametrize(
    ("keys", "requests"),
    [
        pytest.param(["1", "1"], 2, id="the-same-key-twice"),
        pytest.param(["1", "2", "3", "1"], 4, id="a-longer-cycle"),
    ],
)
def test_a_cycle_of_pages_is_an_error(keys: list[str], requests: int) -> None:
    with Script(*(listing(A, next_key=key) for key in keys)) as script:
        error = failure_of(script)
    assert "the same nextKey twice" in str(error)
    assert len(script.asked) == requests


def test_the_number_of_pages_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "PAGES_MAX", 3)
    with Script(*(listing(A, next_key=key) for key in range(1, 9))) as script:
        assert "more than 3 pages" in str(failure_of(script))
    assert len(script.asked) == 3


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param({"status": "OK"}, "without a list under 'items' or 'awards'", id="no-list"),
        pytest.param({"items": None}, "without a list", id="list-null"),
        pytest.param({"items": {"a": 1}}, "without a list", id="list-is-an-object"),
        pytest.param("OK", "without a list", id="only-text"),
        pytest.param({"items": [A, None]}, "a row is null, expected an object", id="a-row-is-null"),
        pytest.param({"items": ["a"]}, "a row is text, expected an object", id="a-row-is-text"),
        pytest.param(
            {"items": [A], "page": {"nextKey": {"_id": "b"}}},
            "nextKey is an object, expected text",
            id="nextKey-is-an-object",
        ),
        pytest.param(
            {"items": [A], "page": {"nextKey": True}}, "nextKey is a boolean, expected text", id="nextKey-is-true"
        ),
        pytest.param({"items": [A], "awards": [B]}, "the rows under 'items' and 'awards' differ", id="two-lists"),
        pytest.param({"items": [A], "page": [1]}, "page is a list, expected an object", id="page-is-a-list"),
        pytest.param({"items": [A], "page": 1}, "page is a number, expected an object", id="page-is-a-number"),
    ],
)
def test_a_response_of_the_wrong_shape_is_an_error_instead_of_an_empty_page(body: object, message: str) -> None:
    with Script(Reply(body)) as script:
        error = failure_of(script)
    assert isinstance(error, FatalAPIError)
    assert str(error).startswith("awards page 1: ")
    assert message in str(error)
    assert len(script.asked) == 1


# Bodies.


def test_decimals_keep_their_digits() -> None:
    body = b'{"items": [{"_id": "a", "points": 0.10, "more": [12345678901234567890.25, 7, 36893488147419103232]}]}'
    with Script(Reply(body)) as script:
        (row,) = rows_of(script)
    assert row["more"] == [Decimal("12345678901234567890.25"), 7, 36893488147419103232]
    assert str(row["points"]) == "0.10"


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r"])
def test_fields_contain_no_line_breaks(line_break: str) -> None:
    row = {"_id": "a", "when": {"timestamp": "x", "tags": [1, {"b": "\n"}]}}
    body = json.dumps({"items": [row]}, indent=2).replace("\n", line_break).encode()
    with Script(Reply(body)) as script, client_of(script.url) as (client, _):
        (page,) = client.pages("/awards")
    assert [decode_row(row) for row in page.rows] == [row]
    assert not {b"\n", b"\r"} & {bytes([byte]) for byte in bytes(page.rows[0]["when"])}


def test_numbers_that_json_does_not_have_become_text() -> None:
    body = b'{"items": [{"_id": "a", "points": NaN, "more": [-Infinity, 0.10]}]}'
    with Script(Reply(body)) as script:
        assert rows_of(script) == [{"_id": "a", "points": "NaN", "more": ["-Infinity", Decimal("0.10")]}]


def test_a_lone_surrogate_is_replaced() -> None:
    body = rb'{"items": [{"_id": "a", "name": "Tom \ud83d", "\ude00": 0.10}, {"_id": "b", "name": "\ud83d\ude00"}]}'
    with Script(Reply(body)) as script:
        assert rows_of(script) == [
            {"_id": "a", "name": "Tom �", "�": Decimal("0.10")},
            {"_id": "b", "name": "😀"},
        ]


def test_gzip_is_decompressed() -> None:
    body = gzip.compress(json.dumps({"items": [A]}).encode())
    with Script(Reply(body, headers={"Content-Encoding": "gzip"})) as script:
        assert rows_of(script) == [A]


def test_a_decompressed_body_over_the_limit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "BODY_BYTES_MAX", 100_000)
    bomb = gzip.compress(b" " * 10_000_000)
    with Script(Reply(bomb, headers={"Content-Encoding": "gzip"})) as script:
        assert "larger than 100,000 bytes" in str(failure_of(script))


def test_a_compressed_body_over_the_limit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_module, "COMPRESSED_BYTES_MAX", 10_000)
    body = gzip.compress(json.dumps({"items": [{"_id": os.urandom(20_000).hex()}]}).encode())
    with Script(Reply(body, headers={"Content-Encoding": "gzip"})) as script:
        assert "larger than 10,000 bytes" in str(failure_of(script))


# Failures.

GZIP = {"Content-Encoding": "gzip"}
HTML = b"<html>Back soon, Tom Jones</html>"
CUT = gzip.compress(json.dumps({"items": [A, B, C, D] * 100}).encode())[:60]


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(Reply(status=429), id="429"),
        pytest.param(Reply(status=408), id="408"),
        pytest.param(Reply(HTML, status=500), id="500"),
        pytest.param(Reply(HTML, status=502), id="502"),
        pytest.param(Reply(HTML, status=503), id="503"),
        pytest.param(Reply(HTML), id="200-with-html"),
        pytest.param(Reply(b""), id="200-with-nothing"),
        pytest.param(Reply(b'{"items": [{"_id"'), id="json-cut-short"),
        pytest.param(Reply(b"\xff\xfe"), id="not-text"),
        pytest.param(Reply(b'{"items": [{"_id": "a", "name": "T\xf6m"}]}'), id="not-utf-8-inside"),
        pytest.param(Reply(b"[" * 100_000), id="nested-too-deeply"),
        pytest.param(Reply(CUT, headers=dict(GZIP)), id="gzip-cut-short"),
        pytest.param(Reply(b"not gzip", headers=dict(GZIP)), id="not-gzip"),
        pytest.param(Reply(b"{", headers={"Content-Length": "99", "Connection": "close"}), id="connection-cut"),
    ],
)
def test_a_temporary_failure_is_retried(reply: Reply) -> None:
    with (
        Script(reply, reply, listing(A)) as script,
        client_of(script.url, request_timeout_seconds=1) as (client, waits),
    ):
        assert [decode_row(row) for page in client.pages("/awards") for row in page.rows] == [A]
    assert len(waits) == 2


@pytest.mark.parametrize(
    ("status", "message"),
    [
        pytest.param(400, "check api_version, page_size and action_types", id="400"),
        pytest.param(401, "check auth_token", id="401"),
        pytest.param(403, "its role may read this", id="403"),
        pytest.param(404, "check api_url, and that application_id is the merchant's code", id="404"),
        pytest.param(422, "check application_id, api_version", id="422"),
        pytest.param(204, "Pepper's API does not use this status", id="204"),
        pytest.param(418, "Pepper's API does not use this status", id="418"),
    ],
)
def test_a_permanent_failure_is_not_retried_and_the_error_says_what_to_do(status: int, message: str) -> None:
    with Script(Reply(HTML if status != 204 else b"", status=status)) as script:
        error = failure_of(script)
    assert isinstance(error, FatalAPIError)
    assert str(error).startswith(f"awards page 1: Pepper answered {status}")
    assert message in str(error)
    assert "Tom Jones" not in str(error)
    assert len(script.asked) == 1


@pytest.mark.parametrize(
    ("body", "line"),
    [
        pytest.param(
            {"code": "Validation", "message": "limit 5000 of tom@example.com is too large"},
            "awards page 1: Pepper answered 422 Validation; check page_size",
            id="the-limit",
        ),
        pytest.param(
            {"code": "Validation", "message": "when.timestamp.gt or type.in"},
            "awards page 1: Pepper answered 422 Validation; check start_date and window_hours, action_types",
            id="two-parameters",
        ),
        pytest.param(
            {"code": "tom@example.com", "message": "?"},
            "awards page 1: Pepper answered 422; check application_id, api_version, page_size and action_types",
            id="an-unsafe-code",
        ),
        pytest.param(
            ["limit"],
            "awards page 1: Pepper answered 422; check application_id, api_version, page_size and action_types",
            id="another-shape",
        ),
    ],
)
def test_the_error_for_a_422_names_the_setting_without_quoting_the_message(body: object, line: str) -> None:
    with Script(Reply(body, status=422)) as script:
        assert str(failure_of(script)) == line


def test_a_redirect_is_not_followed() -> None:
    with Script(listing(A)) as other, Script(Reply(status=307, headers={"Location": other.url})) as script:
        error = failure_of(script)
    assert "a redirect to 127.0.0.1; redirects are not followed" in str(error)
    assert other.asked == []


def test_the_tap_does_not_read_the_body_of_a_redirect() -> None:
    never = {"Location": "https://elsewhere.example", "Content-Length": "5"}
    with Script(Reply(b"", status=302, headers=dict(never))) as script:
        error = failure_of(script, request_timeout_seconds=1, max_retries=0)
    assert "a redirect to elsewhere.example" in str(error)


def test_a_redirect_to_an_invalid_address_is_reported_like_any_redirect() -> None:
    with Script(Reply(status=302, headers={"Location": "http://[::no-address"})) as script:
        error = failure_of(script)
    assert "Pepper answered 302, a redirect; redirects are not followed" in str(error)


def test_a_persistent_failure_is_reported_after_the_last_retry() -> None:
    with Script(Reply(status=503)) as script:
        error = failure_of(script, max_retries=3)
    assert isinstance(error, RetriableAPIError)
    assert str(error) == "awards page 1: Pepper answered 503 (4 attempts); try later"
    assert len(script.asked) == 4


def test_backoff_doubles_up_to_a_limit() -> None:
    with (
        Script(*[Reply(status=503)] * 9, listing(A)) as script,
        client_of(script.url, max_retries=9) as (client, waits),
    ):
        list(client.pages("/awards"))
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_backoff_has_full_jitter() -> None:
    with Script(Reply(status=503), listing(A)) as script, client_of(script.url, jitter=0.25) as (client, waits):
        list(client.pages("/awards"))
    assert waits == [0.25]


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        pytest.param({"Retry-After": "7"}, 7, id="seconds"),
        pytest.param({"Retry-After": "0"}, 1, id="zero"),
        pytest.param({"Retry-After": "Thu, 01 Oct 2026 12:00:20 GMT"}, 20, id="a-date-after-the-response's"),
        pytest.param(
            {"Retry-After": "Thu, 01 Oct 2026 12:00:20 GMT", "Date": None}, 20, id="a-date-by-the-local-clock"
        ),
        pytest.param(
            {"Retry-After": "Thu, 01 Oct 2026 15:00:20 GMT", "Date": "Thu, 01 Oct 2026 15:00:00 GMT"},
            20,
            id="a-date-by-a-clock-three-hours-ahead",
        ),
        pytest.param({"Retry-After": "Thu, 01 Oct 2026 11:00:00 GMT"}, 1, id="a-date-in-the-past"),
        pytest.param({"Retry-After": "86400"}, 300, id="no-longer-than-the-limit"),
        pytest.param({"Retry-After": "10000000000"}, 300, id="a-number-of-any-length"),
        pytest.param({"Retry-After": "soon"}, 1, id="a-word"),
        pytest.param({"Retry-After": "-5"}, 1, id="negative"),
        pytest.param({"Retry-After": "inf"}, 1, id="infinite"),
        pytest.param({}, 1, id="absent"),
    ],
)
def test_retry_after_is_respected(headers: dict[str, str | None], wait: float) -> None:
    with Script(Reply(status=429, headers=headers), listing(A)) as script, client_of(script.url) as (client, waits):
        list(client.pages("/awards"))
    assert waits == [wait]


def test_the_error_for_an_unreachable_host_names_the_host_and_the_reason() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        error = failure_of(f"http://{address}", max_retries=1)
    assert str(error) == (
        f"awards page 1: no connection to {address}: Connection refused (2 attempts); "
        "check api_url and the network, or try later"
    )


def test_a_host_that_does_not_answer_times_out() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        error = failure_of(f"http://127.0.0.1:{silent.getsockname()[1]}", max_retries=0, request_timeout_seconds=1)
    assert "did not answer within 1 s (1 attempt); raise request_timeout_seconds" in str(error)


def test_logs_and_errors_contain_neither_token_nor_body(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    replies = [Reply(HTML, status=500), Reply(HTML), Reply({"code": "x", "message": "Tom Jones"}, status=401)]
    with Script(*replies) as script:
        output = f"{failure_of(script)!r} {caplog.text}"
    assert TOKEN not in output
    assert "Tom Jones" not in output
    assert "Pepper answered 500; attempt 2 of 9" in output


# The clock.


def test_the_server_time_is_the_date_header() -> None:
    with (
        Script(Reply(headers={"Date": "Thu, 01 Oct 2026 09:00:00 GMT"})) as script,
        client_of(script.url) as (client, _),
    ):
        assert client.server_time("/awards").isoformat() == "2026-10-01T09:00:00+00:00"
    assert script.asked[0].query == {"limit": "1"}


@pytest.mark.parametrize(
    "date",
    [
        pytest.param(None, id="no-date"),
        pytest.param("yesterday", id="not-a-date"),
        pytest.param("Thu, 01 Jan 1970 00:00:07 GMT", id="a-clock-that-was-never-set"),
        pytest.param("Fri, 31 Dec 9999 23:59:59 -1200", id="the-latest-date"),
    ],
)
def test_the_local_clock_is_used_without_a_valid_date(date: str | None, caplog: pytest.LogCaptureFixture) -> None:
    with Script(Reply(headers={"Date": date})) as script, client_of(script.url) as (client, _):
        assert client.server_time("/awards") == NOW
    assert "using the local clock" in caplog.text


@pytest.mark.parametrize(
    ("date", "warned"),
    [pytest.param(DATE, False, id="same"), pytest.param("Thu, 01 Oct 2026 11:58:00 GMT", True, id="two-minutes-off")],
)
def test_a_clock_difference_is_logged(date: str, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    with Script(Reply(headers={"Date": date})) as script, client_of(script.url) as (client, _):
        client.server_time("/awards")
    assert ("local clock is 2 min ahead of Pepper's" in caplog.text) is warned
