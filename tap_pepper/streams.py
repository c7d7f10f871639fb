"""Pepper's endpoints as Singer streams: a declaration each, over the two ways in which they are followed."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from functools import cached_property
from importlib.resources import files
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
from singer_sdk import SchemaDirectory, Stream, StreamSchema
from singer_sdk.helpers.conform import TypeConformanceLevel
from singer_sdk.singerlib.catalog import REPLICATION_INCREMENTAL

from tap_pepper.errors import FixSettings
from tap_pepper.windows import (
    Window,
    advanced,
    bound_of,
    earlier,
    instant_of,
    reaches,
    read_bound,
    resume_after,
    windows,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from singer_sdk.helpers.types import Context
    from singer_sdk.singerlib import Catalog, MetadataMapping

    from tap_pepper.tap import TapPepper

Row = dict[str, Any]

TRIAL_PAGES_MAX = 10
"""Pages that a trial run (`--test`) looks at in one stream, to find its rows."""
TRIAL_WINDOW_HOURS = 100 * 366 * 24

_encoder = msgspec.json.Encoder(decimal_format="number", order="sorted")


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

    def rows(self) -> Iterator[Row]:
        """All rows of this run; bookmarks are written in between, each as soon as it is true."""
        return self.walk({}, lambda row: row)

    def walk(self, query: Mapping[str, str], take: Callable[[Row], Row | None], span: str = "") -> Iterator[Row]:
        """Walk through the pages of one query, and log what came.

        Args:
            query: The query parameters that choose the rows.
            take: Gives a row as it is to be emitted; None where the query had asked for others.
            span: The time that the query covers, for the log.
        """
        records = pages = others = 0
        for page in islice(self._tap.client.pages(self.path, query), TRIAL_PAGES_MAX if self.on_trial else None):
            pages += 1
            for row in page.rows:
                taken = take(row)
                if taken is None:
                    others += 1
                    continue
                records += 1
                yield taken if self.fields is None else {name: taken[name] for name in self.fields if name in taken}
        unasked = f", {others} more that were not asked for" if others else ""
        self.logger.info("%s:%s %d records, %d pages%s", self.name, span and f" {span}:", records, pages, unasked)

    @cached_property
    def fields(self) -> tuple[str, ...] | None:
        """The top-level fields to emit, in the schema's order; None means all that come."""
        schema = self.effective_schema
        if schema.get("additionalProperties"):
            return None
        return tuple(name for name in schema["properties"] if self.mask["properties", name])

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

    def checkpoint(self, drained_until: str) -> None:
        """Say in a STATE message that everything up to a bound was emitted. The bookmark never goes back."""
        if self.on_trial or self.replication_method != REPLICATION_INCREMENTAL:
            return
        self.stream_state.update(
            replication_key=self.replication_key, replication_key_value=advanced(self.bookmark, drained_until)
        )
        self.state_manager.is_flushed = False
        self._write_state_message()

    # What the SDK calls.

    def get_records(self, context: Context | None) -> Iterable[Row]:  # noqa: ARG002
        """The rows of a run, or the first few on a trial."""
        return islice(self.rows(), self.ABORT_AT_RECORD_COUNT)

    def apply_catalog(self, catalog: Catalog) -> None:
        """Take selection and schema from a catalog. The keys are the stream's own, also where the catalog has none."""
        super().apply_catalog(catalog)
        self.primary_keys = type(self).primary_keys
        self.replication_key = type(self).replication_key
        if entry := catalog.get_stream(self.name):
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

    def _increment_stream_state(self, latest_record: Row, *, context: Context | None = None) -> None:
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

    def rows(self) -> Iterator[Row]:
        """What changed since the bookmark, less the lookback; everything without one.

        The bookmark is the run's upper bound, not the newest change that came: a row that changes while its page has
        long been read is there to be found by the next run.
        """
        until = self._tap.upper_bound(self.path)
        query, since, bookmark = self.query(), None, self.bookmark
        if bookmark is not None:
            since = earlier(bookmark, self._tap.settings.lookback_seconds)
            query[self.since_parameter] = since
        yield from self.walk(query, lambda row: changed(row, since), f"since {since}" if since else "from the start")
        self.checkpoint(until)


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

    def rows(self) -> Iterator[Row]:
        """The actions from the bookmark, less the lookback, to the run's upper bound, a window at a time."""
        settings = self._tap.settings
        until = self._tap.upper_bound(self.path, self.query(_last_second(self._tap.client.now())))
        after = resume_after(
            bookmark=self.bookmark, start=settings.start, until=until, lookback_seconds=settings.lookback_seconds
        )
        types = frozenset(settings.action_types)
        for window in windows(after, until, TRIAL_WINDOW_HOURS if self.on_trial else settings.window_hours):
            yield from self.walk(self.query(window), _taker(window, types), f"window {window}")
            self.checkpoint(window.until)

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
    instant = instant_of(row.get("updatedAt"))
    if instant is None:
        return row
    row["updatedAt"] = instant
    return row if since is None or reaches(instant, since) else None


def dated(row: Row) -> Row:
    """An action with its time at the top, as `when_timestamp`, and a key.

    The time is None where `when.timestamp` is missing or none; who loads the action judges it. An action without `_id`
    gets a key made from its content, the same each time that it is read.
    """
    when = row.get("when")
    if row.get("_id") in (None, ""):
        content = {name: value for name, value in row.items() if name != "_id"}
        row["_id"] = f"content-{hashlib.sha256(_encoder.encode(content)).hexdigest()}"
    row["when_timestamp"] = instant_of(when.get("timestamp")) if isinstance(when, dict) else None
    return row


def _taker(window: Window, types: frozenset[str]) -> Callable[[Row], Row | None]:
    """Check rows against what was asked for, as the server may have ignored it."""

    def take(row: Row) -> Row | None:
        if types and row.get("type") not in types:
            return None
        action = dated(row)
        instant = action["when_timestamp"]
        return action if instant is None or window.holds(instant) else None

    return take


def _last_second(now: datetime) -> Window:
    """A window that hardly holds an action: enough to be told the time."""
    return Window(bound_of(now - timedelta(seconds=1)), bound_of(now))
