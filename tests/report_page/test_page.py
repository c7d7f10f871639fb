"""The page of crm-balances report: complete, accessible, and the same figures as text, chart and table."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from datetime import date
from decimal import Decimal
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import click
import pytest

from target_crm.balances_cli.report import page as report
from target_crm.warehouse.connection import Warehouse
from tests.helpers import browser
from tests.helpers.balances import run_balances
from tests.helpers.commands import run_script
from tests.helpers.target import (
    ACTIONS,
    AWARDS,
    action,
    execute,
    load,
    record,
    snapshot,
    state,
)

if TYPE_CHECKING:
    from pathlib import Path

from tests.helpers.report import HISTORY, NOW, PERKS, at, perk


class Page(HTMLParser):
    """The texts of a page, and its tags with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.html = html
        self.scripts = re.findall(r"<script[^>]*>(.*?)</script>", html, re.DOTALL)
        self.drawn = re.sub(r"<script[^>]*>.*?</script>", "", html, flags=re.DOTALL)
        self.feed(self.drawn)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def charts(self) -> list[str | None]:
        """The accessible names of the charts."""
        return [attributes.get("aria-label") for _, attributes in self.tags if attributes.get("role") == "img"]

    @property
    def tables(self) -> dict[str, list[list[str]]]:
        """The rows of each table that can be downloaded, by file name."""
        links = [attributes for tag, attributes in self.tags if tag == "a"]
        return {
            str(link["download"]): list(csv.reader(io.StringIO(unquote(str(link["href"]).split(",", 1)[1])[1:])))
            for link in links
        }


def page_of(url: str, *, title: str | None = None, **options: Any) -> Page:
    crm = Warehouse(url)
    crm.set_up(balances=True)
    try:
        return Page(report.page(report.gather(crm, now=NOW, **options), title))
    finally:
        crm.dispose()


def test_page_states_its_figures_as_text(sqlite_url: str) -> None:
    load(sqlite_url, HISTORY)

    page = page_of(sqlite_url)

    assert "35.5 points outstanding on 4 awards, held by 2 people" in page.text
    assert "Verified: every balance matches the ledger and Pepper" in page.text
    assert "Coffee card holds the most: 35.5 points." in page.text
    assert "l1 has the most: 2 loyalty actions." in page.text
    assert len(page.charts) == 7
    assert all(name and name.endswith("The figures are in the table below.") for name in page.charts)
    assert [tag for tag, _ in page.tags].count("details") == 7


def test_page_names_merchant_places_and_perks(sqlite_url: str) -> None:
    context = {"user": {"_id": "u1"}, "location": {"_id": "l9", "title": "Arches"}}
    gone = {"awardId": "w8", "perkId": "p8", "pointsAvailable": 90, "pointsAdded": 90}
    load(
        sqlite_url,
        [*HISTORY, ACTIONS, *(action(f"c{n}", award="w8", context=context, metadata=gone) for n in range(3))],
    )

    page = page_of(sqlite_url, title="The Pepper & Mill", price=report.Price(Decimal("0.015"), "GBP"))

    assert "The Pepper & Mill · Loyalty report · 5 Oct 2026" in page.text
    assert "Liability: GBP 1.88 , at GBP 0.015 per point" in page.text
    assert "Arches has the most: 3 loyalty actions." in page.text
    assert "retired perk p8 holds the most: 90 points." in page.text
    drawn = re.findall(r"<text[^>]*>([^<]*)", page.drawn)
    assert {"Arches", "retired perk p8", "points outstanding", "points per day", "loyalty actions"} <= set(drawn)
    assert {"hour of the day", "actions per hour of the week", "month of issue"} <= set(drawn)


def test_deleted_perk_keeps_its_title(sqlite_url: str) -> None:
    load(sqlite_url, HISTORY)
    execute(sqlite_url, "UPDATE perks SET _sdc_deleted_at = '2026-10-04 00:00:00'")

    assert "retired perk Coffee card holds the most" in page_of(sqlite_url).text


