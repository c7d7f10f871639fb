"""The report: figures of a loyalty programme out of the warehouse, as one page, JSON or CSV."""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import date, datetime, timezone
from decimal import Decimal
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sqlalchemy import column, inspect
from sqlalchemy import table as any_table

from target_crm.balances_cli.report import charts, queries
from target_crm.balances_cli.report.queries import Period
from target_crm.balances_cli.status import Status, ago, status_in
from target_crm.errors import SettingError
from target_crm.records import values
from target_crm.records.column_types import Identifier, LongText

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import tzinfo

    from sqlalchemy import Connection, FromClause

    from target_crm.warehouse.connection import Warehouse

FORMATS = ("html", "json", "csv")
DAYS_MAX = 366
# Widths of charts in CSS pixels: of a page, of a column, of a phone.
PAGE_PX, COLUMN_PX, PHONE_PX = 1040, 490, 312
BARS_SHOWN = 12
NOWHERE = "no location"
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Report:
    """All figures: what is outstanding now, what moved in the period, and how far to trust that."""

    now: datetime
    warehouse: str
    zone: str
    first_day: date
    last_day: date
    outstanding: dict[str, Any]
    days: list[dict[str, Any]]
    roll_forward: dict[str, Decimal]
    rates: dict[str, Decimal | None]
    all_time: dict[str, Decimal]
    all_time_rates: dict[str, Decimal | None]
    hours: list[dict[str, int]]
    perks: list[dict[str, Any]]
    ages: list[dict[str, Any]]
    users: list[dict[str, Any]]
    locations: list[dict[str, Any]]
    status: Status


def zone_of(name: str) -> tzinfo:
    """A time zone by its name in the IANA's database.

    Raises:
        SettingError: there is none.
    """
    try:
        return timezone.utc if name == "UTC" else ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise SettingError(f"--timezone {name}: not known here, expected e.g. Europe/London") from None


def gather(warehouse: Warehouse, *, days: int = 90, zone: str = "UTC", now: datetime | None = None) -> Report:
    """The figures of the last days, today included, in one reading.

    Args:
        warehouse: one that is set up.
        days: 1 to `DAYS_MAX`.
        zone: whose days and hours they are.
        now: by default, by this machine's clock.
    """
    tables, now = warehouse.tables, now or datetime.now(timezone.utc)
    period = Period.until(now, days, zone_of(zone))
    with warehouse.read() as connection:

        def rows(query: Any, **parameters: Any) -> list[dict[str, Any]]:
            return [dict(row) for row in connection.execute(query, parameters).mappings()]

        quarters = rows(queries.by_quarter_hour(tables), start=period.start)
        by_day = queries.per_day(quarters, period)
        moved, ever = queries.roll_forward(by_day), queries.all_time(quarters)
        (outstanding,) = rows(queries.outstanding(tables))
        return Report(
            now=now,
            warehouse=warehouse.name,
            zone=zone,
            first_day=by_day[0]["day"],
            last_day=by_day[-1]["day"],
            outstanding=outstanding,
            days=by_day,
            roll_forward=moved,
            rates=queries.rates(moved),
            all_time=ever,
            all_time_rates=queries.rates(ever),
            hours=queries.by_weekday_and_hour(quarters, period),
            perks=rows(queries.by_perk(tables, _perks(connection, tables.metadata.schema))),
            ages=queries.ages(rows(queries.by_age(tables), **queries.age_limits(now))),
            users=rows(queries.by_user(tables)),
            locations=rows(queries.by_location(tables), start=period.start),
            status=status_in(connection, tables, now, full=True),
        )


def _perks(connection: Connection, schema: str | None) -> FromClause | None:
    """The perks' table as far as it is there."""
    inspector = inspect(connection)
    if not inspector.has_table("perks", schema=schema):
        return None
    found = {each["name"] for each in inspector.get_columns("perks", schema=schema)}
    names = [column(name, LongText()) for name in ("title", "type") if name in found]
    return any_table("perks", column("_id", Identifier()), *names, schema=schema)


def as_json(report: Report) -> str:
    """All figures, points with all their digits."""
    return values.json_text({**asdict(report), "drifted": report.status.drifted})


def as_csv(report: Report) -> str:
    """All figures, one a line: which figure, of what, which measure, its value."""
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(("figure", "of", "measure", "value"))
    for figure, of, measures in _figures(report):
        writer.writerows((figure, of, name, value) for name, value in measures.items() if value is not None)
    return output.getvalue()


