"""Explain a balance by its opening balance, its actions, changes without an action, and holes in the coverage."""

from __future__ import annotations

import csv
import io
from dataclasses import astuple, dataclass, fields, replace
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import case, cast, func, select

from pepper_runtime.wording import counted, duration
from target_crm.balances_cli.coverage import read_coverage
from target_crm.balances_cli.perks import perk_ids
from target_crm.records import explanation
from target_crm.records.actions import location_title
from target_crm.records.column_types import LongText
from target_crm.records.coverage import read_times
from target_crm.records.explanation import Action, Event, Line, Snapshot
from target_crm.records.schemas import DELETED_AT, EXTRACTED_AT
from target_crm.sql.balances import change_of
from target_crm.sql.tables import adjusted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import tzinfo

    from rich.table import Table as TextTable
    from sqlalchemy import ColumnElement, Row, Select

    from target_crm.sql.tables import Tables
    from target_crm.warehouse.connection import Warehouse

    _T = TypeVar("_T", "Explanation", Line)

# Columns with text are at least this wide, and wrap longer text. If the terminal is too narrow for all columns, it
# wraps whole lines.
_TEXT_WIDTH_MIN = 12
_GAP = "  "
_WIDTH_OF_FILES = 10_000
_LABELS = {
    Event.OPENING: "opening balance",
    Event.ADJUSTMENT: "no action",
    Event.SNAPSHOT: "Pepper's snapshot",
    Event.HOLE: "HOLE",
    Event.DELETION: "deleted",
    Event.BALANCE: "balance",
}


@dataclass(frozen=True)
class Explanation:
    """The explanation of one balance: its columns, and the lines that lead to its points."""

    award_id: str
    user_id: str | None
    perk_id: str | None
    points: Decimal
    as_of: datetime
    as_of_source: str
    opening: Decimal
    earned_total: Decimal
    redeemed_total: Decimal
    refunded_total: Decimal
    adjusted: Decimal
    deleted_at: datetime | None
    lines: list[Line]


def explain(
    warehouse: Warehouse, *, award_id: str | None, user_id: str | None = None, perk: str | None = None
) -> list[Explanation]:
    """Explain the balance of one award, or the balances of all of a user's awards. Read all data in one transaction.

    Args:
        warehouse: A warehouse that is set up.
        award_id: The award; None for all awards of the user.
        user_id: The user.
        perk: The id or title of a perk, to explain only its awards. None for all perks.
    """
    tables = warehouse.tables
    c, actions = tables.award_balances.c, tables.actions
    which = [c.user_id == user_id if award_id is None else c.award_id == award_id]
    found: dict[str, list[Action]] = {}
    with warehouse.read() as connection:
        if perk is not None:
            which.append(c.perk_id.in_(perk_ids(connection, tables, perk)))
        # Engines find a single award faster by a literal id than by a subquery.
        named = [award_id] if award_id else select(c.award_id).where(*which)
        stored = connection.execute(_stored(tables, which)).all()
        for row in connection.execute(_ledger(tables).where(actions.c.award_id.in_(named))) if stored else ():
            found.setdefault(row.award_id, []).append(_action(row))
        read = read_times(read_coverage(connection, tables))
    return [
        Explanation(
            **{each.name: getattr(row, each.name) for each in fields(Explanation) if each.name != "lines"},
            lines=explanation.explain(
                row.points,
                row.as_of,
                found.get(row.award_id, ()),
                Snapshot(row.snapshot_points, row.snapshot_at, row.deleted_at),
                read,
            ),
        )
        for row in stored
    ]


def _stored(tables: Tables, which: Sequence[ColumnElement[bool]]) -> Select[Any]:
    balances, awards = tables.award_balances, tables.awards
    return (
        select(
            *balances.c,
            adjusted(balances.c).label("adjusted"),
            awards.c.points.label("snapshot_points"),
            func.coalesce(awards.c.updated_at, awards.c[EXTRACTED_AT]).label("snapshot_at"),
            awards.c[DELETED_AT].label("deleted_at"),
        )
        .outerjoin_from(balances, awards, awards.c["_id"] == balances.c.award_id)
        .where(*which)
        .order_by(balances.c.award_id)
    )


def _ledger(tables: Tables) -> Select[Any]:
    c = tables.actions.c
    own = (c.award_id, c.action_id, c.type, c.occurred_at, c.effect, c.points_available, c.location_id, c.source)
    # An action that does not count may still contain a change in points.
    given = func.coalesce(c.points_added, -c.points_redeemed, c.points_refunded)
    change = case((c.effect.is_(None), given), else_=change_of(c))
    return select(*own, change.label("change"), cast(c.payload, LongText()).label("payload"))


def _action(row: Row[Any]) -> Action:
    values: dict[str, Any] = {**row._asdict(), "location": location_title(row.payload)}
    return Action(**{name: values[name] for name in Action._fields})


def in_zone(found: Iterable[Explanation], zone: tzinfo) -> list[Explanation]:
    """Convert all times to a time zone."""
    return [_in_zone(replace(each, lines=[_in_zone(line, zone) for line in each.lines]), zone) for each in found]


def _in_zone(value: _T, zone: tzinfo) -> _T:
    values = {each.name: getattr(value, each.name) for each in fields(value)}
    local: Any = {name: _local(at, zone) for name, at in values.items() if isinstance(at, datetime)}
    return replace(value, **local)


