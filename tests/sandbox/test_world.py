"""A world is reproducible and consistent, and knows the true balances."""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from pepper_sandbox.records import when
from pepper_sandbox.world import SEASON_DAYS, Totals, World

NOW = datetime(2026, 10, 1, 12, 0, 0, 123_000, tzinfo=UTC)
DAY = timedelta(days=1)
MILLISECOND = timedelta(milliseconds=1)
DELTAS = {
    "REWARD_EARNED": ("pointsAdded", 1),
    "REDEEM_PERK": ("pointsRedeemed", -1),
    "AWARD_POINTS_REFUNDED": ("pointsRefunded", 1),
}


@pytest.fixture(scope="module")
def world() -> World:
    return World(seed=3, users=60, days=40, now=NOW)


def everything(world: World) -> object:
    return world.now, world.perks(), list(world.awards()), list(world.users()), list(world.actions()), world.balances()


def occurred(action: dict) -> datetime:
    return datetime.fromisoformat(action["when"]["timestamp"])


def is_current(action: dict) -> bool:
    return action["type"] in DELTAS and "pointsAvailable" in (action["metadata"] or {})


def number(value: object) -> Decimal:
    return Decimal(str(value))


def test_the_same_seed_gives_the_same_world() -> None:
    def built(seed: int) -> object:
        return everything(World(seed=seed, users=20, days=10, now=NOW))

    assert built(1) == built(1)
    assert built(1) != built(2)


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([timedelta(hours=72)], id="at-once"),
        pytest.param([timedelta(hours=1)] * 72, id="by-the-hour"),
        pytest.param([DAY, timedelta(0), MILLISECOND, 2 * DAY - MILLISECOND], id="unevenly"),
    ],
)
def test_a_world_does_not_depend_on_the_steps_in_which_time_advances(steps: list[timedelta]) -> None:
    advanced = World(users=20, days=5, now=NOW)
    for step in steps:
        advanced.advance(step)
    assert everything(advanced) == everything(World(users=20, days=8, now=NOW + 3 * DAY))


