"""Report the figures of a loyalty programme as one web page, JSON or CSV."""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
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
# Widths of charts in CSS pixels: full page, half page, phone.
PAGE_PX, COLUMN_PX, PHONE_PX = 1040, 490, 312
BARS_SHOWN = 12
NO_LOCATION = "no location"
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Report:
    """All figures: outstanding points now, movements in the period, and the state of the warehouse."""

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
    """Return a time zone by its name in the IANA database.

    Raises:
        SettingError: The name is unknown.
    """
    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise SettingError(f"--timezone {name}: unknown time zone, expected e.g. Europe/London") from None


def gather(warehouse: Warehouse, *, days: int = 90, zone: str = "UTC", now: datetime | None = None) -> Report:
    """Query the figures of the last days, today included, in one read transaction.

    Args:
        warehouse: A warehouse that is set up.
        days: 1 to `DAYS_MAX`.
        zone: The time zone of days and hours.
        now: The end of the period; default: the local clock.
    """
    tables, now = warehouse.tables, now or datetime.now(UTC)
    period = Period.until(now, days, zone_of(zone))
    with warehouse.read() as connection:

        def rows(query: Any, **parameters: Any) -> list[dict[str, Any]]:
            return [dict(row) for row in connection.execute(query, parameters).mappings()]

        quarters = rows(queries.by_quarter_hour(tables), start=period.start)
        by_day = queries.per_day(quarters, period)
        moved, all_time = queries.roll_forward(by_day), queries.all_time(quarters)
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
            all_time=all_time,
            all_time_rates=queries.rates(all_time),
            hours=queries.by_weekday_and_hour(quarters, period),
            perks=rows(queries.by_perk(tables, _perks(connection, tables.metadata.schema))),
            ages=queries.ages(rows(queries.by_age(tables), **queries.age_limits(now))),
            users=rows(queries.by_user(tables)),
            locations=rows(queries.by_location(tables), start=period.start),
            status=status_in(connection, tables, now, full=True),
        )


def _perks(connection: Connection, schema: str | None) -> FromClause | None:
    """Return the table of perks with those of its columns that exist, or None."""
    inspector = inspect(connection)
    if not inspector.has_table("perks", schema=schema):
        return None
    found = {each["name"] for each in inspector.get_columns("perks", schema=schema)}
    names = [column(name, LongText()) for name in ("title", "type") if name in found]
    return any_table("perks", column("_id", Identifier()), *names, schema=schema)


def as_json(report: Report) -> str:
    """Format all figures as JSON, points with all their digits."""
    return values.json_text({**asdict(report), "drifted": report.status.drifted})


def as_csv(report: Report) -> str:
    """Format all figures as CSV, one per line: figure, of what, measure, value."""
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
        ("users", report.users, ("user_id",)),
        ("locations", report.locations, ("location_id",)),
        ("streams", [asdict(stream) for stream in report.status.streams], ("stream",)),
    ):
        for row in rows:
            measures = {name: value for name, value in row.items() if name not in keys}
            of = " ".join("" if row[key] is None else str(row[key]) for key in keys)
            figures.append((figure, of, measures))
    return figures


