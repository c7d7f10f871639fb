"""Report the figures of a loyalty programme as one web page, JSON or CSV."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from target_crm.balances_cli.perks import perk_ids, perks_table
from target_crm.balances_cli.report import charts, queries
from target_crm.balances_cli.report.queries import Period
from target_crm.balances_cli.status import Status, ago, status_in
from target_crm.errors import SettingError
from target_crm.records import values
from target_crm.records.actions import location_title

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import tzinfo

    from sqlalchemy import Connection

    from target_crm.sql.tables import Tables
    from target_crm.warehouse.connection import Warehouse

FORMATS = ("html", "json", "csv")
DAYS_DEFAULT, DAYS_MAX = 90, 366
# Pepper has no actions from before this year.
FIRST_YEAR = 2000
# The widths of charts in CSS pixels, for a full page, half a page, and a phone.
PAGE_PX, COLUMN_PX, PHONE_PX = 1040, 490, 312
BARS_SHOWN = 12
# The page's table shows at most this many perks. JSON and CSV contain all of them.
ROWS_SHOWN = 400
NO_LOCATION = "no location"
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Price:
    """What a point costs the merchant. The currency is a code of three letters."""

    value: Decimal
    currency: str


@dataclass(frozen=True)
class Report:
    """All figures: outstanding points now, movements in the period, and the status of the warehouse.

    Attributes:
        period_days: The number of days in the period, without future days. The period before it has the same length.
        perk: The id or title of the perk that the figures cover, as requested. None for all perks.
        price: What a point costs, if known.
        begins: The first day of the period, or the day of the first movement if that is later.
        previous: The movements in the equally long period before. None if no movement is older than that period.
        previous_rates: The rates of the previous period.
        issued: Outstanding points by month of issue, if each award spends its oldest points first.
    """

    now: datetime
    warehouse: str
    zone: str
    first_day: date
    last_day: date
    period_days: int
    begins: date
    perk: str | None
    price: Price | None
    outstanding: dict[str, Any]
    days: list[dict[str, Any]]
    roll_forward: dict[str, Decimal]
    rates: dict[str, Decimal | None]
    previous: dict[str, Decimal] | None
    previous_rates: dict[str, Decimal | None] | None
    all_time: dict[str, Decimal]
    all_time_rates: dict[str, Decimal | None]
    hours: list[dict[str, int]]
    perks: list[dict[str, Any]]
    ages: list[dict[str, Any]]
    issued: list[dict[str, Any]]
    users: list[dict[str, Any]]
    locations: list[dict[str, Any]]
    status: Status


def zone_of(name: str) -> tzinfo:
    """Return a time zone by its name in the IANA database.

    Raises:
        SettingError: The name is unknown.
    """
    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise SettingError(f"--timezone {name}: unknown time zone, expected e.g. Europe/London") from None


def gather(
    warehouse: Warehouse,
    *,
    days: int = DAYS_DEFAULT,
    since: date | None = None,
    until: date | None = None,
    perk: str | None = None,
    price: Price | None = None,
    zone: str = "UTC",
    now: datetime | None = None,
) -> Report:
    """Query the figures in one read transaction.

    Args:
        warehouse: A warehouse that is set up.
        days: The length of the period if `since` is None: 1 to `DAYS_MAX`.
        since: The first day of the period.
        until: The last day of the period. The default is today.
        perk: The id or title of a perk, to report on this perk only.
        price: What a point costs.
        zone: The time zone of days and hours.
        now: The current time, from which ages are calculated. The default is the local clock.

    Raises:
        SettingError: The period, the perk or the time zone is invalid.
    """
    tables, now = warehouse.tables, now or datetime.now(UTC)
    time_zone = zone_of(zone)
    today = now.astimezone(time_zone).date()
    period = _period(today, time_zone, days, since, until)
    with warehouse.read() as connection:

        def rows(query: Any, **parameters: Any) -> list[dict[str, Any]]:
            return [dict(row) for row in connection.execute(query, parameters).mappings()]

        perks = rows(queries.by_perk(tables, perks_table(connection, tables)))
        only: dict[str, Any] = {}
        if perk is not None:
            named = perk_ids(connection, tables, perk)
            perks = [row for row in perks if row["perk_id"] in named]
            with_awards = named.intersection(connection.scalars(queries.perks_with_awards(tables)))
            if not with_awards:
                raise SettingError(f"--perk {perk}: no award has a perk with this id or title")
            only = {"perks": sorted(with_awards)}

        def figures(query: Callable[..., Any], **parameters: Any) -> list[dict[str, Any]]:
            return rows(query(tables, by_perk=bool(only)), **only, **parameters)

        both = {"start": period.before.start, "end": period.end, "end_quarter": period.end_quarter}
        quarters = figures(queries.by_quarter_hour, **both)
        by_day = queries.per_day(quarters, period)
        moved, all_time = queries.roll_forward(by_day), queries.all_time(quarters)
        previous = None
        if any(row["quarter"] is None for row in quarters):
            previous = queries.roll_forward(queries.per_day(quarters, period.before))
        (outstanding,) = figures(queries.outstanding)
        if price:
            outstanding["liability"] = outstanding["points"] * price.value
        issued = figures(queries.by_issue, **queries.month_limits(today, time_zone))
        locations = figures(queries.by_location, start=period.start, end=period.end)
        return Report(
            now=now,
            warehouse=warehouse.name,
            zone=zone,
            first_day=by_day[0]["day"],
            last_day=by_day[-1]["day"],
            period_days=period.days,
            begins=queries.begins(quarters, period),
            perk=perk,
            price=price,
            outstanding=outstanding,
            days=by_day,
            roll_forward=moved,
            rates=queries.rates(moved),
            previous=previous,
            previous_rates=queries.rates(previous) if previous else None,
            all_time=all_time,
            all_time_rates=queries.rates(all_time),
            hours=queries.by_weekday_and_hour(quarters, period),
            perks=[{**row, "retired": bool(row["retired"])} for row in perks],
            ages=queries.ages(figures(queries.by_age, **queries.age_limits(now))),
            issued=queries.issue_months(issued, outstanding["points"], today),
            users=figures(queries.by_user),
            locations=_with_titles(connection, tables, locations),
            status=status_in(connection, tables, now, full=True),
        )


def _period(today: date, zone: tzinfo, days: int, since: date | None, until: date | None) -> Period:
    last = until or today
    first = since or last - timedelta(days=days - 1)
    if last > today:
        raise SettingError(f"--until {last} is in the future; today is {today}")
    if first > last:
        raise SettingError(f"--from {first} is after the last day of the period, {last}")
    if first.year < FIRST_YEAR:
        raise SettingError(f"the period begins on {first}, expected {FIRST_YEAR} or later")
    period = Period(first, last, zone, is_open=until is None)
    if period.days > DAYS_MAX:
        raise SettingError(f"--from {first}: the period has {period.days:,} days, expected at most {DAYS_MAX}")
    return period


def _with_titles(connection: Connection, tables: Tables, locations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add the title of each location, from the payload of an action at this location. The title may be missing."""
    if not locations:
        return []
    examples = [row["example_id"] for row in locations if row["example_id"]]
    titles = {
        action_id: location_title(payload)
        for action_id, payload in connection.execute(queries.payloads(tables.actions), {"action_ids": examples})
    }
    return [
        {"location_id": row["location_id"], "title": titles.get(row["example_id"])}
        | {name: value for name, value in row.items() if name not in {"location_id", "example_id"}}
        for row in locations
    ]


