"""Pepper's endpoints as Singer streams: a declaration each, over the two ways in which they are followed."""

from __future__ import annotations

import hashlib
import re
from contextlib import closing
from datetime import timedelta
from functools import cached_property
from importlib.resources import files
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
from singer_sdk import SchemaDirectory, Stream, StreamSchema
from singer_sdk.helpers._catalog import pop_deselected_record_properties
from singer_sdk.helpers.conform import TypeConformanceLevel
from singer_sdk.mapper import SameRecordTransform
from singer_sdk.singerlib import RecordMessage, Schema
from singer_sdk.singerlib.catalog import REPLICATION_INCREMENTAL

from pepper_runtime import telemetry
from pepper_runtime.progress import display
from tap_pepper.api.prefetch import side_by_side
from tap_pepper.api.rate_limit import always
from tap_pepper.api.raw_json import JsonText, Row, canonical, plain, text_of, value_of
from tap_pepper.errors import FixSettings, OutOfTime, StopEverything
from tap_pepper.metrics import Measure, measured
from tap_pepper.state.dedupe import Border, Census, HourTally, digest
from tap_pepper.windows import (
    HOUR_CHARS,
    MILLISECOND,
    UTC,
    WINDOW_SECONDS_FIRST,
    Window,
    adapted_seconds,
    advanced,
    bound_of,
    earlier,
    hours_due,
    instant_of,
    later,
    next_hour,
    reaches,
    read_bound,
    read_hour,
    resume_after,
    seconds_between,
    window_of_hour,
    windows,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime
    from threading import Event

    from singer_sdk.helpers.types import Context
    from singer_sdk.singerlib import Catalog, MetadataMapping

    from tap_pepper.api.client import Page
    from tap_pepper.api.rate_limit import MayWait
    from tap_pepper.tap import TapPepper

TRIAL_PAGES_MAX = 10
"""Pages that a trial run (`--test`) looks at in one stream, to find its rows."""
TRIAL_WINDOW_SECONDS = 100 * 366 * 24 * 3600
ROWS_AHEAD_MAX = 10_000
"""Rows in memory that were fetched and are not emitted yet; a page for each window under way at the least."""
AUDIT_HOURS_MAX = 24
"""Hours that one run reads a second time; the others are left to the next runs."""
UNKNOWN_NAMES_MAX = 20
"""Unknown fields that a report names."""
HOUR_SECONDS = 3600
DAY_SECONDS = 24 * HOUR_SECONDS
MINUTE_CHARS = len("2026-10-01T11:55")

_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


class _When(msgspec.Struct):
    """What is read of an action's `when`."""

    timestamp: object = None


_when_decoder = msgspec.json.Decoder(_When)
_NO_KEY = (None, JsonText(b"null"), JsonText(b'""'))


class PepperStream(Stream):
    """A list endpoint, read from its first page to its last.

    Fields that the schema does not name are passed on where it says `additionalProperties`, and left out elsewhere.
    """

    path: ClassVar[str]
    hidden: ClassVar[tuple[str, ...]] = ()
    """Fields that are emitted only where a catalog selects them."""

    primary_keys: Sequence[str] = ("_id",)
    replication_key: str | None = None
    schema: ClassVar[StreamSchema] = StreamSchema(SchemaDirectory(files("tap_pepper") / "schemas"))
    # A row is JSON already.
    TYPE_CONFORMANCE_LEVEL = TypeConformanceLevel.NONE

    _tap: TapPepper
    _emitted = 0

    def rows(self) -> Generator[list[Row], None, None]:
        """All rows of this run, in lists; bookmarks are written in between, each as soon as it is true."""
        if self._tap.may_begin(self.name):
            yield from self.complete_walk({})

    def complete_walk(
        self, query: Mapping[str, str], take: Callable[[Row], Row | None] | None = None
    ) -> Iterator[list[Row]]:
        """Walk through all rows that there are, as a version of the table; what two walks in a row miss is deleted.

        The version is Pepper's time in milliseconds. The ACTIVATE_VERSION message comes after the last row and names
        the version of the walk before, so that what came in either of the two stays: pages that shift while they are
        read can hide a row from one walk. A walk in which too many rows are missing to be believed does not count.
        """
        state = self.stream_state
        census = Census(state.get("known"))
        pages = self.pages(query)
        first = next(pages)
        self._stream_version = _version(first.date or self._tap.client.local.now(), state.get("version"))
        # The rows as they come, also those that are not emitted.
        yield from self.walk(_counted(chain([first], pages), census), take or self.shaped, "all")
        if self.on_trial:
            return
        state["version"] = self._stream_version
        if census.vanished_fraction > self._tap.settings.max_deleted_fraction:
            if state.get("known"):
                self.logger.warning(
                    "%s: %.0f%% of those known are missing, more than max_deleted_fraction; nothing counts as deleted. "
                    "If they are gone for good, raise max_deleted_fraction for two runs",
                    self.name,
                    100 * census.vanished_fraction,
                )
        else:
            if isinstance(believed_version := state.get("believed_version"), int):
                self._write_activate_version_message(believed_version)
            state.update(believed_version=self._stream_version, known=census.sample())
        self.say_state()

    def pages(self, query: Mapping[str, str], halt: Event | None = None, may_wait: MayWait = always) -> Iterator[Page]:
        """The pages of one query; on a trial, the first few."""
        pages = self._tap.client.pages(self.path, query, halt, may_wait)
        return islice(pages, TRIAL_PAGES_MAX) if self.on_trial else pages

    def walk(
        self, pages: Iterable[Page], take: Callable[[Row], Row | None], span: str, ends: str = ""
    ) -> Generator[list[Row], None, float]:
        """Emit the rows of pages, page by page, and log what came.

        Args:
            pages: As they are fetched.
            take: Gives a row as it is to be emitted; None where the query had asked for others, or where an earlier run
                has emitted it.
            span: What the query covers, for the log.
            ends: What else there is to say of it.

        Returns:
            How many pages the emitted rows would have filled: all of them, but where Pepper sent others, too.
        """
        records = count = others = 0
        for page in pages:
            taken = [row for row in map(take, page.rows) if row is not None]
            count += 1
            records += len(taken)
            self._emitted += len(taken)
            display.advance(len(taken))
            others += len(page.rows) - len(taken)
            yield taken
        passed = f", {others} more that are known or were not asked for" if others else ""
        self.logger.info("%s: %s: %d records, %d pages%s%s", self.name, span, records, count, passed, ends)
        return count * records / (records + others) if others else count

    def shaped(self, row: Row) -> Row:
        """A row with the fields that are selected; unknown ones are noted. The same row, where nothing is left out."""
        if not self._declared.issuperset(row):
            self._unknown.update(row.keys() - self._declared)
        if self.fields is not None:
            return {name: row[name] for name in self.fields if name in row}
        for name in self.deselected:
            row.pop(name, None)
        return row

    @cached_property
    def _declared(self) -> frozenset[str]:
        return frozenset(self.effective_schema["properties"])

    @cached_property
    def _unknown(self) -> set[str]:
        return set()

    @cached_property
    def deselected(self) -> tuple[str, ...]:
        """Top-level fields that are not to be emitted."""
        return tuple(name for name in self.effective_schema["properties"] if not self.mask["properties", name])

    @cached_property
    def _nested_deselection(self) -> bool:
        """Whether a field inside of a selected one is not to be emitted."""
        return any(len(breadcrumb) > 2 and not self.mask[breadcrumb] for breadcrumb in self.metadata)

    @cached_property
    def fields(self) -> tuple[str, ...] | None:
        """The top-level fields to emit, in the schema's order; None means all that come, but for `deselected`."""
        schema = self.effective_schema
        if schema.get("additionalProperties"):
            return None
        return tuple(name for name in schema["properties"] if name not in self.deselected)

    @property
    def on_trial(self) -> bool:
        """Whether a few rows are enough, and no bookmark moves."""
        return self.ABORT_AT_RECORD_COUNT is not None

    @property
    def bookmark(self) -> str | None:
        """The bound up to which earlier runs have emitted everything.

        Raises:
            FixSettings: The state holds something else in its place.
        """
        state = self.stream_state
        value = state.get("replication_key_value")
        other_key = state.get("replication_key", self.replication_key) != self.replication_key
        if value is None or other_key or self.replication_method != REPLICATION_INCREMENTAL:
            return None
        try:
            return read_bound(value)
        except ValueError as error:
            msg = f"state: bookmarks.{self.name}.replication_key_value is {value!r}, expected ISO 8601"
            raise FixSettings(msg) from error

    @cached_property
    def read_until(self) -> str | None:
        """The bound up to which earlier runs have read for sure; None: nothing yet.

        It is behind the bookmark where the clocks did not agree that the bookmark's time had come, and behind it also
        where that time has still not come: then a clock was wrong, and nobody knows since when.
        """
        bookmark = self.bookmark
        if bookmark is None:
            return None
        until = self._tap.upper_bound(self.path)
        if until < bookmark:
            self.logger.warning(
                "%s: the bookmark %s is ahead of Pepper's clock, a clock is or was wrong; if runs come less often than "
                "lookback_seconds, set the bookmark back to before it was",
                self.name,
                bookmark,
            )
        kept = instant_of(self.stream_state.get("read_until"))
        return min(bookmark, until, read_bound(kept) if kept else bookmark)

    def drained(self, until: str) -> str:
        """The bound up to which the next run can rely on what was read, once this one drained everything up to one."""
        return advanced(self.read_until, min(until, self._tap.agreed_until))

    def checkpoint(self, drained_until: str, **more: object) -> None:
        """Say in a STATE message that everything up to a bound was emitted. The bookmark never goes back.

        Args:
            drained_until: The bound.
            more: What else the next run has to know; what is empty is left out.
        """
        if self.on_trial or self.replication_method != REPLICATION_INCREMENTAL:
            return
        state = self.stream_state
        bookmark, read_until = advanced(self.bookmark, drained_until), self.drained(drained_until)
        more["read_until"] = read_until if read_until < bookmark else None
        state.update(replication_key=self.replication_key, replication_key_value=bookmark, **more)
        for name in [name for name in more if not state[name]]:
            del state[name]
        self.say_state()

    def say_state(self) -> None:
        """Send a STATE message. It names, in a hash, the merchant that the state is of."""
        self.stream_state["merchant"] = self._tap.merchant
        self.state_manager.is_flushed = False
        self._write_state_message()

    def reread_from(self, drained_until: str) -> str:
        """Where the next run will begin to read again, if this one drained everything up to a bound."""
        return earlier(self.drained(drained_until), self._tap.settings.lookback_seconds)

    def report(self) -> None:
        """Tell operators how the stream went: metrics, and the names of unknown fields."""
        client = self._tap.client
        traffic = client.traffic(self.path)
        measured(Measure.PAGES, traffic.pages, self.name)
        measured(Measure.RETRIES, traffic.retries, self.name)
        measured(Measure.WAITED, round(client.limiter.waited_seconds, 3), self.name)
        bookmark = self.bookmark
        ends = f", {traffic.retries} retries" if traffic.retries else ""
        if bookmark is not None:
            lag_seconds = seconds_between(bookmark, bound_of(client.local.now()))
            measured(Measure.LAG, lag_seconds, self.name)
            ends += f", {max(0.0, lag_seconds):,.0f} s behind"
        self.logger.info("%s: done, %s records from %d pages%s", self.name, f"{self._emitted:,}", traffic.pages, ends)
        if self._unknown:
            names = sorted(name if _FIELD_NAME.fullmatch(name) else "(no plain name)" for name in self._unknown)
            done = "left out" if self.fields is not None else "passed on"
            named = ", ".join(list(dict.fromkeys(names))[:UNKNOWN_NAMES_MAX])
            self.logger.warning("%s: fields that the schema does not name were %s: %s", self.name, done, named)

    # What the SDK calls.

    def sync(self, context: Context | None = None) -> None:  # type: ignore[misc]
        """Sync the stream, as a span of the run."""
        with telemetry.span(f"stream {self.name}", parents_threads=True):
            super().sync(context)

    def get_records(self, context: Context | None) -> Iterable[dict[str, Any]]:  # noqa: ARG002
        """The rows of a run, or the first few on a trial."""
        self._rows = self.rows()
        return islice(map(plain, chain.from_iterable(self._rows)), self.ABORT_AT_RECORD_COUNT)

    def _sync_records(
        self, context: Context | None = None, *, write_messages: bool = True
    ) -> Generator[dict[str, Any], Any, Any]:
        """Sync the stream; an error ends it and is kept for the end of the run, after the other streams."""
        display.update(self.name)
        try:
            if write_messages and self._passes_whole:
                self._sync_whole()
            else:
                yield from super()._sync_records(context, write_messages=write_messages)
        except (StopEverything, BrokenPipeError):
            raise
        except Exception as error:
            if self.on_trial:
                raise
            telemetry.record_error(error)
            self._tap.failures.append((self.name, error))
            if isinstance(error, FixSettings):
                return
        finally:
            # An error outside of the rows leaves them half read: whatever fetches them ends here.
            self._rows.close()
        if not self.on_trial:
            self.report()

    @property
    def _passes_whole(self) -> bool:
        """Whether rows are emitted without a look inside of them."""
        untouched = all(
            isinstance(stream_map, SameRecordTransform) and not stream_map.flattening_enabled
            for stream_map in self.stream_maps
        )
        return untouched and not self._nested_deselection and not self.on_trial

    def _sync_whole(self) -> None:
        """What the SDK does with each row, with a list of them at a time."""
        self._rows = self.rows()
        with self.get_record_counter() as counter, self.get_sync_timer():
            for rows in self._rows:
                extracted_at = self._tap.client.local.now()
                self._tap.message_writer.write_records(self.name, rows, self._stream_version, extracted_at)
                self.state_manager.is_flushed = False
                counter.increment(len(rows))
        self._finalize_state(self.stream_state)
        self._write_state_message()

    def _process_record(self, *_: object, **__: object) -> None:
        """There are neither children nor partitions."""

    def _generate_record_messages(self, record: dict[str, Any]) -> Generator[RecordMessage, None, None]:
        """As the SDK does, without its walk through every field of every row where none is deselected."""
        if self._nested_deselection:
            pop_deselected_record_properties(record, self.schema, self.mask)
        extracted_at = self._tap.client.local.now()
        for stream_map in self.stream_maps:
            mapped = stream_map.transform(record)
            if mapped is not None:
                yield RecordMessage(
                    stream=stream_map.stream_alias,
                    record=mapped,
                    version=self._stream_version,
                    time_extracted=extracted_at,
                )

    def apply_catalog(self, catalog: Catalog) -> None:
        """Take selection and schema from a catalog. The keys are the stream's own, also where the catalog has none."""
        if entry := catalog.get_stream(self.name):
            given, keys = entry.schema.properties or {}, {*type(self).primary_keys, type(self).replication_key}
            own = {name: Schema.from_dict(field) for name, field in self.schema["properties"].items() if name in keys}
            entry.schema.properties = {**own, **given}
        super().apply_catalog(catalog)
        self.primary_keys = type(self).primary_keys
        self.replication_key = type(self).replication_key
        if entry:
            # Stream maps are made from the entry itself.
            entry.key_properties = self.primary_keys
            entry.metadata = self.metadata

    @property
    def metadata(self) -> MetadataMapping:
        """The catalog's metadata; a hidden field of which it says nothing is not selected."""
        metadata = super().metadata
        for name in self.hidden:
            field = metadata["properties", name]
            if field.selected is None and field.selected_by_default is None:
                field.selected_by_default = False
        return metadata

    def get_batch_config(self, config: Mapping[str, Any]) -> None:
        """Never: a BATCH message would follow the STATE that covers its rows."""

    # Bookmarks come from windows, not from rows: rows come in any order, and an empty window counts.

    def _increment_stream_state(self, latest_record: dict[str, Any], *, context: Context | None = None) -> None:
        pass

    def _write_starting_replication_value(self, context: Context | None) -> None:
        pass

    def get_replication_key_signpost(self, context: Context | None = None) -> None:
        """None: the run's upper bound is the tap's."""


class ChangesStream(PepperStream):
    """An endpoint that can be asked for what changed since a moment: once in full, then the changes alone."""

    replication_key = "updatedAt"
    since_parameter: ClassVar[str]

    def query(self) -> dict[str, str]:
        """Parameters besides the moment."""
        return {}

    def rows(self) -> Generator[list[Row], None, None]:
        """What changed since the bookmark, less the lookback; everything without one.

        The bookmark is the run's upper bound, not the newest change that came: a row that changes while its page has
        long been read is there to be found by the next run. What an earlier run emitted as it is, is left out.
        """
        if not self._tap.may_begin(self.name):
            return
        until = self._tap.upper_bound(self.path)
        state, read_until = self.stream_state, self.read_until
        again = read_until is not None and self.refresh_is_due(until)
        since = None if read_until is None or again else earlier(read_until, self._tap.settings.lookback_seconds)
        border = Border(None if since is None else state.get("border"))
        reread_from = self.reread_from(until)

        def take(row: Row) -> Row | None:
            dated = changed(row, since)
            if dated is None:
                return None
            shaped = self.shaped(dated)
            return shaped if border.admits(shaped, instant_of(value_of(row.get("updatedAt"))), reread_from) else None

        if since is None and (self.refresh_days or self.replication_method != REPLICATION_INCREMENTAL):
            yield from self.complete_walk(self.query(), take)
            border.forget_earlier_runs()
            self.checkpoint(until, border=border.text(reread_from), refreshed_until=until)
            return
        if self.refresh_days:
            self._stream_version = state.get("version")
        query = self.query()
        if since is not None:
            # A millisecond earlier: whether the moment itself is in the answer or not, what changed then is.
            query[self.since_parameter] = earlier(since, MILLISECOND.total_seconds())
        # To begin a seed again costs all of it, to begin a poll again little.
        pages = self.pages(query, may_wait=self._tap.has_time if since else always)
        try:
            yield from self.walk(pages, take, f"since {since}" if since else "from the start")
        except OutOfTime:
            self._tap.leave(f"{self.name} not read, for Pepper asked to wait")
            return
        # A row that changes, and changes back, is news both times: only what it was last is remembered.
        border.forget_earlier_runs()
        self.checkpoint(until, border=border.text(reread_from))

    @property
    def refresh_days(self) -> int:
        """Days after which everything is read again, to find deletions; 0: never."""
        return 0

    def refresh_is_due(self, until: str) -> bool:
        """Whether everything is to be read again."""
        if not self.refresh_days or self.on_trial:
            return False
        refreshed_until = instant_of(self.stream_state.get("refreshed_until"))
        return refreshed_until is None or reaches(earlier(until, self.refresh_days * DAY_SECONDS), refreshed_until)


class Perks(PepperStream):
    """Templates of awards."""

    name = "perks"
    path = "/perks"


class Awards(ChangesStream):
    """What each user holds of each perk."""

    name = "awards"
    path = "/awards"
    since_parameter = "updatedAt"
    hidden = ("tenantId", "perk")

    @property
    def refresh_days(self) -> int:
        """As the user wants it."""
        return self._tap.settings.awards_full_refresh_days


class Users(ChangesStream):
    """The merchant's guests. Personal data: nothing of it is emitted by default."""

    name = "users"
    path = "/users"
    since_parameter = "updatedAfter"
    selected_by_default = False
    hidden = ("firstName", "lastName", "fullName", "contacts", "credentials")

    def query(self) -> dict[str, str]:
        """Credentials come only when asked for."""
        return {"include": "credentials"} if self._tap.settings.include_credentials else {}


class Actions(PepperStream):
    """Everything that happened, in windows of time."""

    name = "actions"
    path = "/actions"
    replication_key = "when_timestamp"

    def rows(self) -> Generator[list[Row], None, None]:
        """The actions from the bookmark, less the lookback, to the run's upper bound, window after window.

        Windows are fetched side by side. What an earlier run emitted as it is, is left out.
        """
        settings, client = self._tap.settings, self._tap.client
        until = self._tap.upper_bound(self.path, self.query(_last_second(client.local.now())))
        bookmark, read_until = self.bookmark, self.read_until
        after = resume_after(
            read_until=read_until, start=settings.start, until=until, lookback_seconds=settings.lookback_seconds
        )
        if after >= until:
            self.logger.warning("%s: start_date %s has not come yet; there is nothing to read", self.name, after)
        border = Border(None if read_until is None else self.stream_state.get("border"))
        audit = Audit(self.stream_state.get("audit"), after, until, settings.reconcile_hours)
        types = frozenset(settings.action_types)
        longest_seconds = float(settings.window_hours * HOUR_SECONDS)
        length_seconds = TRIAL_WINDOW_SECONDS if self.on_trial else min(WINDOW_SECONDS_FIRST, longest_seconds)
        ahead = side_by_side(
            windows(after, until, lambda: length_seconds),
            lambda window, halt: self.pages(self.query(window), halt, self._may_wait),
            workers=1 if self.on_trial else settings.concurrency,
            size=lambda page: len(page.rows),
            size_max=ROWS_AHEAD_MAX,
            wake=client.limiter.wake,
        )
        try:
            with closing(ahead):
                for window, pages in ahead:
                    reread_from = self.reread_from(window.until)
                    take = self._taker(window, types, border, reread_from, audit)
                    pages_filled = yield from self.walk(pages, take, f"window {window}", _behind(window, until))
                    if bookmark is None or window.until >= bookmark:
                        border.forget_earlier_runs()
                    self.checkpoint(window.until, border=border.text(reread_from), audit=audit.kept(reread_from))
                    self._news = read_until is None or window.until > read_until
                    done = seconds_between(after, window.until) / seconds_between(after, until)
                    display.update(f"{self.name} up to {window.until[:MINUTE_CHARS]}", done)
                    length_seconds = adapted_seconds(window.seconds, pages_filled, longest_seconds)
                    if window.until < until and not self._may_wait(0):
                        self._tap.leave(f"{self.name} read up to {window.until}")
                        return
            if not self.on_trial:
                yield from self._audited(audit, until, types)
        except OutOfTime:
            self._tap.leave(f"{self.name} read up to {self.bookmark}, and Pepper asked to wait")

    _news = False
    """Whether this run has read anything that no run before it had."""

    def _may_wait(self, seconds: float) -> bool:
        """Whether the run may go on after so many seconds. Until it has got further than the last one, it may."""
        return not self._news or self._tap.actions_have_time(seconds)

    def _audited(self, audit: Audit, until: str, types: frozenset[str]) -> Generator[list[Row], None, None]:
        """Read the hours again whose time has come, and emit those that are not what was read."""
        for hour in audit.due():
            if not self._may_wait(0):
                self._tap.leave(f"{self.name} audited up to {hour}")
                return
            window = window_of_hour(hour)

            def take(row: Row, window: Window = window, hour: str = hour) -> Row | None:
                action, instant = _asked_for(row, window, types)
                return self.shaped(action) if action and instant and instant.startswith(hour) else None

            marks = {
                digest(action)
                for page in self.pages(self.query(window), may_wait=self._may_wait)
                for action in map(take, page.rows)
                if action is not None
            }
            late = audit.finding(hour, marks)
            if late is not None:
                found = f"{late} actions arrived" if late else "actions changed"
                self.logger.warning(
                    "%s: hour %s: %s later than lookback_seconds; the hour is emitted again", self.name, hour, found
                )
                yield from self.walk(self.pages(self.query(window)), take, f"audit of {window}")
            self.checkpoint(until, audit=audit.kept(self.reread_from(until)))

    def _taker(
        self, window: Window, types: frozenset[str], border: Border, reread_from: str, audit: Audit
    ) -> Callable[[Row], Row | None]:
        """Check rows against what was asked for, as the server may have ignored it, and against what is known."""

        def take(row: Row) -> Row | None:
            action, instant = _asked_for(row, window, types)
            if action is None:
                return None
            shaped = self.shaped(action)
            audit.read(shaped, instant)
            return shaped if border.admits(shaped, instant, reread_from) else None

        return take

    def query(self, window: Window) -> dict[str, str]:
        """Parameters that ask for a window."""
        query = {"when.timestamp.gt": window.after, "when.timestamp.lte": window.until}
        if self._tap.settings.action_types:
            query["type.in"] = ",".join(self._tap.settings.action_types)
        return query


STREAMS: tuple[type[PepperStream], ...] = (Actions, Awards, Perks, Users)


def changed(row: Row, since: str | None) -> Row | None:
    """A row with its `updatedAt` as an instant; None if it did not change since a bound.

    A row that does not say when it changed, or says it in no known way, is kept as it is.
    """
    instant = instant_of(value_of(row.get("updatedAt")))
    if instant is None:
        return row
    row["updatedAt"] = text_of(instant)
    return row if since is None or reaches(instant, since) else None


def dated(row: Row) -> str | None:
    """Put an action's time at its top, as `when_timestamp`, and see that it has a key.

    An action without `_id` gets a key made from its content, the same each time that it is read.

    Returns:
        The time, as an instant; None where `when.timestamp` is missing or none. Who loads the action judges it.
    """
    if row.get("_id") in _NO_KEY:
        content = {name: text for name, text in row.items() if name != "_id"}
        row["_id"] = text_of(f"content-{hashlib.sha256(canonical(content)).hexdigest()}")
    try:
        instant = instant_of(_when_decoder.decode(row["when"]).timestamp)
    except (KeyError, msgspec.DecodeError):
        instant = None
    row["when_timestamp"] = text_of(instant)
    return instant


class Audit:
    """Which hours of actions are to be read a second time, and what was read of each.

    In the state: `{"next": "2026-10-01T11", "until": "2026-10-01T11:55:00.000Z", "hours": {…}}`, the first hour that is
    not audited, and a tally of all actions from then until the bound from which the next run reads again.

    Args:
        kept: What the run before left.
        after: Where this run begins to read; the first hour to be audited begins there or later.
        until: Where this run ends.
        age_hours: How old an hour has to be; 0: there is no audit.
    """

    def __init__(self, kept: object, after: str, until: str, age_hours: int) -> None:
        kept = kept if isinstance(kept, dict) and age_hours else {}
        self._age_hours = age_hours
        self._until = until
        first = next_hour(max(after, earlier(until, age_hours * HOUR_SECONDS)))
        self._next = read_hour(kept.get("next")) or first
        self._tally = HourTally(kept.get("hours"))
        self._tallied_until = instant_of(kept.get("until")) or ""
        # By key, for a row that comes twice or changes before it is tallied counts once, as it was last.
        self._open: dict[bytes, tuple[str, str]] = {}

    def read(self, row: Row, instant: str | None) -> None:
        """Note a row that Pepper has, emitted now or by an earlier run."""
        if self._age_hours and instant and instant >= self._next and instant[:-1] > self._tallied_until[:-1]:
            self._open[bytes(row["_id"])] = instant, digest(row)

    def due(self) -> list[str]:
        """The hours whose time has come, oldest first."""
        return hours_due(self._next, self._until, self._age_hours, AUDIT_HOURS_MAX) if self._age_hours else []

    def finding(self, hour: str, marks: set[str]) -> int | None:
        """How many rows more there are of an hour than were read; None where it is what was read."""
        self._close(lambda instant: instant.startswith(hour))
        again = HourTally()
        for mark in marks:
            again.add(mark, hour)
        self._next = next_hour(later(window_of_hour(hour).until, MILLISECOND.total_seconds()))
        if again.of(hour) == self._tally.of(hour):
            return None
        return max(0, again.of(hour)[0] - self._tally.of(hour)[0])

    def kept(self, reread_from: str) -> dict[str, Any] | None:
        """What the next run needs, if it reads again from a bound on."""
        if not self._age_hours:
            return None
        self._close(lambda instant: instant[:-1] <= reread_from[:-1])
        self._tallied_until = max(self._tallied_until, reread_from)
        return {"next": self._next, "until": self._tallied_until, "hours": self._tally.kept(self._next)}

    def _close(self, closes: Callable[[str], bool]) -> None:
        """Tally rows for good."""
        for key in [key for key, (instant, _) in self._open.items() if closes(instant)]:
            instant, mark = self._open.pop(key)
            self._tally.add(mark, instant[:HOUR_CHARS])


def _asked_for(row: Row, window: Window, types: frozenset[str]) -> tuple[Row | None, str | None]:
    """An action with its time, if it is of the window and of the types that were asked for."""
    if types and value_of(row.get("type")) not in types:
        return None, None
    instant = dated(row)
    return (row if instant is None or window.holds(instant) else None), instant


def _counted(pages: Iterable[Page], census: Census) -> Iterator[Page]:
    for page in pages:
        for row in page.rows:
            census.count(row.get("_id"))
        yield page


def _version(date: datetime, earlier_version: object) -> int:
    """A table's version: a moment in milliseconds since 1970, greater than the version before."""
    version = int(date.astimezone(UTC).timestamp() * 1000)
    return max(version, earlier_version + 1) if isinstance(earlier_version, int) else version


def _behind(window: Window, until: str) -> str:
    """How far a window's end is from the end of the run, in words for the log."""
    hours = seconds_between(window.until, until) / HOUR_SECONDS
    return f", {hours:,.1f} h behind" if hours > 0 else ""


def _last_second(now: datetime) -> Window:
    """A window that hardly holds an action: enough to be told the time."""
    return Window(bound_of(now - timedelta(seconds=1)), bound_of(now))