@dataclass(frozen=True)
class Table:
    """A table. The first `texts` columns hold text, the others numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1


@dataclass(frozen=True)
class Chart:
    """A chart with a one-sentence summary and its figures as a table."""

    title: str
    summary: str
    table: Table
    draw: Callable[[int], dict[str, Any]] | None
    """Returns the specification for a width; None if there is nothing to draw."""
    width: int = COLUMN_PX


def page(report: Report) -> str:
    """Render the report as one self-contained HTML page, without scripts.

    Raises:
        SettingError: The extra `report` is not installed.
    """
    try:
        import vl_convert  # noqa: PLC0415 - comes with the extra alone
        from jinja2 import Environment, StrictUndefined  # noqa: PLC0415
        from markupsafe import Markup  # noqa: PLC0415
    except ImportError as error:
        raise SettingError(f"{error.name} is missing; pip install 'pepper-crm[report]'") from None

    def svg(specification: dict[str, Any]) -> Markup:
        # Vega escapes the text in its SVG.
        return Markup(vl_convert.vegalite_to_svg(specification))  # noqa: S704

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters.update(number=number, percent=percent, since=lambda time: since(report.now, time), day=day)
    template = environment.from_string(files(__package__).joinpath("report.html").read_text(encoding="utf-8"))
    page: str = template.render(
        report=report,
        charts=[
            (chart, chart.draw and {"wide": svg(chart.draw(chart.width)), "narrow": svg(chart.draw(PHONE_PX))})
            for chart in _charts(report)
        ],
        tables=_tables(report),
        newest=next(stream for stream in report.status.streams if stream.stream == "actions"),
        empty=not report.outstanding["awards"] and not _has_movements(report),
        differing=sum(check.differing for check in report.status.checks),
    )
    return page


def _charts(report: Report) -> list[Chart]:
    return [
        _outstanding_by_day(report),
        _moved_by_day(report),
        _outstanding_by_perk(report),
        _outstanding_by_age(report),
        _activity_by_hour(report),
        _activity_by_location(report),
    ]


def _outstanding_by_day(report: Report) -> Chart:
    days, moved = report.days, report.roll_forward
    return Chart(
        "Outstanding points",
        f"{number(moved['after'])} points at the end of {day(report.last_day)}, {number(moved['before'])} before "
        f"{day(report.first_day)}. Points that an award had before its first known movement count from the beginning.",
        Table(("day", "outstanding"), [(str(each["day"]), number(each["outstanding"])) for each in days]),
        (lambda width: charts.outstanding(days, width)) if _has_movements(report) else None,
        PAGE_PX,
    )


def _moved_by_day(report: Report) -> Chart:
    days, moved = report.days, report.roll_forward
    return Chart(
        "Issued, redeemed and refunded",
        f"{number(moved['issued'])} points issued and {number(moved['refunded'])} refunded, above the axis; "
        f"{number(moved['redeemed'])} redeemed, below it.",
        _numbers_table(days, "day", ("issued", "redeemed", "refunded"), [str(each["day"]) for each in days]),
        (lambda width: charts.moved(days, width)) if _has_actions(report) else None,
        PAGE_PX,
    )


def _outstanding_by_perk(report: Report) -> Chart:
    labels = [_label(row, _shared_titles(report)) for row in report.perks]
    points = [float(row["points"]) for row in report.perks]
    bars = _largest(list(zip(labels, points, strict=True)), "other perks")
    return Chart(
        "Outstanding by perk",
        f"{bars[0][0]} holds the most: {number(Decimal(str(bars[0][1])))} points." if bars else "No perk yet.",
        _numbers_table(report.perks, "perk", ("points", "awards", "holders", "issued", "redeemed"), labels),
        (lambda width: charts.bars(bars, width)) if bars else None,
    )


def _outstanding_by_age(report: Report) -> Chart:
    labels = [_age(row) for row in report.ages]
    bars = [(label, float(row["points"])) for label, row in zip(labels, report.ages, strict=True)]
    return Chart(
        "Age of outstanding points",
        "By the last movement of their award. Points idle for a long time may never be redeemed.",
        _numbers_table(report.ages, "last moved", ("points", "awards"), labels),
        (lambda width: charts.bars(bars, width)) if _has_movements(report) else None,
    )


def _activity_by_hour(report: Report) -> Chart:
    hours, busiest = report.hours, max(report.hours, key=lambda row: row["actions"])
    summary = (
        f"Busiest: {charts.WEEKDAYS[busiest['weekday']]} from {busiest['hour']}:00, {report.zone}, with "
        f"{busiest['actions']:,} loyalty actions."
    )
    rows = [(f"{hour}:00", *(f"{row['actions']:,}" for row in hours if row["hour"] == hour)) for hour in range(24)]
    return Chart(
        "Activity by hour of the week",
        summary if _has_actions(report) else "No loyalty action in this period.",
        Table(("hour", *charts.WEEKDAYS), rows),
        (lambda width: charts.week(hours, width)) if _has_actions(report) else None,
    )


def _activity_by_location(report: Report) -> Chart:
    labels = [row["location_id"] or NO_LOCATION for row in report.locations]
    bars = [(label, float(row["actions"])) for label, row in zip(labels, report.locations, strict=True)][:BARS_SHOWN]
    named = [(label, count) for label, count in bars if label != NO_LOCATION]
    return Chart(
        "Activity by location",
        f"{named[0][0]} has the most: {named[0][1]:,.0f} loyalty actions."
        if named
        else "No loyalty action at a location in this period.",
        _numbers_table(report.locations, "location", ("actions", "issued", "redeemed", "refunded"), labels),
        (lambda width: charts.bars(bars, width)) if bars else None,
    )


def _numbers_table(
    rows: Sequence[Mapping[str, Any]], label_head: str, columns: Sequence[str], labels: Sequence[str]
) -> Table:
    """Return a table of numbers with a label for each row."""
    cells = [(label, *(number(row[name]) for name in columns)) for label, row in zip(labels, rows, strict=True)]
    return Table((label_head, *columns), cells)


def _has_movements(report: Report) -> bool:
    return any(report.all_time.values())


def _has_actions(report: Report) -> bool:
    return any(row["actions"] for row in report.hours)


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
        "users": _numbers_table(
            report.users,
            "user",
            ("points", "awards", "issued", "redeemed"),
            [row["user_id"] for row in report.users],
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
            ("started (UTC)", "ended", "read", "applied", "rejected", "seconds"),
            [
                (
                    f"{run['started_at']:%d %b %H:%M}",
                    run["exit_state"] or "unfinished",
                    *(f"{run[k]:,}" for k in ("read", "applied", "quarantined")),
                    f"{float(run['seconds']):,.1f}",
                )
                for run in status.runs
            ],
            texts=2,
        ),
    }


def _shared_titles(report: Report) -> set[str]:
    """Return titles that several perks share."""
    return {title for title, count in Counter(row["title"] for row in report.perks).items() if title and count > 1}


def _label(row: Mapping[str, Any], shared: set[str]) -> str:
    """Return a perk's title, with its id if several perks share the title; or its id if it has no title."""
    perk_id, title = row["perk_id"] or "no perk", row["title"]
    return perk_id if not title else f"{title} ({perk_id})" if title in shared else str(title)