def as_json(report: Report) -> str:
    """Format all figures as JSON. Points keep all their digits."""
    return values.json_text({**asdict(report), "drifted": report.status.drifted})


def as_csv(report: Report) -> str:
    """Format all figures as CSV. Each line has a figure's group, item, measure and value."""
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(("figure", "of", "measure", "value"))
    for figure, of, measures in _figures(report):
        writer.writerows((figure, of, name, value) for name, value in measures.items() if value is not None)
    return output.getvalue()


def _figures(report: Report) -> list[tuple[str, str, Mapping[str, Any]]]:
    figures: list[tuple[str, str, Mapping[str, Any]]] = [
        ("outstanding", "", report.outstanding),
        ("roll_forward", "", report.roll_forward),
        ("rates", "", report.rates),
        ("previous", "", report.previous or {}),
        ("previous_rates", "", report.previous_rates or {}),
        ("all_time", "", report.all_time),
        ("all_time_rates", "", report.all_time_rates),
        (
            "status",
            "",
            {
                "drifted": int(report.status.drifted),
                "rejected": report.status.rejected,
                "holes": len(report.status.coverage.holes),
            },
        ),
    ]
    for figure, rows, keys in (
        ("days", report.days, ("day",)),
        ("hours", report.hours, ("weekday", "hour")),
        ("perks", report.perks, ("perk_id",)),
        ("ages", report.ages, ("days_from",)),
        ("issued", report.issued, ("month",)),
        ("users", report.users, ("user_id",)),
        ("locations", report.locations, ("location_id",)),
        ("streams", [asdict(stream) for stream in report.status.streams], ("stream",)),
    ):
        for row in rows:
            measures = {name: value for name, value in row.items() if name not in keys}
            of = " ".join("" if row[key] is None else str(row[key]) for key in keys)
            figures.append((figure, of, measures))
    return figures