def test_page_compares_with_the_period_before(sqlite_url: str) -> None:
    again = [
        action(f"f{n}", delta=2, available=2 + 2 * n, award="w7", at=f"2026-10-0{n + 4}T01:00:00Z") for n in (0, 1)
    ]
    load(sqlite_url, [*HISTORY, ACTIONS, *again])

    page = page_of(sqlite_url, days=5)
    shorter = page_of(sqlite_url, since=date(2026, 10, 3), until=date(2026, 10, 5))

    assert "Issued 14 in 5 days no earlier period to compare" in page.text
    assert "Issued 4 in 3 days −60.0 % on the period before" in shorter.text  # noqa: RUF001
    assert ["plus issued", "4.0000", "10.0000", "-60.0"] in shorter.tables["movements.csv"]


def test_charts_begin_where_the_data_begins(sqlite_url: str) -> None:
    load(sqlite_url, [ACTIONS, action("a1", at="2026-10-03T12:00:00Z")])

    days = [row[0] for row in page_of(sqlite_url).tables["outstanding-points.csv"][1:]]

    assert days == ["2026-10-03", "2026-10-04", "2026-10-05"]


def test_downloads_have_the_figures_of_the_report(sqlite_url: str) -> None:
    load(sqlite_url, HISTORY)

    tables = page_of(sqlite_url, days=5).tables

    assert tables["outstanding-by-perk.csv"] == [
        ["perk", "points", "awards", "holders", "issued", "redeemed"],
        ["Coffee card", "35.5000", "4", "2", "14.0000", "6.0000"],
    ]
    assert tables["age-by-date-of-issue.csv"] == [
        ["issued", "points"],
        ["no date", "22.5000"],
        ["Sep 2026", "4.0000"],
        ["Oct 2026", "9.0000"],
    ]
    assert len(tables) == 11