def _local(at: datetime, zone: tzinfo) -> datetime:
    try:
        return at.astimezone(zone)
    except OverflowError:
        # The conversion can fail on the first and the last day that Python can represent.
        return at


def as_csv(found: Iterable[Explanation]) -> str:
    """Format all lines as CSV, each with its award, user and perk."""
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(["award_id", "user_id", "perk_id", *(each.name for each in fields(Line))])
    for each in found:
        for line in each.lines:
            values = (each.award_id, each.user_id, each.perk_id, *astuple(line))
            writer.writerow([value.isoformat() if isinstance(value, datetime) else value for value in values])
    return output.getvalue().removesuffix("\n")


def as_text(found: Sequence[Explanation], zone: str, width: int | None) -> str:
    """Format each balance as a heading and a table, with an empty line between them.

    Args:
        found: The balances of one award or user.
        zone: The name of the time zone.
        width: The width of the terminal in characters. None for a file, whose lines may have any length.
    """
    width = width or _WIDTH_OF_FILES
    parts = []
    for each in found:
        table, width_min = _table(each.lines, zone)
        parts.append("\n".join([*_heading(each), *_rendered(table, max(width, width_min))]))
    if len(found) > 1:
        existing = [each for each in found if not each.deleted_at]
        total = sum((each.points for each in existing), start=Decimal(0))
        parts.append(f"{_counted(total)} in {counted(len(existing), 'award')} not deleted")
    return "\n\n".join(parts)


def _rendered(table: TextTable, width: int) -> list[str]:
    from rich.console import Console  # noqa: PLC0415 - takes a tenth of a second; other commands do not need it

    output = io.StringIO()
    Console(file=output, width=width, color_system=None).print(table)
    return [line.rstrip() for line in output.getvalue().splitlines()]


def _heading(found: Explanation) -> list[str]:
    deleted = ", deleted" if found.deleted_at else ""
    parts = (
        f"{_counted(found.points)} = {_points(found.opening)} opening",
        f"{_term(found.earned_total)} earned {_term(found.redeemed_total, '-')} redeemed",
        f"{_term(found.refunded_total)} refunded {_term(found.adjusted)} adjusted",
    )
    owner = f"of user {found.user_id or '-'}, perk {found.perk_id or '-'}"
    return [f"Award {found.award_id} {owner}{deleted}", " ".join(parts)]


def _table(lines: Sequence[Line], zone: str) -> tuple[TextTable, int]:
    """Format the lines as a table without empty columns. Return the table and its minimum width."""
    from rich.table import Table as TextTable  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415

    rows = [
        (
            _time(_shown_at(line)),
            _LABELS.get(line.event) or line.type or "action",
            line.location or line.location_id or "",
            _points(line.change, "+") if line.change is not None and line.event is not Event.SNAPSHOT else "",
            "" if line.balance is None else _points(line.balance),
            line.source or "",
            _details(line),
        )
        for line in lines
    ]
    table = TextTable(box=None, pad_edge=False, header_style="", padding=(0, len(_GAP), 0, 0))
    names = (f"time ({zone})", "what", "location", "change", "balance", "source", "action or reason")
    columns = {name: cells for name, cells in zip(names, zip(*rows, strict=True), strict=True) if any(cells)}
    width_min = 0
    for name, cells in columns.items():
        is_number = name in {"change", "balance"}
        table.add_column(name, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
        width_min += len(_GAP) + (max(map(len, (name, *cells))) if is_number else _TEXT_WIDTH_MIN)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*(Text(_printable(cell)) for cell in row))
    return table, width_min


def _shown_at(line: Line) -> datetime | None:
    """Return the time to show for a line. For a hole, this is its beginning. For an adjustment, it is None."""
    if line.event is Event.ADJUSTMENT:
        return None
    return line.after if line.event is Event.HOLE else line.at


def _details(line: Line) -> str:
    if line.event is Event.HOLE and line.at and line.after:
        return f"{line.note} until {_time(line.at)} ({duration(line.at - line.after)})"
    return ", ".join(filter(None, (line.action_id, line.note)))


def _time(at: datetime | None) -> str:
    """Format a time to the second. Add the fraction of a second if there is one."""
    if at is None:
        return ""
    fraction = f".{at:%f}".rstrip("0") if at.microsecond else ""
    # When the clocks are set back, one hour of local time occurs twice.
    is_ambiguous = at.replace(fold=0).utcoffset() != at.replace(fold=1).utcoffset()
    return f"{at:%Y-%m-%d %H:%M:%S}{fraction}{at.isoformat()[-len('+00:00') :] if is_ambiguous else ''}"


def _term(points: Decimal, sign: str = "+") -> str:
    """Format a term of a sum with its sign, such as `+ 5`."""
    if points < 0:
        sign = {"+": "-", "-": "+"}[sign]
    return f"{sign} {_points(abs(points))}"


def _counted(points: Decimal) -> str:
    return f"{_points(points)} {'point' if abs(points) == 1 else 'points'}"


def _points(points: Decimal, sign: str = "") -> str:
    return f"{points.normalize():{sign},f}"


def _printable(text: str) -> str:
    """Replace control characters, which could change what the terminal shows."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