Cell = str | Decimal | int | datetime | date | None


@dataclass(frozen=True)
class Table:
    """A table of raw values. The first `texts` columns hold text, and all other columns hold numbers or times."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    texts: int = 1

    @property
    def file(self) -> str:
        """The name of the table's CSV file."""
        return re.sub(r"\W+", "-", self.title.lower()) + ".csv"

    @property
    def csv_link(self) -> str:
        """Return the table as CSV in a data URI. Because of the byte order mark, Excel reads it as UTF-8."""
        output = io.StringIO()
        writer = csv.writer(output)
        writer.writerow(self.head)
        writer.writerows([_csv_cell(cell) for cell in row] for row in self.rows)
        return "data:text/csv;charset=utf-8,%EF%BB%BF" + quote(output.getvalue(), safe=",:")


def _csv_cell(cell: Cell) -> str:
    if isinstance(cell, datetime):
        return cell.isoformat()
    text = "" if cell is None else str(cell)
    # A spreadsheet would evaluate text that begins with such a character as a formula.
    return f"'{text}" if isinstance(cell, str) and text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


@dataclass(frozen=True)
class Chart:
    """A chart with a short summary, and with its figures as a table."""

    summary: str
    table: Table
    draw: Callable[[int], dict[str, Any]] | None
    """A function that returns the chart's specification for a given width. None if there is nothing to draw."""
    width: int = COLUMN_PX

    @property
    def title(self) -> str:
        """The title of the chart and of its table."""
        return self.table.title


def check_extra() -> None:
    """Check that the packages for `page` are installed, without importing them.

    Raises:
        SettingError: The extra `report` is not installed.
    """
    missing = [name for name in ("jinja2", "markupsafe", "vl_convert") if find_spec(name) is None]
    if missing:
        raise SettingError(
            f"--format html needs {', '.join(missing)}: pip install 'pepper-crm[report]', or use --format json or csv"
        )


def page(report: Report, title: str | None = None) -> str:
    """Render the report as one self-contained HTML page. This needs the extra `report`.

    A single script, which consists of `charts.js` and Vega, adds tooltips. The page is complete without tooltips.

    Args:
        report: The figures.
        title: The name at the top of the page, such as the merchant's.
    """
    import vl_convert  # noqa: PLC0415 - comes with the extra alone
    from jinja2 import Environment, StrictUndefined  # noqa: PLC0415
    from markupsafe import Markup  # noqa: PLC0415

    def svg(specification: dict[str, Any]) -> Markup:
        # Vega escapes the text in its SVG.
        return Markup(vl_convert.vegalite_to_svg(specification))  # noqa: S704

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters.update(
        number=number,
        percent=percent,
        signed_percent=lambda change: "-" if change is None else f"{change:+,} %".replace("-", MINUS),
        since=lambda time: since(report.now, time),
        day=day,
        cell=lambda cell: _shown(report.now, cell),
        count=_count,
        money=lambda amount: _money(amount, report.price),
    )
    template = environment.from_string(files(__package__).joinpath("report.html").read_text(encoding="utf-8"))
    charts_shown = _charts(report)
    specifications = [
        {"wide": chart.draw(chart.width), "narrow": chart.draw(PHONE_PX)} for chart in charts_shown if chart.draw
    ]
    drawings = iter([{size: svg(drawn) for size, drawn in each.items()} for each in specifications])
    script = _script()
    page: str = template.render(
        report=report,
        title=title,
        charts=[(chart, next(drawings) if chart.draw else None) for chart in charts_shown],
        specifications=specifications,
        # The script needs no escaping, because it belongs to this package.
        script=Markup(script),  # noqa: S704
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        tables=_tables(report),
        newest=next(stream for stream in report.status.streams if stream.stream == "actions"),
        empty=not report.outstanding["awards"] and not _has_movements(report),
        # Do not add up the checks, because a balance that differs from its snapshot also differs from the ledger's
        # total. So it would be counted twice.
        differing=max((check.differing for check in report.status.checks), default=0),
        change=lambda name: _change(report, name),
    )
    return page