def test_page_is_self_contained(sqlite_url: str) -> None:
    load(sqlite_url, HISTORY)

    page = page_of(sqlite_url)

    assert {"script", "link", "img", "iframe", "image", "use"}.isdisjoint(tag for tag, _ in page.tags)
    links = [
        attributes[name] for _, attributes in page.tags for name in ("src", "href", "xlink:href") if name in attributes
    ]
    assert all(str(link).startswith("data:text/csv;") for link in links)
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert set(re.findall(r"https?://[^\s\"'<]+", page.drawn)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "url(" not in page.drawn.replace("url(#", "")
    specifications, script = page.scripts
    json.loads(specifications)
    (policy,) = (attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert str(policy).split("; ") == [
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        f"script-src 'sha256-{digest}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]


@pytest.mark.parametrize(("wrong", "said"), [(1, "1 balance differs"), (3, "3 balances differ")])
def test_page_marks_an_unverified_sum(sqlite_url: str, wrong: int, said: str) -> None:
    load(sqlite_url, [*HISTORY, action("bad", available=True)])
    assert "not verified" not in page_of(sqlite_url).text
    # w3 differs from its snapshot, too.
    changed = ", ".join(f"'{award}'" for award in ("w3", "w1", "w2")[:wrong])
    execute(sqlite_url, f"UPDATE award_balances SET points = points + 1 WHERE award_id IN ({changed})")

    page = page_of(sqlite_url)

    assert f"{35.5 + wrong:g} not verified points outstanding on" in page.text
    assert f"Drift: {said} from the ledger or the snapshots" in page.text
    assert "Verified" not in page.text
    assert "In quarantine 1 records" in page.text


def test_page_marks_a_sum_of_incomplete_actions(sqlite_url: str) -> None:
    spans = [["2026-10-01T00:00:00Z", "2026-10-02T00:00:00Z"], ["2026-10-03T00:00:00Z", "2026-10-04T00:00:00Z"]]
    for span in spans:
        bookmark = {"replication_key_value": span[1], "covered_from": span[0], "read": [span]}
        load(sqlite_url, [*HISTORY, state({"bookmarks": {"actions": bookmark}})])

    page = page_of(sqlite_url)

    assert "35.5 incomplete points outstanding on" in page.text
    assert "actions between 2026-10-02 00:00 and 2026-10-03 00:00 UTC were never read (24 h)" in page.text


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        pytest.param([], "0 points outstanding on 0 awards, held by 0 people Nothing loaded yet", id="nothing"),
        pytest.param([AWARDS, snapshot("w1", 5)], "5 points outstanding on 1 award, held by 1 person", id="one-award"),
        pytest.param([ACTIONS, action("a1")], "2 points outstanding on 1 award, held by 1 person", id="one-action"),
        pytest.param([AWARDS, snapshot("w1", -7.25)], "−7.25 points outstanding", id="negative-points"),  # noqa: RUF001
        pytest.param([AWARDS, snapshot("w1", 0)], "0 points outstanding on 1 award, held by 0 people", id="zero"),
        pytest.param(
            [AWARDS, snapshot("w1", 99_999_999_999), snapshot("w2", -99_999_999_998.5)],
            "0.5 points outstanding",
            id="very-many",
        ),
        pytest.param(
            [ACTIONS, action("a1", at="2026-10-09T00:00:00Z")], "Newest action in 4 days read", id="future-action"
        ),
        pytest.param([ACTIONS, action("a1", at="1969-10-09T00:00:00Z")], "2 points outstanding", id="long-ago"),
    ],
)
def test_page_of_little_or_unusual_data(sqlite_url: str, messages: list[str], said: str) -> None:
    load(sqlite_url, messages)

    page = page_of(sqlite_url)

    assert said in page.text
    assert {"NaN", "Infinity", "undefined", "null", "None"}.isdisjoint(re.findall(r"\w+", page.text))
    assert "NaN" not in page.drawn + page.scripts[0]


def test_the_text_counts_future_days_as_the_charts_do(sqlite_url: str) -> None:
    load(sqlite_url, [*HISTORY, action("z1", delta=5, available=5, award="w9", at="2026-10-07T11:00:00Z")])

    page = page_of(sqlite_url, days=5)

    assert "Issued 15 in 7 days" in page.text
    assert "1 Oct 2026 to 7 Oct 2026. An edit, an expiry or a deletion" in page.text
    assert "Newest action in 47 h read" in page.text


PAGE_BYTES_MAX = 3_000_000
FORMULA = '=HYPERLINK("x")'
EVIL = "<script>alert('ö & \"x\"')</script> 🥐 ]]> </svg>"


def test_titles_are_escaped(sqlite_url: str) -> None:
    titles = [EVIL, FORMULA, "{{ 7 * 7 }}", "Same", "Same", "x" * 500, "🥐" * 40, "مرحبا", ""]
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
    assert f"'{FORMULA}" in {row[0] for row in page.tables["outstanding-by-perk.csv"]}
    assert f"{EVIL} holds the most" in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert {"Same (p3)", "Same (p4)"} <= set(page.texts)
    assert page.drawn.count("<svg") == page.drawn.count("</svg") == 6
    assert len(page.scripts) == 2


# Waits until the page's script has drawn the charts of this width.
DRAWN = """const drawn = async page => {
  const boxes = [...page.querySelectorAll(".drawing > div")].filter(box => box.checkVisibility());
  while (!boxes.every(box => box.dataset.drawn == "done")) await new Promise(done => setTimeout(done, 50));
};"""
LAYOUT = """page => ({
  overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
  drawings: [...page.querySelectorAll("[role=img]")].map(drawing => {
    const shown = [...drawing.querySelectorAll("svg")].filter(svg => svg.checkVisibility());
    const card = drawing.closest("figure").getBoundingClientRect();
    const inside = shown.every(svg => svg.getBoundingClientRect().right <= card.right);
    return [drawing.getAttribute("aria-label").length > 20, shown.length, inside];
  }),
})"""
LONG_IDS = [
    perk("p1", "x" * 300),
    ACTIONS,
    action("z1", award="w" * 200, user="u" * 200, **at("l" * 200, "u" * 200)),
    snapshot("w9", -99_999_999_999.25),
]
needs_chromium = pytest.mark.skipif(not browser.CHROMIUM, reason="no Chromium on this machine")


@needs_chromium
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
def test_page_fits_phones_and_desktops(sqlite_url: str, tmp_path: Path, width: int, scripts: bool) -> None:
    load(sqlite_url, [*HISTORY, *LONG_IDS])
    wait = f"{DRAWN} await drawn(page);" if scripts else ""
    question = f"async page => {{ {wait} return ({LAYOUT})(page); }}"

    measured = browser.ask(page_of(sqlite_url).html, question, width, tmp_path, scripts=scripts)

    assert measured["overflow"] <= 0
    assert measured["drawings"] == [[True, 1, True]] * 7


@needs_chromium
def test_charts_have_tooltips(sqlite_url: str, tmp_path: Path) -> None:
    load(sqlite_url, HISTORY)
    hover = """for (const [selector, number] of [[".days_marks path", 0], [".mark-rect path", 1]]) {
      const mark = page.querySelectorAll(".wide .live")[number].querySelector(selector);
      const { left, top } = mark.getBoundingClientRect();
      const pointer = { bubbles: true, clientX: left + 1, clientY: top + 1 };
      mark.dispatchEvent(new page.defaultView.PointerEvent("pointermove", pointer));
      await new Promise(done => setTimeout(done, 100));
      texts.push(page.querySelector("#vg-tooltip-element").innerText.replace(/\\s+/g, " ").trim());
    }"""
    question = f"async page => {{ {DRAWN} await drawn(page); const texts = []; {hover} return texts; }}"

    texts = browser.ask(page_of(sqlite_url).html, question, 1280, tmp_path)

    assert texts == ["day 28 Sep 2026 points outstanding 34", "day 28 Sep 2026 kind issued points 4"]


@needs_chromium
@pytest.mark.parametrize(("dark", "bar"), [(False, "rgb(43, 108, 176)"), (True, "rgb(106, 174, 242)")])
def test_charts_follow_dark_mode(sqlite_url: str, tmp_path: Path, dark: bool, bar: str) -> None:
    load(sqlite_url, HISTORY)
    question = f"""async page => {{ {DRAWN} await drawn(page);
      return [".still", ".live"].map(kind => page.defaultView.getComputedStyle(
        page.querySelectorAll(`.wide ${{kind}}`)[1].querySelector(".mark-rect path")).fill); }}"""

    colours = browser.ask(page_of(sqlite_url).html, question, 1280, tmp_path, dark=dark)

    assert colours == [bar, bar]


@needs_chromium
def test_page_can_be_read_with_a_keyboard(sqlite_url: str, tmp_path: Path) -> None:
    load(sqlite_url, HISTORY)
    question = """page => [...page.querySelectorAll("main summary, main a, main .scroll")]
      .filter(control => control.checkVisibility())
      .map(control => { control.focus(); return [page.activeElement === control, control.tabIndex]; })"""

    focused = browser.ask(page_of(sqlite_url).html, question, 1280, tmp_path)

    # A table and a download for each chart, four more downloads, and a list of holders that scrolls.
    assert focused == [[True, 0]] * (7 + 7 + 4 + 1)


# Apply the print layout on the screen, and return for each table whether all of it is visible.
PRINTED = """async page => {
  await drawn(page);
  for (const rule of page.styleSheets[0].cssRules)
    if (rule.media) rule.media.mediaText = rule.media.mediaText == "print" ? "all" : "not all";
  page.querySelector("details").open = true;
  const count = svgs => [...svgs].filter(svg => svg.checkVisibility()).length;
  const drawings = [...page.querySelectorAll(".drawing")].map(drawing =>
    [".still svg", ".live svg"].map(kind => count(drawing.querySelectorAll(kind))));
  const tables = [...page.querySelectorAll("table")].filter(table => table.checkVisibility()).map(table => {
    const card = table.closest(".card").getBoundingClientRect(), box = table.getBoundingClientRect();
    const around = table.parentElement.getBoundingClientRect();
    return box.right <= card.right && box.bottom <= Math.min(card.bottom, around.bottom) + 1;
  });
  return { tables, drawings };
}"""
PAPER_WIDTH = 688
"""The width of A4 without margins, in pixels."""


@needs_chromium
@pytest.mark.parametrize("width", [PAPER_WIDTH, 1280])
def test_printed_page_shows_opened_tables_in_full(sqlite_url: str, tmp_path: Path, width: int) -> None:
    holders = [action(f"h{number}", award=f"h{number}", user=f"{number:024}") for number in range(30)]
    load(sqlite_url, [*HISTORY, ACTIONS, *holders])

    question = f"page => {{ {DRAWN} return ({PRINTED})(page); }}"
    measured = browser.ask(page_of(sqlite_url).html, question, width, tmp_path)

    assert measured["tables"] == [True] * 5
    # Only the drawings in the HTML are printed, not those of the script.
    assert measured["drawings"] == [[1, 0]] * 7


def test_page_size_does_not_grow_with_awards(sqlite_url: str) -> None:
    awards = [snapshot(f"w{number}", number % 9) for number in range(20_000)]
    load(sqlite_url, [AWARDS, *awards])

    page = page_of(sqlite_url)

    assert "on 20,000 awards" in page.text
    assert len(page.html) < PAGE_BYTES_MAX


def test_chart_groups_the_smallest_perks(sqlite_url: str) -> None:
    awards = [record("awards", {"_id": f"w{n}", "points": n, "userId": "u", "perkId": f"p{n:03}"}) for n in range(440)]
    load(sqlite_url, [AWARDS, *awards])

    page = page_of(sqlite_url)

    assert "429 other perks" in page.texts
    assert "The table has the largest 400 of 440 perks." in page.text
    assert [row[0] for row in page.tables["outstanding-by-perk.csv"]][-1] == "p040"
    assert "p428" not in re.findall(r"<text[^>]*>([^<]*)", page.html)


@pytest.mark.parametrize(
    ("locations", "said"),
    [
        (20, "l00 has the most: 1 loyalty actions. The figures"),
        (22, "l00 has the most: 1 loyalty actions. The table leaves out 2 actions at other locations."),
    ],
)
def test_page_says_how_many_actions_are_at_other_locations(sqlite_url: str, locations: int, said: str) -> None:
    far = action("z1", award="w2", at="2027-01-01T00:00:00Z", **at("l99"))
    load(sqlite_url, [ACTIONS, *(action(f"a{n:02}", award="w1", **at(f"l{n:02}")) for n in range(locations)), far])

    page = page_of(sqlite_url)

    assert said in " ".join(str(name) for name in page.charts)
    assert len(page.tables["activity-by-location.csv"]) == 1 + 20


def test_report_command_writes_the_requested_format(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    load(sqlite_url, HISTORY)
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", sqlite_url)
    output = tmp_path / "loyalty.html"

    assert run_balances(["report", "--output", str(output)]) == 0
    assert output.read_text(encoding="utf-8").startswith("<!doctype html>")
    capsys.readouterr()
    for option in (["--json"], ["--format", "json"]):
        assert run_balances(["report", "--days", "3", *option]) == 0
        assert len(json.loads(capsys.readouterr().out)["days"]) >= 3
    assert run_balances(["report", "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("figure,of,measure,value\n")
    for days in ("0", "367", "x"):
        with pytest.raises(click.UsageError):
            run_balances(["report", "--days", days])


def test_report_command_takes_period_perk_title_and_money(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    load(sqlite_url, HISTORY)
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", sqlite_url)
    money = ["--point-value", "0.02", "--currency", "EUR"]
    period = ["--from", "2026-10-01", "--until", "2026-10-02", "--perk", "Coffee card"]
    output = tmp_path / "loyalty.html"
    capsys.readouterr()

    assert run_balances(["report", "--json", *period, *money]) == 0
    figures = json.loads(capsys.readouterr().out, parse_float=Decimal)
    assert run_balances(["report", "--output", str(output), "--title", "Mill", *period, *money]) == 0

    assert [row["day"] for row in figures["days"]] == ["2026-10-01", "2026-10-02"]
    assert figures["outstanding"]["liability"] == Decimal("0.71")
    assert figures["price"] == {"value": Decimal("0.02"), "currency": "EUR"}
    text = Page(output.read_text(encoding="utf-8")).text
    assert "Mill · Loyalty report · " in text
    assert " · only Coffee card" in text
    assert "Liability: EUR 0.71 , at EUR 0.02 per point" in text


def test_report_writes_a_file_and_names_it_or_prints_to_standard_output(sqlite_url: str, tmp_path: Path) -> None:
    load(sqlite_url, HISTORY)

    written, printed, figures = (
        run_script("crm-balances", "report", "--url", sqlite_url, *options, cwd=tmp_path)
        for options in ([], ["--output", "-"], ["--format", "csv"])
    )

    assert (written.returncode, written.stdout) == (0, "Wrote loyalty-report.html\n")
    assert (tmp_path / "loyalty-report.html").read_text().startswith("<!doctype html>")
    assert printed.stdout.startswith("<!doctype html>")
    assert figures.stdout.startswith("figure,of,measure,value\n")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["crm.db", "loyalty-report.html"]
