"""Each fault does what its name says, for the configured requests."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from pepper_sandbox import faults
from pepper_sandbox.api import Request, Response, respond
from pepper_sandbox.faults import with_faults
from pepper_sandbox.world import World

if TYPE_CHECKING:
    from collections.abc import Callable

    from pepper_sandbox.faults import Fault

NOW = datetime(2026, 10, 1, 12, tzinfo=UTC)
HEADERS = {"Authorization": "Token sandbox-token", "X-Application-Id": "pepper-mill", "x-api-version": "10"}


@pytest.fixture(scope="module")
def world() -> World:
    return World(users=20, days=12, now=NOW)


def asking(world: World, *active: Fault, **headers: str) -> Callable[[str], Response]:
    """Return a function that sends a request to a sandbox with these faults."""
    seen: Counter[str] = Counter()

    def ask(target: str) -> Response:
        request = Request.parse(
            "GET", target, HEADERS | {name.replace("_", "-"): value for name, value in headers.items()}
        )
        seen[request.path] += 1
        return with_faults(lambda asked: respond(world, asked), active, seen)(request)

    return ask


def pages(ask: Callable[[str], Response], target: str, pages_max: int = 100) -> list[dict[str, Any]]:
    found = [ask(target).payload()]
    while (key := found[-1]["page"].get("nextKey")) and len(found) < pages_max:
        found.append(ask(f"{target}&startKey={key}").payload())
    return found


def ids(found: list[dict[str, Any]]) -> list[str]:
    return [row["_id"] for page in found for row in page.get("items", page.get("actions"))]


def iso(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.000Z")


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        pytest.param(faults.unauthorized(), 401, id="401"),
        pytest.param(faults.forbidden(), 403, id="403"),
        pytest.param(faults.not_found(), 404, id="404"),
        pytest.param(faults.invalid(), 422, id="422"),
        pytest.param(faults.rate_limited(2), 429, id="429"),
        pytest.param(faults.error(500, "Internal"), 500, id="500-json"),
    ],
)
def test_an_error_has_its_status_and_a_json_body(world: World, fault: Fault, status: int) -> None:
    response = asking(world, fault)("/awards")
    assert response.status == status
    assert set(response.payload()) == {"code", "message"}
    assert response.headers["Date"] == "Thu, 01 Oct 2026 12:00:00 GMT"


@pytest.mark.parametrize(
    ("fault", "retry_after"),
    [
        pytest.param(faults.rate_limited(7), "7", id="seconds"),
        pytest.param(faults.rate_limited_until(7), "Thu, 01 Oct 2026 12:00:07 GMT", id="date"),
        pytest.param(faults.rate_limited_without_hint(), None, id="absent"),
    ],
)
def test_a_rate_limit_may_say_when_to_retry(world: World, fault: Fault, retry_after: str | None) -> None:
    response = asking(world, fault)("/awards")
    assert (response.status, response.headers.get("Retry-After")) == (429, retry_after)


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        pytest.param(faults.server_error(), 503, id="503"),
        pytest.param(faults.server_error(502), 502, id="502"),
        pytest.param(faults.html_page(), 200, id="200"),
    ],
)
def test_a_gateway_answers_with_html(world: World, fault: Fault, status: int) -> None:
    response = asking(world, fault)("/awards")
    assert (response.status, response.headers["Content-Type"]) == (status, "text/html")
    assert response.body.startswith(b"<html>")


def test_a_redirect_leads_to_the_same_target_on_another_host(world: World) -> None:
    response = asking(world, faults.redirected("http://elsewhere.example"))("/awards?limit=3")
    assert (response.status, response.headers["Location"]) == (307, "http://elsewhere.example/awards?limit=3")


@pytest.mark.parametrize(
    ("fault", "hangs_up"),
    [
        pytest.param(faults.connection_reset(), "at once", id="reset"),
        pytest.param(faults.connection_cut(), "midway", id="cut"),
    ],
)
def test_the_connection_fails(world: World, fault: Fault, hangs_up: str) -> None:
    assert asking(world, fault)("/awards").hangs_up == hangs_up


def test_a_truncated_gzip_stream_cannot_be_read(world: World) -> None:
    response = asking(world, faults.gzip_cut(), Accept_Encoding="gzip")("/awards")
    with pytest.raises(EOFError):
        gzip.decompress(response.body)


@pytest.mark.parametrize(
    ("fault", "date"),
    [
        pytest.param(faults.clock_skewed(90), "Thu, 01 Oct 2026 12:01:30 GMT", id="ahead"),
        pytest.param(faults.clock_skewed(-3600), "Thu, 01 Oct 2026 11:00:00 GMT", id="behind"),
        pytest.param(faults.clock_missing(), None, id="missing"),
    ],
)
def test_the_clock_is_wrong(world: World, fault: Fault, date: str | None) -> None:
    assert asking(world, fault)("/awards").headers.get("Date") == date


LATER = iso(NOW - timedelta(days=2))


@pytest.mark.parametrize(
    ("filters", "ignored", "remaining"),
    [
        pytest.param(f"when.timestamp.gt={LATER}", "when.timestamp", "", id="time"),
        pytest.param("type.in=CHECK_IN", "type", "", id="type"),
        pytest.param(f"type=CHECK_IN&when.timestamp.gt={LATER}", "type", f"when.timestamp.gt={LATER}", id="one-of-two"),
    ],
)
def test_filters_of_actions_are_ignored(world: World, filters: str, ignored: str, remaining: str) -> None:
    ask = asking(world, faults.filters_ignored(ignored))
    found = ids(pages(ask, f"/actions?{filters}"))
    assert found == ids(pages(asking(world), f"/actions?{remaining}"))
    assert found != ids(pages(asking(world), f"/actions?{filters}"))


def test_the_filter_of_awards_may_be_ignored_inclusive_or_exclusive(world: World) -> None:
    moment = sorted(award["updatedAt"] for award in world.awards())[-5]
    plain, strict = f"/awards?updatedAt={moment}", f"/awards?updatedAt.gt={moment}"
    total = len(list(world.awards()))
    assert len(ids(pages(asking(world, faults.filters_ignored("updatedAt")), plain))) == total
    assert len(ids(pages(asking(world, faults.filters_ignored("updatedAt")), strict))) == total
    assert len(ids(pages(asking(world, faults.updated_at_exclusive()), plain))) == 4
    assert len(ids(pages(asking(world, faults.updated_at_inclusive()), strict))) == 5


@pytest.mark.parametrize(
    ("fault", "limit"),
    [
        pytest.param(faults.limit_capped(5), 5, id="capped"),
        pytest.param(faults.limit_ignored(), 100, id="ignored"),
    ],
)
def test_the_limit_differs_from_the_requested_one(world: World, fault: Fault, limit: int) -> None:
    assert len(asking(world, fault)("/actions?limit=50").payload()["actions"]) == limit


@pytest.mark.parametrize(
    ("fault", "keys"),
    [
        pytest.param(faults.listed_as("items"), {"items", "page"}, id="items"),
        pytest.param(faults.listed_as("actions"), {"actions", "page"}, id="resource-name"),
        pytest.param(faults.list_missing(), {"status"}, id="none-of-these"),
        pytest.param(faults.page_missing(), {"actions"}, id="no-page"),
    ],
)
def test_the_envelope_differs(world: World, fault: Fault, keys: set[str]) -> None:
    response = asking(world, fault, Accept_Encoding="gzip")("/actions")
    assert set(json.loads(gzip.decompress(response.body))) == keys


def test_a_list_without_pages_contains_all_rows(world: World) -> None:
    everything = list(world.actions())
    assert len(everything) > 100
    assert asking(world, faults.bare_array())("/actions").payload() == everything
    assert asking(world, faults.page_missing())("/actions").payload() == {"actions": everything}


@pytest.mark.parametrize("value", [None, ""])
def test_the_last_next_key_is_empty(world: World, value: str | None) -> None:
    *before, last = pages(asking(world, faults.last_next_key(value)), "/awards?limit=10")
    assert last["page"]["nextKey"] == value
    assert all(page["page"]["nextKey"] for page in before)
    assert before


def test_the_last_row_of_a_page_is_repeated(world: World) -> None:
    first, second, *others = pages(asking(world, faults.last_row_repeated()), "/awards?limit=10")
    assert first["items"][-1] == second["items"][0]
    assert set(ids([first, second, *others])) == world.balances().keys()


def test_a_next_key_refers_to_its_own_page(world: World) -> None:
    first, *others = pages(asking(world, faults.next_key_repeated()), "/awards?limit=10", pages_max=9)
    assert first["items"] != others[0]["items"]
    assert all(page == others[0] for page in others)
    assert len(others) == 8


def test_the_last_page_leads_to_the_first(world: World) -> None:
    ask = asking(world, faults.pages_in_a_circle())
    round_length = len(pages(asking(world), "/awards?limit=10"))
    found = pages(ask, "/awards?limit=10", pages_max=2 * round_length)
    assert [page["items"] for page in found[:round_length]] == [page["items"] for page in found[round_length:]]


def test_empty_pages_are_inserted(world: World) -> None:
    found = pages(asking(world, faults.empty_page_between()), "/awards?limit=10")
    assert [len(page["items"]) for page in found[:4]] == [10, 0, 10, 0]
    assert ids(found) == list(world.balances())


def test_paging_by_position_misses_a_row_when_an_earlier_one_is_deleted() -> None:
    world = World(users=5, days=1, now=NOW)
    perks = [perk["_id"] for perk in world.perks()]
    ask = asking(world, faults.pages_by_position())
    first = ask("/perks?limit=2").payload()
    world.delete_perk(perks[0])
    second = ask(f"/perks?limit=2&startKey={first['page']['nextKey']}").payload()
    assert ids([first]) == perks[:2]
    assert ids([second]) == perks[3:5], "the third perk has moved to the first page"
    assert ids(pages(ask, "/perks?limit=2")) == perks[1:]


@pytest.mark.parametrize("target", ["/actions?limit=100", "/awards?limit=30", "/users?limit=6", "/perks?limit=2"])
@pytest.mark.parametrize(
    "fault",
    [pytest.param(faults.rows_shuffled(), id="shuffled"), pytest.param(faults.newest_first(), id="newest-first")],
)
def test_another_order_loses_no_row(world: World, fault: Fault, target: str) -> None:
    found, true = ids(pages(asking(world, fault), target)), ids(pages(asking(world), target))
    assert sorted(found) == sorted(true)
    assert found != true


def test_the_newest_rows_come_first_over_all_pages(world: World) -> None:
    found = pages(asking(world, faults.newest_first()), "/actions?limit=100")
    moments = [row["when"]["timestamp"] for page in found for row in page["actions"]]
    assert moments == sorted(moments, reverse=True)


def test_rows_are_shuffled(world: World) -> None:
    found = pages(asking(world, faults.rows_shuffled()), "/actions?limit=100")
    moments = [row["when"]["timestamp"] for page in found for row in page["actions"]]
    assert moments not in (sorted(moments), sorted(moments, reverse=True))


@pytest.mark.parametrize(
    ("fault", "is_affected"),
    [
        pytest.param(faults.field_missing("_id"), lambda row: "_id" not in row, id="no-id"),
        pytest.param(faults.field_missing("context"), lambda row: "context" not in row, id="no-context"),
        pytest.param(faults.field_missing("context.user"), lambda row: "user" not in row["context"], id="no-user"),
        pytest.param(
            faults.field_missing("context.location"), lambda row: "location" not in row["context"], id="no-location"
        ),
        pytest.param(
            faults.field_missing("when.timezone"), lambda row: "timezone" not in row["when"], id="no-timezone"
        ),
        pytest.param(faults.field_set("metadata", None), lambda row: row["metadata"] is None, id="metadata-null"),
        pytest.param(faults.field_set("type", "NEW"), lambda row: row["type"] == "NEW", id="new-enum-value"),
        pytest.param(faults.fields_unknown(), lambda row: "sparkle" in row, id="unknown-field"),
    ],
)
def test_fields_differ_from_the_documentation(
    world: World, fault: Fault, is_affected: Callable[[dict[str, Any]], bool]
) -> None:
    assert all(is_affected(row) for row in asking(world, fault)("/actions").payload()["actions"])
    assert not all(is_affected(row) for row in asking(world)("/actions").payload()["actions"])


def test_points_are_text(world: World) -> None:
    ask = asking(world, faults.points_as_strings())
    awards, actions = ask("/awards").payload()["items"], ask("/actions").payload()["actions"]
    assert all(isinstance(award["points"], str) for award in awards)
    metadata = [action["metadata"] for action in actions if "pointsAdded" in (action["metadata"] or {})]
    assert metadata
    assert all(isinstance(points[name], str) for points in metadata for name in ("pointsAdded", "pointsAvailable"))


def test_a_fault_affects_the_same_rows_each_time(world: World) -> None:
    ask = asking(world, faults.field_set("type", "NEW", every=3))
    affected = [row["_id"] for row in ask("/actions?limit=90").payload()["actions"] if row["type"] == "NEW"]
    again = [
        row["_id"] for page in pages(ask, "/actions?limit=30", 3) for row in page["actions"] if row["type"] == "NEW"
    ]
    assert affected == again
    assert 10 < len(affected) < 60


def test_some_rows_are_omitted(world: World) -> None:
    found = ids(pages(asking(world, faults.rows_withheld(every=4)), "/awards?limit=10"))
    assert 0.5 * len(world.balances()) < len(found) < len(world.balances())


@pytest.mark.parametrize(
    ("fault", "statuses"),
    [
        pytest.param(faults.not_found(), [404, 404, 404, 404, 404], id="always"),
        pytest.param(faults.not_found().first(2), [404, 404, 200, 200, 200], id="first"),
        pytest.param(faults.not_found().nth(1, 4), [404, 200, 200, 404, 200], id="nth"),
        pytest.param(faults.not_found().on("/awards"), [404, 200, 404, 200, 200], id="path"),
        pytest.param(faults.not_found().on("/awards").nth(2), [200, 200, 404, 200, 200], id="nth-of-a-path"),
        pytest.param(faults.not_found().on("/users/*/actions"), [200, 200, 200, 200, 404], id="pattern"),
    ],
)
def test_a_fault_affects_the_configured_requests(world: World, fault: Fault, statuses: list[int]) -> None:
    ask = asking(world, fault)
    user_id = next(world.users())["_id"]
    targets = ["/awards", "/perks", "/awards", "/actions", f"/users/{user_id}/actions"]
    assert [ask(target).status for target in targets] == statuses


def test_faults_combine_and_the_first_is_the_outermost(world: World) -> None:
    ask = asking(world, faults.rate_limited(1).first(1), faults.listed_as("rows"), faults.limit_capped(3))
    assert ask("/actions").status == 429
    assert len(ask("/actions").payload()["rows"]) == 3
    assert asking(world, faults.listed_as("a"), faults.listed_as("b"))("/actions").payload().keys() == {"a", "page"}


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(faults.not_found(), id="json"),
        pytest.param(faults.html_page(), id="html"),
        pytest.param(faults.redirected("http://elsewhere.example"), id="empty"),
    ],
)
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(faults.bare_array(), id="bare-array"),
        pytest.param(faults.rows_shuffled(), id="shuffled"),
        pytest.param(faults.pages_in_a_circle(), id="circle"),
        pytest.param(faults.empty_page_between(), id="empty-page"),
    ],
)
def test_a_fault_of_lists_does_not_change_an_error_response(world: World, fault: Fault, failure: Fault) -> None:
    target = "/awards?startKey=eyJfaWQiOiAiYSJ9"
    assert asking(world, fault, failure)(target) == asking(world, failure)(target)