def _figures(report: Report) -> list[tuple[str, str, Mapping[str, Any]]]:
    told: list[tuple[str, str, Mapping[str, Any]]] = [
        ("outstanding", "", report.outstanding),
        ("roll_forward", "", report.roll_forward),
        ("rates", "", report.rates),
        ("all_time", "", report.all_time),
        ("all_time_rates", "", report.all_time_rates),
        ("status", "", {"drifted": int(report.status.drifted), "rejected": report.status.rejected}),
    ]
    for figure, rows, keys in (
        ("days", report.days, ("day",)),
        ("hours", report.hours, ("weekday", "hour")),
        ("perks", report.perks, ("perk_id",)),
        ("ages", report.ages, ("days_from",)),
        ("users", report.users, ("user_id",)),
        ("locations", report.locations, ("location_id",)),
        ("streams", [asdict(stream) for stream in report.status.streams], ("stream",)),
    ):
        for row in rows:
            measures = {name: value for name, value in row.items() if name not in keys}
            of = " ".join("" if row[key] is None else str(row[key]) for key in keys)
            told.append((figure, of, measures))
    return told


@dataclass(frozen=True)
class Table:
    """A table: the first `texts` columns are texts, the others numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1


@dataclass(frozen=True)
class Chart:
    """A chart, what it says in a sentence, and its figures as a table."""

    title: str
    summary: str
    table: Table
    draw: Callable[[int], dict[str, Any]] | None
    """Given a width, the specification; None where there is nothing to draw."""
    width: int = COLUMN_PX


def page(report: Report) -> str:
    """One page of HTML with all it needs in it: no script, no network.

    Raises:
        SettingError: the libraries of the extra `report` are missing.
    """
    try:
        import vl_convert  # noqa: PLC0415 - comes with the extra alone
        from jinja2 import Environment, StrictUndefined  # noqa: PLC0415
        from markupsafe import Markup  # noqa: PLC0415
    except ImportError as error:
        raise SettingError(f"{error.name} is missing; pip install 'pepper-crm[report]'") from None

    def drawn(specification: dict[str, Any]) -> Markup:
        # Vega escapes the texts in a drawing.
        return Markup(vl_convert.vegalite_to_svg(specification))  # noqa: S704

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters.update(number=number, percent=percent, since=lambda time: since(report.now, time), day=day)
    template = environment.from_string(files(__package__).joinpath("report.html").read_text(encoding="utf-8"))
    page: str = template.render(
        report=report,
        charts=[
            (chart, chart.draw and {"wide": drawn(chart.draw(chart.width)), "narrow": drawn(chart.draw(PHONE_PX))})
            for chart in _charts(report)
        ],
        tables=_tables(report),
        newest=next(stream for stream in report.status.streams if stream.stream == "actions"),
        empty=not report.outstanding["awards"] and not any(report.all_time.values()),
        differing=sum(check.differing for check in report.status.checks),
    )
    return page


def _charts(report: Report) -> list[Chart]:
    days, moved = report.days, report.roll_forward
    any_moved = any(report.all_time.values())
    any_actions = any(row["actions"] for row in report.hours)
    perks = _most([(_label(row, _twins(report)), float(row["points"])) for row in report.perks], "other perks")
    aged = [(_age(row), float(row["points"])) for row in report.ages]
    places = [(row["location_id"] or NOWHERE, float(row["actions"])) for row in report.locations][:BARS_SHOWN]
    named = [(label, count) for label, count in places if label != NOWHERE]
    busiest = max(report.hours, key=lambda row: row["actions"])
    return [
        Chart(
            "Outstanding points",
            f"{number(moved['after'])} points at the end of {day(report.last_day)}, {number(moved['before'])} before "
            f"{day(report.first_day)}. Points that were there before anything is known of their award count from the "
            "beginning.",
            Table(("day", "outstanding"), [(str(each["day"]), number(each["outstanding"])) for each in days]),
            (lambda width: charts.outstanding(days, width)) if any_moved else None,
            PAGE_PX,
        ),
        Chart(
            "Issued, redeemed and refunded",
            f"{number(moved['issued'])} points issued and {number(moved['refunded'])} refunded, above the line; "
            f"{number(moved['redeemed'])} redeemed, below it.",
            Table(
                ("day", "issued", "redeemed", "refunded"),
                [(str(each["day"]), *(number(each[k]) for k in ("issued", "redeemed", "refunded"))) for each in days],
            ),
            (lambda width: charts.moved(days, width)) if any_actions else None,
            PAGE_PX,
        ),
        Chart(
            "Outstanding by perk",
            f"{perks[0][0]} holds the most: {number(Decimal(str(perks[0][1])))} points." if perks else "No perk yet.",
            Table(
                ("perk", "points", "awards", "holders", "issued", "redeemed"),
                [
                    (
                        _label(row, _twins(report)),
                        *(number(row[k]) for k in ("points", "awards", "holders", "issued", "redeemed")),
                    )
                    for row in report.perks
                ],
            ),
            (lambda width: charts.bars(perks, width)) if perks else None,
        ),
        Chart(
            "Age of outstanding points",
            "By how many days ago their award last moved. What has been still for long is what may never be redeemed.",
            Table(
                ("last moved", "points", "awards"),
                [(_age(r), number(r["points"]), number(r["awards"])) for r in report.ages],
            ),
            (lambda width: charts.bars(aged, width)) if any_moved else None,
        ),
        Chart(
            "Activity by hour of the week",
            f"Busiest: {charts.WEEKDAYS[busiest['weekday']]} from {busiest['hour']}:00, {report.zone}, with "
            f"{busiest['actions']:,} loyalty actions."
            if any_actions
            else "No loyalty action in these days.",
            Table(
                ("hour", *charts.WEEKDAYS),
                [
                    (f"{hour}:00", *(f"{row['actions']:,}" for row in report.hours if row["hour"] == hour))
                    for hour in range(24)
                ],
            ),
            (lambda width: charts.week(report.hours, width)) if any_actions else None,
        ),
        Chart(
            "Activity by location",
            f"{named[0][0]} saw the most: {named[0][1]:,.0f} loyalty actions."
            if named
            else "No loyalty action at a location in these days.",
            Table(
                ("location", "actions", "issued", "redeemed", "refunded"),
                [
                    (
                        row["location_id"] or NOWHERE,
                        *(number(row[k]) for k in ("actions", "issued", "redeemed", "refunded")),
                    )
                    for row in report.locations
                ],
            ),
            (lambda width: charts.bars(places, width)) if places else None,
        ),
    ]


def _tables(report: Report) -> dict[str, Table]:
    names = {
        "before": f"Outstanding before {day(report.first_day)}",
        "issued": "+ issued",
        "redeemed": f"{MINUS} redeemed",
        "refunded": "+ refunded",
        "added": "+ added without an action",
        "removed": f"{MINUS} removed without an action",
        "after": f"Outstanding at the end of {day(report.last_day)}",
    }
    status = report.status
    return {
        "roll_forward": Table(("", "points"), [(names[k], number(v)) for k, v in report.roll_forward.items()]),
        "users": Table(
            ("user", "points", "awards", "issued", "redeemed"),
            [
                (row["user_id"], *(number(row[k]) for k in ("points", "awards", "issued", "redeemed")))
                for row in report.users
            ],
        ),
        "streams": Table(
            ("stream", "rows", "newest", "last read", "rejected"),
            [
                (
                    each.stream,
                    f"{each.rows:,}",
                    since(status.now, each.newest_at),
                    since(status.now, each.read_at),
                    f"{each.rejected:,}",
                )
                for each in status.streams
            ],
        ),
        "runs": Table(
            ("began (UTC)", "ended", "read", "applied", "rejected", "seconds"),
            [
                (
                    f"{run['started_at']:%d %b %H:%M}",
                    run["exit_state"] or "not ended",
                    *(f"{run[k]:,}" for k in ("read", "applied", "quarantined")),
                    f"{float(run['seconds']):,.1f}",
                )
                for run in status.runs
            ],
            texts=2,
        ),
    }


def _twins(report: Report) -> set[str]:
    """Titles that more than one perk has."""
    return {title for title, count in Counter(row["title"] for row in report.perks).items() if title and count > 1}


def _label(row: Mapping[str, Any], twins: set[str]) -> str:
    """A perk's title; its id where it has none, or shares it."""
    perk_id, title = row["perk_id"] or "no perk", row["title"]
    return perk_id if not title else f"{title} ({perk_id})" if title in twins else str(title)


