"""`respond` follows Pepper's documentation: page keys, filters, headers, errors."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from pepper_sandbox.api import Request, Response, id_of, key_of, respond
from pepper_sandbox.world import World

NOW = datetime(2026, 10, 1, 12, tzinfo=UTC)
HEADERS = {"Authorization": "Token sandbox-token", "X-Application-Id": "pepper-mill", "x-api-version": "10"}


@pytest.fixture(scope="module")
def world() -> World:
    return World(users=40, days=20, now=NOW)


def ask(world: World, target: str, **headers: str | None) -> Response:
    merged = HEADERS | {name.replace("_", "-"): value for name, value in headers.items()}
    return respond(
        world, Request.parse("GET", target, {name: value for name, value in merged.items() if value is not None})
    )


def pages(world: World, target: str) -> list[dict[str, Any]]:
    found = [ask(world, target).payload()]
    while key := found[-1]["page"].get("nextKey"):
        found.append(ask(world, f"{target}&startKey={key}").payload())
    return found


def rows(world: World, target: str) -> list[dict[str, Any]]:
    return [row for page in pages(world, target) for row in page.get("items", page.get("actions"))]


def iso(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03}Z"


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        pytest.param("/perks", 1, id="perks-one-by-one"),
        pytest.param("/perks", 4, id="perks-exactly-one-page"),
        pytest.param("/awards", 7, id="awards"),
        pytest.param("/users", 9, id="users"),
        pytest.param("/actions", 150, id="actions"),
        pytest.param("/actions", 100_000, id="actions-beyond-the-largest-page"),
    ],
)
def test_pages_contain_every_record_exactly_once(world: World, path: str, limit: int) -> None:
    everything = {
        "/perks": world.perks,
        "/awards": world.awards,
        "/users": world.users,
        "/actions": world.actions,
    }[path]
    assert rows(world, f"{path}?limit={limit}") == list(everything())


def test_the_actions_of_a_user_are_paged_too(world: World) -> None:
    user_id = next(world.users())["_id"]
    own = [action for action in world.actions() if action["context"]["user"]["_id"] == user_id]
    assert len(own) > 5
    assert rows(world, f"/users/{user_id}/actions?limit=5") == own


def test_the_next_key_refers_to_the_first_record_of_the_next_page_and_the_last_page_has_none(world: World) -> None:
    first, second, *_, last = pages(world, "/awards?limit=7")
    assert first["page"] == {
        "count": 7,
        "limit": 7,
        "startKey": first["page"]["startKey"],
        "nextKey": first["page"]["nextKey"],
    }
    assert id_of(first["page"]["nextKey"]) == second["items"][0]["_id"]
    assert first["page"]["nextKey"].startswith("eyJfaWQi")
    assert "=" not in first["page"]["nextKey"]
    assert "nextKey" not in last["page"]
    assert id_of(last["page"]["startKey"]) == last["items"][0]["_id"]


def test_an_empty_page_has_no_keys(world: World) -> None:
    target = f"/actions?when.timestamp.gt={iso(NOW)}"
    assert ask(world, target).payload() == {"actions": [], "page": {"count": 0, "limit": 100}}


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        pytest.param("", 100, id="default"),
        pytest.param("limit=3", 3, id="requested"),
        pytest.param("limit=9999", 1000, id="capped"),
    ],
)
def test_the_limit_bounds_the_rows_of_a_page(world: World, limit: str, expected: int) -> None:
    page = ask(world, f"/actions?{limit}").payload()
    assert (page["page"]["count"], page["page"]["limit"], len(page["actions"])) == (expected, expected, expected)


@pytest.mark.parametrize(
    ("target", "headers", "status", "code"),
    [
        pytest.param("/awards", {"Authorization": None}, 401, "Unauthorized", id="no-token"),
        pytest.param("/awards", {"Authorization": "Token other"}, 401, "Unauthorized", id="wrong-token"),
        pytest.param("/awards", {"Authorization": "Bearer sandbox-token"}, 401, "Unauthorized", id="wrong-scheme"),
        pytest.param("/nothing", {"Authorization": None}, 401, "Unauthorized", id="without-a-token-paths-stay-hidden"),
        pytest.param("/awards", {"X_Application_Id": None}, 403, "Forbidden", id="no-merchant"),
        pytest.param("/awards", {"X_Application_Id": "other"}, 403, "Forbidden", id="wrong-merchant"),
        pytest.param("/awards", {"x_api_version": None}, 422, "Validation", id="no-version"),
        pytest.param("/awards", {"x_api_version": "v8"}, 422, "Validation", id="version-not-a-number"),
        pytest.param("/awards", {"x_api_version": "7"}, 422, "Validation", id="version-too-low"),
        pytest.param("/actions", {"x_api_version": "8"}, 422, "Validation", id="version-too-low-for-actions"),
        pytest.param("/nothing", {}, 404, "NotFound", id="unknown-path"),
        pytest.param("/awards/", {}, 404, "NotFound", id="trailing-slash"),
        pytest.param("/users/nobody/actions", {}, 404, "NotFound", id="unknown-user"),
        pytest.param("/awards?limit=0", {}, 422, "Validation", id="limit-0"),
        pytest.param("/awards?limit=many", {}, 422, "Validation", id="limit-not-a-number"),
        pytest.param("/awards?startKey=!", {}, 422, "Validation", id="key-not-base64"),
        pytest.param("/awards?startKey=WzFd", {}, 422, "Validation", id="key-without-id"),
        pytest.param("/awards?updatedAt=yesterday", {}, 422, "Validation", id="updatedAt-not-a-timestamp"),
        pytest.param("/awards?updatedAt=2026-10-01T00:00:00+00:00", {}, 422, "Validation", id="plus-not-encoded"),
        pytest.param("/users?updatedAfter=2026-10-01", {}, 422, "Validation", id="date-instead-of-timestamp"),
        pytest.param("/actions?when.timestamp.gte=2026-10-01T00:00:00Z", {}, 422, "Validation", id="no-gte"),
        pytest.param("/actions?when.timestamp.gt=2026-13-01T00:00:00Z", {}, 422, "Validation", id="month-13"),
        pytest.param("/actions?type.eq=CHECK_IN", {}, 422, "Validation", id="no-type-eq"),
    ],
)
def test_an_invalid_request_is_rejected(
    world: World, target: str, headers: dict[str, str | None], status: int, code: str
) -> None:
    response = ask(world, target, **headers)
    assert (response.status, response.payload()["code"]) == (status, code)
    assert response.payload()["message"]


def test_only_get_is_allowed(world: World) -> None:
    assert respond(world, Request("POST", "/awards", (), HEADERS)).status == 405


def test_the_credentials_are_configurable(world: World) -> None:
    headers = {**HEADERS, "Authorization": "Token t", "X-Application-Id": "a"}
    assert respond(world, Request("GET", "/perks", (), headers), token="t", application_id="a").status == 200


def test_adjacent_time_windows_contain_each_action_once(world: World) -> None:
    moments = [action["when"]["timestamp"] for action in world.actions()]
    bounds = [moments[0], moments[len(moments) // 3], moments[len(moments) // 2], moments[-1]]
    windows = [
        rows(world, f"/actions?when.timestamp.gt={after}&when.timestamp.lte={until}")
        for after, until in pairwise(bounds)
    ]
    together = [action["_id"] for window in windows for action in window]
    assert together == [action["_id"] for action in world.actions() if action["when"]["timestamp"] > bounds[0]]


@pytest.mark.parametrize(
    ("query", "is_wanted"),
    [
        pytest.param("type=CHECK_IN", lambda kind: kind == "CHECK_IN", id="one"),
        pytest.param("type.in=CHECK_IN,REDEEM_PERK", lambda kind: kind in {"CHECK_IN", "REDEEM_PERK"}, id="in"),
        pytest.param("type.nin=CHECK_IN,REDEEM_PERK", lambda kind: kind not in {"CHECK_IN", "REDEEM_PERK"}, id="nin"),
        pytest.param("type.in=NOTHING", lambda _: False, id="none"),
    ],
)
def test_actions_are_filtered_by_type(world: World, query: str, is_wanted) -> None:
    expected = [action for action in world.actions() if is_wanted(action["type"])]
    assert rows(world, f"/actions?{query}") == expected


@pytest.mark.parametrize(("operator", "is_equal"), [("", True), (".eq", True), (".neq", False)])
def test_actions_are_filtered_by_an_exact_time(world: World, operator: str, is_equal: bool) -> None:
    moment = list(world.actions())[50]["when"]["timestamp"]
    expected = [action for action in world.actions() if (action["when"]["timestamp"] == moment) is is_equal]
    assert rows(world, f"/actions?when.timestamp{operator}={moment}") == expected


def test_awards_are_filtered_by_their_last_change(world: World) -> None:
    moment = sorted(award["updatedAt"] for award in world.awards())[-20]
    since = [award for award in world.awards() if award["updatedAt"] >= moment]
    assert rows(world, f"/awards?updatedAt={moment}&limit=6") == since
    assert rows(world, f"/awards?updatedAt.gt={moment}&limit=6") == [a for a in since if a["updatedAt"] > moment]
    assert len(since) == 20


def test_users_are_filtered_by_their_last_change(world: World) -> None:
    moment = sorted(user["updatedAt"] for user in world.users())[-5]
    assert len(rows(world, f"/users?updatedAfter={moment}&limit=3")) == 4


def test_a_start_key_does_not_bypass_the_filter(world: World) -> None:
    first, *_, late, last = [action for action in world.actions() if action["type"] == "CHECK_IN"]
    target = f"/actions?type=CHECK_IN&when.timestamp.gt={late['when']['timestamp']}&startKey={key_of(first['_id'])}"
    assert ask(world, target).payload()["actions"] == [last]


def test_credentials_are_returned_only_if_requested(world: World) -> None:
    assert not any("credentials" in user for user in rows(world, "/users?limit=100"))
    assert all("credentials" in user for user in rows(world, "/users?include=credentials"))


def test_an_action_that_appears_between_two_pages_shifts_no_other_row() -> None:
    world = World(users=40, days=2, now=NOW, late_fraction=0.5)
    before = list(world.actions())
    first = ask(world, "/actions?limit=50").payload()
    world.advance(timedelta(seconds=240))
    key = first["page"]["nextKey"]
    second = ask(world, f"/actions?limit=1000&startKey={key}").payload()
    assert [action for action in before if action not in first["actions"] + second["actions"]] == []


def test_bodies_are_gzipped_if_the_client_accepts_it(world: World) -> None:
    plain, packed = ask(world, "/perks"), ask(world, "/perks", Accept_Encoding="gzip, deflate")
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body
    assert json.loads(plain.body) == packed.payload()
    assert "Content-Encoding" not in plain.headers


@pytest.mark.parametrize("target", ["/perks", "/nothing"])
def test_the_date_header_is_the_worlds_time(world: World, target: str) -> None:
    assert ask(world, target).headers["Date"] == "Thu, 01 Oct 2026 12:00:00 GMT"


def test_a_loyalty_action_has_the_documented_shape(world: World) -> None:
    shown = next(
        action
        for action in rows(world, "/actions?type=REWARD_EARNED")
        if "location" in action["context"] and action["metadata"]
    )
    assert set(shown) == {
        "_id", "context", "tenantId", "type", "source", "version", "when", "metadata", "environment",
    }  # fmt: skip
    assert set(shown["context"]) == {"tenant", "user", "location", "tags"}
    assert set(shown["context"]["location"]) == {"_id", "title", "geo", "regions", "tags"}
    assert set(shown["context"]["user"]) == {"_id", "fullName", "primaryPlatform"}
    assert set(shown["metadata"]) == {
        "awardId", "perkId", "loyaltyEarned", "pointsAdded", "pointsAvailable", "trigger",
    }  # fmt: skip