@cache
def _script() -> str:
    """Return `charts.js` with Vega, Vega-Lite and Vega-Embed, as one script for an HTML page."""
    import vl_convert  # noqa: PLC0415 - comes with the extra alone

    source = files(__package__).joinpath("charts.js").read_text(encoding="utf-8")
    bundled: str = vl_convert.javascript_bundle(source)
    return bundled


def _charts(report: Report) -> list[Chart]:
    return [
        _outstanding_by_day(report),
        _moved_by_day(report),
        _outstanding_by_age(report),
        _outstanding_by_issue(report),
        _outstanding_by_perk(report),
        _activity_by_location(report),
        _activity_by_hour(report),
    ]


def _days_with_data(report: Report) -> list[dict[str, Any]]:
    return [each for each in report.days if each["day"] >= report.begins]


def _outstanding_by_day(report: Report) -> Chart:
    days, moved = _days_with_data(report), report.roll_forward
    return Chart(
        f"{_count(moved['after'], 'point')} at the end of {day(report.last_day)}, {number(moved['before'])} before "
        f"{day(report.first_day)}. Points that an award had before its first known movement count from the beginning.",
        Table("Outstanding points", ("day", "outstanding"), [(each["day"], each["outstanding"]) for each in days]),
        (lambda width: charts.outstanding(days, width)) if _has_movements(report) else None,
        PAGE_PX,
    )


def _moved_by_day(report: Report) -> Chart:
    days, moved = _days_with_data(report), report.roll_forward
    return Chart(
        f"{_count(moved['issued'], 'point')} issued and {number(moved['refunded'])} refunded, above the axis; "
        f"{number(moved['redeemed'])} redeemed, below it.",
        _numbers_table(
            "Issued, redeemed and refunded",
            days,
            "day",
            ("issued", "redeemed", "refunded"),
            [str(each["day"]) for each in days],
        ),
        (lambda width: charts.moved(days, width)) if _has_actions(report) else None,
        PAGE_PX,
    )


def _outstanding_by_perk(report: Report) -> Chart:
    columns = ("points", "awards", "holders", "issued", "redeemed")
    labels = _labels([(row["perk_id"] or "no perk", _perk_title(row)) for row in report.perks])
    points = [float(row["points"]) for row in report.perks]
    bars = _largest(list(zip(labels, points, strict=True)), "other perks")
    shown = report.perks[:ROWS_SHOWN]
    most = f"{bars[0][0]} holds the most: {_count(Decimal(str(bars[0][1])), 'point')}." if bars else "No awards."
    left_out = f" The table has the largest {ROWS_SHOWN} of {len(report.perks):,} perks."
    return Chart(
        most + (left_out if len(report.perks) > ROWS_SHOWN else ""),
        _numbers_table("Outstanding by perk", shown, "perk", columns, labels[:ROWS_SHOWN]),
        (lambda width: charts.bars(bars, "points outstanding", width)) if bars else None,
    )


