"""crm-balances report: the figures add up to the balances."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import TYPE_CHECKING, Any

import click
import pytest

from target_crm.balances_cli.report import page as report
from target_crm.balances_cli.report.queries import DAYS_AHEAD_MAX
from target_crm.errors import SettingError
from target_crm.warehouse.connection import Warehouse
from tests.helpers.balances import run_balances
from tests.helpers.target import (
    ACTIONS,
    AWARDS,
    DELTAS,
    action,
    execute,
    load,
    record,
    snapshot,
    table,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

from tests.helpers.report import HISTORY, NOW, PERKS, perk, points


@pytest.fixture
def crm(warehouse_url: str) -> Iterator[Warehouse]:
    load(warehouse_url, HISTORY)
    execute(warehouse_url, "UPDATE awards SET _sdc_deleted_at = '2026-10-04 00:00:00' WHERE _id = 'w4'")
    opened = Warehouse(warehouse_url)
    yield opened
    opened.dispose()


def test_days_hold_movements_and_closing_points(crm: Warehouse) -> None:
    figures = report.gather(crm, days=5, now=NOW)

    names = ("issued", "redeemed", "refunded", "added", "removed", "outstanding")
    assert {str(row["day"]): (row["actions"], points(row, *names)) for row in figures.days} == {
        "2026-10-01": (4, [10, 6, 1.5, 0, 3, 36.5]),
        "2026-10-02": (0, [0, 0, 0, 0, 0, 36.5]),
        "2026-10-03": (0, [0, 0, 0, 0, 1, 35.5]),
        "2026-10-04": (0, [0, 0, 0, 0, 2, 33.5]),
        "2026-10-05": (0, [0, 0, 0, 0, 0, 33.5]),
    }
    assert points(figures.roll_forward, "before", *names[:-1], "after") == [34, 10, 6, 1.5, 0, 6, 33.5]
    assert figures.rates == {"redemption": Decimal("0.45"), "breakage": Decimal("0.6")}
    assert points(figures.all_time, "opening", *names[:-1]) == [30, 14, 6, 1.5, 0, 6]
    assert points(figures.outstanding, "points", "awards", "holders") == [33.5, 3, 2]


def test_days_and_hours_follow_the_time_zone(crm: Warehouse) -> None:
    # In October, London is an hour ahead of UTC and Kathmandu five and three quarters.
    london, kathmandu = (report.gather(crm, days=5, now=NOW, zone=zone) for zone in ("Europe/London", "Asia/Kathmandu"))

    assert [row["actions"] for row in london.days] == [3, 1, 0, 0, 0]
    busy = {(row["weekday"], row["hour"]): row["actions"] for row in kathmandu.hours if row["actions"]}
    # Thursday 14:55, 15:05 and 15:45, and Friday 5:15.
    assert busy == {(3, 14): 1, (3, 15): 2, (4, 5): 1}
    assert sum(row["actions"] for row in london.hours) == 4


@pytest.mark.parametrize("year", [2126, 9999])
def test_actions_far_in_the_future_count_on_the_last_day(sqlite_url: str, year: int) -> None:
    load(sqlite_url, [*HISTORY, action("z1", delta=5, available=5, award="w9", at=f"{year}-12-31T23:59:59Z")])

    figures = report.gather(Warehouse(sqlite_url), days=5, now=NOW, zone="Pacific/Apia")

    assert len(figures.days) == 5 + DAYS_AHEAD_MAX.days
    assert figures.days[-1]["actions"] == 1
    assert figures.roll_forward["after"] == figures.outstanding["points"]


def test_unknown_time_zone_is_an_error(crm: Warehouse) -> None:
    with pytest.raises(SettingError, match="--timezone Mars/Phobos: unknown time zone"):
        report.gather(crm, zone="Mars/Phobos")


def test_points_are_broken_down_by_perk_user_location_and_age(crm: Warehouse) -> None:
    figures = report.gather(crm, days=5, now=NOW)

    (card,) = figures.perks
    assert (card["perk_id"], card["title"], card["type"]) == ("p1", "Coffee card", "STAMP_CARD")
    assert points(card, "points", "awards", "holders", "issued", "redeemed", "refunded") == [33.5, 3, 2, 12, 6, 1.5]
    assert [(row["user_id"], float(row["points"]), row["awards"]) for row in figures.users] == [
        ("u1", 26.5, 2),
        ("u2", 7, 1),
    ]
    assert [
        (row["location_id"], row["actions"], points(row, "issued", "redeemed", "refunded")) for row in figures.locations
    ] in (
        [(None, 2, [2, 0, 1.5]), ("l1", 1, [0, 6, 0]), ("l2", 1, [8, 0, 0])],
        [(None, 2, [2, 0, 1.5]), ("l2", 1, [8, 0, 0]), ("l1", 1, [0, 6, 0])],
    )
    assert [(row["days_from"], row["days_to"], float(row["points"])) for row in figures.ages] == [
        (0, 30, 33.5),
        (30, 90, 0),
        (90, 180, 0),
        (180, 365, 0),
        (365, None, 0),
    ]
    # Thirty days after the last action, points of a newer snapshot are still young.
    later = report.gather(crm, now=datetime(2026, 11, 1, tzinfo=UTC))
    assert [float(row["points"]) for row in later.ages] == [27, 6.5, 0, 0, 0]


def test_snapshot_with_the_same_points_is_no_movement(warehouse_url: str) -> None:
    old, new = "2025-01-10T00:00:00Z", "2026-10-04T00:00:00Z"
    earned = [action(f"a{award}", delta=500, available=500, award=award, at=old) for award in ("w1", "w2")]
    snapshots = [snapshot("w1", 500, at=new), snapshot("w2", 30, at=new), snapshot("w3", 4, at=new)]
    load(warehouse_url, [ACTIONS, AWARDS, *earned, *snapshots])
    crm = Warehouse(warehouse_url)

    # The snapshot of w2 shows a change without an action. w3 has no actions, so its snapshot counts.
    assert [float(row["points"]) for row in report.gather(crm, now=NOW).ages] == [34, 0, 0, 0, 500]
    crm.dispose()


def test_location_keeps_its_title_if_a_payload_was_erased(warehouse_url: str) -> None:
    places = [{"_id": name.lower(), "title": name} for name in ("Arches", "Arches", "Bridge")]
    visits = [
        action(f"a{number}", award=f"w{number}", context={"user": {"_id": "u1"}, "location": place})
        for number, place in enumerate(places)
    ]
    load(warehouse_url, [ACTIONS, *visits])
    execute(warehouse_url, "UPDATE actions SET payload = NULL WHERE action_id IN ('a1', 'a2')")
    crm = Warehouse(warehouse_url)

    locations = report.gather(crm, now=NOW).locations

    assert [(row["location_id"], row["title"]) for row in locations] == [("arches", "Arches"), ("bridge", None)]
    crm.dispose()


@pytest.mark.parametrize("seed", range(6))
def test_movements_add_up_to_the_balances(warehouse_url: str, seed: int) -> None:
    random = Random(seed)
    history, held = [], defaultdict(lambda: random.randrange(-5, 20) / 4)
    for number in range(120):
        award, kind = f"w{random.randrange(12)}", random.choice([*DELTAS, "edit", "edit"])
        when = f"2026-10-0{1 + number // 30}T{random.randrange(24):02}:{random.randrange(60):02}:00Z"
        if kind == "edit":
            held[award] += random.randrange(-12, 12) / 4
            history.append(snapshot(award, held[award], at=random.choice([when, None]), read_at=when))
        else:
            delta = random.randrange(0, 12) / 4
            held[award] += -delta if kind == "REDEEM_PERK" else delta
            history.append(action(f"a{number}", kind, delta=delta, available=held[award], award=award, at=when))
    random.shuffle(history)
    load(warehouse_url, [ACTIONS, AWARDS, *history])
    crm = Warehouse(warehouse_url)

    figures = report.gather(crm, days=random.randrange(1, 9), now=NOW)

    rows = table(crm, "award_balances", "points", "earned_total", "redeemed_total", "refunded_total")
    assert not figures.status.drifted
    assert figures.roll_forward["after"] == figures.outstanding["points"] == sum(row["points"] for row in rows)
    for kind, total in (("issued", "earned"), ("redeemed", "redeemed"), ("refunded", "refunded")):
        assert figures.all_time[kind] == sum(row[f"{total}_total"] for row in rows)
    assert figures.days[-1]["outstanding"] == figures.outstanding["points"]
    crm.dispose()


@pytest.mark.parametrize("seed", range(3))
def test_points_by_issue_follow_a_queue_of_each_award(warehouse_url: str, seed: int) -> None:
    random = Random(seed)
    # For each award, its lots of points, oldest first: the month in which the points were issued, and their number.
    lots: dict[str, list[tuple[str, Decimal]]] = {}
    messages = []
    for number in range(150):
        when = datetime(2024, 9, 1, tzinfo=UTC) + timedelta(days=number * 5, minutes=random.randrange(1000))
        award = f"w{random.randrange(10)}"
        held = lots.setdefault(award, [("undated", Decimal(random.randrange(8)) / 4)])
        total = sum(points for _, points in held)
        delta = Decimal(random.randrange(1, 12)) / 4
        if random.random() < 0.4 and delta <= total:
            kind, total, left = "REDEEM_PERK", total - delta, delta
            while left:
                month, points = held.pop(0)
                left, rest = max(left - points, Decimal(0)), max(points - left, Decimal(0))
                held[:0] = [(month, rest)] if rest else []
        else:
            kind, total = "REWARD_EARNED", total + delta
            held.append((f"{when:%Y-%m}", delta))
        delta_text, total_text = str(delta), str(total)
        messages.append(
            action(f"a{number:03}", kind, delta=delta_text, available=total_text, award=award, at=when.isoformat())
        )
    load(warehouse_url, [ACTIONS, *messages])
    crm = Warehouse(warehouse_url)

    figures = report.gather(crm, now=NOW)

    expected: dict[str, Decimal] = defaultdict(Decimal)
    for month, points in (lot for held in lots.values() for lot in held):
        # 24 months are shown, the current one included.
        expected[month if month == "undated" or month >= "2024-11" else "earlier"] += points
    assert {row["month"]: row["points"] for row in figures.issued if row["points"]} == {
        month: points for month, points in expected.items() if points
    }
    assert sum(row["points"] for row in figures.issued) == figures.outstanding["points"]
    crm.dispose()


def test_periods_join(warehouse_url: str) -> None:
    later = action("e1", delta=5, available=5, award="w5", at="2026-10-04T12:00:00Z")
    load(warehouse_url, [*HISTORY, ACTIONS, later])
    crm = Warehouse(warehouse_url)
    days = [date(2026, 9, 30), date(2026, 10, 1), date(2026, 10, 2), date(2026, 10, 3)]

    before = report.gather(crm, since=days[0], until=days[1], now=NOW)
    after = report.gather(crm, since=days[2], until=days[3], now=NOW)

    assert [row["day"] for row in before.days + after.days] == days
    assert after.previous == before.roll_forward
    assert points(before.roll_forward, "after", "issued") == [36.5, 10]
    assert points(after.roll_forward, "after", "issued") == [35.5, 0]
    assert sum(row["actions"] for row in before.hours) == sum(row["actions"] for row in before.locations) == 4
    assert not [row for row in after.hours if row["actions"]]
    assert after.all_time["issued"] == 19
    # There is no movement before the 28th of September.
    assert report.gather(crm, since=date(2026, 9, 29), until=date(2026, 9, 29), now=NOW).previous is None
    crm.dispose()


def test_figures_of_each_perk_add_up_to_those_of_all(warehouse_url: str) -> None:
    random = Random(7)
    context = {"user": {"_id": "u1"}, "location": {"_id": "l1", "title": "Arches"}}
    held: dict[str, int] = defaultdict(int)
    messages = []
    for number in range(60):
        award, delta = f"w{random.randrange(8)}", random.randrange(1, 9)
        held[award] += delta
        fields = {"awardId": award, "perkId": f"p{award[1]}", "pointsAvailable": held[award], "pointsAdded": delta}
        when = f"2026-10-0{1 + number // 15}T10:00:{number:02}Z"
        messages.append(action(f"a{number:02}", at=when, award=award, metadata=fields, context=context))
    load(warehouse_url, [PERKS, perk("p1", "Tea"), perk("p2", "Tea"), ACTIONS, *messages])
    crm = Warehouse(warehouse_url)

    everything = report.gather(crm, days=3, now=NOW)
    names = ["Tea", *(f"p{number}" for number in range(8) if number not in {1, 2})]
    parts = [report.gather(crm, days=3, now=NOW, perk=name) for name in names]

    assert len(parts[0].perks) == 2
    assert [(row["location_id"], row["title"]) for row in everything.locations] == [("l1", "Arches")]
    for name in ("before", "issued", "after"):
        assert sum(part.roll_forward[name] for part in parts) == everything.roll_forward[name]
    assert sum(part.outstanding["points"] for part in parts) == everything.outstanding["points"]
    for figure, measure in (("locations", "actions"), ("ages", "points"), ("issued", "points"), ("users", "points")):
        sums = [sum(row[measure] for row in getattr(each, figure)) for each in (everything, *parts)]
        assert sums[0] == sum(sums[1:])
    with pytest.raises(SettingError, match="--perk Coffee: no award has a perk with this id or title"):
        report.gather(crm, perk="Coffee")
    crm.dispose()


def test_perk_includes_its_deleted_awards(warehouse_url: str) -> None:
    fields = [
        {"awardId": "w1", "perkId": "p1", "pointsAdded": 5},
        {"awardId": "w2", "perkId": "p2", "pointsAdded": 100},
    ]
    earned = [
        action(f"a{each['awardId']}", metadata={**each, "pointsAvailable": each["pointsAdded"]}) for each in fields
    ]
    award = record("awards", {"_id": "w2", "points": 100, "userId": "u1", "perkId": "p2"})
    load(warehouse_url, [PERKS, perk("p1", "Coffee"), perk("p2", "Coffee"), ACTIONS, *earned, AWARDS, award])
    execute(warehouse_url, "UPDATE awards SET _sdc_deleted_at = '2026-10-04 00:00:00' WHERE _id = 'w2'")
    crm = Warehouse(warehouse_url)

    both, deleted = (report.gather(crm, now=NOW, perk=name) for name in ("Coffee", "p2"))

    assert points(both.roll_forward, "issued", "removed", "after") == [105, 100, 5]
    assert points(deleted.roll_forward, "issued", "removed", "after") == [100, 100, 0]
    assert not deleted.perks
    crm.dispose()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param(
            {"until": date(2026, 10, 6)}, "--until 2026-10-06 is in the future; today is 2026-10-05", id="future"
        ),
        pytest.param(
            {"since": date(2026, 10, 6)}, "--from 2026-10-06 is after the last day of the period", id="reversed"
        ),
        pytest.param({"since": date(2025, 10, 4)}, "the period has 367 days, expected at most 366", id="too-long"),
        pytest.param({"until": date(1, 1, 9), "days": 3}, "the period begins on 0001-01-07", id="long-ago"),
    ],
)
def test_impossible_period_is_an_error(sqlite_url: str, options: dict[str, Any], said: str) -> None:
    load(sqlite_url, HISTORY)

    with pytest.raises(SettingError, match=said):
        report.gather(Warehouse(sqlite_url), now=NOW, **options)


def test_json_and_csv_hold_the_same_figures(crm: Warehouse) -> None:
    figures = report.gather(crm, days=5, now=NOW)

    as_json = json.loads(report.as_json(figures), parse_float=Decimal)
    rows = list(csv.DictReader(io.StringIO(report.as_csv(figures))))

    in_csv = {(row["figure"], row["of"], row["measure"]): row["value"] for row in rows}
    assert len(in_csv) == len(rows)
    assert Decimal(in_csv["outstanding", "", "points"]) == as_json["outstanding"]["points"] == Decimal("33.5")
    for row in as_json["days"]:
        for name in ("issued", "redeemed", "outstanding", "actions"):
            assert Decimal(in_csv["days", row["day"], name]) == row[name]
    for row in as_json["perks"]:
        assert in_csv["perks", row["perk_id"], "title"] == row["title"]
    assert Decimal(in_csv["hours", "3 9", "actions"]) == 2
    assert (in_csv["status", "", "drifted"], as_json["drifted"]) == ("0", False)
    assert in_csv["streams", "actions", "rows"] == "5"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--point-value", "0.01"], "--point-value and --currency need each other"),
        (["--currency", "GBP"], "--point-value and --currency need each other"),
        (["--point-value", "-1", "--currency", "GBP"], "'-1' is not a number above 0"),
        (["--point-value", "NaN", "--currency", "GBP"], "'NaN' is not a number above 0"),
        (["--point-value", "1", "--currency", "pounds"], "'pounds' is not a code of three capital letters"),
        (["--days", "3", "--from", "2026-10-01"], "--days and --from both set the length"),
        (["--until", "yesterday"], "'yesterday' does not match the format '%Y-%m-%d'"),
    ],
)
def test_contradictory_options_are_an_error(options: list[str], said: str) -> None:
    with pytest.raises(click.UsageError) as raised:
        run_balances(["report", *options])

    assert said in raised.value.format_message()


def test_first_day_is_right_when_clocks_go_back(crm: Warehouse) -> None:
    figures = report.gather(crm, days=40, zone="Europe/London", now=datetime(2026, 10, 26, 12, tzinfo=UTC))

    assert (figures.first_day, figures.last_day, len(figures.days)) == (date(2026, 9, 17), date(2026, 10, 26), 40)
