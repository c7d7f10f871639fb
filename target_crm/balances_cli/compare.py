"""Compare the stored balances with Pepper's points, which arrive as award messages on standard input."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn

from sqlalchemy import func, select

from pepper_runtime.progress import display
from pepper_runtime.wording import counted, utc
from target_crm.balances_cli.coverage import LEDGER_BEGINS, Coverage, describe, first_action_at, read_coverage
from target_crm.balances_cli.verify import EXAMPLES_MAX, begin, example_lines
from target_crm.errors import InputError
from target_crm.loader.reader import MessageReader
from target_crm.loader.sinks import AwardSink, BatchContext
from target_crm.records import values
from target_crm.records.comparison import (
    DIFFERENCES,
    AwardsRead,
    Observation,
    Stored,
    Verdict,
    judge,
    judge_absent,
)
from target_crm.records.coverage import Interval
from target_crm.records.deletions import ABSENT
from target_crm.records.schemas import DELETED_AT, EXTRACTED_AT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Connection

    from target_crm.loader.target import TargetCrm
    from target_crm.records.coverage import MerchantCoverage
    from target_crm.sql.tables import Tables

STREAM = "awards"
# Fetch this many balances at a time. This is more than `cli.ROWS_AT_A_TIME`, because most balances are not printed.
FETCHED_AT_A_TIME = 10_000
# Placeholder for `loaded_at`, because nothing is loaded.
_NEVER = datetime.min.replace(tzinfo=UTC)
_HEADINGS = {
    Verdict.EQUAL: "equal",
    Verdict.DIFFERENT: "different",
    Verdict.MISSING_HERE: "missing in the warehouse",
    Verdict.MISSING_IN_PEPPER: "missing in Pepper",
    Verdict.UNREADABLE: "unreadable",
    Verdict.NEWER_IN_PEPPER: "changed in Pepper, not loaded yet",
    Verdict.NEWER_HERE: "loaded while Pepper was read",
    Verdict.WITHOUT_POINTS: "without points in Pepper, or deleted",
}
_ALWAYS_SHOWN = (Verdict.EQUAL, Verdict.DIFFERENT, Verdict.MISSING_HERE, Verdict.MISSING_IN_PEPPER)


class AwardsInput:
    """The awards on standard input, decoded exactly as target-crm would decode them with the same settings.

    Attributes:
        awards: Award → its newest observation; None if none of its records can be decoded.
        unreadable: The award (if known) and the reason, for each record that target-crm would quarantine.
        lacks_awards: Whether Pepper may have awards that are not in `awards`.
        other_records: The number of records from other streams.
        read: Which awards the tap has sent, according to its messages.
    """

    def __init__(self, target: TargetCrm) -> None:
        self.awards: dict[str, Observation | None] = {}
        self.unreadable: list[dict[str, Any]] = []
        self.lacks_awards = target.drops_data(STREAM)
        self.other_records = 0
        self._first_extracted_at = datetime.max.replace(tzinfo=UTC)
        self.read = AwardsRead()
        self._router = target.router
        # Give the sink a schema without properties, so that it only checks the properties in `AwardSink.fixed`.
        context = BatchContext(target.warehouse, target.settings)
        self._sink = AwardSink(context, STREAM, {"additionalProperties": False}, AwardSink.keys)
        self._columns = [column.name for column in self._sink.table.columns]
        self._reader = MessageReader(nullcontext, lambda: None, self._refuse)

    def read_all(self) -> None:
        """Read standard input to its end.

        Raises:
            InputError: A line is not a message, there are no awards, or the input ends too early.
        """
        self._reader.process_lines(
            None,
            {
                "SCHEMA": self._add_schema,
                "RECORD": self._add_record,
                "STATE": lambda message: self.read.add_state(message.get("value")),
                "ACTIVATE_VERSION": lambda message: self.read.add_activation(str(message.get("stream"))),
                "BATCH": lambda message: self._refuse(message, "BATCH messages are not supported; turn batches off"),
            },
        )
        if not self.awards and not self.unreadable:
            raise InputError(
                "no awards were read; select awards in the tap, run it without a state, and see its log for errors"
            )
        if not self.read.is_finished:
            raise InputError(
                f"awards: no STATE follows the last award in the {counted(self._reader.line_number, 'line')} of input, "
                "so the tap stopped early; see its log"
            )

    def _refuse(self, _line: object, reason: str) -> NoReturn:
        raise InputError(f"line {self._reader.line_number}: {reason}")

    def _add_schema(self, message: dict[str, Any]) -> None:
        if not self._router.needs_no_change(message):
            self._router.add(message, self._reader.line_number)

    def _add_record(self, message: dict[str, Any]) -> None:
        stream, record = message.get("stream"), message.get("record")
        if not isinstance(stream, str) or not isinstance(record, dict):
            self._refuse(message, "the RECORD message has no stream or no record")
        if stream == STREAM and stream not in self._router.routes:
            self._refuse(message, f"a record of {STREAM} came before its SCHEMA")
        routes = [each for each in self._router.routes.get(stream, ()) if isinstance(each.sink, AwardSink)]
        self.other_records += not routes
        for route in routes:
            mapped = route.mapped(dict(record), f"stream {stream!r} line {self._reader.line_number}")
            if mapped is not None:
                self.read.add_record(stream)
                self._add(mapped, message)
                display.advance(1)

    def _add(self, record: dict[str, Any], message: dict[str, Any]) -> None:
        try:
            row = dict(zip(self._columns, self._sink.row(record, message, _NEVER), strict=True))
        except values.Invalid as reason:
            award_id = values.optional(record.get("_id"), values.identifier)
            self.unreadable.append({"award_id": award_id, "reason": str(reason)})
            if award_id is None:
                self.lacks_awards = True
            else:
                self.awards.setdefault(award_id, None)
            return
        award_id, is_deleted = row["_id"], row[DELETED_AT] is not None
        points = None if is_deleted else row["points"]
        is_dated = row["updated_at"] not in {None, ABSENT}
        observation = Observation(
            counts=is_deleted or points is not None,
            at=row["updated_at"] if is_dated else row[EXTRACTED_AT],
            extracted_at=row[EXTRACTED_AT],
            is_dated=is_dated,
            points=points,
            is_deleted=is_deleted,
        )
        known = self.awards.get(award_id)
        if known is None or observation.replaces(known):
            self.awards[award_id] = observation
        self._first_extracted_at = min(self._first_extracted_at, observation.extracted_at)

    @property
    def began_at(self) -> datetime:
        """When the tap began to read awards, by Pepper's clock, or by the tap's clock if there is no bookmark."""
        return self.read.until or self._first_extracted_at

    @property
    def meanwhile(self) -> Interval:
        """The interval from `began_at` until now.

        A balance with a later time is outside this interval, because its time must be wrong.
        """
        return Interval(self.began_at, datetime.now(UTC))


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`.

    Attributes:
        counts: Verdict → number of awards.
        examples: Some awards for each kind of difference.
        loaded_until: Changes in Pepper after this time may not be loaded yet. None if nothing is loaded.
        not_compared: The reason why awards that are not in the input do not count as missing in Pepper. None if they
            do count.
        other_records: The number of records from other streams, which were ignored.
        coverage: The intervals for which actions were read.
    """

    counts: dict[Verdict, int]
    examples: list[dict[str, Any]]
    loaded_until: datetime | None
    not_compared: str | None
    other_records: int
    coverage: Coverage

    @property
    def awards(self) -> int:
        """The number of awards that were compared."""
        return sum(self.counts.values())

    @property
    def differing(self) -> int:
        """The number of differences."""
        return sum(self.counts[each] for each in DIFFERENCES)