def _outstanding_by_age(report: Report) -> Chart:
    labels = [_age(row) for row in report.ages]
    bars = [(label, float(row["points"])) for label, row in zip(labels, report.ages, strict=True)]
    return Chart(
        "Outstanding points by the time since the last movement of their award. "
        "Points idle for a long time may never be redeemed.",
        _numbers_table("Age by last movement", report.ages, "last moved", ("points", "awards"), labels),
        (lambda width: charts.bars(bars, "points outstanding", width)) if _has_movements(report) else None,
    )


def _outstanding_by_issue(report: Report) -> Chart:
    labels = [_month(row["month"]) for row in report.issued]
    columns = [
        (label, float(row["points"]))
        for label, row in zip(labels, report.issued, strict=True)
        if row["month"] != "undated"
    ]
    undated = next((row["points"] for row in report.issued if row["month"] == "undated"), Decimal(0))
    return Chart(
        "Outstanding points by month of issue, if each award spends its oldest points first (first in, first out). "
        f"Points without a date of issue, because no action issued them: {number(undated)}.",
        _numbers_table("Age by date of issue", report.issued, "issued", ("points",), labels),
        (lambda width: charts.months(columns, width)) if columns else None,
    )


def _activity_by_hour(report: Report) -> Chart:
    hours, busiest = report.hours, max(report.hours, key=lambda row: row["actions"])
    summary = (
        f"Busiest: {charts.WEEKDAYS[busiest['weekday']]} from {busiest['hour']}:00, {report.zone}, with "
        f"{_count(busiest['actions'], 'loyalty action')}."
    )
    rows: list[tuple[Cell, ...]] = [
        (f"{hour}:00", *(row["actions"] for row in hours if row["hour"] == hour)) for hour in range(24)
    ]
    return Chart(
        summary if _has_actions(report) else "No loyalty actions in this period.",
        Table("Activity by hour of the week", ("hour", *charts.WEEKDAYS), rows),
        (lambda width: charts.week(hours, width)) if _has_actions(report) else None,
    )


def _activity_by_location(report: Report) -> Chart:
    columns = ("actions", "issued", "redeemed", "refunded")
    labels = _labels([(row["location_id"] or NO_LOCATION, row["title"]) for row in report.locations])
    bars = [(label, float(row["actions"])) for label, row in zip(labels, report.locations, strict=True)][:BARS_SHOWN]
    named = [bar for bar, row in zip(bars, report.locations, strict=False) if row["location_id"]]
    most = (
        f"{named[0][0]} has the most: {named[0][1]:,.0f} loyalty actions."
        if named
        else "No loyalty actions at a location in this period."
    )
    others = sum(row["actions"] for row in report.hours) - sum(row["actions"] for row in report.locations)
    left_out = f" The table leaves out {_count(others, 'action')} at other locations." if others else ""
    return Chart(
        most + left_out,
        _numbers_table("Activity by location", report.locations, "location", columns, labels),
        (lambda width: charts.bars(bars, "loyalty actions", width)) if bars else None,
    )


def _numbers_table(
    title: str, rows: Sequence[Mapping[str, Any]], label_head: str, columns: Sequence[str], labels: Sequence[str]
) -> Table:
    """Return a table of numbers with a label for each row."""
    cells = [(label, *(row[name] for name in columns)) for label, row in zip(labels, rows, strict=True)]
    return Table(title, (label_head, *columns), cells)


def _has_movements(report: Report) -> bool:
    return any(report.all_time.values())


def _has_actions(report: Report) -> bool:
    return any(row["actions"] for row in report.hours)


