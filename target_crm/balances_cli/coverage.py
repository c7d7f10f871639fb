"""Show the intervals for which actions were read, and the holes between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from pepper_runtime.wording import duration, utc
from target_crm.errors import WarehouseError
from target_crm.records.coverage import (
    BEGINNING,
    REPLICATION_KEY,
    STREAM,
    describe_holes,
    of_types,
    summarize,
)
from target_crm.sql.coverage import recorded
from target_crm.warehouse import migrations

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from target_crm.records.coverage import Interval, MerchantCoverage
    from target_crm.sql.tables import Tables

NOT_RECORDED = "Coverage is not recorded yet. It begins with the next run of tap-pepper that emits complete actions."
LEDGER_BEGINS = (
    "The ledger begins at the first of these times. Sums count only later actions; balances include older points."
)


@dataclass(frozen=True)
class Coverage:
    """The intervals for which actions were read and committed, and the holes between them.

    Attributes:
        intervals: `{"from": …, "until": …}`, oldest first. An interval also has `action_types` if the run had a filter,
            and `merchant` if there are several merchants.
        holes: The intervals for which actions were never read, in the same form. A hole also has `merchant` if there
            are several merchants.
        summary: Sentences that describe the intervals and the holes.
        complete_until: Merchant → the end of the newest interval for which all actions that count were read, or None.
            If there is only one merchant, its name is empty.
    """

    intervals: list[dict[str, Any]]
    holes: list[dict[str, Any]]
    summary: list[str]
    complete_until: dict[str, datetime | None]


def read_coverage(connection: Connection, tables: Tables) -> list[MerchantCoverage]:
    """Query the intervals for which each merchant's actions were read. Call this within a transaction."""
    return summarize(recorded(connection.execute(select(tables.coverage))))


def coverage_in(connection: Connection, tables: Tables) -> Coverage:
    """Describe the recorded coverage. Call this within a transaction."""
    return describe(read_coverage(connection, tables), first_action_at(connection, tables))


def first_action_at(connection: Connection, tables: Tables) -> datetime | None:
    """Return the time of the oldest action that a balance counts. Call this within a transaction.

    This reads the balances, because there are far fewer balances than actions.
    """
    if not migrations.has_balances(connection, tables):
        return None
    found: datetime | None = connection.scalar(select(func.min(tables.award_balances.c.first_action_at)))
    return found


def describe(merchants: Sequence[MerchantCoverage], oldest_at: datetime | None) -> Coverage:
    """Describe the intervals for which each merchant's actions were read.

    Args:
        merchants: The coverage of each merchant.
        oldest_at: The time of the oldest action that a balance counts.
    """
    are_several = len(merchants) > 1
    intervals, holes, summary = [], [], []
    for each in merchants:
        merchant = {"merchant": each.merchant} if are_several else {}
        intervals += [
            {
                **_edges(interval),
                **({"action_types": list(scope.action_types)} if scope.action_types else {}),
                **merchant,
            }
            for scope, found in each.read.items()
            for interval in found
            if interval.length > BEGINNING
        ]
        holes += [{**_edges(hole), **merchant} for hole in each.holes]
        sentences = _sentences(each)
        if each.intervals and not are_several:
            # If there are several merchants, it is unknown to which of them an older action belongs.
            sentences += _beginning(each, oldest_at)
        summary += [f"Merchant {each.merchant}: {sentence}" if are_several else sentence for sentence in sentences]
    if not merchants and oldest_at:
        summary = [NOT_RECORDED]
    complete_until = {
        each.merchant if are_several else "": each.intervals[-1].until if each.intervals else None for each in merchants
    }
    return Coverage(sorted(intervals, key=_from), sorted(holes, key=_from), summary, complete_until)


