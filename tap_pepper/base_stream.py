"""The base class of all streams: field selection, bookmarks, logs, and the methods that the Singer SDK calls."""

from __future__ import annotations

import re
from abc import abstractmethod
from datetime import timedelta
from functools import cached_property
from importlib.resources import files
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, ClassVar

from singer_sdk import SchemaDirectory, Stream, StreamSchema
from singer_sdk.exceptions import SingerSDKError
from singer_sdk.helpers._catalog import pop_deselected_record_properties
from singer_sdk.helpers.conform import TypeConformanceLevel
from singer_sdk.mapper import SameRecordTransform
from singer_sdk.singerlib import RecordMessage, Schema
from singer_sdk.singerlib.catalog import REPLICATION_FULL_TABLE, REPLICATION_INCREMENTAL, Metadata

from pepper_runtime import telemetry
from pepper_runtime.cli import unexpected
from pepper_runtime.progress import display
from pepper_runtime.wording import counted, duration
from tap_pepper.api.rate_limit import always
from tap_pepper.errors import ConfigError, FatalRunError, PepperError
from tap_pepper.metrics import Metric, log_metric
from tap_pepper.raw_json import decode_row, to_json
from tap_pepper.windows import (
    add_seconds,
    advance_bookmark,
    parse_bound,
    seconds_between,
    subtract_seconds,
    to_bound,
    to_instant,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
    from threading import Event

    from singer_sdk import Tap
    from singer_sdk.helpers.types import Context
    from singer_sdk.singerlib import Catalog, CatalogEntry, MetadataMapping

    from tap_pepper.api.rate_limit import CanWait
    from tap_pepper.api.response import Page
    from tap_pepper.raw_json import Row
    from tap_pepper.run_context import RunContext

TEST_PAGES_MAX = 10
"""`--test` reads at most this many pages of a stream to find a row."""
UNKNOWN_FIELDS_MAX = 100
"""The tap logs at most this many unknown fields of a stream, and remembers them in the STATE."""

OTHER_FIELDS = "other_fields"
"""The property into which the tap moves a row's fields that are not in the schema."""

UNKNOWN_FIELDS = "unknown_fields"
"""Under this key, a bookmark lists the unknown fields that the tap has already logged."""

_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


class PepperStream(Stream):
    """A stream that reads a list endpoint of Pepper's API.

    Fields that are not in the schema are emitted inside the property `other_fields`, if it is selected.

    Args:
        tap: The tap that creates the stream.
        get_run_context: Returns the context that the streams of a run share. Discovery must work without settings, so
            it never calls this function.
    """

    name: str
    path: ClassVar[str]
    is_personal: ClassVar[bool] = False
    """Whether the stream exists only if the setting `include_users` is true."""
    hidden_fields: ClassVar[tuple[str, ...]] = ()
    """Fields that are emitted only if the catalog selects them."""
    automatic_fields: ClassVar[tuple[str, ...]] = ()
    """Fields that are emitted even if the catalog does not select them."""
    balance_fields: ClassVar[tuple[str, ...]] = ()
    """Fields without which target-crm cannot keep balances. Dots separate the parts of a nested name.

    A catalog for another target may deselect them.
    """
    sum_fields: ClassVar[tuple[str, ...]] = ()
    """The fields without which target-crm cannot sum up changes.

    If the catalog or a stream map leaves one of them out, the target records no coverage.
    """
    bookmark_keys: ClassVar[tuple[str, ...]]
    """A bookmark that is not empty has at least one of these keys."""

    primary_keys: Sequence[str] = ("_id",)
    replication_key: str | None = None
    schema: ClassVar[StreamSchema] = StreamSchema(SchemaDirectory(files("tap_pepper") / "schemas"))
    # Rows are JSON already, so the SDK has nothing to convert.
    TYPE_CONFORMANCE_LEVEL = TypeConformanceLevel.NONE

    def __init__(self, tap: Tap, get_run_context: Callable[[], RunContext]) -> None:
        super().__init__(tap)
        self._get_run_context = get_run_context
        self._records = 0
        self._unknown_fields: set[str] = set()

    @cached_property
    def run(self) -> RunContext:
        """The context that the streams of this run share."""
        return self._get_run_context()

    @abstractmethod
    def rows(self) -> Generator[list[Row], None, None]:
        """Yield lists of rows to emit. Write each bookmark once all rows up to its time have been emitted."""

    def count_first_rows(self) -> int:
        """Return the length of the first list from `rows` that is not empty, or 0. Only `--test` calls this method."""
        self.ABORT_AT_RECORD_COUNT = 1
        self.selected = True
        self._rows = self.rows()
        try:
            return next((len(rows) for rows in self._rows if rows), 0)
        finally:
            self._rows.close()

    def has_time_to_start(self) -> bool:
        """Return whether the time limit allows this stream to start. If not, add the stream to `postponed`."""
        if self.run.time_limit.allows(0):
            return True
        self.run.postponed.append(f"{self.name} not started")
        return False

    # Pages and rows.

    def pages(
        self, query: Mapping[str, str], cancel: Event | None = None, can_wait: CanWait = always
    ) -> Iterator[Page]:
        """Read the pages of a query. With `--test`, read at most `TEST_PAGES_MAX` pages."""
        pages = self.run.client.pages(self.path, query, cancel, can_wait)
        return islice(pages, TEST_PAGES_MAX) if self.is_test else pages

    def emit(
        self, pages: Iterable[Page], prepare: Callable[[Row], Row | None], what: str, note: str = ""
    ) -> Generator[list[Row], None, float]:
        """Yield the rows to emit, page by page, and then log the number of records and pages.

        Args:
            pages: The pages as they arrive.
            prepare: Returns the row to emit. Returns None for a row that an earlier run has emitted, or that the query
                did not ask for.
            what: What the query covers, for the log.
            note: Appended to the log line.

        Returns:
            How many pages the emitted rows would fill. If rows were skipped, these are fewer pages than were read.
        """
        records = pages_read = skipped = 0
        for page in pages:
            rows = [row for row in map(prepare, page.rows) if row is not None]
            pages_read += 1
            records += len(rows)
            self._records += len(rows)
            display.advance(len(rows))
            skipped += len(page.rows) - len(rows)
            yield rows
        if skipped:
            note = f", {skipped:,} skipped (already emitted or outside the window){note}"
        self.logger.info(
            "%s: %s, %s, %s%s", self.name, counted(records, "record"), counted(pages_read, "page"), what, note
        )
        return pages_read * records / (records + skipped) if skipped else pages_read

    def select_fields(self, row: Row) -> Row:
        """Remove the deselected fields from a row, and return the row.

        Unknown fields move into `other_fields`, if the catalog selects it. Otherwise they are removed.
        """
        if not self._declared_fields.issuperset(row):
            other_fields = {name: row.pop(name) for name in list(row) if name not in self._declared_fields}
            self._unknown_fields.update(other_fields)
            if self._emits_other_fields:
                row[OTHER_FIELDS] = to_json(other_fields)
        for name in self._deselected_fields:
            row.pop(name, None)
        return row

    @property
    def emitted_fields(self) -> list[str]:
        """The names of the fields that the catalog selects, sorted."""
        return sorted(name for name in self.effective_schema["properties"] if self.mask["properties", name])

    @cached_property
    def _declared_fields(self) -> frozenset[str]:
        # Pepper may itself send a field with the name `other_fields`. The tap treats it as an unknown field.
        return frozenset(self.effective_schema["properties"]) - {OTHER_FIELDS}

    @cached_property
    def _emits_other_fields(self) -> bool:
        return OTHER_FIELDS in self.effective_schema["properties"] and self.mask["properties", OTHER_FIELDS]

    @cached_property
    def _deselected_fields(self) -> tuple[str, ...]:
        return tuple(name for name in self.effective_schema["properties"] if not self.mask["properties", name])

    @cached_property
    def _has_nested_deselection(self) -> bool:
        """Whether a field inside a selected field is deselected."""
        return any(len(breadcrumb) > 2 and not self.mask[breadcrumb] for breadcrumb in self.metadata)

    # Bookmarks.

    @property
    def is_test(self) -> bool:
        """Whether this is a `--test` run, which reads few rows and moves no bookmark."""
        return self.ABORT_AT_RECORD_COUNT is not None

    @property
    def bookmark(self) -> str | None:
        """The bound up to which earlier runs have emitted everything.

        Raises:
            ConfigError: The bookmark in the STATE is invalid.
        """
        state = self.stream_state
        value = state.get("replication_key_value")
        if value is None or self.replication_method != REPLICATION_INCREMENTAL:
            return None
        if (key := state.get("replication_key", self.replication_key)) != self.replication_key:
            msg = f"state: bookmarks.{self.name}.replication_key is {key!r:.80}, expected {self.replication_key!r}"
            raise ConfigError(msg)
        try:
            return parse_bound(value)
        except ValueError as error:
            msg = f"state: bookmarks.{self.name}.replication_key_value is {value!r}, expected ISO 8601"
            raise ConfigError(msg) from error

    @cached_property
    def read_until(self) -> str | None:
        """The bound up to which earlier runs have certainly read everything; None on the first run.

        This bound is earlier than the bookmark in two cases:

        - When a run wrote the bookmark, the local clock or Pepper's clock had not reached the bookmark's time.
        - Pepper's clock has still not reached the bookmark's time. One of the clocks is or was wrong, and the tap
          cannot know for how long.
        """
        bookmark = self.bookmark
        if bookmark is None:
            return None
        until = self.run.upper_bound.get(self.path)
        # A bookmark may also be later than `until` because someone has raised settle_seconds.
        if add_seconds(until, self.run.settings.settle_seconds) < bookmark:
            self.logger.warning(
                "%s: the bookmark %s is ahead of Pepper's clock, so a clock is or was wrong; if runs are further apart "
                "than lookback_seconds, set the bookmark to a time before the clock went wrong",
                self.name,
                bookmark,
            )
        stored = to_instant(self.stream_state.get("read_until"))
        return min(bookmark, until, parse_bound(stored) if stored else bookmark)

    def next_read_until(self, emitted_until: str) -> str:
        """Return the `read_until` of the next run if this run emits everything up to `emitted_until`."""
        return advance_bookmark(self.read_until, min(emitted_until, self.run.upper_bound.agreed))

    def reread_from(self, emitted_until: str) -> str:
        """Return the time from which the next run re-reads if this run emits everything up to `emitted_until`."""
        return subtract_seconds(self.next_read_until(emitted_until), self.run.settings.lookback_seconds)

    def write_bookmark(self, emitted_until: str, **extra: object) -> None:
        """Move the bookmark, and write a STATE. The bookmark never moves back.

        Args:
            emitted_until: The time up to which everything was emitted.
            extra: Other values that the next run needs. Empty values stay in the STATE: Meltano may merge this STATE
                with an earlier one, and an empty value then replaces the earlier value.
        """
        if self.is_test or self.replication_method != REPLICATION_INCREMENTAL:
            return
        state = self.stream_state
        bookmark, read_until = advance_bookmark(self.bookmark, emitted_until), self.next_read_until(emitted_until)
        extra["read_until"] = read_until if read_until < bookmark else None
        state.update(replication_key=self.replication_key, replication_key_value=bookmark, **extra)
        self.write_state()

    def write_state(self) -> None:
        """Add the merchant's hash to the bookmark, and write a STATE message."""
        self.stream_state["merchant"] = self.run.merchant
        self.state_manager.is_flushed = False
        self._write_state_message()

    def log_summary(self, failure: Exception | None) -> None:
        """Log the stream's result and metrics, and warn of unknown fields."""
        client = self.run.client
        traffic = client.traffic(self.path)
        log_metric(Metric.PAGES, traffic.pages, self.name)
        log_metric(Metric.RETRIES, traffic.retries, self.name)
        log_metric(Metric.WAIT, round(client.limiter.waited_seconds, 3), self.name)
        summary = f"{counted(self._records, 'record')} from {counted(traffic.pages, 'page')}"
        if traffic.retries:
            summary += f", {counted(traffic.retries, 'retry', 'retries')}"
        if failure:
            # Log the failure now, because the other streams may take a long time. The tap repeats the reason at the end
            # of the run.
            is_expected = isinstance(failure, PepperError | SingerSDKError)
            reason = str(failure) if is_expected else unexpected(self.tap_name, failure)
            self.logger.error("%s: failed after %s: %s", self.name, summary, reason)
        elif (bookmark := self.bookmark) is not None:
            lag_seconds = seconds_between(bookmark, to_bound(client.clock.now()))
            log_metric(Metric.BOOKMARK_LAG, lag_seconds, self.name)
            lag = f"{duration(timedelta(seconds=lag_seconds))} ago" if lag_seconds >= 1 else "now"
            self.logger.info("%s: done, %s, read up to %s", self.name, summary, lag)
        else:
            self.logger.info("%s: done, %s", self.name, summary)
        if self._unknown_fields:
            self._log_unknown_fields(remember=not failure)

    def _log_unknown_fields(self, *, remember: bool) -> None:
        """Log the unknown fields that no earlier run has logged.

        Args:
            remember: Whether to list the fields in the STATE, so that the next run does not log them again.
        """
        # A field's name may itself be personal data, such as an e-mail address, so no unusual name is logged.
        names = {name if _FIELD_NAME.fullmatch(name) else "(unusual name)" for name in self._unknown_fields}
        known = set(self.stream_state.get(UNKNOWN_FIELDS) or ())
        new = sorted(names - known)[: max(0, UNKNOWN_FIELDS_MAX - len(known))]
        if not new:
            return
        if remember:
            self.stream_state[UNKNOWN_FIELDS] = sorted({*known, *new})
            self.write_state()
        if self._emits_other_fields:
            self.logger.info("%s: fields that are not in the schema are in other_fields: %s", self.name, ", ".join(new))
        else:
            self.logger.warning(
                "%s: dropped fields that are not in the schema: %s; select other_fields to keep them",
                self.name,
                ", ".join(new),
            )

    # Methods that the SDK calls.

    def sync(self, context: Context | None = None) -> None:  # type: ignore[misc]
        """Sync the stream, and record the sync as a span of the run's trace."""
        with telemetry.span(f"stream {self.name}", parents_threads=True):
            super().sync(context)

    def get_records(self, context: Context | None) -> Iterable[dict[str, Any]]:  # noqa: ARG002
        """Return the decoded rows of a run. A `--test` run returns at most `ABORT_AT_RECORD_COUNT` rows."""
        self._rows = self.rows()
        return islice(map(decode_row, chain.from_iterable(self._rows)), self.ABORT_AT_RECORD_COUNT)

    def _sync_records(
        self, context: Context | None = None, *, write_messages: bool = True
    ) -> Generator[dict[str, Any], Any, Any]:
        """Sync the stream.

        A `FatalRunError` or a broken pipe ends the run. Any other error ends only this stream, and the tap raises it
        once the other streams are done.
        """
        display.update(self.name)
        failure: Exception | None = None
        try:
            if write_messages and self._emits_rows_undecoded:
                self._sync_undecoded()
            else:
                yield from super()._sync_records(context, write_messages=write_messages)
        except (FatalRunError, BrokenPipeError):
            raise
        except Exception as error:
            if self.is_test:
                raise
            telemetry.record_error(error)
            self.run.failures.append((self.name, error))
            failure = error
        finally:
            # End the threads that prefetch pages. They may still run after an error elsewhere, such as in a stream map.
            self._rows.close()
        if not self.is_test:
            self.log_summary(failure)

    @property
    def _emits_rows_undecoded(self) -> bool:
        """Whether rows can be emitted as JSON text. Stream maps and nested deselections need decoded rows."""
        has_no_maps = all(
            isinstance(stream_map, SameRecordTransform) and not stream_map.flattening_enabled
            for stream_map in self.stream_maps
        )
        return has_no_maps and not self._has_nested_deselection and not self.is_test

    def _sync_undecoded(self) -> None:
        """Write each list of rows at once. The SDK would write one row at a time."""
        self._rows = self.rows()
        with self.get_record_counter() as counter, self.get_sync_timer():
            for rows in self._rows:
                extracted_at = self.run.client.clock.now()
                self.run.writer.write_records(self.name, rows, self._stream_version, extracted_at)
                self.state_manager.is_flushed = False
                counter.increment(len(rows))
        self._finalize_state(self.stream_state)
        self._write_state_message()

    def _process_record(self, *_: object, **__: object) -> None:
        """Do nothing, because there are no child streams and no partitions."""

    def _generate_record_messages(self, record: dict[str, Any]) -> Generator[RecordMessage, None, None]:
        """Yield messages as the SDK does, but visit a record's fields only if a nested field is deselected."""
        if self._has_nested_deselection:
            pop_deselected_record_properties(record, self.schema, self.mask)
        extracted_at = self.run.client.clock.now()
        for stream_map in self.stream_maps:
            try:
                mapped = stream_map.transform(record)
            except Exception as error:  # noqa: BLE001 - a map may raise anything
                # Not even a traceback may quote the error, because it may contain a value that the map should hide.
                reason = error if isinstance(error, SingerSDKError) else type(error).__name__
                msg = f"{self.name}: a stream map fails: {reason}"
                raise ConfigError(msg) from None
            if mapped is not None:
                yield RecordMessage(
                    stream=stream_map.stream_alias,
                    record=mapped,
                    version=self._stream_version,
                    time_extracted=extracted_at,
                )

    def apply_catalog(self, catalog: Catalog) -> None:
        """Take the selection and the schema from a catalog. The keys always come from the stream's class."""
        if entry := catalog.get_stream(self.name):
            if entry.key_properties and tuple(entry.key_properties) != tuple(type(self).primary_keys):
                self.logger.warning(
                    "%s: ignored the catalog's key_properties; the key is %s",
                    self.name,
                    ", ".join(type(self).primary_keys),
                )
            if entry.metadata.resolve_selection().get((), True):
                self._warn_of_missing_fields(entry)
            added = {*self._key_fields, *self.automatic_fields}
            if entry.schema.additionalProperties:
                # The catalog comes from an older version of the tap, which emitted unknown fields next to the declared
                # ones. It lacks `other_fields`.
                added.add(OTHER_FIELDS)
            given = entry.schema.properties or {}
            own = {name: Schema.from_dict(field) for name, field in self.schema["properties"].items() if name in added}
            entry.schema.properties = {**own, **given}
        super().apply_catalog(catalog)
        if self.forced_replication_method not in {None, REPLICATION_FULL_TABLE, REPLICATION_INCREMENTAL}:
            self.logger.warning(
                "%s: ignored the catalog's replication method, expected INCREMENTAL or FULL_TABLE", self.name
            )
            self.forced_replication_method = None
        self.primary_keys = type(self).primary_keys
        self.replication_key = type(self).replication_key
        if entry:
            # The SDK makes the stream map from this entry, so the entry needs the same keys and metadata.
            entry.key_properties = self.primary_keys
            entry.metadata = self.metadata

    def _warn_of_missing_fields(self, entry: CatalogEntry) -> None:
        if names := [name for name in self._key_fields if entry.metadata["properties", name].selected is False]:
            # Meltano also deselects these fields if `select` only names others, so this is no reason for a warning.
            self.logger.info(
                "%s: the catalog deselects %s; still emitted, because the key or the bookmark needs it",
                self.name,
                ", ".join(names),
            )
        if missing := not_emitted(self.balance_fields, entry.metadata, entry.schema.properties or {}):
            self.logger.warning(
                "%s: the catalog leaves out %s, without which target-crm cannot keep balances",
                self.name,
                ", ".join(missing),
            )

    @property
    def _key_fields(self) -> tuple[str, ...]:
        """The fields that form the key or the bookmark."""
        return tuple(dict.fromkeys(filter(None, (*type(self).primary_keys, type(self).replication_key))))

    @property
    def metadata(self) -> MetadataMapping:
        """The catalog's metadata.

        Hidden fields are deselected by default. Key fields and automatic fields are always selected.
        """
        metadata = super().metadata
        for name in (*self._key_fields, *self.automatic_fields):
            metadata["properties", name].inclusion = Metadata.InclusionType.AUTOMATIC
        for name in self.hidden_fields:
            field = metadata["properties", name]
            if field.selected is None and field.selected_by_default is None:
                field.selected_by_default = False
        return metadata

    def get_batch_config(self, config: Mapping[str, Any]) -> None:
        """Return None to turn off BATCH messages. The SDK would write them after the STATE that covers their rows."""

    # The SDK would take bookmarks from rows. The tap sets them itself, because rows arrive in any order, and because a
    # window without rows must also move the bookmark.

    def _increment_stream_state(self, latest_record: dict[str, Any], *, context: Context | None = None) -> None:
        pass

    def _write_starting_replication_value(self, context: Context | None) -> None:
        pass

    def get_replication_key_signpost(self, context: Context | None = None) -> None:
        """Return None, so that the SDK sets no limit of its own. The run has one upper bound for all streams."""


def not_emitted(fields: Sequence[str], metadata: MetadataMapping, properties: Collection[str]) -> list[str]:
    """Return which of these fields a catalog deselects or lacks. If it leaves out a parent field, return the parent."""
    found = [name for field in fields if (name := field.split(".")[0]) not in properties]
    mask = metadata.resolve_selection()
    for field in fields:
        names = field.split(".")
        for depth in range(1, len(names) + 1):
            breadcrumb = tuple(part for name in names[:depth] for part in ("properties", name))
            if not mask[breadcrumb]:
                found.append(".".join(names[:depth]))
                break
    return list(dict.fromkeys(found))