def test_every_loyalty_action_contains_the_awards_balance_at_its_time(world: World) -> None:
    current = [action for action in world.actions() if is_current(action)]
    for action in current[:: len(current) // 300]:
        metadata, at = action["metadata"], occurred(action)
        field, sign = DELTAS[action["type"]]
        before = world.balances(at - MILLISECOND).get(metadata["awardId"], Decimal(0))
        assert world.balances(at)[metadata["awardId"]] == number(metadata["pointsAvailable"])
        assert number(metadata["pointsAvailable"]) == before + sign * number(metadata[field])


def test_awards_show_the_true_balances(world: World) -> None:
    assert {award["_id"]: number(award["points"]) for award in world.awards()} == world.balances()


def test_awards_match_their_last_action_unless_edited_since(world: World) -> None:
    last = {action["metadata"]["awardId"]: action for action in world.actions() if is_current(action)}
    by_hand = 0
    for award in world.awards():
        if award["_id"] in last and award["updatedAt"] == last[award["_id"]]["when"]["timestamp"]:
            assert award["points"] == last[award["_id"]]["metadata"]["pointsAvailable"]
        else:
            by_hand += 1
    assert 0 < by_hand < len(last)


def test_totals_are_sums_over_the_visible_loyalty_actions_of_a_window() -> None:
    world = World(users=30, days=20, now=NOW, late_fraction=0.5, late_seconds_max=10 * 86_400)
    after, until = NOW - 12 * DAY, NOW - 2 * DAY
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    for action in filter(is_current, world.actions()):
        if after < occurred(action) <= until:
            award = sums[action["metadata"]["awardId"]]
            award[action["type"]] += number(action["metadata"][DELTAS[action["type"]][0]])
            award["actions"] += 1
    expected = {
        award_id: Totals(of["REWARD_EARNED"], of["REDEEM_PERK"], of["AWARD_POINTS_REFUNDED"], of["actions"])
        for award_id, of in sums.items()
    }
    assert world.award_totals(after=after, until=until) == expected
    assert world.award_totals() != expected


def test_a_late_action_becomes_visible_later_but_changes_the_points_at_once() -> None:
    world = World(users=200, days=1, now=NOW, late_fraction=1, late_seconds_max=3600)
    shown, balances = {action["_id"] for action in world.actions()}, world.balances()
    world.advance(timedelta(hours=1))
    late = [action for action in world.actions(until=NOW) if action["_id"] not in shown]
    assert any(is_current(action) for action in late)
    assert all(occurred(action) > NOW - timedelta(hours=1) for action in late)
    assert world.balances(NOW) == balances


def test_changes_of_different_awards_may_share_a_millisecond(world: World) -> None:
    assert max(Counter(action["when"]["timestamp"] for action in world.actions()).values()) > 1


def test_changes_of_one_award_never_share_a_millisecond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pepper_sandbox.world.VISITS_PER_USER_DAY", 100_000)
    crowded = World(users=1, days=0.1, now=NOW, late_fraction=0)
    moments = [action["when"]["timestamp"] for action in crowded.actions()]
    assert len(moments) > 10_000
    assert len(set(moments)) == len(moments)


def test_at_the_end_of_a_season_its_perk_is_deleted_and_the_awards_remain() -> None:
    world = World(users=30, days=10, now=NOW)
    perks, awards = world.perks(), world.balances()
    world.advance(timedelta(days=SEASON_DAYS))
    deleted = {perk["_id"] for perk in perks} - {perk["_id"] for perk in world.perks()}
    assert len(deleted) == 1
    assert len(world.perks()) == len(perks)
    assert awards.keys() <= world.balances().keys()
    assert deleted <= {award["perkId"] for award in world.awards()}


def test_a_deleted_perk_earns_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    season = timedelta(seconds=30)
    monkeypatch.setattr("pepper_sandbox.world.SEASON_DAYS", season / DAY)
    world = World(users=100, days=1, now=NOW)
    opened = {
        award["_id"]: datetime.fromisoformat(award["perk"]["updatedAt"])
        for award in world.awards()
        if award["perk"]["title"] == "Seasonal card"
    }
    earned = [action for action in world.actions() if is_current(action) and action["metadata"]["awardId"] in opened]
    assert earned
    assert all(occurred(action) <= opened[action["metadata"]["awardId"]] + season for action in earned)


def test_an_edit_by_hand_changes_nothing_else() -> None:
    world = World(seed=3, users=10, days=3, now=NOW)
    (changed, _), *others = world.balances().items()
    opened = world.open_perk("Free cake")
    deleted = world.perks()[0]["_id"]
    world.change_points(changed, Decimal("7.25"))
    world.delete_perk(deleted)
    assert world.balances() == {changed: Decimal("7.25"), **dict(others)}
    assert world.now == NOW + MILLISECOND
    assert [award["_id"] for award in world.awards(since=world.now)] == [changed]
    assert opened in (perks := {perk["_id"] for perk in world.perks()})
    assert deleted not in perks


def test_points_are_never_negative_and_only_currency_has_fractions(world: World) -> None:
    kinds = {award["_id"]: award["perk"]["type"] for award in world.awards()}
    quarters = set()
    for day in range(41):
        for award_id, points in world.balances(NOW - day * DAY).items():
            assert points >= 0
            assert points % Decimal("0.25") == 0
            quarters.add((kinds[award_id], points % 1 != 0))
    assert quarters == {
        ("STAMP_CARD", False),
        ("VOUCHER", False),
        ("PSEUDO_CURRENCY", False),
        ("PSEUDO_CURRENCY", True),
    }


@pytest.mark.parametrize(
    "is_kind",
    [
        pytest.param(lambda action: action["type"] == "REWARD_EARNED" and is_current(action), id="earned"),
        pytest.param(lambda action: action["type"] == "REDEEM_PERK", id="redeemed"),
        pytest.param(lambda action: action["type"] == "AWARD_POINTS_REFUNDED", id="refunded"),
        pytest.param(lambda action: action["type"] == "REWARD_EARNED" and not is_current(action), id="legacy"),
        pytest.param(lambda action: action["type"] == "REWARD_EARNED" and action["metadata"] is None, id="no-metadata"),
        pytest.param(lambda action: action["type"] == "ORDER_COMPLETED", id="order"),
        pytest.param(lambda action: action["type"] == "CHECK_IN", id="check-in"),
        pytest.param(lambda action: action["type"] == "USER_UPDATED", id="user-update"),
        pytest.param(lambda action: action["type"] == "TABLE_SERENADED", id="unknown-type"),
        pytest.param(lambda action: "location" in action["context"], id="at-a-location"),
        pytest.param(lambda action: "location" not in action["context"], id="without-a-location"),
    ],
)
def test_all_kinds_of_actions_occur(world: World, is_kind) -> None:
    assert any(is_kind(action) for action in world.actions())


def test_ids_are_opaque_and_unique_and_names_are_fictitious(world: World) -> None:
    records = [*world.perks(), *world.awards(), *world.users(), *world.actions()]
    ids = [record["_id"] for record in records]
    assert len(set(ids)) == len(ids)
    assert all(len(bytes.fromhex(record_id)) == 12 for record_id in ids)
    assert max(user["fullName"] for user in world.users()) == "Guest 0060"


def test_a_user_update_changes_the_user(world: World) -> None:
    updates = {
        action["context"]["user"]["_id"]: action["when"]["timestamp"]
        for action in world.actions()
        if action["type"] == "USER_UPDATED"
    }
    assert updates
    updated = {user["_id"]: user["updatedAt"] for user in world.users()}
    assert updates == {user_id: updated[user_id] for user_id in updates}


def test_the_parts_of_a_timestamp_follow_peppers_conventions() -> None:
    moment = datetime(2021, 3, 5, 13, 37, 52, 194_000, tzinfo=UTC)
    assert when(int(moment.timestamp() * 1000)) == {
        "timezone": "Etc/UTC",
        "timestamp": "2021-03-05T13:37:52.194Z",
        "year": 2021,
        "monthofyear": 2,
        "weekofyear": 10,
        "dayofmonth": 5,
        "dayofweek": 5,
        "daypart": "LUNCH",
    }


def test_time_has_a_zone_and_only_advances(world: World) -> None:
    with pytest.raises(ValueError, match="time zone"):
        World(users=1, days=1, now=NOW.replace(tzinfo=None))
    with pytest.raises(ValueError, match="cannot advance time"):
        world.advance(-MILLISECOND)
