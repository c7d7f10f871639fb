"""crm-balances report: the figures add up to the balances, and the page is accessible."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections import defaultdict
from datetime import UTC, date, datetime
from decimal import Decimal
from html.parser import HTMLParser
from random import Random
from typing import TYPE_CHECKING, Any

import click
import pytest

from target_crm.balances_cli.report import page as report
from target_crm.balances_cli.report.queries import DAYS_AHEAD_MAX
from target_crm.errors import SettingError
from target_crm.warehouse.connection import Warehouse
from tests.helpers import browser
from tests.helpers.balances import run_balances
from tests.helpers.target import (
    ACTIONS,
    AWARDS,
    DELTAS,
    action,
    execute,
    load,
    record,
    schema,
    snapshot,
    table,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOW = datetime(2026, 10, 5, 12, tzinfo=UTC)
PERKS = schema("perks", {"_id": {"type": "string"}, "title": {"type": "string"}, "type": {"type": "string"}}, "_id")


def perk(perk_id: str, title: str) -> str:
    return record("perks", {"_id": perk_id, "title": title, "type": "STAMP_CARD"})


def at(location: str, user: str = "u1") -> dict[str, Any]:
    """Return an action's location and user as overrides."""
    return {"context": {"user": {"_id": user}, "location": {"_id": location}}}


# w1: 10 opening points, and 3 removed between two actions.
# w2: new, 1 point removed by a later snapshot. w3: only a snapshot. w4: deleted with 2 points.
HISTORY = [
    *(PERKS, perk("p1", "Coffee card"), AWARDS, ACTIONS),
    action("a0", delta=4, available=14, award="w1", at="2026-09-28T12:00:00Z", **at("l1")),
    action("a1", "REDEEM_PERK", delta=6, available=5, award="w1", at="2026-10-01T09:10:00Z", **at("l1")),
    action("a2", "AWARD_POINTS_REFUNDED", delta=1.5, available=6.5, award="w1", at="2026-10-01T23:30:00Z"),
    action("b1", delta=8, available=8, award="w2", user="u2", at="2026-10-01T09:20:00Z", **at("l2", "u2")),
    record("awards", {"_id": "w2", "points": 7, "userId": "u2", "perkId": "p1", "updatedAt": "2026-10-03T00:00:00Z"}),
    snapshot("w3", 20, at="2026-10-02T00:00:00Z"),
    action("d1", delta=2, available=2, award="w4", at="2026-10-01T10:00:00Z"),
    snapshot("w4", 2, at="2026-10-01T09:00:00Z"),
]


@pytest.fixture
def crm(warehouse_url: str) -> Iterator[Warehouse]:
    load(warehouse_url, HISTORY)
    execute(warehouse_url, "UPDATE awards SET _sdc_deleted_at = '2026-10-04 00:00:00' WHERE _id = 'w4'")
    opened = Warehouse(warehouse_url)
    yield opened
    opened.dispose()


def points(row: dict[str, Any], *names: str) -> list[float]:
    return [float(row[name]) for name in names]


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