def _age(row: Mapping[str, Any]) -> str:
    if row["days_to"] is None:
        return f"over {row['days_from']} days"
    return f"{row['days_from']} to {row['days_to']} days"


def _largest(bars: list[tuple[str, float]], rest: str) -> list[tuple[str, float]]:
    """Return the first bars, and one bar that sums the others."""
    if len(bars) <= BARS_SHOWN:
        return bars
    others = bars[BARS_SHOWN - 1 :]
    return [*bars[: BARS_SHOWN - 1], (f"{len(others)} {rest}", sum(value for _, value in others))]


def number(value: Decimal | int) -> str:
    """Format a number with thousands separators, without trailing zeros."""
    text = f"{value:,.4f}".rstrip("0").rstrip(".") if isinstance(value, Decimal) else f"{value:,}"
    return text.replace("-", MINUS)


def percent(value: Decimal | None) -> str:
    """Format a fraction as percent."""
    return "-" if value is None else f"{100 * value:,.1f} %"


def since(now: datetime, time: datetime | None) -> str:
    """Format a time as its age, such as `12 min ago`. A time in the future is `just now`."""
    return "never" if time is None else f"{ago(now, time)} ago" if time < now else "just now"


def day(value: date) -> str:
    """Format a date, such as `25 Nov 2026`."""
    return f"{value.day} {value:%b %Y}"