def state_to_resume(connection: Connection, tables: Tables) -> dict[str, Any]:
    """Return a state from which tap-pepper reads the oldest hole, and then continues after the interval that follows.

    If there is no hole, tap-pepper continues after the last interval.

    Raises:
        WarehouseError: No coverage is recorded.
    """
    found = read_coverage(connection, tables)
    if not found:
        raise WarehouseError("no coverage is recorded, so there is no time from which a run could continue")
    with_holes = [each for each in found if each.holes]
    if with_holes:
        chosen = min(with_holes, key=lambda each: (each.holes[0], each.merchant))
    else:
        chosen = max(found, key=lambda each: (each.intervals[-1].until, each.merchant))
    bookmark: dict[str, Any] = {"replication_key": REPLICATION_KEY, **_position(chosen)}
    # If Pepper's clock was ahead, coverage ends in the future. In that case, the tap continues from the time when the
    # last run began.
    if (last_run := _last_run_at(connection, tables)) and _iso(last_run) < bookmark["replication_key_value"]:
        bookmark["read_until"] = _iso(last_run)
    if chosen.merchant:
        bookmark["merchant"] = chosen.merchant
    bookmarks = {STREAM: bookmark}
    # Meltano needs the state under `singer_state`. Other runners pass the whole file, and the tap reads `bookmarks`.
    return {"bookmarks": bookmarks, "singer_state": {"bookmarks": bookmarks}}


def _last_run_at(connection: Connection, tables: Tables) -> datetime | None:
    """Return when the last run that read actions began. The run also counts if all of these actions were duplicates."""
    runs = tables.load_runs.c
    begun = select(func.max(runs.started_at)).where(runs.stream == tables.actions.name, runs.read > 0)
    found: datetime | None = connection.scalar(begun)
    return found


def _position(found: MerchantCoverage) -> dict[str, Any]:
    """Return the part of the bookmark that says from which time on the tap reads."""
    if not found.holes:
        return _after(found.intervals[-1], found.action_types)
    hole = found.holes[0]
    following = next((each for each in found.intervals if each.after >= hole.until), None)
    if following is None:
        return {"replication_key_value": _iso(hole.after)}
    return {
        **_after(following, found.action_types),
        "backfill_from": _iso(hole.after),
        "skipped_start_date": _iso(found.begins),
    }


def _after(interval: Interval, action_types: Sequence[str]) -> dict[str, Any]:
    """Return the part of the bookmark with which the tap continues after an interval."""
    return {
        "replication_key_value": _iso(interval.until),
        "covered_from": _iso(interval.after),
        "covered_until": _iso(interval.until),
        **({"action_types": list(action_types)} if action_types else {}),
    }


def _sentences(found: MerchantCoverage) -> list[str]:
    if not found.intervals:
        sentence = "There is no interval for which all actions were read, because no run has read all types."
        return [sentence, *_not_verified(found)]
    if found.holes:
        return _not_verified(found)
    first, last = found.intervals[0], found.intervals[-1]
    return [f"Actions{of_types(found.action_types)} are complete from {utc(first.after)} to {utc(last.until)} UTC."]


def _beginning(found: MerchantCoverage, oldest_at: datetime | None) -> list[str]:
    begins = found.begins
    if oldest_at and oldest_at <= begins:
        return [
            f"Coverage is not recorded before {utc(begins)} UTC: older actions come from a replay or an older version."
        ]
    if found.holes:
        return []
    return [LEDGER_BEGINS]


def _not_verified(found: MerchantCoverage) -> list[str]:
    return [f"Not verified: {hole}." for hole in describe_holes(found)]


def as_text(coverage: Coverage) -> str:
    """Format intervals and holes as a table, with the summary below it."""
    rows = [("read", each) for each in coverage.intervals] + [("HOLE", each) for each in coverage.holes]
    lines = [f"{'':<6}{'after (UTC)':<21}{'until (UTC)':<21}{'length':>8}"] if rows else []
    for kind, each in sorted(rows, key=lambda row: _from(row[1])):
        length = duration(each["until"] - each["from"])
        notes = [*each.get("action_types", ()), *([f"merchant {each['merchant']}"] if "merchant" in each else [])]
        lines.append(
            f"{kind:<6}{utc(each['from']):<21}{utc(each['until']):<21}{length:>8}  {', '.join(notes)}".rstrip()
        )
    advice = "To read these actions, run tap-pepper once with the state that crm-balances coverage --state prints."
    return "\n".join([*lines, *coverage.summary, *([advice] if coverage.holes else [])])


def _edges(interval: Interval) -> dict[str, datetime]:
    return {"from": interval.after, "until": interval.until}


def _from(row: dict[str, Any]) -> tuple[datetime, datetime]:
    return row["from"], row["until"]


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