class Page(HTMLParser):
    """The texts of a page, and its tags with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.html = html
        self.feed(html)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def charts(self) -> list[str | None]:
        """The accessible names of the charts."""
        return [attributes.get("aria-label") for _, attributes in self.tags if attributes.get("role") == "img"]


def page_of(url: str, **options: Any) -> Page:
    crm = Warehouse(url)
    crm.set_up(balances=True)
    try:
        return Page(report.page(report.gather(crm, now=NOW, **options)))
    finally:
        crm.dispose()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'crm.db'}"


def test_page_states_its_figures_as_text(sqlite_url: str) -> None:
    load(sqlite_url, HISTORY)

    page = page_of(sqlite_url)

    assert "35.5 points outstanding on 4 awards, held by 2 people" in page.text
    assert "Verified: every balance matches the ledger and Pepper" in page.text
    assert "Coffee card holds the most: 35.5 points." in page.text
    assert "l1 has the most: 2 loyalty actions." in page.text
    assert len(page.charts) == 6
    assert all(name and name.endswith("The figures are in the table below.") for name in page.charts)
    assert [tag for tag, _ in page.tags].count("details") == 6


def test_page_is_self_contained(sqlite_url: str) -> None:
    load(sqlite_url, HISTORY)

    page = page_of(sqlite_url)

    assert {"script", "link", "img", "iframe", "image", "use"}.isdisjoint(tag for tag, _ in page.tags)
    assert not [attributes for _, attributes in page.tags if {"src", "href", "xlink:href", "onclick"} & set(attributes)]
    assert set(re.findall(r"https?://[^\s\"'<]+", page.html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "url(" not in page.html.replace("url(#", "")
    assert "default-src 'none'" in page.html


def test_page_shows_drift_at_the_top(sqlite_url: str) -> None:
    load(sqlite_url, [*HISTORY, action("bad", available=True)])
    execute(sqlite_url, "UPDATE award_balances SET points = points + 1 WHERE award_id IN ('w1', 'w2')")

    page = page_of(sqlite_url)

    assert "Drift: " in page.text
    assert "Verified" not in page.text
    assert "In quarantine 1 records" in page.text


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        pytest.param([], "0 points outstanding on 0 awards, held by 0 people Nothing loaded yet", id="nothing"),
        pytest.param([AWARDS, snapshot("w1", 5)], "5 points outstanding on 1 awards, held by 1 people", id="one-award"),
        pytest.param([ACTIONS, action("a1")], "2 points outstanding on 1 awards, held by 1 people", id="one-action"),
        pytest.param([AWARDS, snapshot("w1", -7.25)], "−7.25 points outstanding", id="negative-points"),  # noqa: RUF001
        pytest.param([AWARDS, snapshot("w1", 0)], "0 points outstanding on 1 awards, held by 0 people", id="zero"),
        pytest.param(
            [AWARDS, snapshot("w1", 99_999_999_999), snapshot("w2", -99_999_999_998.5)],
            "0.5 points outstanding",
            id="very-many",
        ),
        pytest.param([ACTIONS, action("a1", at="2026-10-09T00:00:00Z")], "Newest action just now", id="future-action"),
        pytest.param([ACTIONS, action("a1", at="1969-10-09T00:00:00Z")], "2 points outstanding", id="long-ago"),
    ],
)
def test_page_of_little_or_unusual_data(sqlite_url: str, messages: list[str], said: str) -> None:
    load(sqlite_url, messages)

    page = page_of(sqlite_url)

    assert said in page.text
    assert {"NaN", "Infinity", "undefined", "null", "None"}.isdisjoint(re.findall(r"\w+", page.text))
    assert "NaN" not in page.html


EVIL = "<script>alert('ö & \"x\"')</script> 🥐 ]]> </svg>"


def test_titles_are_escaped(sqlite_url: str) -> None:
    titles = [EVIL, "{{ 7 * 7 }}", "Same", "Same", "x" * 500, "🥐" * 40, "مرحبا", ""]
    load(
        sqlite_url,
        [
            PERKS,
            *(perk(f"p{number}", title) for number, title in enumerate(titles)),
            AWARDS,
            *(
                record("awards", {"_id": f"w{n}", "points": 9 - n, "userId": EVIL, "perkId": f"p{n}"})
                for n in range(len(titles))
            ),
        ],
    )

    page = page_of(sqlite_url)

    assert "script" not in {tag for tag, _ in page.tags}
    assert f"{EVIL} holds the most" in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert {"Same (p2)", "Same (p3)"} <= set(page.texts)
    assert page.html.count("<svg") == page.html.count("</svg") == 6


LAYOUT = """page => ({
  overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
  drawings: [...page.querySelectorAll("[role=img]")].map(drawing => {
    const shown = [...drawing.querySelectorAll("svg")].filter(svg => svg.getBoundingClientRect().width);
    const card = drawing.closest("figure").getBoundingClientRect();
    const inside = shown.every(svg => svg.getBoundingClientRect().right <= card.right);
    return [drawing.getAttribute("aria-label").length > 20, shown.length, inside];
  }),
})"""


@pytest.mark.skipif(not browser.CHROMIUM, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [360, 1280])
def test_page_fits_phones_and_desktops(sqlite_url: str, tmp_path: Path, width: int) -> None:
    long_ids = [
        perk("p1", "x" * 300),
        ACTIONS,
        action("z1", award="w" * 200, user="u" * 200, **at("l" * 200, "u" * 200)),
    ]
    load(sqlite_url, [*HISTORY, *long_ids, snapshot("w9", -99_999_999_999.25)])

    measured = browser.ask(page_of(sqlite_url).html, LAYOUT, width, tmp_path)

    assert measured["overflow"] <= 0
    assert measured["drawings"] == [[True, 1, True]] * 6


# The print layout on a screen: for each table, whether all of it is visible.
PRINTED = """page => {
  for (const rule of page.styleSheets[0].cssRules)
    if (rule.media) rule.media.mediaText = rule.media.mediaText == "print" ? "all" : "not all";
  page.querySelector("details").open = true;
  return [...page.querySelectorAll("table")].filter(table => table.checkVisibility()).map(table => {
    const card = table.closest(".card").getBoundingClientRect(), box = table.getBoundingClientRect();
    const around = table.parentElement.getBoundingClientRect();
    return box.right <= card.right && box.bottom <= Math.min(card.bottom, around.bottom) + 1;
  });
}"""
PAPER_WIDTH = 688
"""The width of A4 without margins, in pixels."""


@pytest.mark.skipif(not browser.CHROMIUM, reason="no Chromium on this machine")
def test_printed_page_shows_opened_tables_in_full(sqlite_url: str, tmp_path: Path) -> None:
    holders = [action(f"h{number}", award=f"h{number}", user=f"{number:024}") for number in range(30)]
    load(sqlite_url, [*HISTORY, ACTIONS, *holders])

    measured = browser.ask(page_of(sqlite_url).html, PRINTED, PAPER_WIDTH, tmp_path)

    assert measured == [True] * 5


def test_page_size_does_not_grow_with_awards(sqlite_url: str) -> None:
    awards = [snapshot(f"w{number}", number % 9) for number in range(20_000)]
    load(sqlite_url, [AWARDS, *awards])

    page = page_of(sqlite_url)

    assert "on 20,000 awards" in page.text
    assert len(page.html) < 1_000_000


def test_chart_groups_the_smallest_perks(sqlite_url: str) -> None:
    awards = [record("awards", {"_id": f"w{n}", "points": n, "userId": "u", "perkId": f"p{n:02}"}) for n in range(40)]
    load(sqlite_url, [AWARDS, *awards])

    page = page_of(sqlite_url)

    assert "29 other perks" in page.texts
    assert "p28" not in re.findall(r"<text[^>]*>([^<]*)", page.html)


def test_page_without_its_extra_names_what_to_install(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load(sqlite_url, HISTORY)
    monkeypatch.setitem(sys.modules, "vl_convert", None)

    with pytest.raises(SettingError, match=r"pip install 'pepper-crm\[report\]'"):
        page_of(sqlite_url)


def test_report_command_writes_the_requested_format(
    crm: Warehouse, warehouse_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", warehouse_url)
    output = tmp_path / "loyalty.html"

    assert run_balances(["report", "--output", str(output)]) == 0
    assert output.read_text(encoding="utf-8").startswith("<!doctype html>")
    capsys.readouterr()
    for option in (["--json"], ["--format", "json"]):
        assert run_balances(["report", "--days", "3", *option]) == 0
        assert len(json.loads(capsys.readouterr().out)["days"]) >= 3
    assert run_balances(["report", "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("figure,of,measure,value\n")
    with pytest.raises(SettingError, match="No such file or directory"):
        run_balances(["report", "--output", str(tmp_path / "no" / "such.html")])
    for days in ("0", "367", "x"):
        with pytest.raises(click.UsageError):
            run_balances(["report", "--days", days])


def test_first_day_is_right_when_clocks_go_back(crm: Warehouse) -> None:
    figures = report.gather(crm, days=40, zone="Europe/London", now=datetime(2026, 10, 26, 12, tzinfo=UTC))

    assert (figures.first_day, figures.last_day, len(figures.days)) == (date(2026, 9, 17), date(2026, 10, 26), 40)