def compare(connection: Connection, tables: Tables, found: AwardsInput) -> Comparison:
    """Compare the awards in the input with the stored balances, within an open transaction. Empties `found.awards`.

    Raises:
        InputError: The awards and the balances belong to different merchants.
    """
    merchants = read_coverage(connection, tables)
    _check_merchant(merchants, found.read.merchants)
    begin(f"Comparing {counted(len(found.awards), 'award')} with the stored balances")
    loaded_until = _loaded_until(connection, tables, merchants, found.read.merchants)
    not_compared = _why_not_compared(merchants, found)
    meanwhile = found.meanwhile
    counts = dict.fromkeys(Verdict, 0)
    examples: dict[Verdict, list[dict[str, Any]]] = {each: [] for each in DIFFERENCES}

    def add(verdict: Verdict | None, award_id: str, pepper: Observation | None, stored: Stored | None) -> None:
        if verdict is None:
            return
        counts[verdict] += 1
        if verdict in examples and len(examples[verdict]) < EXAMPLES_MAX:
            examples[verdict].append(_example(award_id, pepper, stored))

    for award_id, *columns in _stored_balances(connection, tables):
        stored = Stored(*columns)
        if award_id not in found.awards:
            if not not_compared:
                add(judge_absent(stored, meanwhile), award_id, None, stored)
        elif pepper := found.awards.pop(award_id):
            add(judge(pepper, stored, loaded_until, meanwhile), award_id, pepper, stored)
    for award_id, pepper in found.awards.items():
        if pepper:
            add(judge(pepper, None, loaded_until, meanwhile), award_id, pepper, None)
    counts[Verdict.UNREADABLE] = len(found.unreadable)
    examples[Verdict.UNREADABLE] = found.unreadable[:EXAMPLES_MAX]
    return Comparison(
        counts=counts,
        examples=[{"verdict": verdict, **each} for verdict, some in examples.items() for each in some],
        loaded_until=loaded_until,
        not_compared=not_compared,
        other_records=found.other_records,
        coverage=describe(merchants, first_action_at(connection, tables)),
    )