def _tables(report: Report) -> dict[str, Table]:
    names = {
        "before": f"Outstanding before {day(report.first_day)}",
        "issued": "plus issued",
        "redeemed": "less redeemed",
        "refunded": "plus refunded",
        "added": "plus added without an action",
        "removed": "less removed without an action",
        "after": f"Outstanding at the end of {day(report.last_day)}",
    }
    status, previous = report.status, report.previous
    head: tuple[str, ...] = ("", "points")
    moved: list[tuple[Cell, ...]] = [(names[name], points) for name, points in report.roll_forward.items()]
    if previous:
        head = (*head, "period before", "change (%)")
        moved = [
            (*row, previous[name], _change(report, name)) for row, name in zip(moved, report.roll_forward, strict=True)
        ]
    return {
        "roll_forward": Table("Movements", head, moved),
        "users": _numbers_table(
            "Top holders",
            report.users,
            "user",
            ("points", "awards", "issued", "redeemed"),
            [row["user_id"] for row in report.users],
        ),
        "streams": Table(
            "Freshness",
            ("stream", "rows", "newest", "last read", "rejected"),
            [(each.stream, each.rows, each.newest_at, each.read_at, each.rejected) for each in status.streams],
        ),
        "runs": Table(
            "Last runs",
            ("started (UTC)", "ended", "read", "applied", "rejected", "seconds"),
            [
                (
                    f"{run['started_at']:%d %b %H:%M}",
                    run["exit_state"] or "unfinished",
                    *(run[name] for name in ("read", "applied", "quarantined")),
                    f"{float(run['seconds']):,.1f}",
                )
                for run in status.runs
            ],
            texts=2,
        ),
    }


def _change(report: Report, name: str) -> Decimal | None:
    """Return the change of a figure since the previous period, in percent. Return None if the figure was 0 before."""
    before = (report.previous or {}).get(name)
    if not before:
        return None
    return round(100 * (report.roll_forward[name] - before) / abs(before), 1)


def _labels(named: Sequence[tuple[str, str | None]]) -> list[str]:
    """Return a label for each (id, title): the title, or the id if there is no title.

    If several titles are equal, their labels also contain the ids.
    """
    shared = Counter(title for _, title in named)
    return [
        identifier if not title else f"{title} ({identifier})" if shared[title] > 1 else title
        for identifier, title in named
    ]


def _perk_title(row: Mapping[str, Any]) -> str | None:
    """Return a perk's title. For a retired perk, `retired perk` comes before the title or id."""
    title: str | None = row["title"]
    return f"retired perk {title or row['perk_id']}" if row["retired"] else title


def _month(month: str) -> str:
    if month == "earlier":
        return "earlier"
    return "no date" if month == "undated" else f"{date.fromisoformat(f'{month}-01'):%b %Y}"


def _age(row: Mapping[str, Any]) -> str:
    if row["days_to"] is None:
        return f"over {row['days_from']} days"
    return f"{row['days_from']} to {row['days_to']} days"


def _largest(bars: list[tuple[str, float]], rest: str) -> list[tuple[str, float]]:
    """Return the first bars, and a bar with the sum of all others."""
    if len(bars) <= BARS_SHOWN:
        return bars
    others = bars[BARS_SHOWN - 1 :]
    return [*bars[: BARS_SHOWN - 1], (f"{len(others)} {rest}", sum(value for _, value in others))]


def _shown(now: datetime, cell: Cell) -> str:
    """Format a cell of a table for the page. Times are shown as ages, such as `12 min ago`."""
    if isinstance(cell, datetime):
        return since(now, cell)
    return "-" if cell is None else number(cell) if isinstance(cell, Decimal | int) else str(cell)


def _count(count: Decimal | int, one: str, several: str | None = None) -> str:
    """Format a count with its noun, such as `1 award` or `2 awards`."""
    return f"{number(count)} {one if count == 1 else several or f'{one}s'}"


def _money(amount: Decimal, price: Price | None) -> str:
    return f"{price.currency} {amount:,.2f}".replace("-", MINUS) if price else ""


def number(value: Decimal | int) -> str:
    """Format a number with thousands separators and without trailing zeros."""
    text = f"{value:,.4f}".rstrip("0").rstrip(".") if isinstance(value, Decimal) else f"{value:,}"
    return text.replace("-", MINUS)


def percent(value: Decimal | None) -> str:
    """Format a fraction as a percentage."""
    return "-" if value is None else f"{100 * value:,.1f} %"


def since(now: datetime, time: datetime | None) -> str:
    """Format a time as an age, such as `12 min ago`. A future time gives `in 12 min`."""
    if time is None:
        return "never"
    return ago(now, time) if time > now else f"{ago(now, time)} ago"


def day(value: date) -> str:
    """Format a date, such as `25 Nov 2026`."""
    return f"{value.day} {value:%b %Y}"
