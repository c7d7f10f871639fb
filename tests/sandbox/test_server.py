"""The sandbox over HTTP: keep-alive, transport errors, the world's time, the control endpoints."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from typing import TYPE_CHECKING

import pytest
import requests

from pepper_sandbox.faults import Fault, connection_cut, connection_reset, gzip_cut, not_found, redirected
from pepper_sandbox.server import Sandbox
from pepper_sandbox.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pepper_sandbox.api import Request, Response

NOW = datetime(2026, 10, 1, 12, tzinfo=UTC)


@pytest.fixture
def pepper() -> Iterator[Sandbox]:
    with Sandbox(World(users=20, days=10, now=NOW)) as pepper:
        yield pepper


@pytest.fixture
def client(pepper: Sandbox) -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.headers["Authorization"] = f"Token {pepper.token}"
        session.headers["x-application-id"] = pepper.application_id
        session.headers["x-api-version"] = "10"
        yield session


def test_pages_contain_all_awards(pepper: Sandbox, client: requests.Session) -> None:
    awards: list[dict[str, object]] = []
    key = None
    while key or not awards:
        body = client.get(f"{pepper.url}/awards", params={"limit": "20", "startKey": key}).json()
        awards += body["items"]
        key = body["page"].get("nextKey")
    assert {award["_id"]: award["points"] for award in awards} == pepper.world.balances()


def test_connections_are_kept_alive(pepper: Sandbox) -> None:
    with closing(HTTPConnection("127.0.0.1", int(pepper.url.rpartition(":")[2]))) as connection:
        connection.request("GET", "/perks")
        connection.getresponse().read()
        kept = connection.sock
        connection.request("GET", "/nothing")
        assert connection.getresponse().read()
        assert connection.sock is kept is not None


def test_requests_are_recorded_as_sent(pepper: Sandbox, client: requests.Session) -> None:
    moment = "2026-09-30T00:00:00.000+00:00"
    assert client.get(f"{pepper.url}/awards", params={"updatedAt": moment}).status_code == 200
    (seen,) = pepper.requests
    assert (seen.method, seen.path, seen.query) == ("GET", "/awards", (("updatedAt", moment),))
    assert seen.header("AUTHORIZATION") == "Token sandbox-token"
    assert seen.target == "/awards?updatedAt=2026-09-30T00%3A00%3A00.000%2B00%3A00"


def test_bodies_are_gzipped(pepper: Sandbox, client: requests.Session) -> None:
    packed = client.get(f"{pepper.url}/perks")
    plain = client.get(f"{pepper.url}/perks", headers={"Accept-Encoding": "identity"})
    assert (packed.headers.get("Content-Encoding"), plain.headers.get("Content-Encoding")) == ("gzip", None)
    assert packed.json() == plain.json()


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        pytest.param(connection_reset(), requests.exceptions.ConnectionError, id="reset"),
        pytest.param(connection_cut(), requests.exceptions.ChunkedEncodingError, id="cut"),
        pytest.param(gzip_cut(), ValueError, id="gzip-cut"),
    ],
)
def test_a_transport_error_affects_one_request_only(
    pepper: Sandbox, client: requests.Session, fault: Fault, error: type[Exception]
) -> None:
    pepper.faults = [fault.first(1)]
    with pytest.raises(error):
        client.get(f"{pepper.url}/awards").json()
    assert client.get(f"{pepper.url}/awards").status_code == 200
    assert len(pepper.requests) == 2


def test_a_reset_sends_rst(pepper: Sandbox) -> None:
    pepper.faults = [connection_reset()]
    with socket.create_connection(("127.0.0.1", int(pepper.url.rpartition(":")[2]))) as connection:
        connection.sendall(b"GET /awards HTTP/1.1\r\nHost: pepper\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_a_redirect_leads_to_the_other_host(pepper: Sandbox, client: requests.Session) -> None:
    with Sandbox(World(users=1, days=1, now=NOW)) as elsewhere:
        pepper.faults = [redirected(elsewhere.url)]
        client.get(f"{pepper.url}/perks", params={"limit": "2"})
        assert [request.target for request in elsewhere.requests] == ["/perks?limit=2"]


def test_setting_faults_restarts_the_count_of_requests(pepper: Sandbox, client: requests.Session) -> None:
    def statuses() -> list[int]:
        return [client.get(f"{pepper.url}/perks").status_code for _ in range(2)]

    pepper.faults = [not_found().first(1)]
    assert statuses() == [404, 200]
    pepper.faults = [not_found().nth(2)]
    assert statuses() == [200, 404]
    pepper.faults = []
    assert statuses() == [200, 200]


def test_the_worlds_time_is_fixed_until_it_is_advanced(pepper: Sandbox, client: requests.Session) -> None:
    assert client.get(f"{pepper.url}/perks").headers["Date"] == "Thu, 01 Oct 2026 12:00:00 GMT"
    pepper.advance(timedelta(hours=2))
    assert client.get(f"{pepper.url}/perks").headers["Date"] == "Thu, 01 Oct 2026 14:00:00 GMT"


def test_the_worlds_time_follows_a_clock() -> None:
    seconds = 100.0
    with Sandbox(World(users=5, days=1, now=NOW), clock=lambda: seconds) as pepper:
        requests.get(f"{pepper.url}/perks")
        assert pepper.world.now == NOW
        seconds += 90.5
        requests.post(f"{pepper.url}/_sandbox/advance?seconds=9.5")
        assert pepper.world.now == NOW + timedelta(seconds=100)
        seconds += 0.0004
        requests.get(f"{pepper.url}/perks")
        seconds += 0.0006
        requests.get(f"{pepper.url}/perks")
        assert pepper.world.now == NOW + timedelta(seconds=100.001)


def test_the_true_balances_need_no_token(pepper: Sandbox) -> None:
    present = requests.get(f"{pepper.url}/_sandbox/balances").json()
    assert present == {"at": "2026-10-01T12:00:00.000Z", "balances": pepper.world.balances()}
    past = requests.get(f"{pepper.url}/_sandbox/balances", params={"at": "2026-09-25T00:00:00Z"}).json()
    assert past["balances"] == pepper.world.balances(datetime(2026, 9, 25, tzinfo=UTC))
    assert pepper.requests == []


def test_a_request_advances_the_time(pepper: Sandbox) -> None:
    response = requests.post(f"{pepper.url}/_sandbox/advance?seconds=86400")
    assert response.json() == {"now": "2026-10-02T12:00:00.000Z"}
    assert pepper.world.now == NOW + timedelta(days=1)


def test_a_request_replaces_the_token_and_the_old_one_is_revoked() -> None:
    with Sandbox(World(users=1, days=1, now=NOW), token="old", application_id="shop-b") as pepper:

        def status(token: str) -> int:
            headers = {"Authorization": f"Token {token}", "x-application-id": "shop-b", "x-api-version": "10"}
            return requests.get(f"{pepper.url}/perks", headers=headers).status_code

        assert [status("old"), status("new")] == [200, 401]
        assert requests.post(f"{pepper.url}/_sandbox/token?value=new").json() == {"token": "new"}
        assert [status("old"), status("new")] == [401, 200]


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        pytest.param("POST", "advance", 422, id="no-seconds"),
        pytest.param("POST", "advance?seconds=soon", 422, id="not-a-number"),
        pytest.param("POST", "advance?seconds=-1", 422, id="backwards"),
        pytest.param("POST", "advance?seconds=nan", 422, id="nan"),
        pytest.param("POST", "advance?seconds=1e12", 422, id="too-far"),
        pytest.param("POST", "token?value=", 422, id="no-token"),
        pytest.param("GET", "balances?at=yesterday", 422, id="not-a-timestamp"),
        pytest.param("GET", "advance?seconds=1", 404, id="advance-is-posted"),
        pytest.param("GET", "nothing", 404, id="unknown"),
    ],
)
def test_an_invalid_control_request_changes_nothing(pepper: Sandbox, method: str, target: str, status: int) -> None:
    response = requests.request(method, f"{pepper.url}/_sandbox/{target}")
    assert response.status_code == status
    assert response.json()["message"]
    assert pepper.world.now == NOW


def test_concurrent_clients_see_one_world(pepper: Sandbox, client: requests.Session) -> None:
    def act(turn: int) -> int:
        if turn % 4 == 0:
            return requests.post(f"{pepper.url}/_sandbox/advance?seconds=3600").status_code
        return requests.get(f"{pepper.url}/actions", headers=dict(client.headers)).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(act, range(40))) == {200}
    assert pepper.world.now == NOW + timedelta(hours=10)
    assert len(pepper.requests) == 30


def test_requests_are_answered_one_at_a_time(pepper: Sandbox) -> None:
    inside: list[int] = []
    concurrent: list[int] = []

    def linger(request: Request, answer: Callable[[Request], Response]) -> Response:
        inside.append(1)
        for _ in range(200):
            time.sleep(0)
            concurrent.append(len(inside))
        inside.pop()
        return answer(request)

    pepper.faults = [Fault("lingering", linger)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(requests.get, [f"{pepper.url}/perks"] * 8))
    assert max(concurrent) == 1


def test_leaving_the_block_closes_the_port_and_kept_connections() -> None:
    with requests.Session() as session:
        with Sandbox(World(users=1, days=1, now=NOW)) as pepper:
            assert session.get(f"{pepper.url}/perks").status_code == 401
        with pytest.raises(requests.exceptions.ConnectionError):
            session.get(f"{pepper.url}/perks")