def _age(row: Mapping[str, Any]) -> str:
    if row["days_to"] is None:
        return f"over {row['days_from']} days"
    return f"{row['days_from']} to {row['days_to']} days"


def _most(bars: list[tuple[str, float]], rest: str) -> list[tuple[str, float]]:
    """The first bars, and one for all the others."""
    if len(bars) <= BARS_SHOWN:
        return bars
    others = bars[BARS_SHOWN - 1 :]
    return [*bars[: BARS_SHOWN - 1], (f"{len(others)} {rest}", sum(value for _, value in others))]


def number(value: Decimal | int) -> str:
    """With commas, and as many decimal places as there are."""
    text = f"{value:,.4f}".rstrip("0").rstrip(".") if isinstance(value, Decimal) else f"{value:,}"
    return text.replace("-", MINUS)


def percent(value: Decimal | None) -> str:
    """A share of one in percent."""
    return "-" if value is None else f"{100 * value:,.1f} %"


def since(now: datetime, time: datetime | None) -> str:
    """Such as 12 min ago. A clock that is ahead makes it now."""
    return "never" if time is None else f"{ago(now, time)} ago" if time < now else "just now"


def day(value: date) -> str:
    """Such as 25 Nov 2026."""
    return f"{value.day} {value:%b %Y}"