def _check_merchant(recorded: Sequence[MerchantCoverage], read: set[str]) -> None:
    known = {each.merchant for each in recorded}
    if read and len(known) == 1 and "" not in known and not read & known:
        raise InputError(
            "awards: the input and the stored balances belong to different merchants; check --schema "
            "(default_target_schema), and the tap's application_id and api_url"
        )


def _stored_balances(connection: Connection, tables: Tables) -> Iterable[Any]:
    """Yield the award, points and time of every balance, and whether the award is marked as deleted."""
    balances, awards = tables.award_balances.c, tables.awards.c
    query = select(balances.award_id, balances.points, balances.as_of, awards[DELETED_AT]).outerjoin_from(
        tables.award_balances, tables.awards, awards["_id"] == balances.award_id
    )
    rows = connection.execution_options(yield_per=FETCHED_AT_A_TIME).execute(query)
    return ((*row, deleted_at is not None) for *row, deleted_at in rows)


def _loaded_until(
    connection: Connection, tables: Tables, recorded: Sequence[MerchantCoverage], read: set[str]
) -> datetime | None:
    """Return the time up to which actions were read.

    If no coverage is recorded, return the time of the newest balance.
    """
    covered = [each for each in recorded if each.intervals]
    own = [each for each in covered if each.merchant in read] or covered
    if own:
        return min(each.intervals[-1].until for each in own)
    newest: datetime | None = connection.scalar(select(func.max(tables.award_balances.c.as_of)))
    return newest


def _why_not_compared(recorded: Sequence[MerchantCoverage], found: AwardsInput) -> str | None:
    if since := found.read.changes_since:
        return f"the tap read only what changed since {since}; run it without a state to read all awards"
    if found.lacks_awards:
        return "a stream map may drop awards, or an award has no valid _id"
    if len(recorded) > 1:
        return "the warehouse has several merchants"
    return None


def _example(award_id: str, pepper: Observation | None, stored: Stored | None) -> dict[str, Any]:
    return {
        "award_id": award_id,
        "stored": values.number_text(stored.points) if stored and not stored.is_deleted else None,
        "as_of": stored.as_of if stored else None,
        "pepper": values.number_text(pepper.points) if pepper and pepper.points is not None else None,
        "updated_at": pepper.at if pepper and pepper.is_dated else None,
    }


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison in the form that `--json` prints."""
    return {
        "awards": comparison.awards,
        **{str(verdict): count for verdict, count in comparison.counts.items()},
        "differing": comparison.differing,
        "examples": comparison.examples,
        "loaded_until": comparison.loaded_until,
        "not_compared": comparison.not_compared,
        "other_records": comparison.other_records,
    }


def as_text(comparison: Comparison) -> str:
    """Format a comparison as a table with examples, and a conclusion."""
    lines = [f"{'award in Pepper and in the warehouse':<42}{'awards':>8}"]
    for verdict, count in comparison.counts.items():
        is_compared = verdict is not Verdict.MISSING_IN_PEPPER or not comparison.not_compared
        if count or verdict in _ALWAYS_SHOWN:
            lines.append(f"{_HEADINGS[verdict]:<42}{f'{count:,}' if count or is_compared else '-':>8}")
        if examples := [_shown(each) for each in comparison.examples if each["verdict"] is verdict]:
            lines += example_lines(examples, count)
    if comparison.not_compared:
        lines.append(f"Did not look for awards that are missing in Pepper: {comparison.not_compared}")
    # Leave out the sentence about the beginning of the ledger, which matters for totals, but not for points.
    lines += [each for each in comparison.coverage.summary if each != LEDGER_BEGINS]
    verdict_ = f"{comparison.differing:,} DIFFER" if comparison.differing else "OK"
    lines.append(f"Compared {counted(comparison.awards, 'award')} with Pepper: {verdict_}")
    return "\n".join(lines)


def _shown(example: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name.replace("_", " "): utc(value) if isinstance(value, datetime) else value
        for name, value in example.items()
        if name != "verdict" and value is not None
    }
